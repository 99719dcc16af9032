"""Are the probabilities frequencies? The reliability curve, from the score histograms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cryosentinel.errors import ConfigError
from cryosentinel.evaluation.scores import BINS, histograms

if TYPE_CHECKING:
    import pandas as pd


def reliability(table: pd.DataFrame, groups: int = 20) -> pd.DataFrame:
    """Observed lake share by predicted probability.

    Args:
        table: score table.
        groups: equally wide classes of probability; a divisor of 200.

    Returns:
        One row a class: low, high, predicted (mean of the 200 bins' middles, so within 0.0025), observed (lake share,
        NaN where empty), pixels.

    Raises:
        ConfigError: ``groups`` does not divide 200.
    """
    import pandas as pd

    if groups < 1 or BINS % groups:
        raise ConfigError(f"The number of classes is {groups}; it must divide {BINS} (10, 20, 40, ...).")
    lake, background = (h.sum(axis=0) for h in histograms(table))
    both, middles = lake + background, (np.arange(BINS) + 0.5) / BINS
    shape = (groups, BINS // groups)
    pixels = both.reshape(shape).sum(axis=1)
    with np.errstate(invalid="ignore"):
        predicted = (both * middles).reshape(shape).sum(axis=1) / pixels
        observed = lake.reshape(shape).sum(axis=1) / pixels
    edges = np.arange(groups + 1) / groups
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "predicted": predicted, "observed": observed, "pixels": pixels}
    )


def calibration_error(table: pd.DataFrame, groups: int = 20) -> float:
    """Expected calibration error: mean |observed - predicted| over classes, weighted by pixels. NaN without pixels."""
    curve = reliability(table, groups)
    if not curve["pixels"].sum():
        return math.nan
    used = curve[curve["pixels"] > 0]
    return float(np.average((used["observed"] - used["predicted"]).abs(), weights=used["pixels"]))
