"""Sphinx extension of the book: runs the study where chapters are missing, and registers what pages are written with.

Roles and directives are described in cryosentinel_directives, what every page gets in cryosentinel_pages.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from sphinx.errors import ExtensionError
from sphinx.util import logging

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "scripts")]

import cryosentinel_directives  # noqa: E402
from address import BRANCH, launch_links, read_address  # noqa: E402
from cryosentinel_figures import Sources  # noqa: E402
from cryosentinel_nodes import depart_html, metric, visit_html, write_nothing  # noqa: E402
from cryosentinel_pages import add_data_box, describe_images, fold_cells  # noqa: E402

LOG = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------- chapters


def missing_chapters(book: Path) -> list[str]:
    """Executed notebooks that the table of contents names and the folder lacks."""
    toc = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in toc.get("parts", []) for chapter in part.get("chapters", [])]
    return [name for name in files if name.startswith("chapters/") and not (book / f"{name}.ipynb").is_file()]


def make_chapters(book: Path) -> None:
    """Run the quick study where a chapter is missing; its output is shown as it comes.

    Raises:
        ExtensionError: the study failed, or left a chapter out.
    """
    missing = missing_chapters(book)
    if not missing:
        return
    LOG.info("Not executed yet: %s. Running the quick study first.", ", ".join(missing))
    command = [sys.executable, "-m", "cryosentinel", "study", "--preset", "quick"]
    # Its chapters go beside this book's pages, wherever the command finds its notebooks.
    command += ["--chapters", str(book / "chapters")]
    status = subprocess.run(command, cwd=book.parent, check=False).returncode
    if status:
        raise ExtensionError(
            f"The quick study stopped with status {status}; its last lines above say why. "
            "Run it alone with: cryosentinel study --preset quick."
        )
    missing = missing_chapters(book)
    if missing:
        raise ExtensionError(f"The study ended without the chapters {', '.join(missing)} of _toc.yml.")


# ------------------------------------------------------------------------------------------------------------- set-up


def _configure(app: Any, config: Any) -> None:
    """Before the table of contents is read: chapters, offline assets, the repository's address."""
    book = Path(app.srcdir)
    make_chapters(book)
    app.cryosentinel_sources = Sources.of_book(book)
    config.html_static_path = [*config.html_static_path, "_vendor"]
    # Live cells need a service on the network, and the extension that Jupyter Book always loads for them declares its
    # variables twice, an error on every page.
    for event in ("env-before-read-docs", "doctree-resolved"):
        listeners = app.events.listeners[event]
        listeners[:] = [each for each in listeners if not each.handler.__module__.startswith("sphinx_thebe")]
    config.html_context.setdefault("default_mode", "auto")
    address = read_address(book.parent)
    options = config.html_theme_options
    options |= {"repository_url": address, "navbar_persistent": []}  # one search field is enough
    if address:
        options |= {"repository_branch": BRANCH, "path_to_docs": "book"}
        options |= {"use_repository_button": True, "use_issues_button": True}


def _launch_buttons(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Chapters open in Binder and Colab as the notebooks they were executed from; without an address there is none."""
    if not page.startswith("chapters/"):
        return
    notebook = f"notebooks/{page.removeprefix('chapters/')}.ipynb"
    links = launch_links(read_address(Path(app.srcdir).parent), notebook)
    if links:
        buttons = [
            {"type": "link", "text": name, "tooltip": f"Open the notebook in {name}", "icon": "fas fa-play", "url": url}
            for name, url in links.items()
        ]
        group = {"type": "group", "tooltip": "Run this notebook", "icon": "fas fa-rocket", "buttons": buttons}
        context["header_buttons"].append(group | {"label": "launch-buttons"})


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    text_alone = (write_nothing, write_nothing)
    app.add_node(metric, html=(visit_html, depart_html), latex=text_alone, text=text_alone)
    app.add_role("metric", cryosentinel_directives.MetricRole())
    app.add_role("trained", cryosentinel_directives.TrainedRole())
    for name, directive in cryosentinel_directives.DIRECTIVES.items():
        app.add_directive(name, directive)
    app.connect("source-read", fold_cells)
    app.connect("doctree-read", describe_images)
    app.connect("doctree-read", add_data_box)
    app.connect("config-inited", _configure, priority=100)  # sphinx_external_toc reads the contents at 900
    app.connect("html-page-context", _launch_buttons, priority=502)  # the theme makes its buttons at 501
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
