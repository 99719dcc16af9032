"""Cutting a dataset from the simulated world: shards in the published format, the truth beside them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryosentinel.data.card import write_card
from cryosentinel.data.chips import Chip, read_shard, write_shard
from cryosentinel.data.split import assign_splits
from cryosentinel.data.stats import RunningStatistics
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.files import read_json, replacing, write_json
from cryosentinel.geo import chip_id
from cryosentinel.paths import STATISTICS_FILE, shard_path, truth_folder
from cryosentinel.sensors import CHIP_SIZE
from cryosentinel.simulate.cover import IMAGE_DATE
from cryosentinel.simulate.field import render_year
from cryosentinel.simulate.ground import Window, make_ground
from cryosentinel.simulate.labels import make_labels
from cryosentinel.simulate.places import Place, chip_centre, draw_places, standing_water
from cryosentinel.simulate.presets import SimulationConfig
from cryosentinel.simulate.truth import LAKES_FILE, Body, Truth, write_truth_shard
from cryosentinel.simulate.water import Lake

RECORD_FILE = "simulation.json"
_Result = tuple[int, RunningStatistics, pd.DataFrame]


@dataclass(frozen=True)
class _Job:
    """A group of places of one region: one shard a year."""

    root: Path
    region: str
    number: int
    places: tuple[Place, ...]
    config: SimulationConfig

    @property
    def years(self) -> tuple[int, ...]:
        return tuple(sorted({year for place in self.places for year in place.years}))

    @property
    def chips(self) -> int:
        return sum(len(place.chips) * len(place.years) for place in self.places)

    def paths(self, year: int) -> tuple[Path, Path]:
        """The shard of a year and the one of its truth."""
        return (
            shard_path(self.root, self.region, year, self.number),
            shard_path(truth_folder(self.root), self.region, year, self.number),
        )


def _lake_split(lake_id: str) -> str:
    """The older split by lakes, which the block split overrides: 80 / 10 / 10 by hash."""
    if not lake_id:
        return "train"
    bucket = int(hashlib.sha1(lake_id.encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 80 else "val" if bucket < 90 else "test"


def _in_sight(body: np.ndarray, lakes: list[Lake], year: int) -> tuple[np.ndarray, tuple[Body, ...]]:
    """The numbers of a chip's bodies, counted within the chip, and what they are."""
    seen = [int(number) for number in np.unique(body) if number]
    own = np.zeros(len(lakes) + 1, np.uint8)
    own[seen] = np.arange(1, len(seen) + 1)
    found = [lakes[number - 1] for number in seen]
    area = [lake.area(year + IMAGE_DATE) for lake in found]
    bodies = [Body(b.lake_id, b.kind, a, b.ice_share(year)) for b, a in zip(found, area, strict=True)]
    return own[body], tuple(bodies)


def render_place(place: Place, seed: int) -> Iterator[tuple[Chip, Truth]]:
    """The chips of a place with their truth, year by year."""
    window = place.window
    ground = make_ground(seed, place.epsg, window)
    for year in place.years:
        layers, body = render_year(ground, window, year)
        for row, col in place.chips:
            inner = Window(row, col, CHIP_SIZE, CHIP_SIZE)
            at = inner.within(window)
            cut = {name: np.ascontiguousarray(layer[(..., *at)]) for name, layer in layers.items()}
            _, error, lake_id = make_labels(seed, place.epsg, inner, year)
            lat, lon = chip_centre(place.epsg, row, col)
            chip = Chip(
                s2=cut["s2"],
                s1=cut["s1"],
                dem=cut["dem"],
                mask=cut["mask"],
                chip_id=chip_id(place.region, place.epsg, row, col, year),
                region=place.region,
                snapshot_year=year,
                lat=lat,
                lon=lon,
                lake_id=lake_id,
                split=_lake_split(lake_id),
            )
            seen = _in_sight(body[at], ground.lakes, year)
            yield chip, Truth(cut["truth"], cut["material"], cut["cloud"], cut["terrain_shadow"], error, *seen)


def _run(job: _Job) -> _Result:
    """Make the shards of a job, or keep those that are there.

    Returns:
        The number of chips, training statistics, and the standing water around the places.
    """
    lakes = []
    done = all(path.exists() for year in job.years for path in job.paths(year))
    by_year: dict[int, list[Chip]] = {year: [] for year in job.years}
    if done:
        for year in job.years:
            by_year[year] = read_shard(job.paths(year)[0])
    else:
        truths: dict[int, dict[str, Truth]] = {year: {} for year in job.years}
        for place in job.places:
            for chip, truth in render_place(place, job.config.seed):
                by_year[chip.snapshot_year].append(chip)
                truths[chip.snapshot_year][chip.chip_id] = truth
            lakes.append(standing_water(job.config.seed, [place]))  # now, while its cells are at hand
        for year in job.years:
            shard, truth_shard = job.paths(year)
            write_truth_shard(truth_shard, truths[year])
            write_shard(shard, by_year[year])
    chips = [chip for year in job.years for chip in by_year[year]]
    statistics = RunningStatistics()
    splits = assign_splits(
        np.array([chip.lat for chip in chips]),
        np.array([chip.lon for chip in chips]),
        job.config.block_size,
        job.config.buffer_size,
    )
    for chip, split in zip(chips, splits, strict=True):
        if split == "train":
            statistics.add(chip.s2, chip.s1, chip.dem, chip.valid)
    return len(chips), statistics, pd.concat(lakes) if lakes else standing_water(job.config.seed, job.places)


def _jobs(root: Path, config: SimulationConfig, pool: Executor | None) -> list[_Job]:
    by_region: dict[str, list[Place]] = {}
    for place in draw_places(config, pool):
        by_region.setdefault(place.region, []).append(place)
    step = config.places_per_shard
    return [
        _Job(root, region, number, tuple(places[at : at + step]), config)
        for region, places in by_region.items()
        for number, at in enumerate(range(0, len(places), step))
    ]


def _is_complete(root: Path, fingerprint: str) -> bool:
    """Whether the dataset is there already, all of it. Refuses to mix with other data."""
    record = root / RECORD_FILE
    if record.exists():
        found = read_json(record)
        if not isinstance(found, dict) or found.get("fingerprint") != fingerprint:
            raise InputError(
                f"{root} holds a dataset simulated with another configuration or version; simulate into another "
                "folder, or remove this one and its -truth sibling first."
            )
        shards = found.get("shards", [])
        folders = (root, truth_folder(root))
        return bool(found.get("complete")) and all((folder / name).exists() for folder in folders for name in shards)
    elif root.exists() and any(root.rglob("*.parquet")):
        raise InputError(f"{root} holds shards that were not simulated; simulate into another folder.")
    return False


def _finished(jobs: list[_Job], pool: Executor | None) -> Iterator[tuple[int, _Result]]:
    """Results of the jobs with their numbers, as they come."""
    if pool is None:
        for number, job in enumerate(jobs):
            yield number, _run(job)
        return
    futures = {pool.submit(_run, job): number for number, job in enumerate(jobs)}
    for future in as_completed(futures):
        yield futures[future], future.result()


def _write_card(root: Path, config: SimulationConfig) -> None:
    write_card(
        root,
        name=f"Simulated glacial lakes (seed {config.seed})",
        summary=(
            "Chips of a simulated High Mountain Asia in the format of the published CryoSentinel dataset. No satellite "
            "saw them: relief, glaciers, lakes, optics, radar and the errors of the labels are computed, so that what "
            "is true is known."
        ),
        licence="apache-2.0",
        provenance=[
            f"Made by `cryosentinel.simulate` from the configuration in `{RECORD_FILE}`; the same configuration "
            "and version give the same bytes.",
            "What is true lies in a sibling folder of the same name with -truth; training never opens it.",
            "Labels imitate an inventory of 2016 and 2022 (Kumar and Vijay, doi:10.1594/PANGAEA.983845) before any "
            "filter: burned with all_touched, shifted by up to 30 m, not updated in between, some lakes missed, some "
            "outlines much too small or too large, some filled basins taken for lakes.",
            "Spectra are levels and absorptions read off the USGS and ECOSTRESS libraries; standing water of every "
            "kind is one bio-optical model (Lee et al. 1998, 2002). Backscatter lies in the ranges of Ulaby and Dobson "
            "1989 and Nagler and Rott 2000.",
            "Lake sizes follow ICIMOD's outlines, growth Shugar et al. 2020, flat ground SRTM over Baltoro and "
            "ArcticDEM around Icelandic lakes, numbers of reservoirs the hydropower projects of High Mountain Asia.",
            "Date, sun, orbit, haze and what the atmospheric correction leaves differ by granule and year.",
        ],
        gaps=[
            "Scores on simulated chips say how methods compare where the truth is known, not how well they do on "
            "satellite images.",
            "The relief has no drainage network; rock has no strata, glaciers have no crevasses, plants no seasons.",
            "Adjacency reaches 120 m instead of a kilometre; clouds are few, and without cirrus or parallax.",
            "The elevation model has no edited water bodies, voids or steps between acquisitions.",
            "Radar layover is smeared along rows, not ranged; it has no double bounce and no azimuth ambiguities.",
            "Salt lakes, large rivers, towns, fields and mines are not simulated.",
        ],
        tags=["simulated"],
        block_size=config.block_size,
        buffer=config.buffer_size,
    )


def simulate(
    root: str | os.PathLike[str], config: SimulationConfig | None = None, workers: int = 2, progress: bool = True
) -> Path:
    """Simulate a dataset: ``<root>/<region>/<year>/shard_NNN.parquet``, and its truth under ``<root>-truth``.

    Shards are written whole or not at all. An interrupted run goes on where it stopped; the result is the same, bit for
    bit, for any number of workers.

    Args:
        root: folder to write; made if it is not there.
        config: what to simulate; the quick preset by default.
        workers: processes; 1 or 0 runs in this one.
        progress: show a progress bar.

    Returns:
        ``root``, which also holds ``dataset_stats_v3.json`` (over the valid pixels of the training split) and
        ``simulation.json`` (configuration, fingerprint, number of chips).

    Raises:
        InputError: the folder holds other data.
        ConfigError: the configuration asks for more blocks than there are.
    """
    from tqdm import tqdm

    root = Path(root).absolute()
    config = config or SimulationConfig()
    if workers < 0:
        raise ConfigError(f"workers is {workers}; give 0 or more.")
    fingerprint = config.fingerprint()
    if _is_complete(root, fingerprint):
        return root
    # Spawned, not forked: the caller may hold threads (torch, GDAL), which a fork would freeze.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else None
    record: dict[str, Any] = {"config": config.as_dict(), "fingerprint": fingerprint}
    write_json(root / RECORD_FILE, {**record, "complete": False})
    try:
        jobs = _jobs(root, config, pool)
        record["chips"] = sum(job.chips for job in jobs)
        results: dict[int, _Result] = {}
        with tqdm(total=record["chips"], desc="Simulate", unit="chip", disable=not progress) as bar:
            for number, result in _finished(jobs, pool):
                results[number] = result
                bar.update(result[0])
    finally:
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)

    total = RunningStatistics()
    for number in range(len(jobs)):  # in the order of the jobs: sums do not depend on who finished first
        part = results[number][1]
        if part.count:
            total.merge(part.count, part.mean, part.deviations)
    if total.count:
        total.result().write(root / STATISTICS_FILE)
    lakes = pd.concat([results[number][2] for number in range(len(jobs))]).drop_duplicates("lake_id")
    with replacing(truth_folder(root) / LAKES_FILE) as unfinished:
        lakes.to_parquet(unfinished, index=False)
    _write_card(root, config)
    record["shards"] = sorted(str(job.paths(year)[0].relative_to(root)) for job in jobs for year in job.years)
    write_json(root / RECORD_FILE, {**record, "complete": True})
    return root
