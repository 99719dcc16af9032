"""Sphinx extension of the book: runs the study where chapters are missing, and writes its figures into the prose.

Roles and directives, all of which fail the build with a sentence where a figure is missing:

``{metric}`NAME [FORMAT] [interval] [n] [data]```  one figure; its tooltip says what it is and where it comes from.
``{comparison}``                                   published figures beside those of the study and the standard run.
``{benchmarks} [PREFIX]``                          the table of benchmarks/results.json, ids that begin so.
``{seeds}``                                        mean and spread over the seeds of book/seeds.json.
``{ledger}``                                       the published claims, each with its check and its status.
``{standard-run}``                                 which run the standard figures come from, or that there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "scripts")]

from address import BRANCH, launch_links, read_address  # noqa: E402
from cryosentinel_figures import Figure, FigureError, Request, Sources, written  # noqa: E402

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


# ----------------------------------------------------------------------------------------------------------- figures


class metric(nodes.inline):
    """A figure in the text."""


def _visit_html(translator: Any, node: metric) -> None:
    title = escape(node["explanation"], quote=True)
    translator.body.append(f'<span class="metric metric-{node["data"]}" title="{title}">')


def _depart_html(translator: Any, node: metric) -> None:
    translator.body.append("</span>")


def _pass(translator: Any, node: metric) -> None:
    """Other formats show the text alone."""


def _sources(env: Any) -> Sources:
    return env.app.cryosentinel_sources


def _figure(env: Any, reference: str) -> Figure:
    """Look a figure up and make the page depend on the file that it stands in."""
    sources = _sources(env)
    for path in sources.paths.values():  # a file that comes into being later counts as a change too
        env.note_dependency(str(path.resolve()))
    return sources.figure(reference)


def _node(figure: Figure, text: str, spec: str = "") -> metric:
    return metric("", text, data=figure.data, explanation=figure.explanation(spec))


class MetricRole(SphinxRole):
    """``{metric}`NAME [FORMAT] [interval] [n] [data]```."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The figure as a node."""
        try:
            request = Request.parse(self.text)
            figure = _figure(self.env, request.reference)
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None
        return [_node(figure, written(figure, request), request.spec)], []


def _table(titles: list[str], rows: list[list[nodes.Node | str]], classes: list[str]) -> nodes.table:
    table = nodes.table(classes=classes)
    group = nodes.tgroup(cols=len(titles))
    table += group
    group += [nodes.colspec(colwidth=1) for _ in titles]

    def row(cells: list[nodes.Node | str]) -> nodes.row:
        line = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            paragraph = nodes.paragraph()
            paragraph += nodes.Text(cell) if isinstance(cell, str) else cell
            entry += paragraph
            line += entry
        return line

    head, body = nodes.thead(), nodes.tbody()
    head += row(list(titles))
    body += [row(cells) for cells in rows]
    group += head
    group += body
    return table


class Comparison(SphinxDirective):
    """``{comparison}``: a row a figure, published, study and standard run side by side.

    Each line of the content is ``NAME | what it is in words``; the option ``format`` sets the numbers' format.
    """

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"format": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """One table."""
        spec = self.options.get("format", "")
        standard = _sources(self.env).has_standard()
        rows: list[list[nodes.Node | str]] = []
        try:
            for line in self.content:
                name, _, words = (part.strip() for part in line.partition("|"))
                if not name:
                    continue
                cells: list[nodes.Node | str] = [words or name]
                for prefix in ("published:", "", "standard:"):
                    figure = _figure(self.env, prefix + name)
                    missing = "not run" if prefix == "standard:" and not standard else f"none: {figure.reason}"
                    text = figure.number(spec) if figure.value is not None else missing
                    if figure.interval(spec):
                        text += f" ({figure.interval(spec)})"
                    cells.append(_node(figure, text, spec))
                rows.append(cells)
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None
        titles = ["Figure", "Published system, real chips", "This study, simulated chips", "Standard run, simulated"]
        return [_table(titles, rows, ["comparison"])]


class StandardRun(SphinxDirective):
    """``{standard-run}``: a sentence that names the standard run, or says that it has not been made."""

    def run(self) -> list[nodes.Node]:
        """One paragraph."""
        sources = _sources(self.env)
        path = sources.paths["standard"]
        self.env.note_dependency(str(path.resolve()))
        paragraph = nodes.paragraph()
        if not sources.has_standard():
            paragraph += nodes.Text("The standard run has not been made yet: make study PRESET=standard makes it.")
            return [paragraph]
        try:
            sources.records("standard")
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None
        paragraph += nodes.Text(f"Standard figures come from the {sources.standard_run}, made with ")
        paragraph += nodes.literal("", sources.standard_command)
        paragraph += nodes.Text(".")
        return [paragraph]


class Seeds(SphinxDirective):
    """``{seeds}``: mean, spread and single values of figures over the seeds of book/seeds.json.

    Each line of the content is ``NAME | what it is in words``. Where no record is committed a sentence says so.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One table and a paragraph."""
        path = Path(self.env.app.srcdir) / "seeds.json"
        self.env.note_dependency(str(path.resolve()))
        paragraph = nodes.paragraph()
        if not path.is_file():
            paragraph += nodes.Text("No record of several seeds is there yet; this makes one: ")
            paragraph += nodes.literal("", "cryosentinel study --seeds 17,42,1337")
            return [paragraph]
        record = json.loads(path.read_text(encoding="utf-8"))
        rows: list[list[nodes.Node | str]] = []
        for line in self.content:
            name, _, words = (part.strip() for part in line.partition("|"))
            if not name:
                continue
            if name not in record["figures"]:
                raise ExtensionError(
                    f"{self.env.docname}: no figure is called {name!r} in {path}, or no seed moves it."
                )
            entry = record["figures"][name]
            singles = [f"{entry['values'][str(seed)]:.3f}" for seed in record["seeds"]]
            rows.append([words or name, f"{entry['mean']:.3f} ± {entry['spread']:.3f}", *singles])
        paragraph += nodes.Text(
            f"Preset {record['preset']}, simulated chips, commit {record['commit'][:10]}, made with "
        )
        paragraph += nodes.literal("", record["command"])
        paragraph += nodes.Text(".")
        titles = ["Figure", "Mean ± spread", *(f"Seed {seed}" for seed in record["seeds"])]
        return [_table(titles, rows, ["seeds"]), paragraph]


class Ledger(SphinxDirective):
    """``{ledger}``: the claims of the study's ledger.json, or a sentence where no study has written one."""

    def run(self) -> list[nodes.Node]:
        """A paragraph that counts the claims by status, and the table."""
        path = _sources(self.env).paths["study"].with_name("ledger.json")
        self.env.note_dependency(str(path.resolve()))
        paragraph = nodes.paragraph()
        if not path.is_file():
            paragraph += nodes.Text("The ledger has not been written yet; the study writes it: make study.")
            return [paragraph]
        entries = list(json.loads(path.read_text(encoding="utf-8")).values())
        counts = Counter(entry["status"] for entry in entries)
        counted = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        paragraph += nodes.Text(f"Of {len(entries)} published claims: {counted}.")
        rows: list[list[nodes.Node | str]] = [
            [e["claim"], e["source"], e["checked"], e["found"], nodes.strong("", e["status"]), e["data"]]
            for e in entries
        ]
        titles = ["Published claim", "Source", "How it was checked", "Found", "Status", "Rests on"]
        return [paragraph, _table(titles, rows, ["ledger"])]


class Benchmarks(SphinxDirective):
    """``{benchmarks} [PREFIX]``: the table of benchmarks/results.json, or a sentence where none has been run."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One table."""
        path = Path(self.env.app.srcdir).parent / "benchmarks" / "results.json"
        self.env.note_dependency(str(path.resolve()))
        if not path.is_file():
            paragraph = nodes.paragraph()
            paragraph += nodes.Text("No benchmark has been run yet: make bench runs them.")
            return [paragraph]
        rows: list[list[nodes.Node | str]] = []
        prefix = "".join(self.arguments)
        for result in json.loads(path.read_text(encoding="utf-8")):
            if not result["id"].startswith(prefix):
                continue
            peer = "no peer"
            if result["peer"] is not None:
                peer = f"{_quantity(result['peer'], result['unit'])}, {result['peer_name']}"
            rows.append(
                [
                    nodes.literal("", result["id"]),
                    result["what"],
                    _quantity(result["ours"], result["unit"]),
                    peer,
                    "" if result["ratio"] is None else _quantity(result["ratio"], "").strip(),
                    str(result["goal"] or ""),
                    _where(result["machine"], result["date"]),
                ]
            )
        titles = ["Id", "What", "Ours", "Peer", "Times better", "Goal", "When and where"]
        return [_table(titles, rows, ["benchmarks"])]


def _where(machine: dict[str, Any], date: str) -> str:
    bf16 = f", bf16 {machine['bf16']}" if "bf16" in machine else ""  # which decides what training takes
    return f"{date[:10]}, {machine['cpu']}, {machine['cores']} cores{bf16}"


def _quantity(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


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
    app.add_node(metric, html=(_visit_html, _depart_html), latex=(_pass, _pass), text=(_pass, _pass))
    app.add_role("metric", MetricRole())
    app.add_directive("comparison", Comparison)
    app.add_directive("standard-run", StandardRun)
    app.add_directive("benchmarks", Benchmarks)
    app.add_directive("ledger", Ledger)
    app.add_directive("seeds", Seeds)
    app.connect("config-inited", _configure, priority=100)  # sphinx_external_toc reads the contents at 900
    app.connect("html-page-context", _launch_buttons, priority=502)  # the theme makes its buttons at 501
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
