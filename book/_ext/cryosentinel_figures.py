"""Figures for the book's pages: where a number comes from and how it is written. Nothing here knows Sphinx."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryosentinel import paths

#: Names of the baselines in words; others are shown under their own.
BASELINES = {
    "mndwi": "threshold on MNDWI",
    "ndwi": "threshold on NDWI",
    "pixel": "classifier of single pixels",
    "mlp": "small network on single pixels",
    "mlp_context": "small network on pixels and their surroundings",
}
#: Per reference: the figure of the ceiling, and what it is.
CEILINGS = {
    "truth": ("ceiling_standing_water_against_truth", "all standing water called lake"),
    "label": ("ceiling_truth_against_label", "a map without any error"),
}
#: What a record may say of the data that its figure was computed from.
DATA_WORDS = ("simulated", "published", "real")


class FigureError(Exception):
    """A figure that a page asks for and no metrics file holds, or a request that cannot be read."""


@dataclass(frozen=True)
class Figure:
    """One number of a metrics file.

    Attributes:
        name: as the metrics file has it.
        value: the number, or None where it could not be computed.
        low, high: ends of the interval, None where there is none.
        n: how many chips (or blocks, or seeds) stand behind it.
        data: one of :data:`DATA_WORDS`.
        source: what computed it, in words.
        reason: why the value or the interval is missing.
        run: the run that made it, where it is not the study at hand.
    """

    name: str
    value: float | int | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    data: str = "simulated"
    source: str = ""
    reason: str = ""
    run: str = ""

    def number(self, spec: str = "") -> str:
        """The value as text: a count with its thousands apart, a score with three decimals, a published one with 4."""
        if self.value is None:
            return "not available"
        if spec:
            return format(self.value, spec)
        if isinstance(self.value, int):
            return f"{self.value:,}"
        return f"{self.value:.4f}" if self.data == "published" else f"{self.value:.3f}"

    def interval(self, spec: str = "") -> str:
        """The interval as text, empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{format(self.low, spec or '.3f')} to {format(self.high, spec or '.3f')}"

    def explanation(self, spec: str = "") -> str:
        """What the tooltip says: kind of data, interval, how many, source."""
        parts = [f"{self.data} data" if self.data != "published" else "published figure"]
        if self.interval(spec):
            parts.append(f"interval {self.interval(spec)}")
        if self.n is not None:
            parts.append(f"n = {self.n:,}")
        parts += [part for part in (self.run, self.source, self.reason) if part]
        return "; ".join(parts)


class Sources:
    """The metrics files that a book's pages may quote.

    A name without a prefix is read from the study at hand, ``standard:`` from the committed standard run, and
    ``published:`` from the figures of the published system that the package carries.

    Args:
        study: ``metrics.json`` of the study.
        standard: ``standard_metrics.json``, which need not exist.
    """

    def __init__(self, study: Path, standard: Path) -> None:
        self.paths = {"study": study, "standard": standard}
        self._read: dict[str, dict[str, Any]] = {}

    @classmethod
    def of_book(cls, book: Path) -> Sources:
        """The sources of a book folder: the study at hand lies where the package puts it, the record in the folder."""
        return cls(paths.study() / "metrics.json", book / "standard_metrics.json")

    def records(self, source: str) -> dict[str, Any]:
        """All records of one source, by name.

        Raises:
            FigureError: the file is missing or is not a metrics file.
        """
        if source not in self._read:
            if source == "published":
                text = paths.PUBLISHED.read_text(encoding="utf-8")
            else:
                path = self.paths[source]
                if not path.is_file():
                    raise FigureError(f"There is no metrics file {path}; run the study first: make study.")
                text = path.read_text(encoding="utf-8")
            try:
                value = json.loads(text)
                self._read[source] = value["metrics"] if source == "standard" else value
                if source == "standard":
                    self.standard_run = f"standard run of {value['date'][:10]}, commit {value['commit'][:10]}"
                    self.standard_command = value["command"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise FigureError(f"{self.paths.get(source, source)} is not a metrics file ({error!r}).") from None
        return self._read[source]

    def has_standard(self) -> bool:
        """Whether the standard run has been made and committed."""
        return self.paths["standard"].is_file()

    def recorded(self, name: str) -> bool:
        """Whether the record of the standard run holds a figure."""
        return name in self.records("standard")

    def figure(self, reference: str) -> Figure:
        """Look a figure up.

        Args:
            reference: ``name``, ``standard:name`` or ``published:name``.

        Raises:
            FigureError: no such name; the sentence lists the nearest ones.
        """
        prefix, _, rest = reference.partition(":")
        source, name = (prefix, rest) if rest and prefix in ("standard", "published") else ("study", reference)
        if source == "standard" and not self.has_standard():
            return Figure(name, None, reason="the standard run has not been made")
        records = self.records(source)
        if name not in records:
            import difflib

            near = difflib.get_close_matches(name, records, n=3, cutoff=0.3)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            where = "published.json" if source == "published" else self.paths[source]
            raise FigureError(f"No figure is called {name!r} in {where}{hint}.")
        record = records[name]
        data = record.get("data", "")
        if data not in DATA_WORDS:
            raise FigureError(f"The figure {name!r} says that its data are {data!r}, not {' or '.join(DATA_WORDS)}.")
        if record.get("value") is None and not record.get("reason"):
            raise FigureError(f"The figure {name!r} has neither a value nor a reason for having none.")
        return Figure(
            name=name,
            value=record.get("value"),
            low=record.get("low"),
            high=record.get("high"),
            n=record.get("n"),
            data=data,
            source=record.get("source", ""),
            reason=record.get("reason", ""),
            run=self.standard_run if source == "standard" else "",
        )


@dataclass(frozen=True)
class Request:
    """What a page's text asks of a figure.

    Attributes:
        reference: the name, with its source's prefix where it has one.
        spec: Python format of the number, empty for the default.
        words: any of ``interval``, ``n`` and ``data``, to be written out behind the number.
    """

    reference: str
    spec: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Request:
        """Read ``NAME [FORMAT] [interval] [n] [data]``, the parts separated by blanks; ``~`` is a blank of the name.

        Raises:
            FigureError: a part is neither a number format nor one of the words.
        """
        reference, *rest = text.split() or [""]
        reference = reference.replace("~", " ")  # blanks part the words of a request, so names write them so
        if not reference:
            raise FigureError("A {metric} role is empty; write {metric}`NAME`.")
        spec, words = "", []
        for part in rest:
            if part in ("interval", "n", "data"):
                words.append(part)
                continue
            try:
                format(0.5, part)
            except ValueError:
                raise FigureError(
                    f"{part!r} in {{metric}}`{text}` is neither a number format nor interval, n or data."
                ) from None
            spec = part
        return cls(reference, spec, tuple(words))


def written(figure: Figure, request: Request) -> str:
    """A figure as the page's text shows it."""
    if figure.value is None:
        return f"not available ({figure.reason})"
    behind = []
    if "interval" in request.words:
        interval = figure.interval(request.spec)
        behind.append(f"interval {interval}" if interval else f"no interval: {figure.reason or 'none was computed'}")
    if "n" in request.words and figure.n is not None:
        behind.append(f"n = {figure.n:,}")
    if "data" in request.words:
        behind.append(figure.data)
    if figure.run:
        behind.append(figure.run)
    return figure.number(request.spec) + (f" ({', '.join(behind)})" if behind else "")


@dataclass(frozen=True)
class Bar:
    """One line of the headline: what was scored, and its figure."""

    words: str
    figure: Figure
    kind: str


def headline(sources: Sources, reference: str) -> list[Bar]:
    """The network, the best baseline and the ceiling, all against one reference.

    The network and every baseline are taken at the threshold that is best on the validation split. The best baseline is
    the one with the largest value, whichever baselines the metrics file holds.

    Args:
        sources: the metrics files.
        reference: truth or label.

    Raises:
        FigureError: there is no such reference, no baseline, or a figure is missing.
    """
    if reference not in CEILINGS:
        raise FigureError(f"The headline is against {' or '.join(CEILINGS)}, not {reference!r}.")
    ending = "" if reference == "label" else f"_{reference}"
    names = [re.fullmatch(rf"([a-z]\w*)_test_iou@best{ending}", name) for name in sources.records("study")]
    found = {match[1]: sources.figure(match[0]) for match in names if match}
    # The labels scored as a map, and the oracle, are ceilings and no baselines.
    known = {n: figure for n, figure in found.items() if figure.value is not None and n not in ("label", "oracle")}
    if not known:
        raise FigureError(f"The study's metrics file holds no baseline (NAME_test_iou@best{ending}).")
    best = max(known, key=lambda name: known[name].value or 0.0)
    ceiling, words = CEILINGS[reference]
    return [
        Bar("This study's network", sources.figure(f"test_iou@best_tta{ending}"), "network"),
        Bar(f"Best baseline: {BASELINES.get(best, best.replace('_', ' '))}", known[best], "baseline"),
        Bar(f"Ceiling: {words}", sources.figure(ceiling), "ceiling"),
    ]


def bar_html(bar: Bar) -> str:
    """A bar from 0 to 1 with a whisker over the interval, as HTML; the number beside it says the same."""
    figure = bar.figure
    if figure.value is None:
        return ""
    whisker = ""
    if figure.low is not None and figure.high is not None:
        left, width = 100 * figure.low, 100 * (figure.high - figure.low)
        whisker = f'<span class="whisker" style="left:{left:.1f}%;width:{width:.1f}%"></span>'
    length = f'<span class="length {bar.kind}" style="width:{100 * figure.value:.1f}%"></span>'
    return f'<span class="bar" aria-hidden="true">{length}{whisker}</span>'


def first_map(chapter: Path) -> str:
    """The first interactive map among a chapter's outputs, as HTML.

    Raises:
        FigureError: the chapter is not there, or shows no map.
    """
    if not chapter.is_file():
        raise FigureError(f"There is no chapter {chapter.name}; run the study first: make study.")
    for cell in json.loads(chapter.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            found = "".join(output.get("data", {}).get("text/html", []))
            if "<iframe" in found and "srcdoc=" in found and "Map" in found:
                return found
    raise FigureError(f"The chapter {chapter.stem} shows no interactive map.")


def preset(records: dict[str, Any]) -> str:
    """The preset of the study that wrote the records, empty where no record says."""
    found = (preset_in(str(record.get("source", ""))) for record in records.values())
    return next(filter(None, found), "")


def preset_in(source: str) -> str:
    """The preset that a figure's source names, or nothing."""
    match = re.search(r"preset (\w+)", source)
    return match[1] if match else ""
