"""Scores, intervals and comparisons against pixel loops, torchmetrics, scikit-learn and known sampling behaviour."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation import bootstrap, metrics
from cryosentinel.evaluation.scores import BINS, ScoreBuilder, histograms, probability_bins


def table_of(probability, label, valid=None, blocks=None, regions="ile_alatau") -> pd.DataFrame:
    n = len(probability)
    valid = np.ones(np.shape(label), bool) if valid is None else valid
    index = pd.DataFrame(
        {"chip_id": [f"c{i}" for i in range(n)], "region": regions, "year": 2022, "lat": 43.0, "lon": 77.0}
    )
    builder = ScoreBuilder(index, np.array([f"0|{i}" for i in range(n)] if blocks is None else blocks))
    for i in range(n):
        builder.add(i, probability_bins(probability[i]), np.asarray(label[i], np.uint8), valid[i])
    return builder.table()


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(3)
    label = rng.random((12, 24, 24)) < 0.15
    label[:3] = False
    probability = np.clip(0.5 * label + rng.random(label.shape) * 0.6 - 0.05, 0, 1).astype(np.float32)
    probability[0] = 0  # no lake, no prediction
    valid = rng.random(label.shape) < 0.95
    valid[11] = False
    return probability, label, valid


@pytest.fixture(scope="module")
def table(pixels):
    return table_of(*pixels)


@pytest.mark.parametrize("threshold", metrics.THRESHOLDS)
def test_global_scores_equal_sklearn(pixels, table, threshold):
    from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

    probability, label, valid = pixels
    y, predicted = label[valid], probability[valid] >= threshold
    (tn, fp), (fn, tp) = confusion_matrix(y, predicted)
    assert metrics.chip_counts(table, threshold).sum(axis=0).tolist() == [tp, fp, fn, tn]
    for name, reference in (
        ("iou", jaccard_score), ("f1", f1_score), ("precision", precision_score), ("recall", recall_score),
    ):  # fmt: skip
        assert metrics.score(table, name, threshold) == pytest.approx(reference(y, predicted), abs=1e-12)


def test_per_chip_scores_equal_torchmetrics_and_state_their_convention(pixels, table):
    import torch
    from torchmetrics.functional.classification import binary_jaccard_index

    probability, label, valid = pixels
    found = metrics.chip_iou(table, 0.5)
    assert found[0] == 1.0 and math.isnan(found[11])
    assert metrics.chip_iou(table, 0.5, empty=0.0)[0] == 0.0
    for i in range(1, 11):
        p, y = torch.from_numpy(probability[i][valid[i]]), torch.from_numpy(label[i][valid[i]].astype(int))
        # torchmetrics takes p > threshold; no random float32 lies on 0.5 here
        assert found[i] == pytest.approx(float(binary_jaccard_index(p, y, 0.5)), abs=1e-6)
    assert metrics.score(table, "mean_chip_iou") == pytest.approx(np.nanmean(found))
    assert metrics.score(table, "mean_chip_iou_lake") == pytest.approx(found[3:11].mean())


def test_sweep_agrees_with_single_scores(table):
    swept = metrics.sweep(table)
    assert len(swept) == 17
    for row in swept.itertuples():
        for name in metrics.METRICS:
            assert getattr(row, name) == pytest.approx(metrics.score(table, name, row.threshold), abs=1e-12)


def test_sweep_and_counts_are_exact_for_every_edge(pixels, table):
    probability, label, valid = pixels
    for threshold in metrics.ALL_THRESHOLDS:
        predicted = probability >= np.float32(threshold)
        assert metrics.chip_counts(table, threshold)[:, 0].sum() == (predicted & label & valid).sum()


def test_better_predictions_score_higher():
    label = np.zeros((1, 8, 8), bool)
    label[0, 2:6, 2:6] = True
    good, shifted, none = label.astype(np.float32), np.roll(label, 1, 2).astype(np.float32), np.zeros((1, 8, 8))
    ious = [metrics.score(table_of(p.astype(np.float32), label)) for p in (good, shifted, none)]
    assert ious[0] == 1.0 and ious[0] > ious[1] > ious[2] == 0.0
    assert ious[1] == pytest.approx(12 / 20)


def test_undefined_scores_are_nan_not_one():
    nothing = table_of(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), bool))
    for name in ("iou", "f1", "precision", "recall", "mean_chip_iou_lake"):
        assert math.isnan(metrics.score(nothing, name))
    assert metrics.score(nothing, "mean_chip_iou") == 1.0
    alarms = table_of(np.ones((2, 4, 4), np.float32), np.zeros((2, 4, 4), bool))
    for lakeless in (nothing, alarms):
        with pytest.raises(InputError, match=r"No threshold.*no lake"):
            metrics.best_threshold(lakeless)
    assert metrics.best_threshold(nothing, "mean_chip_iou") == 0.5


def test_best_threshold_takes_the_maximum_and_the_tie_nearest_to_a_half(table):
    best = metrics.best_threshold(table)
    assert metrics.score(table, "iou", best) == metrics.sweep(table)["iou"].max()
    clear = table_of(np.array([[[0.05, 0.95]]], np.float32), np.array([[[0, 1]]]))
    assert metrics.best_threshold(clear) == 0.5  # every threshold is perfect


def test_unknown_metric_and_threshold_are_refused(table):
    with pytest.raises(ConfigError, match="jaccard"):
        metrics.score(table, "jaccard")
    with pytest.raises(ConfigError, match="multiple"):
        metrics.chip_counts(table, 0.503)
    with pytest.raises(ConfigError, match="multiple"):
        metrics.sweep(table, [0.5, 0.503])


def test_substitute(pixels, table):
    probability, label, valid = pixels
    changed = label.copy()
    changed[5] = probability[5] >= 0.5
    corrected = table_of(probability, changed, valid)
    both = metrics.substitute(table, corrected.iloc[[5]])
    assert list(both["chip_id"]) == list(table["chip_id"])
    scores = [metrics.score(t) for t in (both, corrected, table)]
    assert scores[0] == scores[1] != scores[2]
    with pytest.raises(InputError, match="no chip 'x'"):
        metrics.substitute(table, corrected.iloc[[5]].assign(chip_id="x"))


def test_adaptive_flips_follow_from_two_tables():
    import torch

    from cryosentinel.models.tta import undecided

    rng = np.random.default_rng(4)
    logits = (rng.normal(0, 0.5, (9, 24, 24)) - 3 * np.arange(9)[:, None, None] / 4).astype(np.float32)
    label, valid = (rng.random(logits.shape) < share for share in (0.3, 0.7))
    valid[1] = False
    flipped = undecided(torch.from_numpy(logits), torch.from_numpy(valid)).numpy()
    first, averaged = (1 / (1 + np.exp(-(logits + shift))) for shift in (0, 0.4))
    tables = [table_of(p, label, valid) for p in (first, averaged)]
    found, share = metrics.adaptive(*tables)
    assert 0 < share < 1 and share == flipped.mean() and flipped[0] and not flipped[1]
    expected = table_of(np.where(flipped[:, None, None], averaged, first), label, valid)
    np.testing.assert_array_equal(histograms(found), histograms(expected))


def test_metric_entries_say_why_they_are_null():
    entry = metrics.metric_entry(0.9, 0.8, 0.95, 10, "simulated", "evaluate")
    assert entry == {"value": 0.9, "low": 0.8, "high": 0.95, "n": 10, "data": "simulated", "source": "evaluate"}
    assert metrics.metric_entry(math.nan, None, None, 0, "real", "x", "no lake")["value"] is None
    assert metrics.metric_entry(0.9, None, None, 5, "published", "card")["low"] is None
    for bad in (
        (None, None, None, 0, "real", "x"),
        (0.5, None, None, 3, "simulated", "x"),
        (0.5, 0.4, 0.6, 3, "own", "x"),
    ):
        with pytest.raises(ConfigError):
            metrics.metric_entry(*bad)
    with pytest.raises(ConfigError, match="interval"):
        metrics.metric_entry(0.5, 0.4, None, 3, "simulated", "x", "r")


# --- intervals ---------------------------------------------------------------------------------------------------


def synthetic(rng: np.random.Generator, blocks: int, quality: float = 8.0, chips: int = 2) -> pd.DataFrame:
    """A table drawn block by block: lakes of log-normal area in most blocks, chips of a block share their quality."""
    n = blocks * chips
    block = np.repeat(np.arange(blocks), chips)
    area = np.where(rng.random(blocks) < 0.7, rng.lognormal(6, 1.0, blocks), 0)[block] * rng.uniform(0.5, 1.5, n)
    hit = rng.beta(quality, 2, blocks)[block]
    lake, background = np.zeros((n, BINS), np.int64), np.zeros((n, BINS), np.int64)
    lake[:, 180], lake[:, 10] = area * hit, area * (1 - hit)
    background[:, 180], background[:, 10] = area * 0.1 * rng.random(n), 40_000
    return pd.DataFrame(
        {"chip_id": [f"c{i}" for i in range(n)], "region": "r", "year": 2022, "lat": 0.0, "lon": 0.0,
         "block": [f"0|{b}" for b in block], "n_valid": lake.sum(1) + background.sum(1),
         "lake": list(lake), "background": list(background)}
    )  # fmt: skip


def test_bootstrap_equals_a_plain_loop():
    table = synthetic(np.random.default_rng(0), 40)
    found = bootstrap.estimate(table, "iou", 0.5, resamples=50, seed=7)
    names = np.unique(table["block"])
    groups = {name: table[table["block"] == name] for name in names}
    values = []
    for times in bootstrap.multiplicities(len(names), 50, 7):
        drawn = pd.concat([groups[n] for n, t in zip(names, times, strict=True) for _ in range(int(t))])
        values.append(metrics.score(drawn))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12)
    assert found.low < found.value < found.high and found.value == metrics.score(table)


@pytest.mark.parametrize("metric", ["iou", "mean_chip_iou"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(metric):
    rng = np.random.default_rng(5)
    truth = metrics.score(synthetic(rng, 6_000), metric)
    hits = [
        e.low <= truth <= e.high
        for e in (bootstrap.estimate(synthetic(rng, 80), metric, resamples=400) for _ in range(120))
    ]
    # 95 % nominal; binomial scatter of 120 trials is 2 points, and the percentile interval is a little narrow.
    assert 0.87 <= np.mean(hits) <= 0.99


def test_blocks_not_chips_are_resampled():
    rng = np.random.default_rng(2)
    one = synthetic(rng, 60, chips=1)
    doubled = pd.concat([one] * 4, ignore_index=True)
    doubled["chip_id"] = [f"d{i}" for i in range(len(doubled))]
    a, b = bootstrap.estimate(one), bootstrap.estimate(doubled)
    assert (a.low, a.high) == pytest.approx((b.low, b.high))  # copies of chips within a block add no information


def test_too_few_lake_blocks_give_a_reason_instead_of_an_interval():
    table = synthetic(np.random.default_rng(1), 26)
    found = bootstrap.estimate(table)
    assert found.lake_blocks < 20 and found.low is None and found.high is None
    assert f"{found.lake_blocks} of 26" in found.reason
    entry = found.entry("simulated", "test")
    assert entry["value"] == found.value and entry["low"] is None and "20 are needed" in entry["reason"]


def test_paired_comparison_is_narrower_and_signed():
    rng = np.random.default_rng(4)
    a = synthetic(rng, 120)
    b = a.copy()
    moved = []
    for lake in a["lake"]:  # a little more of each lake is found
        lake = lake.copy()
        step = lake[10] // 10
        lake[10], lake[180] = lake[10] - step, lake[180] + step
        moved.append(lake)
    b["lake"] = moved
    gain = bootstrap.difference(a, b.iloc[::-1].reset_index(drop=True))
    assert gain.value == pytest.approx(metrics.score(b) - metrics.score(a))
    assert 0 < gain.low < gain.value < gain.high and gain.above == 1.0
    alone = bootstrap.estimate(a)
    assert gain.high - gain.low < 0.3 * (alone.high - alone.low)
    assert bootstrap.difference(b, a).value == pytest.approx(-gain.value)
    same = bootstrap.difference(a, a)
    assert (same.value, same.low, same.high, same.above) == (0, 0, 0, 0)
    with pytest.raises(InputError, match="same chips"):
        bootstrap.difference(a, b.iloc[1:])


def test_regions_partition_the_chips(pixels):
    regions = ["a"] * 6 + ["b"] * 6
    table = table_of(*pixels, regions=regions)
    found = bootstrap.estimate_by(table, "region")
    assert list(found) == ["a", "b"] and [e.n for e in found.values()] == [6, 6]
    assert found["b"].value == metrics.score(table[table["region"] == "b"])
    table["year"] = [2017] * 4 + [2021] * 8
    assert {year: e.n for year, e in bootstrap.estimate_by(table, "year").items()} == {"2017": 4, "2021": 8}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, BINS - 1), st.booleans()), min_size=1, max_size=30))
def test_counts_fall_with_the_threshold_and_add_up(cells):
    bins, label = np.array([c[0] for c in cells], np.uint8)[None], np.array([c[1] for c in cells])[None]
    table = table_of((bins + 0.5).astype(np.float32)[None] / BINS, label[None])
    previous = None
    for threshold in (0.0, 0.05, 0.5, 0.95, 0.995):
        counts = metrics.chip_counts(table, threshold)[0]
        assert counts.sum() == len(cells)
        assert previous is None or (counts[:2] <= previous[:2]).all()
        previous = counts
