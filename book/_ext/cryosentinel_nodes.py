"""Nodes and notes that roles and directives share: a figure in the text, a table, what a page depends on."""

from __future__ import annotations

from html import escape
from typing import Any

from cryosentinel_figures import Figure, Sources, preset_in
from docutils import nodes

#: What the box of a page says of each kind of data.
DATA_SENTENCES = {
    "simulated": "chips of the embedded benchmark, whose truth is known",
    "published": "figures of the CryoSentinel v1.0 model card, found by its authors on real chips",
    "real": "satellite chips",
    "measured": "seconds and bytes on the machines that are named",
}


class metric(nodes.inline):
    """A figure in the text."""


def visit_html(translator: Any, node: metric) -> None:
    """Open the figure's element."""
    title = escape(node["explanation"], quote=True)
    translator.body.append(f'<span class="metric metric-{node["data"]}" title="{title}">')


def depart_html(translator: Any, node: metric) -> None:
    """Close the figure's element."""
    translator.body.append("</span>")


def write_nothing(translator: Any, node: metric) -> None:
    """Other formats show the text alone."""


def sources_of(env: Any) -> Sources:
    """The metrics files that the book's pages may quote."""
    return env.app.cryosentinel_sources


def note_sources(env: Any) -> None:
    """Make the page that is being read depend on the metrics files."""
    for path in sources_of(env).paths.values():  # a file that comes into being later counts as a change too
        env.note_dependency(str(path.resolve()))


def look_up(env: Any, reference: str) -> Figure:
    """Look a figure up and make the page depend on the file that it stands in."""
    note_sources(env)
    return sources_of(env).figure(reference)


def figure_node(figure: Figure, text: str, spec: str = "") -> metric:
    """A figure as a node with its tooltip."""
    preset = preset_in(figure.source) or ("standard" if figure.run else "")
    return metric("", text, data=figure.data, preset=preset, explanation=figure.explanation(spec))


def table(titles: list[str], rows: list[list[nodes.Node | str]], classes: list[str]) -> nodes.table:
    """A table of cells that are text or nodes."""
    made = nodes.table(classes=classes)
    group = nodes.tgroup(cols=len(titles))
    made += group
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
    return made


def note_data(env: Any, word: str, preset: str = "") -> None:
    """Remember that the page that is being read shows data of a kind, simulated ones of a preset (or the study's)."""
    env.temp_data.setdefault("cryosentinel_data", set()).add((word, preset))
