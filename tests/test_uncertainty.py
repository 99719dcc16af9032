"""Measures of uncertainty against scikit-learn and loops over pixels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cryosentinel.errors import InputError
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import BINS, INVALID
from cryosentinel.evaluation.uncertainty import closeness, disagreement, error_table, ranking, referral

N, SIZE = 24, 12


def chips(seed: int = 0) -> tuple[ProbabilityMaps, ProbabilityMaps, SimpleNamespace, np.ndarray]:
    """A prediction, an uncertainty that knows a little of its errors, the chips, and where it errs."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(0, BINS, (N, SIZE, SIZE)).astype(np.uint8)
    wrong = rng.random(bins.shape) < 0.2
    unsure = np.clip(rng.normal(60 + 40 * wrong, 30), 0, BINS - 1).astype(np.uint8)
    bins[:, 0] = unsure[:, 0] = INVALID
    masks = (bins >= 100) != wrong
    index = pd.DataFrame({"chip_id": [f"c{i}" for i in range(N)], "region": "r", "year": 2022, "lon": 77.01})
    index["lat"] = 42.01 + 0.15 * np.arange(N)

    class Store:
        def __getitem__(self, row):
            return SimpleNamespace(mask=masks[row].astype(np.uint8))

    store = Store()
    store.index = index
    maps, measure = (ProbabilityMaps(of, tuple(range(N)), "key") for of in (bins, unsure))
    return maps, measure, store, wrong


def test_the_area_under_the_curve_is_scikit_learns_and_its_interval_a_plain_bootstrap() -> None:
    from sklearn.metrics import roc_auc_score

    maps, measure, store, wrong = chips()
    table = error_table(measure, maps, store)
    found = ranking(table, resamples=300)
    valid = maps.bins != INVALID
    assert found.value == pytest.approx(roc_auc_score(wrong[valid], measure.bins[valid]))
    assert 0.5 < found.low < found.value < found.high < 1
    draws = np.random.default_rng(42).multinomial(N, np.full(N, 1 / N), size=300)
    order = np.argsort(np.unique(table["block"], return_inverse=True)[1])
    areas = []
    for counts in draws[:40]:
        weight = np.zeros(N)
        weight[order] = counts
        every = np.broadcast_to(weight[:, None, None], valid.shape)[valid]
        areas.append(roc_auc_score(wrong[valid], measure.bins[valid], sample_weight=every))
    assert abs(np.percentile(areas, 50) - found.value) < 0.01 and found.low < np.mean(areas) < found.high
    nothing = measure.bins.copy()
    nothing[nothing != INVALID] = 7
    flat = ranking(error_table(ProbabilityMaps(nothing, maps.rows, "key"), maps, store))
    assert flat.value == flat.low == flat.high == 0.5, "what says nothing fails its test"


def test_what_is_left_out_is_the_most_uncertain() -> None:
    maps, measure, store, wrong = chips()
    rows = referral(error_table(measure, maps, store)).set_index("uncertainty")
    valid = maps.bins != INVALID
    for limit in (0.25, 0.5, 1.0):
        kept = valid & (measure.bins < limit * BINS)
        assert rows.loc[limit, "error"] == pytest.approx(wrong[kept].mean())
        assert rows.loc[limit, "left_out"] == pytest.approx(1 - kept.sum() / valid.sum())


def test_measures_by_hand() -> None:
    def maps(*values: float) -> ProbabilityMaps:
        bins = np.array([[values]]).astype(np.uint8)
        return ProbabilityMaps(bins, (4,), "key")

    near = closeness(maps(0, 99, 100, 199, INVALID)).bins[0, 0]
    assert near.tolist() == [0, 198, 198, 0, INVALID] or abs(near[1] - 199) <= 1
    apart = disagreement([maps(0, 50, INVALID), maps(199, 50, INVALID)])
    assert apart.bins[0, 0].tolist() == [199, 0, INVALID] and apart.rows == (4,)
    with pytest.raises(InputError, match="two or more"):
        disagreement([maps(0)])
    other = ProbabilityMaps(maps(0).bins, (5,), "key")
    with pytest.raises(InputError, match="same chips"):
        disagreement([maps(0), other])
    with pytest.raises(InputError, match="different chips"):
        error_table(maps(0), other, chips()[2])
