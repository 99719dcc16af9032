"""Estimates and metrics as tables that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.evaluation.bootstrap import Estimate


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "none" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def estimates(found: Mapping[str, Estimate], name: str = "IoU", signed: bool = False) -> pd.DataFrame:
    """One row an estimate: score, 95 % interval, chips and lake-bearing blocks that it rests on.

    Args:
        found: row name -> estimate.
        name: of the score's column.
        signed: write a sign, for differences.

    Returns:
        Strings; an interval that cannot be given is "none", and a caption says why.
    """
    import pandas as pd

    form = "+.3f" if signed else ".3f"
    return pd.DataFrame(
        {
            row: {name: f"{e.value:{form}}", "95 % interval": _interval(e.low, e.high, form), "chips": e.n,
                  "lake blocks": e.lake_blocks}
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

    form = "+.3f" if signed else ".3f"

    def cell(e: Estimate) -> str:
        interval = _interval(e.low, e.high, form)
        return "–" if e.value != e.value else f"{e.value:{form}}" + ("" if interval == "none" else f" ({interval})")

    return pd.DataFrame({row: {name: cell(e) for name, e in of.items()} for row, of in found.items()}).T


def reasons(found: Mapping[str, Estimate] | Mapping[str, Mapping[str, Estimate]]) -> str:
    """Why intervals are missing, each reason once; empty where none is."""
    each = [e for of in found.values() for e in (of.values() if isinstance(of, Mapping) else [of])]
    return "; ".join(dict.fromkeys(e.reason for e in each if e.reason))


def entries(recorded: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Entries of the metrics file: value, interval, number, kind of data, and the reason where something is missing."""
    import pandas as pd

    def number(value: float | None) -> str:
        if value is None:
            return "none"
        if value != 0 and abs(value) < 0.001:
            return f"{value:.2e}"  # four decimals would leave nothing of it
        return f"{value:,.4f}" if value != int(value) or abs(value) < 2 else f"{value:,.0f}"

    return pd.DataFrame(
        {
            name: {"value": number(e["value"]), "95 % interval": _interval(e["low"], e["high"], ".4f"), "n": e["n"],
                   "data": e["data"], "note": e.get("reason", "")}
            for name, e in recorded.items()
        }
    ).T  # fmt: skip
