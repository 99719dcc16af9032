"""Are the probabilities frequencies? Reliability, its expected error, and a temperature, from the score histograms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.scores import BINS, histograms

if TYPE_CHECKING:
    import pandas as pd

_MIDDLES = (np.arange(BINS) + 0.5) / BINS
#: The first and last bin hold logits without a bound, most of a sure network's pixels: their middles are no one's.
_INNER = slice(1, BINS - 1)


def _tempered(temperature: float) -> np.ndarray:
    """The middles of the bins, the inner ones after their logits were divided by a temperature: (200,)."""
    from scipy.special import expit, logit

    middles = _MIDDLES.copy()
    if temperature != 1:
        middles[_INNER] = expit(logit(middles[_INNER]) / temperature)
    return middles


def reliability(table: pd.DataFrame, groups: int = 20, temperature: float = 1.0) -> pd.DataFrame:
    """Observed lake share by predicted probability.

    Args:
        table: score table.
        groups: equally wide classes of probability; a divisor of 200.
        temperature: by which the logits are divided first, see :func:`fit_temperature`. Probabilities below 0.005 or
            from 0.995 on, whose logits the table does not tell, stay as they are.

    Returns:
        One row a class: low, high, predicted (mean of the 200 bins' middles, so within 0.0025), observed (lake share,
        NaN where empty), pixels.

    Raises:
        ConfigError: ``groups`` does not divide 200, or the temperature is not above 0.
    """
    import pandas as pd

    if groups < 1 or BINS % groups:
        raise ConfigError(f"The number of classes is {groups}; it must divide {BINS} (10, 20, 40, ...).")
    if not temperature > 0:
        raise ConfigError(f"The temperature is {temperature}; it must be above 0.")
    lake, background = (h.sum(axis=0) for h in histograms(table))
    probability = _tempered(temperature)
    at = np.minimum((probability * groups).astype(int), groups - 1)
    both = lake + background
    pixels, hits, total = (np.bincount(at, weights=w, minlength=groups) for w in (both, lake, both * probability))
    with np.errstate(invalid="ignore"):
        predicted, observed = total / pixels, hits / pixels
    edges = np.arange(groups + 1) / groups
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "predicted": predicted, "observed": observed, "pixels": pixels}
    )


def calibration_error(table: pd.DataFrame, groups: int = 20, temperature: float = 1.0) -> float:
    """Expected calibration error: mean |observed - predicted| over classes, weighted by pixels. NaN without pixels."""
    curve = reliability(table, groups, temperature)
    if not curve["pixels"].sum():
        return math.nan
    used = curve[curve["pixels"] > 0]
    return float(np.average((used["observed"] - used["predicted"]).abs(), weights=used["pixels"]))


def fit_temperature(table: pd.DataFrame) -> float:
    """The temperature that fits the probabilities best (Guo et al. 2017): logits divided by it, least log loss.

    Only probabilities from 0.005 to 0.995 enter: beyond, a bin of the table holds logits without a bound, and its
    middle would decide the fit. Fit it on validation, and apply it to test. It keeps the order of the probabilities, so
    that no threshold score changes but for the name of its threshold.

    Args:
        table: score table; the bins' middles stand for their probabilities.

    Returns:
        Above 1 where the predictor is too sure of itself; within 0.05 to 20.

    Raises:
        InputError: there is no lake or no background among these probabilities, which any temperature fits.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logit

    lake, background = (h.sum(axis=0)[_INNER] for h in histograms(table))
    if not (lake.any() and background.any()):
        raise InputError(
            "Between 0.005 and 0.995 the score table holds no lake or nothing else, so no temperature can be fitted."
        )
    logits = logit(_MIDDLES[_INNER])

    def log_loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float(lake @ np.logaddexp(0, -scaled) + background @ np.logaddexp(0, scaled))

    found = minimize_scalar(log_loss, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-6})
    return float(math.exp(found.x))
