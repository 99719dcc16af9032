"""Sphinx extension: ``{gpu-benchmarks}``, the table of benchmarks/gpu_results.json or that there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryosentinel_book import _quantity, _table
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

COMMAND = "python -m benchmarks.gpu"


def gpu_nodes(results: Mapping[str, Any] | None) -> list[nodes.Node]:
    """What the page shows.

    Args:
        results: content of gpu_results.json; None where there is no such file.

    Returns:
        a paragraph that says what the figures are, or that those of a GPU are missing, and the table of the rows.
    """
    if results is None:
        return [_paragraph("GPU figures are missing: no run has been made. On a machine with a GPU this makes one: ")]
    which = f"{results['model']}, torch {results['torch']}, {results['date'][:10]}"
    if results["kind"] == "cuda":
        text = f"Measured on {results['device']}: {which}"
        text += "; " if results["complete"] else "; the run did not come to its end, so that rows are missing; "
        said = _paragraph(f"{text}made with ")
    else:
        said = _paragraph(
            "GPU figures are missing: no run has been made on a GPU. The rows below are a run of the same script on "
            f"the CPU ({results['device']}; {which}). They show that it works; where a row does not name the large "
            "model, it says nothing about it. On a machine with a GPU this makes the figures: "
        )
    rows: list[list[nodes.Node | str]] = [
        [
            row["what"],
            f"none: {row['reason']}" if row["value"] is None else _quantity(row["value"], row["unit"]),
            "" if row["share"] is None else f"{row['share']:.0%}",
            row["goal"] or "",
        ]
        for row in results["rows"]
    ]
    titles = ["What", "Value", "Of the matrix rate", "Goal"]
    return [said, _table(titles, rows, ["benchmarks"])]


def _paragraph(text: str) -> nodes.paragraph:
    paragraph = nodes.paragraph()
    paragraph += nodes.Text(text)
    paragraph += nodes.literal("", COMMAND)
    paragraph += nodes.Text(".")
    return paragraph


class GpuBenchmarks(SphinxDirective):
    """``{gpu-benchmarks}``."""

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.app.srcdir).parent / "benchmarks" / "gpu_results.json"
        self.env.note_dependency(str(path.resolve()))
        return gpu_nodes(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("gpu-benchmarks", GpuBenchmarks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
