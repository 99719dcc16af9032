"""What every page gets beside its prose: a box that names its data, descriptions of its images, folded cells.

The box is made from the figures that the page shows, or, for a chapter, from those that it wrote into the metrics file.
An image without a description is described by the section that it stands in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryosentinel_figures import FigureError, preset
from cryosentinel_nodes import DATA_SENTENCES
from docutils import nodes
from sphinx.errors import ExtensionError

NO_DATA = "This page explains; it holds no result of a run."


def chapter_data(records: dict[str, Any], chapter: str) -> set[str]:
    """The kinds of data of the figures that a notebook wrote."""
    written = f"notebooks/{chapter}.ipynb"
    return {str(record["data"]) for record in records.values() if str(record.get("source", "")).startswith(written)}


def data_box(kinds: Iterable[str], presets: Iterable[str] = ()) -> nodes.container:
    """The box: one line a kind of data with the presets of simulated ones, or that there is none."""
    box = nodes.container(classes=["data-box"])
    kinds = sorted(kinds, key=list(DATA_SENTENCES).index)
    if not kinds:
        box += nodes.paragraph("", NO_DATA)
    named = " and ".join(sorted(presets))
    for kind in kinds:
        words = DATA_SENTENCES[kind] + (f" (preset {named})" if kind == "simulated" and named else "")
        line = nodes.paragraph()
        line += nodes.inline("", kind, classes=["data-word", f"data-{kind}"])
        line += nodes.Text(f" {words}")
        box += line
    return box


def add_data_box(app: Any, doctree: nodes.document) -> None:
    """Put the box below the title of the page that has been read."""
    env = app.env
    title = next(doctree.findall(nodes.title), None)
    if title is None:
        return
    # Each kind with the preset of the record that is shown; without one it is the study at hand.
    shown = set(env.temp_data.get("cryosentinel_data", ()))
    figures = (node for node in doctree.findall(nodes.inline) if "explanation" in node)
    shown |= {(node["data"], node["preset"] if node["data"] == "simulated" else "") for node in figures}
    kinds, presets = {kind for kind, _ in shown}, {name for kind, name in shown if kind == "simulated"}
    if env.docname.startswith("chapters/") or "" in presets:
        study = app.cryosentinel_sources
        env.note_dependency(str(study.paths["study"].resolve()))
        try:
            records = study.records("study")
        except FigureError as error:
            raise ExtensionError(f"{env.docname}: {error}") from None
        presets.add(preset(records))
        if env.docname.startswith("chapters/"):
            kinds |= chapter_data(records, Path(env.docname).name)
    section = title.parent
    section.insert(section.index(title) + 1, data_box(kinds, presets - {""}))


# ------------------------------------------------------------------------------------------------------------- images


def describe_images(app: Any, doctree: nodes.document) -> None:
    """Give images without a description the heading and the first sentence of the text that they follow."""
    heading, sentence = "", ""
    for node in doctree.findall(lambda n: isinstance(n, nodes.title | nodes.paragraph | nodes.image)):
        if isinstance(node, nodes.title):
            heading, sentence = node.astext(), ""
        elif isinstance(node, nodes.paragraph):
            sentence = re.split(r"(?<=[.?!])\s", node.astext().replace("\n", " "), maxsplit=1)[0]
        elif not node.get("alt"):
            node["alt"] = f"Figure of the section “{heading}”" + (f": {sentence}" if sentence else "")


# -------------------------------------------------------------------------------------------------------------- cells

_HIDDEN = {"hide-input", "hide-cell", "remove-cell", "remove-input"}
#: What the line of a folded cell says, by its tags.
LABELS = {
    "making": "What was loaded or made",
    "configuration": "The configuration of the run",
    "injected-parameters": "Parameters of this run",
    "parameters": "Parameters, and what they mean",
    "hide-cell": "The numbers",
    "hide-input": "Code",
}


def fold_cells(app: Any, docname: str, source: list[str]) -> None:
    """Fold the code of a chapter: figures and text come first, code is a click away."""
    if not docname.startswith("chapters/"):
        return
    notebook = json.loads(source[0])
    first = notebook["cells"][0]  # the page has buttons for what its notebook's badges do, and loads no picture
    first["source"] = [line for line in "".join(first["source"]).splitlines(keepends=True) if line[:3] != "[!["]
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tags = cell["metadata"].setdefault("tags", [])
        if not _HIDDEN & set(tags):
            tags.append("hide-input")
        if label := next((words for tag, words in LABELS.items() if tag in tags), ""):
            cell["metadata"]["mystnb"] = {"code_prompt_show": label, "code_prompt_hide": label}
    source[0] = json.dumps(notebook)
