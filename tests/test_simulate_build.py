"""Simulated datasets: deterministic, resumable, split as promised, realistic as stated."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryosentinel.data.chips import read_shard
from cryosentinel.data.split import assign_splits, block_ids
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.files import read_json
from cryosentinel.geo import chip_grid
from cryosentinel.paths import truth_folder
from cryosentinel.sensors import REGIONS, SNAPSHOT_YEARS, Statistics
from cryosentinel.simulate import PRESETS, Material, SimulationConfig, TruthStore, render_scene, simulate
from cryosentinel.simulate.labels import NATURAL, _outline
from cryosentinel.simulate.noise import Draw
from cryosentinel.simulate.places import chip_centre, draw_places
from cryosentinel.simulate.water import GLACIAL, Lake, lakes_in

SMALL = SimulationConfig(
    seed=3,
    regions=("ile_alatau", "karakoram"),
    years=(2017, 2022),
    places={"train": 2, "val": 0, "test": 1},
    years_per_place={"train": 2, "val": 1, "test": 1},
    background=0.0,
    buffer=0.0,
    places_per_shard=1,
)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulate") / "small", SMALL, workers=1, progress=False)


def chips_of(root: Path) -> list:
    return [chip for path in sorted(root.glob("*/*/shard_*.parquet")) for chip in read_shard(path)]


def test_layout_and_metadata(dataset):
    chips = chips_of(dataset)
    record = read_json(dataset / "simulation.json")
    assert record["complete"] and record["chips"] == len(chips) == 10
    assert len({chip.chip_id for chip in chips}) == len(chips)
    Statistics.read(dataset / "dataset_stats_v3.json")
    for chip in chips:
        assert chip.s2.shape == (12, 224, 224) and chip.valid.any()
        assert (chip.lake_id != "") == (chip.water_frac > 0)
        # The grid that follows from the centre is the one that the chip was cut on.
        epsg, transform = chip_grid(chip.lat, chip.lon)
        assert transform.c % 1120 == 0 and transform.f % 1120 == 0
    chip = chips[0]
    epsg, transform = chip_grid(chip.lat, chip.lon)
    scene = render_scene(epsg, transform.c, transform.f, 224, 224, chip.snapshot_year, SMALL.seed)
    for name in ("s2", "s1", "dem", "mask"):
        np.testing.assert_array_equal(getattr(chip, name), scene[name])


def test_truth_belongs_to_the_chips(dataset):
    truths = TruthStore(dataset)
    chips = chips_of(dataset)
    assert sorted(truths) == sorted(chip.chip_id for chip in chips) and len(truths) == len(chips)
    for chip in chips:
        truth = truths[chip.chip_id]
        assert truth.lake.shape == truth.material.shape == truth.cloud.shape == chip.mask.shape
        assert truth.label_error in ("", "shifted", "oversized", "undersized", "false", "missing")
        assert truth.body.max() == len(truth.bodies)
        for number, body in enumerate(truth.bodies, start=1):
            here = truth.body == number
            assert here.any() and body.kind != "flat" and body.area_ha >= here.sum() / 100 - 0.02
            assert (truth.lake[here] == (body.kind in GLACIAL)).all()
            assert (body.frozen > 0) or not (truth.material[here] == Material.FROZEN_LAKE).any()
        assert not (truth.lake.astype(bool) & (truth.body == 0)).any()
        if truth.label_error in ("", "shifted") and truth.lake.sum() > 400:
            both = (truth.lake & chip.mask).sum() / (truth.lake | chip.mask).sum()
            assert both > 0.5
    lakes = truths.lakes()
    assert lakes.lake_id.is_unique and (lakes.kind != "flat").all()
    assert {body.lake_id for truth in truths.values() for body in truth.bodies} <= set(lakes.lake_id)
    with pytest.raises(InputError, match="no chip"):
        truths["nowhere"]


def test_truth_missing_or_corrupt_is_said(dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    with pytest.raises(InputError, match="no truth"):
        TruthStore(copy)
    shutil.copytree(truth_folder(dataset), truth_folder(copy))
    shard = next(truth_folder(copy).rglob("shard_*.parquet"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match="corrupt"):
        TruthStore(copy)


def test_same_bits_for_any_number_of_workers(dataset, tmp_path):
    other = simulate(tmp_path / "other", SMALL, workers=2, progress=False)
    assert digest(other) == digest(dataset)
    assert digest(truth_folder(other)) == digest(truth_folder(dataset))


def test_resume_completes_and_keeps_what_is_there(dataset, tmp_path, monkeypatch):
    root = tmp_path / "again"
    shutil.copytree(dataset, root)
    shutil.copytree(truth_folder(dataset), truth_folder(root))
    shards = sorted(root.rglob("shard_*.parquet"))
    shards[0].unlink()
    (root / "dataset_stats_v3.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in shards[1:] if path.parent.parent != shards[0].parent.parent}
    simulate(root, SMALL, workers=1, progress=False)
    assert digest(root) == digest(dataset)
    assert kept and all(path.stat().st_mtime_ns == at for path, at in kept.items())
    # Complete: nothing is drawn or rendered again.
    monkeypatch.setattr("cryosentinel.simulate.build._jobs", None)
    simulate(root, SMALL, workers=1, progress=False)


def test_other_data_are_refused(dataset, tmp_path):
    with pytest.raises(InputError, match="another configuration"):
        simulate(dataset, replace(SMALL, seed=4), workers=1, progress=False)
    foreign = tmp_path / "foreign"
    (foreign / "karakoram" / "2021").mkdir(parents=True)
    (foreign / "karakoram" / "2021" / "shard_000.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="not simulated"):
        simulate(foreign, SMALL, workers=1, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"regions": ("atlantis",)},
        {"regions": ()},
        {"years": (1999,)},
        {"places": {"train": 3}},
        {"places": {"train": 0, "val": 0, "test": 0}},
        {"years_per_place": {"train": 5, "val": 1, "test": 1}},
        {"windows": 9},
        {"background": 1.0},
        {"block_size": 0.05},
        {"places_per_shard": 0},
        {"around": "castles"},
    ],
)
def test_impossible_configurations_are_refused(change):
    with pytest.raises(ConfigError):
        replace(PRESETS["quick"], **change)


@pytest.mark.parametrize("around", ["lakes", "reservoirs"])
def test_a_stratum_that_cannot_be_placed_is_said(around):
    places = {"train": 0, "val": 99, "test": 0}
    few = replace(PRESETS["quick"], regions=("ile_alatau",), places=places, background=0.0, around=around)
    with pytest.raises(ConfigError, match=rf"around {around}.* lake in val"):
        draw_places(few)


def test_the_enriched_stratum_lies_at_other_water():
    config = replace(PRESETS["reservoirs"], regions=("ile_alatau", "pamir"), places={"train": 0, "val": 0, "test": 2})
    places = draw_places(config)
    assert len(places) == 2
    for place in places:
        w = place.window
        bodies = lakes_in(config.seed, place.epsg, w.row, w.col, w.height, w.width)
        assert any(body.kind in ("reservoir", "pond") for body in bodies)


def places_table(config: SimulationConfig) -> tuple[np.ndarray, np.ndarray, list]:
    places = draw_places(config)
    centres = [(chip_centre(place.epsg, *chip), place) for place in places for chip in place.chips]
    lat, lon = np.array([centre for centre, _ in centres]).T
    return lat, lon, [place for _, place in centres]


def test_tiny_has_lakes_in_every_split():
    lat, lon, places = places_table(PRESETS["tiny"])
    split = assign_splits(lat, lon)
    assert 24 <= sum(len(place.years) for place in places) <= 60
    for name in ("train", "val", "test"):
        assert any(place.kind == "lake" and s == name for place, s in zip(places, split, strict=True))


def test_quick_has_blocks_regions_and_years_enough():
    config = PRESETS["quick"]
    lat, lon, places = places_table(config)
    split, blocks = assign_splits(lat, lon), block_ids(lat, lon)
    assert 440 <= sum(len(place.years) for place in places) <= 520
    lake = np.array([place.kind == "lake" for place in places])
    for name, least in (("train", 30), ("val", 12), ("test", 24)):
        assert len(set(blocks[lake & (split == name)])) >= least
    assert {(place.region, year) for place in places for year in place.years} == {
        (region, year) for region in REGIONS for year in SNAPSHOT_YEARS
    }
    kinds = np.array([place.kind for place in places])
    assert 0.02 < np.mean(split == "buffer") < 0.12
    assert 0.08 < np.mean(kinds == "background") < 0.25
    # Chips of one place are half a chip apart; places do not share a block.
    assert len({(place.epsg, place.chips) for place in places}) * config.windows == len(places)
    assert len({block for block, kind in zip(blocks, kinds, strict=True) if kind == "lake"}) == sum(
        config.places.values()
    )


@pytest.fixture()
def square_lake() -> Lake:
    area_at = np.full((30, 30), np.inf, np.float32)
    area_at[5:25, 5:25] = np.arange(1, 401).reshape(20, 20) / 100
    return Lake("x", "cirque", 15, 15, 0, 0, area_at, 0.0, 1.5, 0.0, -np.inf, np.inf, 0.2)


def test_gross_label_errors_are_as_rare_as_stated_and_as_gross(square_lake):
    right = square_lake.mask(2016.67).sum()
    n = 15_000
    shares: dict[str, list[float]] = {"": [], "missing": [], "undersized": [], "oversized": []}
    for i in range(n):
        outline, error = _outline(square_lake, 2016, Draw("test", i))
        shares[error].append(0 if outline is None else outline.sum() / right)
    for name, share in (
        ("missing", NATURAL.missing),
        ("undersized", NATURAL.undersized),
        ("oversized", NATURAL.oversized),
    ):
        assert len(shares[name]) / n == pytest.approx(share, rel=0.2)
    assert set(shares[""]) == {1.0} and set(shares["missing"]) == {0}
    assert max(shares["undersized"]) < 0.45 and min(shares["oversized"]) > 1.5
    small = replace(square_lake, area_ha=0.6)
    missed = sum(_outline(small, 2016, Draw("test", i))[1] == "missing" for i in range(4000)) / 4000
    assert missed == pytest.approx(NATURAL.missing_small, rel=0.2)
    basin = replace(square_lake, kind="flat")
    taken = [_outline(basin, 2016, Draw("test", i))[1] for i in range(4000)]
    assert set(taken) == {"", "false"} and taken.count("false") / 4000 == pytest.approx(NATURAL.false, rel=0.3)


def test_any_number_of_chips():
    config = PRESETS["quick"].scaled(60)
    made = sum(len(place.years) for place in draw_places(config)) * config.windows
    assert made == pytest.approx(60, rel=0.25)
    assert PRESETS["quick"].scaled(300).expected_chips == pytest.approx(300, rel=0.05)
    with pytest.raises(ConfigError, match="at least one"):
        PRESETS["quick"].scaled(0)
