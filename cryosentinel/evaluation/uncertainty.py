"""Does a measure of uncertainty know where the prediction is wrong? Tested by whether error rises with it.

A measure is a map of 0..1 a chip, kept in the same bins as probabilities. Against the reference "the prediction is
wrong here" its score table holds two histograms a chip, over wrong and over right pixels, and everything follows from
them: the error rate by uncertainty, the area under the ROC curve (the chance that a wrong pixel is more uncertain than
a right one), and the error that remains when the most uncertain pixels are left to somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.evaluation.bootstrap import RESAMPLES, SEED, Estimate, score_of_sums
from cryosentinel.evaluation.evaluate import Reference, Store, score_maps
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import BINS, INVALID, histograms, probability_bins

if TYPE_CHECKING:
    import pandas as pd


def _with_bins(maps: ProbabilityMaps, values: np.ndarray) -> ProbabilityMaps:
    """Maps of the same chips with (N, H, W) values of 0..1, not a number where invalid."""
    invalid = np.isnan(values)
    bins = probability_bins(np.where(invalid, 0, values))
    bins[invalid] = INVALID
    return ProbabilityMaps(bins, maps.rows, maps.key)


def closeness(maps: ProbabilityMaps, threshold: float = 0.5) -> ProbabilityMaps:
    """The measure that costs nothing: how near a probability is to the threshold, 1 on it and 0 at either end."""
    values = np.stack([maps.probability(i) for i in range(len(maps))])
    away = np.abs(values - threshold) / np.where(values < threshold, threshold, 1 - threshold)
    return _with_bins(maps, np.clip(1 - away, 0, 1))


def disagreement(members: Sequence[ProbabilityMaps]) -> ProbabilityMaps:
    """How far several predictions of the same chips disagree: twice the standard deviation of their probabilities.

    Raises:
        InputError: fewer than two, or predictions of different chips.
    """
    if len(members) < 2 or len({of_one.rows for of_one in members}) > 1:
        raise InputError("A disagreement needs two or more predictions of the same chips, in the same order.")
    values = np.stack([[of_one.probability(i) for of_one in members] for i in range(len(members[0]))])
    return _with_bins(members[0], 2 * values.std(axis=1))


def error_table(
    measure: ProbabilityMaps,
    maps: ProbabilityMaps,
    store: Store,
    reference: Reference | None = None,
    threshold: float = 0.5,
    block_size: float = 0.15,
) -> pd.DataFrame:
    """A score table of a measure against the errors of a prediction.

    Args:
        measure: uncertainty, of the same chips as ``maps``.
        maps: the prediction.
        store: its chips.
        reference: from a chip to its mask; None for the label.
        threshold: of the prediction, a multiple of 1/200.
        block_size: of the split blocks, degrees.

    Returns:
        A score table whose column ``lake`` counts wrong pixels and ``background`` right ones.
    """
    if measure.rows != maps.rows:
        raise InputError("The uncertainty and the prediction are of different chips; measure both on the same.")
    predicted = iter([maps.water(i, threshold) for i in range(len(maps))])

    def wrong(chip: object) -> np.ndarray:  # called once a chip, in the order of the maps
        return next(predicted) != ((chip.mask if reference is None else reference(chip)) > 0)  # type: ignore

    return score_maps(measure, store, {"wrong": wrong}, block_size)["wrong"]


def _auc(histogram: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of (..., 400) counts: wrong pixels by bin, then right ones. Ties count half."""
    wrong, right = histogram[..., :BINS], histogram[..., BINS:]
    below = np.cumsum(right, axis=-1) - right / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (wrong * below).sum(axis=-1) / (wrong.sum(axis=-1) * right.sum(axis=-1))


def ranking(table: pd.DataFrame, level: float = 0.95, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """The chance that a wrong pixel is more uncertain than a right one, with its block-bootstrap interval.

    Args:
        table: from :func:`error_table`.
        level, resamples, seed: as for :func:`cryosentinel.evaluation.bootstrap.ratio_of_sums`.

    Returns:
        0.5 where the measure says nothing. It passes its test where the interval lies above.
    """
    columns = np.concatenate(histograms(table), axis=1)
    wrong = columns[:, :BINS].sum(axis=1)
    return score_of_sums(columns, _auc, table["block"].to_numpy(), wrong, level, resamples, seed)


def referral(table: pd.DataFrame) -> pd.DataFrame:
    """The error that remains when the most uncertain pixels are left out.

    Returns:
        One row a limit of uncertainty: uncertainty, left_out (share of all pixels at or above it), error (share of the
        others that is wrong).
    """
    import pandas as pd

    wrong, right = (h.sum(axis=0) for h in histograms(table))
    kept_wrong, kept = np.cumsum(wrong), np.cumsum(wrong + right)
    with np.errstate(invalid="ignore"):
        error = kept_wrong / kept
    limits = np.arange(1, BINS + 1) / BINS
    return pd.DataFrame({"uncertainty": limits, "left_out": 1 - kept / kept[-1], "error": error})
