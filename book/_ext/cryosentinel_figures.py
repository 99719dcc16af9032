"""Figures for the book's pages: where a number comes from and how it is written. Nothing here knows Sphinx."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryosentinel import paths

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
        """Read ``NAME [FORMAT] [interval] [n] [data]``, the parts separated by blanks.

        Raises:
            FigureError: a part is neither a number format nor one of the words.
        """
        reference, *rest = text.split() or [""]
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
