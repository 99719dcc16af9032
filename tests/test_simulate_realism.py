"""The measures of realism and difficulty: right on what is known, and met by the world they measure."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryosentinel.errors import InputError
from cryosentinel.sensors import PUBLISHED_STATISTICS, REGIONS, Statistics
from cryosentinel.simulate import PRESETS, SimulationConfig, simulate
from cryosentinel.simulate import realism as r
from cryosentinel.simulate.difficulty import _separation, auc

SAMPLE = SimulationConfig(
    seed=2024,
    places={"train": 13, "val": 0, "test": 2},
    years_per_place={"train": 1, "val": 1, "test": 1},
    windows=1,
    background=0.2,
    buffer=0.0,
)
REAL = os.environ.get("CRYOSENTINEL_REAL_DATA")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("realism") / "sample", SAMPLE, workers=1, progress=False)


def test_comparison_with_the_published_statistics():
    same = r.compare_statistics(PUBLISHED_STATISTICS)
    assert len(same) == 15 and same.within.all() and (same.offset == 0).all() and (same.ratio == 1).all()
    means = {m: list(v) for m, v in PUBLISHED_STATISTICS.means.items()}
    stds = {m: list(v) for m, v in PUBLISHED_STATISTICS.stds.items()}
    means["S2L2A"][3] += 0.6 * stds["S2L2A"][3]
    stds["DEM"][0] *= 1.5
    table = r.compare_statistics(Statistics(means, stds)).set_index("band")
    assert not table.within["B04"] and not table.within["elevation"] and table.within.sum() == 13


def test_auc_against_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 9, 40), rng.integers(2, 11, 50)
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auc(a, b) == pytest.approx(pairs)
    assert np.isnan(auc(a, b[:0]))


def test_separation_against_thresholds():
    rng = np.random.default_rng(2)
    values, lake = rng.integers(0, 10, 500), rng.random(500) < 0.2
    values[lake] = np.maximum(values[lake] - 4, 0)
    other, water = (np.bincount(values[m], minlength=10) for m in (~lake, lake))
    found = _separation(other, water, np.arange(11))
    ious = [((values < k) & lake).sum() / ((values < k) | lake).sum() for k in range(11)]
    assert found["iou"] == pytest.approx(max(ious)) and found["threshold"] == int(np.argmax(ious))
    assert found["water_is"] == "low" and found["auc"] == pytest.approx(1 - auc(values[lake], values[~lake]))


def test_size_distance_is_zero_for_itself():
    areas = np.exp(np.random.default_rng(0).normal(1.7, 1.3, 300))
    assert r.size_distance(areas, areas)["distance"] == 0
    assert r.size_distance(areas * 3, areas)["distance"] > 0.2


def test_sample_resembles_the_published_chips(sample):
    # A few chips scatter more than a dataset: the stated range, widened by half. The slow test holds it as stated.
    table = r.compare_statistics(r.dataset_statistics(sample))
    assert (table.offset.abs() < 0.75).all(), table
    assert table.ratio.between(0.5, 1.6).all(), table
    contents = r.contents(sample)
    assert set(contents.region) == set(REGIONS)
    assert 0.005 < contents.truth.mean() < 0.12 and contents.cloud.mean() < 0.1
    assert 22 < np.median(r.simulated_slopes(sample)) < 38
    with pytest.raises(InputError, match="no chip"):
        r.simulated_slopes(sample, "nowhere")


def test_lakes_resemble_the_inventory(sample):
    lakes = r.lake_table(SAMPLE)
    assert lakes.lake_id.is_unique and len(lakes) > 100
    glacial = lakes[lakes.glacial & (lakes.area_ha > 0)]
    assert 3.5 < glacial.area_ha.median() < 8
    assert 1.0 < glacial.area_ha.sum() / glacial.area_2017_ha.sum() < 1.25
    assert r.elevation_auc(lakes)["auc"] <= r.ELEVATION_AUC + 0.05  # a few cells; the slow test holds it as stated
    # A log-normal with the percentiles of the mapped outlines stands in for them where they are not at hand.
    mapped = np.exp(np.random.default_rng(0).normal(1.735, 1.293, 1600))
    if REAL:
        mapped = r.real_lake_areas(Path(REAL) / "hkh_glacial_lakes" / "HKH_2020.shp")
    assert r.size_distance(glacial.area_ha, mapped)["distance"] < 0.15


def test_no_single_input_and_no_trace_gives_lakes_away(sample):
    inputs = r.single_inputs(sample).set_index("input")
    assert len(inputs) == 18 and inputs.iou.max() < 0.7
    difficulty = r.index_difficulty(sample, None)
    assert difficulty["mndwi_iou"] == inputs.iou["MNDWI"]
    traces = r.shortcut_aucs(sample).set_index("modality")
    # Fifteen chips hold few lakes that are large enough to have an inside.
    assert (traces.auc[["S2L2A", "S1GRD", "DEM"]] < 0.65).all(), traces


def test_a_trace_would_be_found(sample, monkeypatch):
    from cryosentinel.simulate import difficulty

    original = difficulty.chips_with_truth

    def marked(root, split=None, every=1):
        for chip, truth in original(root, split, every):
            s2 = chip.s2.copy()
            s2[2] = s2[2] // 2 * 2 + truth.lake  # odd where there is a lake
            yield chip.replace(s2=s2), truth

    monkeypatch.setattr(difficulty, "chips_with_truth", marked)
    assert r.shortcut_aucs(sample).set_index("modality").auc["S2L2A"] > 0.95


def test_figures_are_drawn(sample):
    import matplotlib

    matplotlib.use("agg")
    chips = [next(r.chips_with_truth(sample))]
    figures = [
        r.draw_statistics(r.compare_statistics(PUBLISHED_STATISTICS)),
        r.draw_slopes({"a": np.arange(60.0)}),
        r.draw_lake_sizes(np.arange(1.0, 50), np.arange(1.0, 40)),
        r.draw_single_inputs(pd.DataFrame({"input": ["x"], "iou": [0.3]})),
        r.draw_chips(chips),
    ]
    for figure in figures:
        figure.canvas.draw()
        matplotlib.pyplot.close(figure)


@pytest.mark.skipif(not REAL, reason="CRYOSENTINEL_REAL_DATA is not set: no real elevation model at hand")
def test_slopes_resemble_the_karakoram(sample):
    real = r.real_slopes(Path(REAL) / "karakoram_dem" / "baltoro_srtm_clip.tif")
    assert np.median(real) == pytest.approx(31, abs=1.5)
    assert np.median(r.simulated_slopes(sample)) == pytest.approx(np.median(real), abs=7)


@pytest.mark.slow
def test_quick_preset_is_as_realistic_and_as_hard_as_stated(tmp_path):
    config = PRESETS["quick"]
    root = simulate(tmp_path / "quick", config, workers=2, progress=False)
    table = r.compare_statistics(r.dataset_statistics(root))
    assert table.within.all(), table
    assert r.MNDWI_BAND[0] <= r.index_difficulty(root, "test")["mndwi_iou"] <= r.MNDWI_BAND[1]
    assert r.elevation_auc(r.lake_table(config))["auc"] <= r.ELEVATION_AUC
    traces = r.shortcut_aucs(root).set_index("modality")
    assert (traces.auc[["S2L2A", "S1GRD", "DEM"]] <= r.SHORTCUT_AUC).all(), traces
    contents = r.contents(root)
    with_lake = contents[(contents.label > 0) | (contents.truth > 0)]
    assert 0.001 < with_lake.label_error.isin(["missing", "undersized"]).mean() < 0.04
