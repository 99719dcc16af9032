"""Which processor a wall time was measured on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from cryosentinel.precision import native_bfloat16


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def machine() -> str:
    """Processor, cores, and whether it computes in bfloat16 natively, which decides what a run takes."""
    native = "native" if native_bfloat16("cpu") else "not native"
    return f"{processor()}, {os.cpu_count()} cores, bf16 {native}"
