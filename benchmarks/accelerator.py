"""Timing, memory and limits of the device that a network runs on, GPU or CPU alike."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import BenchmarkError, machine


class Device:
    """The device at hand.

    Attributes:
        kind: "cuda" or "cpu".
        name: of the card, or of the processor.
        warmup: calls before a measurement that are not counted.
    """

    def __init__(self, wanted: str = "auto") -> None:
        """Take the device asked for.

        Args:
            wanted: "cuda", "cpu", or "auto" for the GPU where there is one.

        Raises:
            BenchmarkError: a GPU is asked for and torch finds none.
        """
        import torch

        if wanted == "cuda" and not torch.cuda.is_available():
            raise BenchmarkError("torch finds no GPU here; leave --device out to check the script on the CPU.")
        self.kind = "cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda"
        self.warmup = 3 if self.kind == "cuda" else 1
        if self.kind == "cuda":
            self.name = torch.cuda.get_device_name()
        else:
            threads = torch.get_num_threads()
            self.name = f"{machine()['cpu']}, {threads} thread{'s' if threads > 1 else ''}"

    def wait(self) -> None:
        """Wait until everything that was sent to the GPU is done."""
        import torch

        if self.kind == "cuda":
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give back memory that nothing holds any more."""
        import torch

        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def watch_memory(self) -> None:
        """Begin a new peak (on a GPU; a process keeps its own for life)."""
        import torch

        if self.kind == "cuda":
            self.wait()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """Peak memory: on a GPU of the tensors since :meth:`watch_memory`, on a CPU of the process since it began."""
        import torch

        if self.kind == "cuda":
            self.wait()
            return torch.cuda.max_memory_allocated() / 2**30
        return peak_resident_gib()

    def seconds(self, task: Callable[[], object], rounds: int, warmup: int | None = None) -> list[float]:
        """Seconds of each of ``rounds`` calls, every one waited for, after ``warmup`` calls that are not counted."""
        for _ in range(self.warmup if warmup is None else warmup):
            task()
        found = []
        for _ in range(rounds):
            self.wait()
            begun = time.perf_counter()
            task()
            self.wait()
            found.append(time.perf_counter() - begun)
        return found

    def matrix_rate(self, side: int, rounds: int, products: int = 10) -> float:
        """Operations a second of square bfloat16 matrix products, the best of ``rounds``.

        Args:
            side: rows and columns of the matrices.
            rounds: how often to time.
            products: multiplications a timing, so that waiting for the GPU weighs nothing.
        """
        import torch

        a, b = (torch.randn(side, side, device=self.kind).to(torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)

        def multiply() -> None:
            for _ in range(products):
                torch.mm(a, b, out=out)

        return 2 * side**3 * products / min(self.seconds(multiply, rounds))


def peak_resident_gib() -> float:
    """Largest resident set that this program has had, in GiB."""
    try:  # Linux hands ru_maxrss down from the program that started this one; VmHWM is this one's own
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full: torch's own, or that of a library below it."""
    import torch

    words = ("out of memory", "cudnn_status_alloc_failed", "cublas_status_alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)


def largest_batch(
    step: Callable[[int], Any], start: int, limit: int, release: Callable[[], None], least: int = 2
) -> int:
    """The largest batch whose step fits into memory: doubled until it does not, then bisected.

    Args:
        step: takes the batch size; raises ``torch.OutOfMemoryError`` where it does not fit.
        start: what to try first.
        limit: try nothing above it.
        release: called after every try.
        least: the smallest batch that makes sense.

    Raises:
        BenchmarkError: not even ``least`` fits.
    """
    fitting, failing = least - 1, limit + 1
    trial = min(start, limit)
    while failing - fitting > 1:
        if _fits(step, trial):
            fitting = trial
        else:
            failing = trial
        release()  # not before the error is gone, whose frames hold the tensors of the step
        trial = min(2 * fitting, limit) if failing > limit else (fitting + failing) // 2
    if fitting < least:
        raise BenchmarkError(f"Not even a batch of {least} fits into the memory of this device.")
    return fitting


def _fits(step: Callable[[int], Any], count: int) -> bool:
    try:
        step(count)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    return True
