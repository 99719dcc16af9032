"""Streamed statistics against NumPy over all pixels at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chip_factory import make_chip, write_dataset

from cryosentinel.data.chips import clean
from cryosentinel.data.dataset import ChipDataModule, ChipStore
from cryosentinel.data.pixels import few_values
from cryosentinel.data.stats import RunningStatistics, training_statistics
from cryosentinel.errors import InputError
from cryosentinel.sensors import PUBLISHED_STATISTICS, Statistics


def reference(chips) -> Statistics:
    """All valid pixels of all chips in one array a band."""
    valid = np.stack([chip.valid for chip in chips])
    means, stds = {}, {}
    cleaned = [clean(chip.s2, chip.s1, chip.dem) for chip in chips]
    for k, modality in enumerate(("S2L2A", "S1GRD", "DEM")):
        pixels = np.stack([arrays[k] for arrays in cleaned]).astype(np.float64).swapaxes(0, 1)[:, valid]
        means[modality], stds[modality] = pixels.mean(1), pixels.std(1)
    return Statistics(means, stds)


def assert_close(a: Statistics, b: Statistics) -> None:
    for modality in ("S2L2A", "S1GRD", "DEM"):
        np.testing.assert_allclose(a.means[modality], b.means[modality], rtol=1e-12)
        np.testing.assert_allclose(a.stds[modality], b.stds[modality], rtol=1e-11)


def compute_statistics(chips) -> Statistics:
    running = RunningStatistics()
    for chip in chips:
        running.add(chip.s2, chip.s1, chip.dem, chip.valid)
    return running.result()


def holed(seed: int):
    """A chip with nodata of every kind and values that are clipped."""
    chip = make_chip(seed, 16)
    s2, s1, dem = chip.s2.copy(), chip.s1.copy(), chip.dem.copy()
    s2[:, :4] = 0
    s2[0, 8:, :] = 50_000  # clipped to 16,000, counted
    s1[:, :, 3] = np.nan
    dem[0, 5] = 32_767
    return chip.replace(s2=s2, s1=s1, dem=dem)


def test_streamed_statistics_are_numpys_over_valid_pixels():
    chips = [make_chip(0, 16), holed(1), make_chip(2, 16), holed(3)]
    assert_close(compute_statistics(iter(chips)), reference(chips))


def test_a_large_offset_costs_no_precision():
    """A sum of squares would lose every digit here: mean 8,999, standard deviation below 1."""
    chips = [make_chip(k, 16, dem=np.full((1, 16, 16), 8999 + k % 2, np.int16)) for k in range(50)]
    assert compute_statistics(chips).stds["DEM"][0] == pytest.approx(0.5, rel=1e-12)


def test_merging_parts_is_the_same_as_one_pass():
    chips = [make_chip(k, 8) for k in range(6)]
    parts = [RunningStatistics(), RunningStatistics()]
    for k, chip in enumerate(chips):
        parts[k % 2].add(chip.s2, chip.s1, chip.dem, chip.valid)
    parts[0].merge(parts[1].count, parts[1].mean, parts[1].deviations)
    assert_close(parts[0].result(), reference(chips))


def test_chips_without_a_valid_pixel_are_refused():
    empty = make_chip(0, 8, s2=np.zeros((12, 8, 8), np.uint16))
    with pytest.raises(InputError, match="no valid pixel"):
        compute_statistics([empty])
    assert_close(compute_statistics([empty, make_chip(1, 8)]), reference([make_chip(1, 8)]))


def test_the_module_takes_the_datasets_file_or_the_training_split(tmp_path):
    chips = write_dataset(tmp_path / "data", shards=2, chips=20, size=8)
    module = ChipDataModule(tmp_path / "data", buffer_rule="foreign")
    found = module.statistics
    train = [chips[row] for row in module.rows["train"]]
    assert 0 < len(train) < len(chips)
    assert_close(found, reference(train))
    assert_close(training_statistics(ChipStore(tmp_path / "data"), module.rows["train"], progress=False), found)
    assert len(list((tmp_path / "data" / ".cache" / "chips").glob("statistics-*.json"))) == 1
    assert ChipDataModule(tmp_path / "data", buffer_rule="foreign").statistics == found  # from the cache
    PUBLISHED_STATISTICS.write(tmp_path / "data" / "dataset_stats_v3.json")
    assert ChipDataModule(tmp_path / "data").statistics.means["DEM"] == (4299.8,)
    form = json.loads((tmp_path / "data" / "dataset_stats_v3.json").read_text())
    assert set(form) == {"S2L2A", "S1GRD", "DEM"} and len(form["S2L2A"]["means"]) == 12


def test_few_values_keep_the_order_and_the_mean():
    features = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    features[:, 1] = np.arange(5000) % 10
    found = few_values(features, 50)
    assert len(np.unique(found[:, 0])) == 50 and (found[:, 1] == features[:, 1]).all()
    assert (np.diff(found[features[:, 0].argsort(), 0]) >= 0).all()
    assert found.dtype == np.float32 and found.mean() == pytest.approx(features.mean(), abs=1e-5)
