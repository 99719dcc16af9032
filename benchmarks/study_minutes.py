"""Wall time of the study from nothing to the built book, after installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IDS: tuple[str, ...] = ("study_minutes",)
ROOT = Path(__file__).resolve().parents[1]


def _minutes(preset: str, folder: Path) -> float:
    """Minutes of the study and of the book's build, everything generated going to ``folder``."""
    book = folder / "book"
    outputs = folder / "outputs"
    environment = {**os.environ, "CRYOSENTINEL_OUTPUTS": str(outputs)}
    study = [sys.executable, "-m", "cryosentinel", "study", "--preset", preset]
    begun = time.perf_counter()
    subprocess.run([*study, "--chapters", str(book / "chapters")], cwd=ROOT, env=environment, check=True)
    build = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(book)]
    subprocess.run(build, cwd=ROOT, env=environment, check=True)
    return (time.perf_counter() - begun) / 60


def run(quick: bool) -> list[dict[str, Any]]:
    """The quick study and its book in an empty folder; ``quick`` takes the tiny preset to see that it works."""
    preset = "tiny" if quick else "quick"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        leave = shutil.ignore_patterns("_build", "chapters", "__pycache__")
        shutil.copytree(ROOT / "book", folder / "book", ignore=leave)
        for part in ("scripts", "pyproject.toml"):  # what the book's extension reads beside the book
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        minutes = _minutes(preset, folder)
    return [
        {
            "id": "study_minutes",
            "what": f"cryosentinel study --preset {preset} and the book, from nothing, after installation",
            "ours": minutes,
            "peer": None,
            "peer_name": "",
            "unit": "min",
            "ratio": None,
            "goal": "at most 10 min on 2 cores",
        }
    ]
