"""The file that GPU figures are kept in: written row by row, and never replaced by those of a CPU."""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.accelerator import Device
from benchmarks.harness import BenchmarkError
from cryosentinel.files import write_json

RESULTS = Path(__file__).with_name("gpu_results.json")


class Results:
    """The rows, written to a file whenever one is added."""

    def __init__(self, out: Path | None, device: Device, model: str, size: int) -> None:
        import torch

        self.out, self.began = out, time.monotonic()
        self.record: dict[str, Any] = {
            "device": device.name,
            "kind": device.kind,
            "torch": torch.__version__,
            "model": f"{model}, {size} px, random weights",
            "date": date.today().isoformat(),
            "complete": False,
            "rows": [],
        }

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def add(self, name: str, what: str, value: float | None, unit: str, **more: Any) -> None:
        """Add a row.

        Args:
            name: its id.
            what: what was measured.
            value: the figure; None where it could not be measured.
            unit: of the value.
            more: ``goal``; ``share`` of the measured matrix rate; ``reason`` why there is no value.
        """
        row = {"id": name, "what": what, "value": value, "unit": unit, "goal": None, "share": None, **more}
        self.record["rows"].append(row)
        shown = f"{value:.4g} {unit}" if value is not None else f"none: {row['reason']}"
        share = "" if row["share"] is None else f", {row['share']:.1%} of the matrix rate"
        self.say(f"{what}: {shown}{share}" + (f" (goal: {row['goal']})" if row["goal"] else ""))
        self.write()

    def write(self) -> None:
        """Write the file anew."""
        if self.out is not None:
            write_json(self.out, self.record)


def refuse_to_replace(out: Path, kind: str) -> None:
    """Keep a CPU run from taking the place of a GPU's figures.

    Raises:
        BenchmarkError: ``out`` holds them, or is no file of this script.
    """
    if not out.is_file():
        return
    try:
        old = json.loads(out.read_text(encoding="utf-8"))
        of, device = old["kind"], old["device"]
    except (ValueError, KeyError, TypeError):
        raise BenchmarkError(f"{out} is not a result of this script; move it away or give another --out.") from None
    if of == "cuda" and kind != "cuda":
        raise BenchmarkError(
            f"{out} holds the figures of {device}, which a run on the CPU does not replace; give another --out."
        )
