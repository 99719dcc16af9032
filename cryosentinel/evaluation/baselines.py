"""Baselines that go the same way as the network: same chips, same score tables, threshold tuned on validation.

A spectral index is not a probability; (index + 1) / 2 carries it monotonically to 0..1, so that its whole threshold
range (in steps of 0.01 of the index) is in the same histograms, and no setting is lost. The pixel classifier sees all
15 bands of one pixel and nothing of its neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.evaluate import Store
from cryosentinel.evaluation.predictors import Predictor
from cryosentinel.indices import mndwi, ndwi
from cryosentinel.sensors import BAND_COUNT

if TYPE_CHECKING:
    import torch
    from sklearn.ensemble import HistGradientBoostingClassifier

FEATURES = BAND_COUNT + 2  # 12 + 2 + 1 bands, NDWI, MNDWI


class IndexPredictor:
    """A water index as (index + 1) / 2: index 0 is 0.5, MNDWI 0.3 is 0.65.

    Args:
        name: "mndwi" or "ndwi".
    """

    def __init__(self, name: str) -> None:
        if name not in ("mndwi", "ndwi"):
            raise ConfigError(f"There is no index {name!r}; choose mndwi or ndwi.")
        self._index = mndwi if name == "mndwi" else ndwi
        self.settings: dict[str, Any] = {"index": name}

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """See :class:`cryosentinel.evaluation.predictors.Predictor`."""
        index = self._index(batch["S2L2A"].numpy())
        # Clipped: float32 rounding may leave 0..1 by one unit in the last place.
        return np.clip((index + 1) / 2, 0, 1)


def pixel_features(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
    """One row a pixel: the 15 bands in order, then NDWI and MNDWI.

    Args:
        s2, s1, dem: (..., 12 | 2 | 1, H, W), clipped and filled.

    Returns:
        (pixels, 17) float32.
    """
    indices = np.stack([ndwi(s2), mndwi(s2)], axis=-3)
    planes = np.concatenate([a.astype(np.float32) for a in (s2, s1, dem, indices)], axis=-3)
    return np.moveaxis(planes, -3, -1).reshape(-1, FEATURES)


def sample_pixels(
    store: Store, rows: Sequence[int], per_class: int = 100, seed: int = 42
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A seeded sample of valid training pixels, up to ``per_class`` lake and as many background pixels from each chip.

    The weights undo the sampling: a pixel stands for as many valid pixels of its class as its chip holds for each one
    drawn. A chip's draw depends on the seed and its position in the index only.

    Returns:
        features (n, 17) float32, lake (n,) bool, weight (n,) float64 with mean 1.

    Raises:
        InputError: the chips hold no lake pixel, or nothing else.
    """
    from cryosentinel.data.chips import clean

    features, lake, weights = [], [], []
    for row in rows:
        chip, rng = store[int(row)], np.random.default_rng([seed, int(row)])
        label, valid = chip.mask.reshape(-1) > 0, chip.valid.reshape(-1)
        drawn: list[np.ndarray] = []
        for wanted in (True, False):
            candidates = np.flatnonzero(valid & (label == wanted))
            taken = rng.choice(candidates, min(per_class, len(candidates)), replace=False)
            drawn.append(taken)
            weights.append(np.full(len(taken), len(candidates) / max(len(taken), 1)))
            lake.append(np.full(len(taken), wanted))
        at = np.concatenate(drawn)
        # Only the drawn pixels are cleaned: a chip is a row of them.
        cut = (a.reshape(len(a), -1)[:, at][:, None, :] for a in (chip.s2, chip.s1, chip.dem))
        features.append(pixel_features(*clean(*cut)))
    y, weight = np.concatenate(lake), np.concatenate(weights)
    if y.all() or not y.any():
        raise InputError(
            f"The {len(rows)} training chips hold {'only' if y.size and y.all() else 'no'} valid lake pixels; "
            "the pixel classifier needs both classes, so give it more chips."
        )
    return np.concatenate(features), y, weight / weight.mean()


class PixelClassifier:
    """Gradient boosting over the bands of single pixels, fitted at its first use (so never, if results are there).

    Args:
        store, rows: the training chips.
        per_class: pixels a class and chip, see :func:`sample_pixels`.
        seed: of the sample and of the classifier.
        trees: boosting iterations.
    """

    def __init__(
        self, store: Store, rows: Sequence[int], per_class: int = 100, seed: int = 42, trees: int = 100
    ) -> None:
        self._store, self._rows = store, [int(r) for r in rows]
        self._model: HistGradientBoostingClassifier | None = None
        # The training chips are part of the settings: another split is another classifier.
        chips = hashlib.sha256(json.dumps(store.index["chip_id"].iloc[self._rows].tolist()).encode()).hexdigest()
        self.settings: dict[str, Any] = {
            "classifier": "HistGradientBoosting", "per_class": per_class, "seed": seed, "trees": trees,
            "trained_on": chips,
        }  # fmt: skip

    def fit(self) -> HistGradientBoostingClassifier:
        """The fitted classifier."""
        if self._model is None:
            from sklearn.ensemble import HistGradientBoostingClassifier

            features, lake, weight = sample_pixels(
                self._store, self._rows, self.settings["per_class"], self.settings["seed"]
            )
            model = HistGradientBoostingClassifier(
                max_iter=self.settings["trees"], early_stopping=False, random_state=self.settings["seed"]
            )
            self._model = model.fit(features, lake, sample_weight=weight)
        return self._model

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """See :class:`cryosentinel.evaluation.predictors.Predictor`."""
        arrays = [batch[name].numpy() for name in ("S2L2A", "S1GRD", "DEM")]
        shape = arrays[0].shape[:1] + arrays[0].shape[2:]
        probability = self.fit().predict_proba(pixel_features(*arrays))[:, 1]
        return probability.astype(np.float32).reshape(shape)


def baseline(name: str, store: Store, train_rows: Sequence[int], seed: int = 42) -> Predictor:
    """A baseline by name: "mndwi", "ndwi" or "pixel".

    Raises:
        ConfigError: there is no such baseline.
    """
    if name == "pixel":
        return PixelClassifier(store, train_rows, seed=seed)
    if name in ("mndwi", "ndwi"):
        return IndexPredictor(name)
    raise ConfigError(f"There is no baseline {name!r}; choose among {', '.join(BASELINES)}.")


BASELINES = ("mndwi", "ndwi", "pixel")
