"""Indices as probabilities, the pixel classifier, and calibration from the histograms."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cryosentinel.data.chips import Chip
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation import calibration, metrics
from cryosentinel.evaluation.baselines import (
    BASELINES,
    INPUTS,
    IndexPredictor,
    PixelClassifier,
    baseline,
    sample_pixels,
)
from cryosentinel.evaluation.evaluate import evaluate
from cryosentinel.indices import mndwi, ndwi, slope

SIZE = 32


class WaterStore:
    """Lakes that MNDWI half sees and VV sees well."""

    def __init__(self, n: int = 18, lakes: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.chips = []
        for i in range(n):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            if lakes:
                mask[8:20, 4 + i % 8 : 16 + i % 8] = 1
            noise = rng.normal(0, 400, (12, SIZE, SIZE))
            s2 = (2000 + noise).clip(1, 10_000).astype(np.uint16)
            s2[10] = np.where(mask, 1500 + noise[10], 2200 + noise[10]).clip(1, 10_000)
            s2[:, :2, :2] = 0
            s1 = np.where(mask, -20, -10) + rng.normal(0, 1.5, (2, SIZE, SIZE))
            dem = np.full((1, SIZE, SIZE), 3500, np.int16)
            self.chips.append(
                Chip(s2, s1.astype(np.float32), dem, mask, f"c{i}", "ile_alatau", 2022, 42.0 + i, 77.0)
            )  # fmt: skip
        self.index = pd.DataFrame(
            [{"chip_id": c.chip_id, "region": c.region, "year": 2022, "lat": c.lat, "lon": 77.0} for c in self.chips]
        )

    def __getitem__(self, row: int) -> Chip:
        return self.chips[row]


ROWS = {"train": range(6), "val": range(6, 12), "test": range(12, 18)}


def test_indices_become_probabilities_without_losing_a_threshold():
    torch = pytest.importorskip("torch")
    s2 = np.random.default_rng(0).integers(0, 16_000, (2, 12, 8, 8)).astype(np.float32)
    for name, function in (("mndwi", mndwi), ("ndwi", ndwi)):
        found = IndexPredictor(name)({"S2L2A": torch.from_numpy(s2)})
        assert found.min() >= 0 and found.max() <= 1 and found.dtype == np.float32
        np.testing.assert_allclose(found, (function(s2) + 1) / 2, atol=1e-6)
    with pytest.raises(ConfigError, match="ndvi"):
        IndexPredictor("ndvi")


def test_inputs_are_what_they_are_called():
    rng = np.random.default_rng(0)
    s2, s1, dem = (rng.random((c, 40, 44)).astype(np.float32) * 1000 + 1 for c in (12, 2, 1))
    planes = {name: make(s2, s1, dem) for name, make in INPUTS.items()}
    assert {name: len(found) for name, found in planes.items()} == {
        "pixel": 17, "pixel_slope": 18, "dem": 9, "mlp": 18, "mlp_context": 41
    }  # fmt: skip
    np.testing.assert_array_equal(planes["pixel"][:15], np.concatenate([s2, s1, dem]))
    np.testing.assert_array_equal(planes["pixel"][15:], [ndwi(s2), mndwi(s2)])
    np.testing.assert_allclose(planes["pixel_slope"][17], slope(dem[0]))
    np.testing.assert_allclose(planes["mlp"][:12], np.log(s2))
    other = INPUTS["dem"](s2 * 0, s1 * 0, dem)
    np.testing.assert_array_equal(planes["dem"], other)  # nothing but the elevation model
    np.testing.assert_allclose(INPUTS["dem"](s2, s1, dem + 500), other, atol=0.02)  # and not its height
    np.testing.assert_allclose(planes["mlp_context"][18, 20, 22], np.log(s2[0, 10:31, 12:33]).mean(), rtol=1e-4)


def test_the_sample_is_seeded_valid_and_weighted_back():
    store = WaterStore()
    features, lake, weight = sample_pixels(store, range(6), per_class=50)
    again = sample_pixels(store, range(6), per_class=50)
    for a, b in zip((features, lake, weight), again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(features, sample_pixels(store, range(6), per_class=50, seed=1)[0])
    assert len(lake) == 600 and lake.sum() == 300
    share = np.average(lake, weights=weight)
    assert share == pytest.approx(6 * 144 / (6 * (SIZE**2 - 4)))  # the prevalence among valid pixels
    assert (features[:, :12].max(axis=1) > 0).all()  # none without data
    part = sample_pixels(store, [3], per_class=50)[0]
    np.testing.assert_array_equal(part, features[300:400])  # a chip's draw does not depend on the others


def test_a_sample_of_one_class_is_refused():
    with pytest.raises(InputError, match="lake pixels"):
        sample_pixels(WaterStore(lakes=False), range(3))


def evaluate_baselines(store, out, names=BASELINES):
    rows = {split: ROWS[split] for split in ("val", "test")}
    references = {"truth": lambda chip: chip.mask}
    return {
        name: evaluate(
            baseline(name, store, ROWS["train"]), store, rows, out / name, references, digest=name, progress=False
        )
        for name in names
    }


def test_baselines_share_the_evaluation_path(tmp_path):
    pytest.importorskip("torch")
    found = evaluate_baselines(WaterStore(), tmp_path)
    scores = {}
    for name, evaluation in found.items():
        assert set(evaluation.tables) == {(s, r) for s in ("val", "test") for r in ("label", "truth")}
        best = metrics.best_threshold(evaluation.table("val"), thresholds=metrics.ALL_THRESHOLDS)
        scores[name] = metrics.score(evaluation.table("test"), "iou", best)
    # All bands beat one index, and the index that looks at B11 beats the one that does not.
    assert scores["pixel"] > 0.9 > scores["mndwi"] > scores["ndwi"]
    assert min(scores["pixel_slope"], scores["mlp"], scores["mlp_context"]) > 0.8
    assert scores["dem"] < 0.4  # this ground is flat everywhere

    class Untouchable(WaterStore):
        def __getitem__(self, row):
            raise AssertionError("a finished baseline reads no chip")

    again = evaluate_baselines(Untouchable(), tmp_path)
    assert metrics.score(again["pixel"].table("test")) == metrics.score(found["pixel"].table("test"))


def test_the_classifier_is_weighted_back_to_the_prevalence():
    class Noise(WaterStore):
        """Labels that no band knows of, 1 pixel in 8: nothing can be predicted but the prevalence."""

        def __init__(self) -> None:
            super().__init__(6, lakes=False)
            rng = np.random.default_rng(1)
            masks = [(rng.random((SIZE, SIZE)) < 0.125).astype(np.uint8) for _ in self.chips]
            self.chips = [chip.replace(mask=mask) for chip, mask in zip(self.chips, masks, strict=True)]

    torch = pytest.importorskip("torch")
    store = Noise()
    predictor = PixelClassifier(store, range(6), per_class=50, rounds=5)
    arrays = {"S2L2A": store[0].s2, "S1GRD": store[0].s1, "DEM": store[0].dem}
    found = predictor({name: torch.from_numpy(a[None].astype(np.float32)) for name, a in arrays.items()})
    assert 0.08 < found.mean() < 0.25  # one half without the weights


def test_another_training_split_is_another_classifier():
    store = WaterStore()
    assert PixelClassifier(store, range(6)).settings != PixelClassifier(store, range(5)).settings


# --- calibration -------------------------------------------------------------------------------------------------


def histogram_table(probability: np.ndarray, label: np.ndarray) -> pd.DataFrame:
    from cryosentinel.evaluation.scores import ScoreBuilder, probability_bins

    index = pd.DataFrame({"chip_id": ["c"], "region": "r", "year": 2022, "lat": 0.0, "lon": 0.0})
    builder = ScoreBuilder(index, np.array(["0|0"]))
    builder.add(0, probability_bins(probability), label, np.ones(label.shape, bool))
    return builder.table()


def test_calibration_error_is_weighted_by_pixels():
    probability = np.array([[0.1025] * 90 + [0.9025] * 10], np.float32)
    label = np.array([[1] * 9 + [0] * 81 + [1] * 4 + [0] * 6])
    # 90 pixels predicted 0.1025 of which 0.1 are lake, 10 predicted 0.9025 of which 0.4 are.
    expected = 0.9 * 0.0025 + 0.1 * 0.5025
    assert calibration.calibration_error(histogram_table(probability, label)) == pytest.approx(expected, abs=1e-6)


def test_the_temperature_that_spoiled_the_probabilities_is_found_again():
    from scipy.special import expit, logit

    rng = np.random.default_rng(0)
    honest = rng.uniform(0.02, 0.98, (400, 400))
    label = rng.random(honest.shape) < honest
    sure = histogram_table(expit(2.0 * logit(honest)).astype(np.float32), label)
    found = calibration.fit_temperature(sure)
    assert found == pytest.approx(2.0, rel=0.03)
    assert calibration.calibration_error(sure, temperature=found) < 0.01 < calibration.calibration_error(sure)
    curve = calibration.reliability(sure, temperature=found)
    assert curve["pixels"].sum() == label.size
    with pytest.raises(InputError, match="no lake"):
        calibration.fit_temperature(histogram_table(honest.astype(np.float32), np.zeros_like(label)))
    with pytest.raises(ConfigError, match="temperature"):
        calibration.reliability(sure, temperature=0)


def test_the_temperature_of_a_sure_network_is_that_of_its_logits():
    from scipy.optimize import minimize_scalar
    from scipy.special import expit

    rng = np.random.default_rng(0)
    lake = rng.random(200_000) < 0.04
    honest = np.where(lake, rng.normal(4, 3, lake.size), rng.normal(-9, 2, lake.size))
    label, logits = rng.random(lake.size) < expit(honest), 1.5 * honest
    sign = np.where(label, -1, 1)
    exact = minimize_scalar(lambda t: np.logaddexp(0, sign * logits / t).mean(), bounds=(0.1, 10), method="bounded").x
    sure = histogram_table(expit(logits).astype(np.float32)[None], label[None])
    found = calibration.fit_temperature(sure)
    assert found == pytest.approx(exact, rel=0.06) and exact == pytest.approx(1.5, rel=0.03)
    # Below 0.005 and from 0.995 on the table does not know the logits: what is predicted there stays.
    as_is, tempered = (calibration.reliability(sure, 200, t).iloc[0] for t in (1, found))
    assert as_is["predicted"] == tempered["predicted"] == 0.0025
    assert calibration.calibration_error(sure, temperature=found) < calibration.calibration_error(sure)


def test_reliability_agrees_with_sklearn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    probability = rng.random((100, 100), dtype=np.float32)
    label = rng.random((100, 100)) < probability**2
    table = histogram_table(probability, label)
    observed, predicted = calibration_curve(label.ravel(), probability.ravel(), n_bins=20)
    curve = calibration.reliability(table)
    np.testing.assert_allclose(curve["observed"], observed, atol=1e-12)
    np.testing.assert_allclose(curve["predicted"], predicted, atol=0.0025)
    honest = histogram_table(probability, rng.random((100, 100)) < probability)
    assert calibration.calibration_error(honest) < 0.05 < calibration.calibration_error(table)
    with pytest.raises(ConfigError, match="divide 200"):
        calibration.reliability(table, 30)


def test_the_oracle_calls_all_standing_water_a_lake():
    torch = pytest.importorskip("torch")
    store = WaterStore(3)
    truth = {c.chip_id: SimpleNamespace(body=np.where(c.mask, 2, 0)) for c in store.chips}
    predict = baseline("oracle", store, (), truth=truth)
    found = predict({"row": torch.tensor([2, 0])})
    np.testing.assert_array_equal(found, [store.chips[2].mask, store.chips[0].mask])
    with pytest.raises(ConfigError, match="truth"):
        baseline("oracle", store, ())
