"""The repository's address: read from pyproject.toml, the one place where it stands, and carried to where it shows.

``python scripts/address.py``      brings README.md, CITATION.cff and the notebooks in step with pyproject.toml.
``python scripts/address.py URL``  sets the address first, for instance https://github.com/OWNER/NAME.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"
_IMAGES = {
    "Binder": "https://mybinder.org/badge_logo.svg",
    "Colab": "https://colab.research.google.com/assets/colab-badge.svg",
}
_FORM = re.compile(r"https://[^/\s]+/[^/\s]+/[^/\s]+")
_BADGES = re.compile(r"(<!-- badges: scripts/address.py -->\n)(?:.*?\n)?(<!-- /badges -->)", re.DOTALL)
_CITATION = re.compile(r"^(?:# )?repository-code:.*$", re.MULTILINE)
_INSTALL = re.compile(r'(\baddress = \\")[^"\\]*(\\")')  # the first cell of a notebook, as JSON writes it
_UNSET = '# repository-code: ""  (scripts/address.py sets it)'


def read_address(root: Path = ROOT) -> str:
    """The address in ``[project.urls] Repository``, without a closing slash; empty until an owner sets it."""
    pyproject = root / "pyproject.toml"
    if not pyproject.is_file():
        return ""
    urls = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"].get("urls", {})
    return str(urls.get("Repository", "")).rstrip("/")


def launch_links(address: str, notebook: str) -> dict[str, str]:
    """Where a notebook of the repository can be run: name of the service -> link.

    Args:
        address: of the repository; empty gives no links.
        notebook: path inside the repository.
    """
    if not address.startswith("https://github.com/"):
        return {}
    owner_name = address.removeprefix("https://github.com/")
    return {
        "Binder": f"https://mybinder.org/v2/gh/{owner_name}/{BRANCH}?urlpath=lab/tree/{notebook}",
        "Colab": f"https://colab.research.google.com/github/{owner_name}/blob/{BRANCH}/{notebook}",
    }


def _badge(name: str, link: str) -> str:
    return f"[![{name}]({_IMAGES[name]})]({link})"


def badges(address: str) -> str:
    """The README's badges as Markdown lines; empty while there is no address, so that no badge is dead."""
    if not address.startswith("https://github.com/"):
        return ""
    links = launch_links(address, "notebooks/03_evaluate.ipynb")
    workflow = f"{address}/actions/workflows/tests.yml"
    return "\n".join(
        [
            f"[![tests]({workflow}/badge.svg)]({workflow})",
            *(_badge(name, link) for name, link in links.items()),
        ]
    )


def in_step(readme: str, citation: str, address: str) -> tuple[str, str]:
    """README and CITATION.cff as they should read for an address."""
    lines = badges(address)
    readme = _BADGES.sub(lambda m: m[1] + (lines + "\n" if lines else "") + m[2], readme)
    citation = _CITATION.sub(f'repository-code: "{address}"' if address else _UNSET, citation)
    return readme, citation


def notebook_in_step(text: str, address: str, notebook: str = "notebooks/03_evaluate.ipynb") -> str:
    """A notebook as it should read for an address: badges below its title, and a cell that installs from there.

    Args:
        text: the notebook's JSON.
        address: of the repository; empty takes the badges away.
        notebook: path inside the repository.
    """
    content = json.loads(_INSTALL.sub(lambda match: f"{match[1]}{address}{match[2]}", text))
    lines = content["cells"][0]["source"]
    if len(lines) > 2 and lines[2].startswith("[!["):
        del lines[1:3]  # an empty line and the badges of another address
    if badges := [_badge(name, link) for name, link in launch_links(address, notebook).items()]:
        lines[1:1] = ["\n", " ".join(badges) + "\n"]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def set_address(pyproject: str, address: str) -> str:
    """pyproject.toml's text with the address in ``[project.urls]``; what ``git clone`` takes, ``.git``, is cut off.

    Raises:
        ValueError: the address does not have the form https://HOST/OWNER/NAME.
    """
    address = address.rstrip("/").removesuffix(".git")
    if not _FORM.fullmatch(address):
        raise ValueError(f"{address!r} does not have the form https://HOST/OWNER/NAME.")
    table = f'[project.urls]\nRepository = "{address}"'
    return re.sub(r'^(?:# )?\[project\.urls\]\n(?:# )?Repository = ".*"$', table, pyproject, flags=re.MULTILINE)


def main(argv: list[str]) -> int:
    """Set the address where one is given, then bring everything in step."""
    if argv:
        path = ROOT / "pyproject.toml"
        try:
            path.write_text(set_address(path.read_text(encoding="utf-8"), argv[0]), encoding="utf-8")
        except ValueError as error:
            print(f"address: {error}", file=sys.stderr)
            return 2
    readme, citation = ROOT / "README.md", ROOT / "CITATION.cff"
    address = read_address()
    texts = in_step(readme.read_text(encoding="utf-8"), citation.read_text(encoding="utf-8"), address)
    for path, text in zip((readme, citation), texts, strict=True):
        path.write_text(text, encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = notebook_in_step(path.read_text(encoding="utf-8"), address, f"notebooks/{path.name}")
        path.write_text(text, encoding="utf-8")
    print(f"The repository's address: {address or 'not set'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
