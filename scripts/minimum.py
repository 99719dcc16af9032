"""Print pip constraints that hold every direct dependency at its floor in pyproject.toml: CI's minimum leg.

``python scripts/minimum.py > minimum.txt && PIP_CONSTRAINT=minimum.txt make test``
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FLOOR = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9][0-9A-Za-z.]*)")


def requirements(root: Path = ROOT) -> list[str]:
    """All dependencies of pyproject.toml, those of the extras included, as written."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]


def floor(requirement: str) -> str:
    """``name==lowest`` of a requirement.

    Raises:
        ValueError: the requirement has no floor.
    """
    match = _FLOOR.match(requirement)
    if match is None:
        raise ValueError(f"The requirement {requirement!r} has no floor; add >= and the reason beside it.")
    return f"{match[1]}=={match[2]}"


if __name__ == "__main__":
    print("\n".join(map(floor, requirements())))
