"""Estimates, metrics and any data frame as tables that people read, and sentences that stand beside them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.evaluation.bootstrap import Estimate

#: What a predictor is called in figures and tables.
NAMES = {
    "soup": "this study's network",
    "mndwi": "MNDWI",
    "ndwi": "NDWI",
    "mlp": "MLP on single pixels",
    "mlp_context": "MLP with surroundings",
    "label": "the labels themselves",
    "oracle": "all standing water",
}
#: Words of column names that are not written as they are.
_WORDS = {"iou": "IoU", "ndwi": "NDWI", "mndwi": "MNDWI", "auc": "AUC", "px": "(pixels)", "ha": "(ha)", "m": "(m)",
          "deg": "(degrees)", "vv": "VV", "vh": "VH", "nir": "near infrared", "std": "standard deviation"}  # fmt: skip
_MISSING = "–"
_WITH_INTERVAL = re.compile(r"(\S+) (\(\S+ to \S+\))")
_NUMBER = re.compile(r"[-+<]? ?[\d,.]+(?:e[-+]?\d+)? ?%?|–")


def named(name: str) -> str:
    """A predictor's name in words; a name that is not known stays as it is."""
    return NAMES.get(name, name)


def short_name(chip_id: str) -> str:
    """A chip's name for people: region, year and its two numbers in the grid, without the zone."""
    from cryosentinel.sensors import region_name

    if found := re.fullmatch(r"(.+?)_(\d+[A-Z])_(\d+)_(\d+)_(\d{4})", chip_id):
        return f"{region_name(found[1])} {found[5]}, {found[3]}/{found[4]}"
    return chip_id


def words(name: Any) -> str:
    """A column's or a row's name in words, with its unit in brackets: "area_ha" is "area (ha)"."""
    spaced = re.sub(r"(\d\.\d+)[_ ](\d\.\d+)", r"\1 to \2", str(name)).replace("_", " ")
    return " ".join(_WORDS.get(word, word) for word in spaced.split())


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """A number with some digits behind the point; without a sign where nothing but zeros is left of it."""
    shown = f"{value:{'+' if signed else ''},.{digits}f}"
    return shown if re.search("[1-9]", shown) or not math.isfinite(value) else shown.lstrip("+-")


@dataclass(frozen=True)
class Shown:
    """What a notebook shows: HTML for a page, and plain text for everything else."""

    page: str
    text: str

    def _repr_html_(self) -> str:
        return self.page

    def __repr__(self) -> str:
        return self.text


def say(*sentences: str) -> Shown:
    """Sentences below a figure or a table, a paragraph each; empty ones are left out."""
    kept = [sentence for sentence in sentences if sentence]
    return Shown("".join(f'<p class="said">{html.escape(sentence)}</p>' for sentence in kept), "\n".join(kept))


def show(
    frame: pd.DataFrame | Mapping[str, Any],
    caption: str = "",
    names: Mapping[Any, str] | None = None,
    digits: int = 3,
) -> Shown:
    """A table for people: a caption above, words for column names, dashes for what is missing.

    Args:
        frame: numbers and words; its index is shown unless it only counts the rows. A mapping is a table of one row.
        caption: what the table says.
        names: column, or name of the index -> what it is called; the others are put into words by :func:`words`.
        digits: behind the point, for numbers that are not whole.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        frame = pd.DataFrame([dict(frame)])
    names = dict(names or {})

    def cell(value: Any, places: int) -> str:
        if isinstance(value, bool) or type(value).__name__ == "bool_":
            return "yes" if value else "no"
        if value is None or value == "" or value != value or value in ("none", "nan"):
            return _MISSING
        if isinstance(value, int | float) or hasattr(value, "dtype"):
            return number(float(value), places)
        return str(value)

    def column(values: pd.Series) -> list[str]:
        numbers = pd.to_numeric(values, errors="coerce").dropna()
        places = 0 if (numbers % 1 == 0).all() else digits  # 1.00 beside 0.94, and 12 beside 7
        return [cell(value, places) for value in values]

    columns = [column(frame.iloc[:, i].astype(object)) for i in range(frame.shape[1])]
    cells = pd.DataFrame(dict(enumerate(columns)), index=frame.index)
    cells.columns = [names.get(name, words(" ".join(name) if isinstance(name, tuple) else name)) for name in frame]
    # Years are no quantities: 2,017 is none.
    for old, new in zip(frame, cells.columns, strict=True):
        if "year" in str(old).split("_"):
            cells[new] = [_MISSING if value != value else f"{value:.0f}" for value in frame[old]]
    counted = isinstance(frame.index, pd.RangeIndex)
    corner = frame.index.name
    head = "".join(f"<th>{html.escape(name)}</th>" for name in cells.columns)
    if not counted:
        head = f"<th>{html.escape(names.get(corner, words(corner)) if corner else '')}</th>{head}"
    body = "".join(
        "<tr>" + ("" if counted else f"<th>{html.escape(str(at))}</th>") + "".join(map(_td, row)) + "</tr>"
        for at, row in zip(cells.index, cells.to_numpy(), strict=True)
    )
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    page = f'<table class="dataframe figures">{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    text = "\n".join([*([caption] if caption else []), cells.to_string(index=not counted)])
    return Shown(f'<div class="figures">{page}</div>', text)


def _td(text: str) -> str:
    """A cell: numbers stay on one line, and between a value and its interval a line may break."""
    if found := _WITH_INTERVAL.fullmatch(text):
        return f'<td class="number">{found[1]} <span class="interval">{found[2]}</span></td>'
    short = _NUMBER.fullmatch(text) or re.fullmatch(r"\S+ to \S+", text)
    return ('<td class="number">' if short else "<td>") + f"{html.escape(text)}</td>"


def _interval(low: float | None, high: float | None, digits: int, signed: bool = False) -> str:
    if low is None or high is None:
        return "none"
    return f"{number(low, digits, signed)} to {number(high, digits, signed)}"


def estimates(found: Mapping[str, Estimate], name: str = "IoU", signed: bool = False) -> pd.DataFrame:
    """One row an estimate: score, 95 % interval, chips and lake-bearing blocks that it rests on.

    Args:
        found: row name -> estimate.
        name: of the score's column.
        signed: write a sign, for differences.

    Returns:
        Strings; an interval that cannot be given is "none", and :func:`reasons` says why.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            row: {name: number(e.value, 3, signed), "95 % interval": _interval(e.low, e.high, 3, signed),
                  "chips": e.n, "lake blocks": e.lake_blocks}
            for row, e in found.items()
        }
    ).T  # fmt: skip


def matrix(found: Mapping[str, Mapping[str, Estimate]], signed: bool = False) -> pd.DataFrame:
    """A row a method and a column a figure, or the like: scores with their 95 % intervals in brackets.

    Args:
        found: row name -> column name -> estimate.
        signed: write a sign, for differences.

    Returns:
        Strings; a score that is not defined is a dash, and an interval that cannot be given is left out.
    """
    import pandas as pd

    def cell(e: Estimate) -> str:
        if e.value != e.value:
            return _MISSING
        interval = _interval(e.low, e.high, 3, signed)
        return number(e.value, 3, signed) + ("" if interval == "none" else f" ({interval})")

    return pd.DataFrame({named(row): {name: cell(e) for name, e in of.items()} for row, of in found.items()}).T


def reasons(found: Mapping[str, Estimate] | Mapping[str, Mapping[str, Estimate]], of: str = "") -> str:
    """Why intervals are missing, in a sentence with each reason once; empty where none is.

    Args:
        found: estimates by name, or tables of them.
        of: what has no interval, for the beginning of the sentence: "on validation".
    """
    from cryosentinel.evaluation.bootstrap import MIN_LAKE_BLOCKS

    each = [e for part in found.values() for e in (part.values() if isinstance(part, Mapping) else [part])]
    missing = [e for e in each if e.reason]
    short = [e for e in missing if math.isfinite(e.value) and e.lake_blocks < MIN_LAKE_BLOCKS]
    few = {e.lake_blocks for e in short}
    said = list(dict.fromkeys(e.reason for e in missing if e not in short))
    if len(few) == 1:
        said = [f"only {min(few)} split blocks hold a lake and an interval needs {MIN_LAKE_BLOCKS}", *said]
    elif few:
        said = [f"fewer than {MIN_LAKE_BLOCKS} split blocks hold a lake", *said]
    where = f" {of}" if of else " where none stands" if missing and len(missing) < len(each) else ""
    return f"No interval{where}: {'; '.join(said)}." if said else ""


def entries(recorded: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Entries of the metrics file: value, interval, number, kind of data, and the reason where something is missing."""
    import pandas as pd

    def figure(value: float | None) -> str:
        if value is None:
            return "none"
        if value != 0 and abs(value) < 0.001:
            return f"{value:.2e}"  # four decimals would leave nothing of it
        return f"{value:,.4f}" if value != int(value) or abs(value) < 2 else f"{value:,.0f}"

    return pd.DataFrame(
        {
            name: {"value": figure(e["value"]), "95 % interval": _interval(e["low"], e["high"], 4), "n": e["n"],
                   "data": e["data"], "note": e.get("reason", "")}
            for name, e in recorded.items()
        }
    ).T  # fmt: skip
