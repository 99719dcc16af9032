"""The measures of realism and difficulty: right on what is known, and met by the world they measure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryosentinel.errors import InputError
from cryosentinel.sensors import PUBLISHED_STATISTICS, REGIONS, Statistics
from cryosentinel.simulate import PRESETS, SimulationConfig, difficulty, realism_plots, simulate
from cryosentinel.simulate import realism as r
from cryosentinel.simulate.difficulty import _separation, auc, colour_variance
from cryosentinel.simulate.truth import TruthStore, chips_with_truth

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


def test_colours_have_as_many_dimensions_as_they_are_made_of():
    rng = np.random.default_rng(4)

    def spectra(modes: int) -> np.ndarray:
        shapes = rng.normal(size=(modes, 12))
        return 1500 * np.exp(0.1 * np.tensordot(shapes.T, rng.normal(size=(modes, 40, 40)), 1))

    assert colour_variance([spectra(2)])["beyond_three"] < 1e-6
    assert colour_variance([spectra(9)])["beyond_three"] > 0.15
    grey = 1500 * np.exp(0.3 * rng.normal(size=(1, 40, 40)) * np.ones((12, 1, 1)))
    assert colour_variance([grey])["beyond_tilt"] < 1e-6


def test_radar_agreement_of_copies_and_of_strangers():
    rng = np.random.default_rng(5)
    one, other = rng.normal(-10, 3, (2, 90, 90))
    assert r.radar_agreement(np.stack([one, one - 7])) == pytest.approx(1)
    assert abs(r.radar_agreement(np.stack([one, other]))) < 0.3


def test_sample_resembles_the_published_chips(sample):
    # A few chips scatter more than a dataset: the stated range, widened. The slow test holds it as stated.
    table = r.compare_statistics(r.kept_statistics(sample))
    assert (table.offset.abs() < 0.85).all(), table
    assert table.ratio.between(0.4, 1.7).all(), table
    found = r.contents(sample)
    assert set(found.region) == set(REGIONS)
    assert 0.004 < found.truth.mean() < 0.12 and found.cloud.mean() < 0.1
    assert 20 < np.median(r.simulated_slopes(sample)) < 38
    with pytest.raises(InputError, match="no chip"):
        r.simulated_slopes(sample, "nowhere")


def test_ceilings_and_sanity_count_what_they_say(sample):
    found = r.contents(sample)
    both = either = lake = standing = 0
    for chip, truth in chips_with_truth(sample):
        label, true = (chip.mask > 0) & chip.valid, (truth.lake > 0) & chip.valid
        both, either = both + (label & true).sum(), either + (label | true).sum()
        lake, standing = lake + true.sum(), standing + ((truth.body > 0) & chip.valid).sum()
    top = r.ceilings(found)
    assert top["truth_against_label"] == pytest.approx(both / either)
    assert top["standing_water_against_truth"] == pytest.approx(lake / standing)
    assert 0.6 < top["truth_against_label"] < 0.95
    shares = r.label_sanity(found)
    assert sum(shares.values()) == pytest.approx(1)
    blind = found.assign(mndwi_iou=0.0)
    assert r.label_sanity(blind)["iou_below_0.05"] == pytest.approx((found.label > 0).mean())


def test_lakes_resemble_the_inventory(sample):
    lakes = TruthStore(sample).lakes()
    assert lakes.lake_id.is_unique and len(lakes) > 80
    glacial = lakes[lakes.glacial & (lakes.area_ha > 0)]
    assert 3.5 < glacial.area_ha.median() < 9
    assert 1.0 < glacial.area_ha.sum() / glacial.area_2017_ha.sum() < 1.25
    # A log-normal with the percentiles of the mapped outlines stands in for them where they are not at hand.
    mapped = np.exp(np.random.default_rng(0).normal(1.735, 1.293, 1600))
    if REAL:
        mapped = r.real_lake_areas(Path(REAL) / "hkh_glacial_lakes" / "HKH_2020.shp")
    assert r.size_distance(glacial.area_ha, mapped)["distance"] < 0.15


def test_guards_of_a_small_sample(sample):
    lakes = TruthStore(sample).lakes()
    table = r.guards(sample, r.contents(sample), lakes).set_index("guard")
    assert set(table.index) == set(r.LIMITS) - {"colour_auc", "context_auc"}
    for name, row in table.iterrows():
        low, high, _, before = r.LIMITS[name]
        assert row.within == ((low is None or row.value >= low) and (high is None or row.value <= high))
        assert row.before == before or (before is None and np.isnan(row.before))
    standing = int((lakes.area_ha > 0).sum())
    assert table.n["other_water_area"] == standing and table.n["empty_labels"] == len(r.contents(sample))
    # Fifteen chips: the limits, widened. The slow test holds them as stated.
    assert table.value["colours_beyond_three"] > 0.07
    assert table.value["relief_auc"] < 0.95
    assert 0.03 < table.value["flat_ground"] < 0.4
    assert table.value["other_water_number"] < 0.1
    assert 0.5 < table.value["vv_vh_correlation"] < 0.95
    with pytest.raises(InputError, match="preset reservoirs"):
        difficulty.standing_water_aucs(sample)


def test_no_single_input_and_no_trace_gives_lakes_away(sample):
    inputs = difficulty.single_inputs(sample).set_index("input")
    assert len(inputs) == 18 and inputs.iou.max() < 0.85
    traces = difficulty.shortcut_aucs(sample).set_index("modality")
    # Fifteen chips hold few lakes that are large enough to have an inside.
    assert (traces.auc[["S2L2A", "S1GRD"]] < 0.65).all(), traces
    assert traces.auc["DEM"] < 0.75, traces  # whole metres of a handful of lakes: their levels, more than a trace


def test_a_trace_would_be_found(sample, monkeypatch):
    original = difficulty.chips_with_truth

    def marked(root, split=None, every=1):
        for chip, truth in original(root, split, every):
            s2 = chip.s2.copy()
            s2[2] = s2[2] // 2 * 2 + truth.lake  # odd where there is a lake
            yield chip.replace(s2=s2), truth

    monkeypatch.setattr(difficulty, "chips_with_truth", marked)
    assert difficulty.shortcut_aucs(sample).set_index("modality").auc["S2L2A"] > 0.95


def test_figures_are_drawn():
    import matplotlib

    matplotlib.use("agg")
    table = pd.DataFrame(
        [("relief_auc", None, 0.8, None, 0.9), ("flat_ground", 0.01, 0.1, 0.07, 0.3), ("tilt", 0.1, 0.2, None, None)],
        columns=["guard", "before", "value", "low", "high"],
    )
    figures = [
        realism_plots.draw_statistics(r.compare_statistics(PUBLISHED_STATISTICS)),
        realism_plots.draw_slopes({"a": np.arange(60.0)}),
        realism_plots.draw_lake_sizes(np.arange(1.0, 50), np.arange(1.0, 40)),
        realism_plots.draw_single_inputs(pd.DataFrame({"input": ["x"], "iou": [0.3]})),
        realism_plots.draw_guards(table),
    ]
    for figure in figures:
        figure.canvas.draw()
        matplotlib.pyplot.close(figure)


@pytest.mark.skipif(not REAL, reason="CRYOSENTINEL_REAL_DATA is not set: no real elevation model at hand")
def test_slopes_resemble_the_karakoram(sample):
    real = r.real_slopes(Path(REAL) / "karakoram_dem" / "baltoro_srtm_clip.tif")
    assert np.median(real) == pytest.approx(31, abs=1.5)
    assert np.median(r.simulated_slopes(sample)) == pytest.approx(np.median(real), abs=7)


@pytest.mark.skipif(not REAL, reason="CRYOSENTINEL_REAL_DATA is not set: no real chips at hand")
def test_real_chips_pass_the_guards_that_they_gave():
    chips = r.real_chips(Path(REAL) / "terramesh_chips").values()
    assert len(chips) == 3
    assert colour_variance([s2 for s2, _, _ in chips])["beyond_three"] >= difficulty.SPECTRAL_VARIANCE
    assert 0.67 < min(r.radar_agreement(s1) for _, s1, _ in chips) < 0.91


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick preset, whole: its folder and what its chips contain."""
    root = simulate(tmp_path_factory.mktemp("guards") / "quick", PRESETS["quick"], workers=2, progress=False)
    yield root, r.contents(root)
    shutil.rmtree(root)  # more than a gigabyte


@pytest.mark.slow
def test_presets_meet_every_guard(quick, tmp_path):
    root, found = quick
    enriched = simulate(tmp_path / "reservoirs", PRESETS["reservoirs"], workers=2, progress=False)
    table = r.guards(root, found, TruthStore(root).lakes(), enriched)
    assert len(table) == len(r.LIMITS) and table.within.all(), table
    statistics = r.compare_statistics(r.kept_statistics(root))
    assert statistics.within.all(), statistics
    traces = difficulty.shortcut_aucs(root).set_index("modality")
    assert (traces.auc[["S2L2A", "S1GRD", "DEM"]] <= difficulty.SHORTCUT_AUC).all(), traces
    gap = difficulty.place_gap(root)
    assert gap["iou_places"] < gap["iou_pixels"]
    assert r.label_sanity(found)["kept"] < 0.45


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="0.20 of the chips fall by an IoU below 0.05 and 0.27 by one of 0.05 to 0.20")
def test_labels_fall_to_the_sanity_filter_by_missing_water_altogether(quick):
    shares = r.label_sanity(quick[1])
    assert shares["iou_below_0.05"] > shares["iou_0.05_to_0.20"] - 0.05
