"""Apply each deliberate bug of tests/mutants/*.toml to a copy of the repository, and check that its tests notice.

    python scripts/mutants.py                 # all
    python scripts/mutants.py losses scene    # those whose file or name contains one of the words

An entry of a file is a table ``[[mutant]]`` with ``name`` (what is broken, in words), ``file``, ``old`` and ``new``
(text that occurs exactly once in the file, and what takes its place), and ``tests`` (what pytest is to run). A mutant
counts as noticed when pytest fails with it; the exit status is 1 if one survived or could not be applied.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("cryosentinel", "tests", "notebooks", "book", "benchmarks", "scripts", "pyproject.toml", "README.md",
          "environment.yml", "_config.yml", "configs", "CONTRIBUTING.md", "Makefile")  # fmt: skip


def catalogue(words: list[str]) -> list[dict[str, Any]]:
    """The entries whose file of mutants or name contains one of the words; all without words."""
    found = []
    for path in sorted((ROOT / "tests" / "mutants").glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            if not words or any(word in f"{path.stem} {entry['name']}" for word in words):
                found.append({"room": path.stem, **entry})
    return found


def verdict(entry: dict[str, Any], folder: Path) -> str:
    """Break the copy in ``folder``, run the tests, mend it again; say whether they noticed."""
    path = folder / entry["file"]
    text = path.read_text(encoding="utf-8")
    if text.count(entry["old"]) != 1:
        return f"NOT APPLIED: its text occurs {text.count(entry['old'])} times in {entry['file']}"
    path.write_text(text.replace(entry["old"], entry["new"]), encoding="utf-8")
    try:
        tests = entry["tests"] if isinstance(entry["tests"], list) else entry["tests"].split()
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        status = subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=False).returncode
    finally:
        path.write_text(text, encoding="utf-8")
    # 1: a test failed; 2: the broken module cannot even be imported, which a run notices too.
    return {0: "SURVIVED", 1: "noticed", 2: "noticed"}.get(status, f"NOT TRIED: pytest ended with status {status}")


def main(words: list[str]) -> int:
    """Try the mutants and print a line for each."""
    entries = catalogue(words)
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(
                    source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "_build")
                )
            else:
                shutil.copy2(source, folder / name, follow_symlinks=False)
        for number, entry in enumerate(entries, start=1):
            begun = time.monotonic()
            found = verdict(entry, folder)
            missed += found != "noticed"
            seconds = time.monotonic() - begun
            print(f"[{number}/{len(entries)}] {entry['room']}: {entry['name']}: {found} ({seconds:.0f} s)", flush=True)
    print(f"{len(entries) - missed} of {len(entries)} deliberate bugs noticed")
    return 1 if missed or not entries else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
