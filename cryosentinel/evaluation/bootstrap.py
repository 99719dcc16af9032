"""Intervals by resampling split blocks: neighbouring chips overlap and share weather, so chips are not independent.

Blocks (squares of the hash split) are drawn with replacement, all chips of a block together; a score is a ratio of
sums, so that a resample is one row of a matrix of block multiplicities times the block sums. The same seed gives the
same resamples, which is what makes a comparison of two models on them paired.

Percentile intervals are a little narrow where a few large lakes dominate: on synthetic blocks with log-normal lake
areas, nominal 95 % cover about 89 % at 20 lake-bearing blocks and 93 % at 240; bias-corrected accelerated (BCa)
intervals did worse there (88 and 90 %). A test measures the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.evaluation.metrics import chip_keys, metric_entry, parts, ratio
from cryosentinel.evaluation.scores import histograms

if TYPE_CHECKING:
    import pandas as pd

MIN_LAKE_BLOCKS = 20  # below, percentiles of resamples cover far less than they promise
RESAMPLES = 2000
SEED = 42


@dataclass(frozen=True)
class Estimate:
    """A score with its interval.

    Attributes:
        value: not a number where the data do not define it.
        low, high: ends of the interval, None with a ``reason``.
        n: chips.
        blocks, lake_blocks: split blocks, and those that hold lake in the reference.
        reason: why there is no interval, or no value; empty otherwise.
        above: of a difference, the share of resamples above 0; None for a score.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    blocks: int
    lake_blocks: int
    reason: str = ""
    above: float | None = None

    def entry(self, data: str, source: str) -> dict[str, Any]:
        """As an entry of the metrics file."""
        return metric_entry(self.value, self.low, self.high, self.n, data, source, self.reason or None)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, not a number as None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def multiplicities(blocks: int, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each block is drawn in each resample: (resamples, blocks) float64, rows sum to ``blocks``."""
    return np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype(float)


def _block_sums(codes: np.ndarray, blocks: int, *columns: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(codes, weights=column, minlength=blocks) for column in columns], axis=1)


def _blocks(names: np.ndarray, lake: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Block of each chip as a number, how many blocks there are, and how many hold lake (pixels above 0)."""
    known, codes = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    bearing = np.bincount(codes, weights=lake, minlength=len(known)) > 0
    return codes, len(known), int(bearing.sum())


def _reason(value: float, bearing: int, blocks: int) -> str:
    if not math.isfinite(value):
        return "the score is not defined: nothing is there that it divides by (no lake, or nothing predicted)"
    if bearing < MIN_LAKE_BLOCKS:
        return f"{bearing} of {blocks} split blocks hold lake, {MIN_LAKE_BLOCKS} are needed"
    return ""


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2 * 100
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def ratio_of_sums(
    numerator: np.ndarray,
    denominator: np.ndarray,
    blocks: np.ndarray,
    lake: np.ndarray,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """``numerator.sum() / denominator.sum()`` with its block-bootstrap percentile interval.

    Args:
        numerator, denominator: (N,) of each chip, or of each lake.
        blocks: (N,) of strings, the split block that each lies in.
        lake: (N,) above 0 where there is lake.
        level: of the interval.
        resamples: how many.
        seed: of the resamples.

    Returns:
        Without an interval (and with the reason) when fewer than :data:`MIN_LAKE_BLOCKS` blocks hold lake.
    """
    return score_of_sums(
        np.stack([numerator, denominator], axis=1), lambda sums: ratio(sums[..., 0], sums[..., 1]), blocks, lake, level,
        resamples, seed,
    )  # fmt: skip


def score_of_sums(
    columns: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    blocks: np.ndarray,
    lake: np.ndarray,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Any function of sums over chips with its block-bootstrap percentile interval.

    Args:
        columns: (N, K) of each chip.
        score: from sums (..., K) to scores (...).
        blocks, lake, level, resamples, seed: as for :func:`ratio_of_sums`.
    """
    codes, count, bearing = _blocks(blocks, lake)
    value = float(score(columns.sum(axis=0)))
    reason = _reason(value, bearing, count)
    low = high = None
    if not reason:
        totals = multiplicities(count, resamples, seed) @ _block_sums(codes, count, *columns.T)
        low, high = _percentiles(score(totals), level)
    return Estimate(value, low, high, len(columns), count, bearing, reason)


def estimate(table: pd.DataFrame, metric: str = "iou", threshold: float = 0.5, **options: Any) -> Estimate:
    """A score with its interval.

    Args:
        table: score table.
        metric: one of :data:`cryosentinel.evaluation.metrics.METRICS`.
        threshold: a multiple of 1/200.
        options: level, resamples and seed of :func:`ratio_of_sums`.
    """
    lake = histograms(table)[0].sum(axis=1)
    return ratio_of_sums(*parts(table, metric, threshold), table["block"].to_numpy(), lake, **options)


def _aligned(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """``b`` in the order of ``a``."""
    keys = [chip_keys(t) for t in (a, b)]
    if keys[0] == keys[1]:
        return b
    where = {key: i for i, key in enumerate(keys[1])}
    if len(where) != len(keys[1]) or len(keys[0]) != len(keys[1]) or set(keys[0]) != set(keys[1]):
        raise InputError(
            f"A paired comparison needs the same chips on both sides ({len(keys[0])} and {len(keys[1])} chips here, "
            f"{len(set(keys[0]) & set(keys[1]))} in common); evaluate both on the same split."
        )
    return b.iloc[[where[key] for key in keys[0]]].reset_index(drop=True)


def difference(
    a: pd.DataFrame,
    b: pd.DataFrame,
    metric: str = "iou",
    threshold_a: float = 0.5,
    threshold_b: float | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Score of ``b`` minus score of ``a``, with an interval from the same resampled blocks for both.

    Args:
        a, b: score tables of the same chips, in any order.
        metric: one of :data:`cryosentinel.evaluation.metrics.METRICS`.
        threshold_a, threshold_b: of each side; ``threshold_b`` defaults to ``threshold_a``.
        level, resamples, seed: as for :func:`ratio_of_sums`.

    Returns:
        Positive where ``b`` is better.

    Raises:
        InputError: the tables do not hold the same chips.
    """
    b = _aligned(a, b)
    sides = [*parts(a, metric, threshold_a), *parts(b, metric, threshold_a if threshold_b is None else threshold_b)]
    codes, blocks, bearing = _blocks(a["block"].to_numpy(), histograms(a)[0].sum(axis=1))
    sums = [side.sum() for side in sides]
    value = sums[2] / sums[3] - sums[0] / sums[1] if sums[1] and sums[3] else math.nan
    reason = _reason(value, bearing, blocks)
    low = high = above = None
    if not reason:
        totals = multiplicities(blocks, resamples, seed) @ _block_sums(codes, blocks, *sides)
        with np.errstate(invalid="ignore", divide="ignore"):
            change = totals[:, 2] / totals[:, 3] - totals[:, 0] / totals[:, 1]
        low, high = _percentiles(change, level)
        above = float((change > 0).mean())
    return Estimate(float(value), low, high, len(a), blocks, bearing, reason, above)


def estimate_by(
    table: pd.DataFrame, column: str, metric: str = "iou", threshold: float = 0.5, **options: Any
) -> dict[str, Estimate]:
    """The estimate of each region or year, in their order.

    Args:
        table: score table.
        column: "region" or "year".
        metric, threshold, options: as for :func:`estimate`.
    """
    return {
        str(name): estimate(group.reset_index(drop=True), metric, threshold, **options)
        for name, group in table.groupby(column, sort=True)
    }
