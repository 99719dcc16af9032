"""Put the study's cover where README and book show it: ``make picture`` after ``make study``.

``python scripts/picture.py [FIGURE]``; the figure is cover.png of the last study by default.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cryosentinel import paths
from cryosentinel.files import replacing, write_text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path("book/_static/cover.png")
_BLOCK = re.compile(r"(<!-- picture: scripts/picture.py -->\n)(?:.*?\n)?(<!-- /picture -->)", re.DOTALL)
ALT = (
    "One simulated test chip: the scene, the lakes in it by truth, label and prediction, and the predicted probability"
)


def with_picture(readme: str, there: bool) -> str:
    """The README's text with the picture, or without a dead link to it."""
    line = f"![{ALT}]({PICTURE.as_posix()})\n" if there else ""
    return _BLOCK.sub(lambda match: match[1] + line + match[2], readme)


def main(argv: list[str]) -> int:
    """Copy the cover and bring the README in step."""
    source = Path(argv[0]) if argv else paths.study() / "cover.png"
    if not source.is_file():
        print(f"picture: there is no {source}; run the study first: make study.", file=sys.stderr)
        return 2
    with replacing(ROOT / PICTURE) as part:
        part.write_bytes(source.read_bytes())
    readme = ROOT / "README.md"
    write_text(readme, with_picture(readme.read_text(encoding="utf-8"), there=True))
    print(f"{source} -> {ROOT / PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
