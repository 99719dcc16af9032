"""Scores as pure functions of the score table: counts first, every ratio from them.

Every score here is a ratio of two sums over chips (:func:`parts`), so that one bootstrap and one paired comparison
serve all of them. Scores that the data do not define (no lake and no prediction anywhere) are not a number
(NaN), never 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.scores import BINS, histograms, threshold_bin

if TYPE_CHECKING:
    import pandas as pd

#: 0.10, 0.15, ..., 0.90: the sweep, and the candidates for the best threshold.
THRESHOLDS: tuple[float, ...] = tuple(k / 20 for k in range(2, 19))
ALL_THRESHOLDS: tuple[float, ...] = tuple(k / BINS for k in range(1, BINS))
DATA_KINDS = ("simulated", "published", "real")

#: Metric -> what it is.
METRICS: dict[str, str] = {
    "iou": "Global IoU: intersection over union, both summed over all chips",
    "f1": "Global F1 (Dice): twice the intersection over the sum of both areas",
    "precision": "Share of predicted water that the reference calls lake",
    "recall": "Share of the reference's lake that is predicted",
    "mean_chip_iou": "Mean of each chip's IoU; a chip with no lake and no prediction counts 1",
    "mean_chip_iou_lake": "Mean of each chip's IoU over the chips that hold lake",
}


def ratio(numerator: Any, denominator: Any) -> Any:
    """Quotient in float64 (a number or an array), not a number where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(numerator, denominator)


def chip_counts(table: pd.DataFrame, threshold: float) -> np.ndarray:
    """Pixels of each chip at a threshold.

    Returns:
        (N, 4) int64: tp, fp, fn, tn.

    Raises:
        ConfigError: the threshold is not a multiple of 1/200.
    """
    k = threshold_bin(threshold)
    lake, background = histograms(table)
    tp, fp = lake[:, k:].sum(axis=1), background[:, k:].sum(axis=1)
    return np.stack([tp, fp, lake.sum(axis=1) - tp, background.sum(axis=1) - fp], axis=1)


def chip_iou(table: pd.DataFrame, threshold: float, empty: float = 1.0) -> np.ndarray:
    """IoU of each chip.

    Args:
        table: score table.
        threshold: a multiple of 1/200.
        empty: the score of a chip with valid pixels, no lake and no prediction. The published mean per-chip IoU does
            not state its convention; 1 (an empty prediction of an empty chip is right) is the usual one and is used
            for ``mean_chip_iou``. ``mean_chip_iou_lake`` leaves the question out by taking only chips with lake.

    Returns:
        (N,) float64, not a number for chips without a valid pixel.
    """
    tp, fp, fn, tn = chip_counts(table, threshold).T
    union = tp + fp + fn
    iou = np.divide(tp, union, out=np.full(len(union), float(empty)), where=union > 0)
    iou[union + tn == 0] = np.nan
    return iou


def parts(table: pd.DataFrame, metric: str, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """A metric as a ratio of sums over chips: ``score = numerator.sum() / denominator.sum()``.

    Args:
        table: score table.
        metric: one of :data:`METRICS`.
        threshold: a multiple of 1/200.

    Returns:
        numerator and denominator, (N,) float64 each.

    Raises:
        ConfigError: an unknown metric, or a threshold between two edges.
    """
    tp, fp, fn, tn = chip_counts(table, threshold).T.astype(np.float64)
    if metric == "iou":
        return tp, tp + fp + fn
    if metric == "f1":
        return 2 * tp, 2 * tp + fp + fn
    if metric == "precision":
        return tp, tp + fp
    if metric == "recall":
        return tp, tp + fn
    if metric == "mean_chip_iou":
        use = tp + fp + fn + tn > 0
    elif metric == "mean_chip_iou_lake":
        use = tp + fn > 0
    else:
        raise ConfigError(f"There is no metric {metric!r}; known are {', '.join(METRICS)}.")
    return np.where(use, chip_iou(table, threshold), 0.0), use.astype(np.float64)


def score(table: pd.DataFrame, metric: str = "iou", threshold: float = 0.5) -> float:
    """One score of a table; not a number where the data do not define it."""
    numerator, denominator = parts(table, metric, threshold)
    return float(ratio(numerator.sum(), denominator.sum()))


def sweep(table: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
    """All scores at several thresholds, from one cumulative sum over the bins.

    Returns:
        One row a threshold: threshold, tp, fp, fn, tn, and each of :data:`METRICS`.

    Raises:
        ConfigError: a threshold is not a multiple of 1/200.
    """
    import pandas as pd

    chosen = [threshold_bin(t) for t in thresholds]
    lake, background = histograms(table)
    # (N, thresholds): pixels at or above each threshold.
    tp, fp = (np.cumsum(h[:, ::-1], axis=1)[:, ::-1][:, chosen] for h in (lake, background))
    n_lake, n_background = lake.sum(axis=1), background.sum(axis=1)
    union = n_lake[:, None] + fp
    iou = np.divide(tp, union, out=np.ones(union.shape), where=union > 0)
    found, alarms, lakes = tp.sum(axis=0), fp.sum(axis=0), n_lake.sum()
    usable, bearing = n_lake + n_background > 0, n_lake > 0
    return pd.DataFrame(
        {"threshold": np.asarray(thresholds, dtype=float), "tp": found, "fp": alarms, "fn": lakes - found,
         "tn": n_background.sum() - alarms, "iou": ratio(found, lakes + alarms),
         "f1": ratio(2 * found, found + lakes + alarms), "precision": ratio(found, found + alarms),
         "recall": ratio(found, lakes), "mean_chip_iou": ratio(iou[usable].sum(axis=0), usable.sum()),
         "mean_chip_iou_lake": ratio(iou[bearing].sum(axis=0), bearing.sum())}
    )  # fmt: skip


def best_threshold(table: pd.DataFrame, metric: str = "iou", thresholds: Sequence[float] = THRESHOLDS) -> float:
    """The threshold with the highest score; of equals the one nearest to 0.5. Choose it on validation, never on test.

    Raises:
        InputError: the chips hold no lake, or the score is not defined at any threshold.
    """
    if metric not in METRICS:
        raise ConfigError(f"There is no metric {metric!r}; known are {', '.join(METRICS)}.")
    values = sweep(table, thresholds)[metric].to_numpy()
    # Without a lake, IoU is 0 at every threshold and all are equally good.
    if not np.isfinite(values).any() or (metric != "mean_chip_iou" and not histograms(table)[0].any()):
        raise InputError(
            f"No threshold can be chosen by {metric}: these {len(table)} chips hold no lake; take more chips."
        )
    tied = np.flatnonzero(values == np.nanmax(values))
    return float(min((thresholds[i] for i in tied.tolist()), key=lambda t: (abs(t - 0.5), t)))


def chip_keys(table: pd.DataFrame) -> list[tuple[str, str, int]]:
    """What tells chips apart: (chip_id, region, year); where region boxes overlap, a chip_id may appear in both."""
    return list(zip(table["chip_id"], table["region"], table["year"], strict=True))


def substitute(table: pd.DataFrame, corrected: pd.DataFrame) -> pd.DataFrame:
    """The table with the rows of some chips replaced by those scored against a corrected mask.

    Args:
        table: score table.
        corrected: score table of some of its chips.

    Raises:
        InputError: a corrected chip is not in the table.
    """
    import pandas as pd

    place = {key: i for i, key in enumerate(chip_keys(table))}
    where = [place.get(key, -1) for key in chip_keys(corrected)]
    if -1 in where:
        chip = corrected["chip_id"].iloc[where.index(-1)]
        raise InputError(f"The score table has no chip {chip!r}; the corrected masks belong to another split.")
    kept = np.setdiff1d(np.arange(len(table)), where)
    if not len(kept):
        return corrected.iloc[np.argsort(where)].reset_index(drop=True)
    joined = pd.concat([table.iloc[kept], corrected], ignore_index=True) if where else table.copy()
    joined = joined.iloc[np.argsort([*kept, *where], kind="stable")].reset_index(drop=True)
    joined.attrs = dict(table.attrs)
    return joined


def adaptive(first: pd.DataFrame, averaged: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """What flips would score if only undecided chips were flipped (:func:`cryosentinel.models.tta.undecided`).

    Args:
        first: score table of single passes.
        averaged: of the same chips in the same order, averaged over flips.

    Returns:
        Score table, and the share of chips that were flipped: those of whose valid pixels a share of at least
        :data:`cryosentinel.models.tta.SHARE` is undecided after one pass.
    """
    from cryosentinel.models.tta import BAND, SHARE

    lake, background = histograms(first)
    counts = lake + background
    near = counts[:, threshold_bin(0.5 - BAND) : threshold_bin(0.5 + BAND)].sum(axis=1)
    flipped = ratio(near, counts.sum(axis=1)) >= SHARE  # not a number, and so decided, without a valid pixel
    return substitute(first, averaged[flipped]), float(flipped.mean())


def metric_entry(
    value: float | None,
    low: float | None,
    high: float | None,
    n: int,
    data: str,
    source: str,
    reason: str | None = None,
) -> dict[str, Any]:
    """One entry of the metrics file. Not a number becomes null.

    Args:
        value: the score, or None.
        low, high: its interval, both or neither.
        n: chips it rests on.
        data: simulated, published or real.
        source: what computed it (a file or a command).
        reason: why ``value`` or the interval is null.

    Raises:
        ConfigError: an unknown kind of data, or a null without a reason.
    """
    if data not in DATA_KINDS:
        raise ConfigError(f"Data are {data!r}; they must be one of {', '.join(DATA_KINDS)}.")
    clean = [None if v is None or not math.isfinite(v) else float(v) for v in (value, low, high)]
    if (clean[1] is None) != (clean[2] is None):
        raise ConfigError("An interval needs both ends, or neither.")
    if not reason and (clean[0] is None or (clean[1] is None and data != "published")):
        raise ConfigError("A metric whose value or interval is null must say why (reason).")
    entry: dict[str, Any] = dict(zip(("value", "low", "high"), clean, strict=True))
    entry |= {"n": int(n), "data": data, "source": source}
    return entry | ({"reason": reason} if reason else {})
