"""Baselines that go the same way as the network: same chips, same score tables, threshold tuned on validation.

A spectral index is not a probability; (index + 1) / 2 carries it monotonically to 0..1, so that its whole threshold
range (in steps of 0.01 of the index) is in the same histograms, and no setting is lost.

Classifiers are told apart by what they are given (:data:`INPUTS`): gradient boosting on the bands of single pixels,
with and without slope; on the shape of the elevation model alone; and a small network (MLP) on single pixels, with and
without the means of their surroundings. The oracle is no method: it calls all true standing water a lake, and so is the
ceiling for whoever cannot tell reservoirs and ponds from glacial lakes.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.evaluate import Store
from cryosentinel.evaluation.predictors import Predictor
from cryosentinel.indices import dem_shape, mndwi, ndwi, slope

if TYPE_CHECKING:
    import torch

AROUND_PX = 21  # the surroundings of a pixel: 210 m


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


def _bands(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
    return np.stack([*s2, *s1, *dem, ndwi(s2), mndwi(s2)]).astype(np.float32)


def _bands_and_slope(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
    return np.concatenate([_bands(s2, s1, dem), slope(dem[0])[None]])


def _shape(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
    return dem_shape(dem[0])


def _logs(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
    return np.concatenate([np.log(np.maximum(s2, 1.0)), _bands_and_slope(s2, s1, dem)[12:]])


def _logs_and_surroundings(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    logs = _logs(s2, s1, dem)
    around = uniform_filter(logs[:14], (0, AROUND_PX, AROUND_PX), mode="nearest")
    return np.concatenate([logs, around, dem_shape(dem[0])])


#: Classifier -> its inputs, (F, H, W) float32 of one chip's clipped and filled bands.
INPUTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "pixel": _bands,  # the 15 bands in order, NDWI, MNDWI
    "pixel_slope": _bands_and_slope,
    "dem": _shape,
    "mlp": _logs,  # log reflectance, radar, elevation, NDWI, MNDWI, slope
    "mlp_context": _logs_and_surroundings,  # these, their means over 210 m, the shape of the ground
}


def sample_pixels(
    store: Store, rows: Sequence[int], per_class: int = 100, seed: int = 42, inputs: str = "pixel"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A seeded sample of valid training pixels, up to ``per_class`` lake and as many background pixels from each chip.

    The weights undo the sampling: a pixel stands for as many valid pixels of its class as its chip holds for each one
    drawn. A chip's draw depends on the seed and its position in the index only.

    Args:
        store, rows: the training chips.
        per_class: pixels a class and chip.
        seed: of the draw.
        inputs: of :data:`INPUTS`.

    Returns:
        features (n, F) float32, lake (n,) bool, weight (n,) float64 with mean 1.

    Raises:
        InputError: the chips hold no lake pixel, or nothing else.
    """
    from cryosentinel.data.chips import clean
    from cryosentinel.data.pixels import draw_classes

    features, lake, weights = [], [], []
    for row in rows:
        chip, rng = store[int(row)], np.random.default_rng([seed, int(row)])
        label = chip.mask.reshape(-1) > 0
        at, weight = draw_classes(label, chip.valid.reshape(-1), per_class, rng)
        lake.append(label[at])
        weights.append(weight)
        planes = INPUTS[inputs](*clean(chip.s2, chip.s1, chip.dem))
        features.append(planes.reshape(len(planes), -1)[:, at].T)
    y, weight = np.concatenate(lake), np.concatenate(weights)
    if y.all() or not y.any():
        raise InputError(
            f"The {len(rows)} training chips hold {'only' if y.size and y.all() else 'no'} valid lake pixels; "
            "the pixel classifier needs both classes, so give it more chips."
        )
    return np.concatenate(features), y, weight / weight.mean()


class PixelClassifier:
    """Gradient boosting or a small network over pixels, fitted at its first use (so never, if results are there).

    Args:
        store, rows: the training chips.
        inputs: of :data:`INPUTS`; those called "mlp" go to a network of two layers, the others to gradient boosting.
        per_class: pixels a class and chip, see :func:`sample_pixels`.
        seed: of the sample and of the classifier.
        rounds: boosting iterations, or epochs of the network.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        inputs: str = "pixel",
        per_class: int = 100,
        seed: int = 42,
        rounds: int | None = None,
    ) -> None:
        self._store, self._rows = store, [int(r) for r in rows]
        self._model: Any = None
        self._network = inputs.startswith("mlp")
        # The training chips are part of the settings: another split is another classifier.
        chips = hashlib.sha256(json.dumps(store.index["chip_id"].iloc[self._rows].tolist()).encode()).hexdigest()
        self.settings: dict[str, Any] = {
            "classifier": "MLP 64-64" if self._network else "HistGradientBoosting", "inputs": inputs,
            "per_class": per_class, "seed": seed, "rounds": rounds or (30 if self._network else 100),
            "trained_on": chips,
        }  # fmt: skip

    def fit(self) -> Any:
        """The fitted classifier, of scikit-learn."""
        if self._model is None:
            from threadpoolctl import threadpool_limits

            s = self.settings
            features, lake, weight = sample_pixels(self._store, self._rows, s["per_class"], s["seed"], s["inputs"])
            with threadpool_limits(1):  # threads on batches of 512 pixels mostly wait for each other
                self._model = self._fitted(features, lake, weight)
        return self._model

    def _fitted(self, features: np.ndarray, lake: np.ndarray, weight: np.ndarray) -> Any:
        s = self.settings
        if self._network:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.neural_network import MLPClassifier
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            network = MLPClassifier((64, 64), max_iter=s["rounds"], batch_size=512, random_state=s["seed"])
            # Its epochs are few on purpose: that it has not converged is no news.
            with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
                return make_pipeline(StandardScaler(), network).fit(features, lake, mlpclassifier__sample_weight=weight)
        from sklearn.ensemble import HistGradientBoostingClassifier

        from cryosentinel.data.pixels import few_values

        model = HistGradientBoostingClassifier(max_iter=s["rounds"], early_stopping=False, random_state=s["seed"])
        return model.fit(few_values(features), lake, sample_weight=weight)

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Probabilities of water, (B, H, W) float32, of a batch of chips."""
        from threadpoolctl import ThreadpoolController

        model, inputs = self.fit(), INPUTS[self.settings["inputs"]]
        threads = ThreadpoolController()

        def of_chip(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
            planes = inputs(s2, s1, dem)
            probability = model.predict_proba(planes.reshape(len(planes), -1).T)[:, 1]
            return probability.astype(np.float32).reshape(s2.shape[1:])

        def alone() -> None:  # OpenMP's number of threads is each thread's own
            threads.limit(limits=1, user_api="openmp")

        # A chip a thread: most of the work is in inputs and activations, which use one core each.
        with threads.limit(limits=1), ThreadPoolExecutor(os.cpu_count(), initializer=alone) as pool:
            return np.stack(list(pool.map(of_chip, *(batch[name].numpy() for name in ("S2L2A", "S1GRD", "DEM")))))


class Oracle:
    """All true standing water, frozen or open, glacial or not: what cannot be passed without telling them apart.

    Args:
        store: the chips.
        truth: chip id -> truth with ``body``, 0 where no standing water is.
    """

    def __init__(self, store: Store, truth: Mapping[str, Any]) -> None:
        self._ids, self._truth = store.index["chip_id"].tolist(), truth
        self.settings: dict[str, Any] = {"oracle": "standing water"}

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Probabilities of water, (B, H, W) float32, 0 or 1, of a batch of chips."""
        rows = batch["row"].tolist()
        return np.stack([(self._truth[self._ids[row]].body > 0).astype(np.float32) for row in rows])


def baseline(
    name: str, store: Store, train_rows: Sequence[int], seed: int = 42, truth: Mapping[str, Any] | None = None
) -> Predictor:
    """A baseline by name: an index, a classifier of :data:`INPUTS`, or "oracle" (needs ``truth``, see :class:`Oracle`).

    Raises:
        ConfigError: there is no such baseline, or the oracle has no truth.
    """
    if name in INPUTS:
        return PixelClassifier(store, train_rows, name, seed=seed)
    if name in ("mndwi", "ndwi"):
        return IndexPredictor(name)
    if name == "oracle":
        if truth is None:
            raise ConfigError("The oracle needs the known truth, which only simulated chips have.")
        return Oracle(store, truth)
    raise ConfigError(f"There is no baseline {name!r}; choose among {', '.join(BASELINES)} or oracle.")


BASELINES = ("mndwi", "ndwi", *INPUTS)
