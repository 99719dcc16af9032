"""Ingest: a region and year from STAC services to shards in the published format, going on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import as_completed as as_threads_complete
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cryosentinel.dask_client import connected
from cryosentinel.data.chips import write_shard
from cryosentinel.data.pixels import YEAR_RANGE
from cryosentinel.errors import ConfigError, CryoSentinelError, HubError, InputError
from cryosentinel.files import read_json, sha256
from cryosentinel.ingest.grid import Box, Cell, ChipGroup, all_cells, make_groups, region_box, tiles, with_background
from cryosentinel.ingest.group import KEPT, SERVER_DOWN, Result, Task, build_group
from cryosentinel.ingest.inventory import lake_cells, no_inventory, outlines_of, read_inventory
from cryosentinel.ingest.report import (
    INDEX_FILE,
    IngestResult,
    make_index,
    write_dataset_card,
    write_index,
    write_statistics,
)
from cryosentinel.ingest.search import open_catalogues, search_groups
from cryosentinel.ingest.services import find_services
from cryosentinel.ingest.settings import Settings, digest
from cryosentinel.ingest.staging import RECORD_FILE, Staging
from cryosentinel.paths import shard_path

PathLike = str | os.PathLike[str]


def plan(region: str, box: Box, lakes: Any, settings: Settings, labelled: bool = True) -> list[ChipGroup]:
    """Which chips to build, grouped by place, always in the same order.

    Args:
        region, box: where.
        lakes: outlines, see :func:`cryosentinel.ingest.inventory.read_inventory`.
        settings: of the ingest.
        labelled: whether there is an inventory; without one every chip of the box is built.

    Raises:
        InputError: no lake lies in the box, and not every chip of the box is wanted.
    """
    if settings.side_by_side or settings.background is None or not labelled:
        cells: set[Cell] = set(tiles(box) if settings.side_by_side else all_cells(region, box))
        if not cells:
            raise InputError(f"The box {box} holds no chip's centre; give a larger one.")
    else:
        lake = lake_cells(lakes, region, box)
        if not lake:
            raise InputError(
                f"The inventory holds no lake in the box {', '.join(f'{v:g}' for v in box)}; check the inventory's "
                "year and place, or set background to null to take every chip of the box."
            )
        cells = with_background(region, box, lake, settings.background)
    return make_groups(cells, settings)


def ingest(
    region: str,
    year: int,
    service: str,
    out: PathLike,
    inventory: PathLike | Sequence[PathLike] | None = None,
    bbox: Box | None = None,
    s2_service: str | None = None,
    s1_service: str | None = None,
    dem_service: str | None = None,
    scheduler: str | None = None,
    workers: int = 2,
    settings: Settings | None = None,
    allow_failed: bool = False,
    progress: bool = True,
) -> IngestResult:
    """Build chips of a region and year from STAC services, in the published format.

    Groups of chips are done one by one and kept when they are; an interrupted run (killed, a server down, a full disk)
    goes on where it stopped when it is started again with the same arguments.

    Args:
        region: a name of :data:`cryosentinel.sensors.REGIONS`, or any name together with ``bbox``.
        year: of the images.
        service: a name of :data:`cryosentinel.ingest.services.SERVICES`, or the address of a STAC API.
        out: folder of the dataset; others may already be in it.
        inventory: lake outlines, one file or several, of any format that geopandas reads; of several years the nearest
            one counts. Without one every chip of the box is built, with an empty label: chips to predict on, not to
            train with.
        bbox: west, south, east, north in degrees; the region's own box by default.
        s2_service, s1_service, dem_service: where a modality comes from another service.
        scheduler: address of a Dask scheduler whose workers build the groups (the package installed there, and S3 keys
            where a service needs them), or "local" for processes of this machine; threads of this process by default.
            Chips come back over the cluster's network: no shared disk is needed.
        workers: threads, or processes of a local cluster.
        settings: everything else.
        allow_failed: finish without the groups of which a server stays down, instead of asking to run again.
        progress: show a progress bar.

    Returns:
        Index, sanity table and what was left out; ``<out>/<region>/<year>/`` holds the shards, ``<out>`` the statistics
        (of all its shards' training split) and the dataset card.

    Raises:
        ConfigError: an argument cannot be used.
        InputError: the inventory cannot be used, the folder holds something else or cannot be written, or a service
            has nothing usable there.
        HubError: a service or the cluster cannot be reached, refuses its files, or fails in spite of the retries.
    """
    settings = settings or Settings()
    box = region_box(region, bbox)
    if not YEAR_RANGE[0] <= year <= YEAR_RANGE[1]:
        raise ConfigError(f"The year is {year}; the satellites have flown since {YEAR_RANGE[0]}.")
    if workers < 1:
        raise ConfigError(f"workers is {workers}; give at least 1.")
    services = find_services(service, {"s2": s2_service, "s1": s1_service, "dem": dem_service}, settings.collections)
    out = Path(out)
    given = [inventory] if isinstance(inventory, (str, os.PathLike)) else inventory or []
    files = [Path(path) for path in given]
    lakes = read_inventory(files, year, box) if files else no_inventory()
    # How often a failure is waited out changes no chip: who raises it goes on.
    identity = digest(
        version=2, region=region, year=year, box=box, services=services, settings=replace(settings, retries=0),
        inventory=sorted(sha256(file) for file in files),
    )  # fmt: skip
    with _disk(out):
        staging = Staging(out, region, year, identity)
        if staging.check():
            return _finished(out, staging)
    groups = plan(region, box, lakes, settings, labelled=bool(files))
    todo = [group for group in groups if not staging.done(group.number)]
    failures: list[str] = []
    if todo:
        catalogues = open_catalogues(services, settings)
        found = search_groups(catalogues, todo, year, settings)
        for key, catalogue in catalogues.items():
            if len(todo) == len(groups) and not any(getattr(items, key) for items in found.values()):
                raise catalogue.nothing(f"over {region}", year)
        with _disk(out):
            staging.begin(
                {
                    "region": region,
                    "year": year,
                    "box": list(box),
                    "services": {name: each.name for name, each in services.items()},
                    "collections": {name: list(each.collections) for name, each in catalogues.items()},
                    "inventory": [file.name for file in files],
                    "inventory_year": int(lakes["year"].iloc[0]) if len(lakes) else 0,
                    "settings": asdict(settings),
                }
            )
        tasks = (
            Task(group, region, year, services, settings, found[group.number], outlines_of(lakes, group))
            for group in todo
        )
        for number, result in _run(tasks, len(todo), scheduler, workers, progress):
            if result.failure:
                failures.append(result.failure)
            else:
                with _disk(out):
                    staging.put(number, result)
            del result  # its arrays, before the next one is waited for
    if failures and not allow_failed:
        raise HubError(
            f"{len(failures)} of {len(groups)} groups of chips could not be read ({failures[0].rstrip('.')}); the "
            "others are kept: run the same command again to go on, or allow failed ones."
        )
    with _disk(out):
        return _assemble(out, staging, groups, settings)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Writing only: a failure of the network is an OSError too, and no reason to free space."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}); what is done is kept: free some space and run the "
            "same command again to go on."
        ) from None


@contextmanager
def _pool(
    scheduler: str | None, workers: int
) -> Iterator[tuple[Callable[..., Any], Callable[..., Any], Callable[[], None]]]:
    """How to submit, how to wait, and how to give up: a Dask cluster's or a thread pool's."""
    if scheduler is None:
        with ThreadPoolExecutor(workers) as threads:
            yield threads.submit, as_threads_complete, lambda: threads.shutdown(wait=False, cancel_futures=True)
        return
    with connected(scheduler, workers) as client:
        from distributed import as_completed

        def submit(function: Callable[..., Any], task: Task) -> Any:
            return client.submit(function, task, pure=False)

        yield submit, as_completed, lambda: None


def _run(
    tasks: Iterator[Task], count: int, scheduler: str | None, workers: int, progress: bool
) -> Iterator[tuple[int, Result]]:
    """Results as they come, of tasks handed out a few at a time so that neither they nor their results pile up."""
    from tqdm import tqdm

    with (
        _pool(scheduler, workers) as (submit, as_completed, give_up),
        tqdm(total=count, desc="Ingest", unit="group", disable=not progress) as bar,
    ):
        ahead = workers + 1 if scheduler is None else max(2 * workers, 64)
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < ahead and (task := next(tasks, None)) is not None:
                    running[submit(build_group, task)] = task.group.number
                if not running:
                    return
                future = next(iter(as_completed(list(running))))
                number = running.pop(future)
                yield number, _outcome(future, scheduler)
                bar.update()
        finally:
            for future in running:
                future.cancel()
            give_up()


def _outcome(future: Any, scheduler: str | None) -> Result:
    """A group's result. A worker that dies is the cluster's affair: Dask gives its groups to others, a few times."""
    try:
        return future.result()
    except CryoSentinelError:
        raise
    except Exception as error:
        if scheduler is None or type(error).__module__.partition(".")[0] != "distributed":
            raise
        raise HubError(
            f"The Dask cluster {scheduler} gave a group of chips up ({type(error).__name__}: its workers died or were "
            "lost, mostly of too little memory); what is done is kept: run the same command again to go on, with more "
            "memory a worker. Smaller groups (settings.group) need less, but begin anew in another folder."
        ) from None


def _assemble(out: Path, staging: Staging, groups: Sequence[ChipGroup], settings: Settings) -> IngestResult:
    """Finished groups to shards, index, statistics and card."""
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    notes: list[str] = []
    chips, size = 0, settings.chips_per_shard
    for group in groups:
        if not staging.done(group.number):
            rows += [
                {"chip_id": cell.chip_id(staging.region, staging.year), "status": SERVER_DOWN} for cell in group.cells
            ]
            continue
        done = staging.get(group.number)
        for row in done["rows"]:
            if row["status"] == KEPT:
                row |= {"shard": chips // size, "row": chips % size}
                chips += 1
        rows += done["rows"]
        broken += done["broken"]
        notes += done["notes"]
    index = make_index(rows)
    broken, notes = sorted(set(broken)), sorted(set(notes))
    kept_rows = index[index["status"] == KEPT]
    if not len(kept_rows):
        reasons = ", ".join(f"{n} {status}" for status, n in index["status"].value_counts().items())
        why = f" ({'; '.join([*notes, *broken][:2])})" if notes or broken else ""
        raise InputError(
            f"None of the {len(index)} planned chips could be built: {reasons}{why}; widen season or limits, or take "
            "another service."
        )
    stream = staging.chips([group.number for group in groups if staging.done(group.number)])
    for number in range(-(-chips // size)):
        write_shard(shard_path(out, staging.region, staging.year, number), islice(stream, size))
    table = write_index(staging.target, index)
    write_statistics(out)
    products = sorted({f"{p} {b}" for p, b in zip(kept_rows["s1_product"], kept_rows["s1_backscatter"], strict=True)})
    summary = {
        "chips": len(kept_rows), "planned": len(index), "s1_products": products, "broken": broken, "notes": notes,
    }  # fmt: skip
    others = sorted(path for path in out.glob(f"[!.]*/*/{RECORD_FILE}") if path != staging.record)
    records = [read_json(path) for path in others]
    begun = read_json(staging.folder / RECORD_FILE)
    mixed = write_dataset_card(out, [*records, {**begun, **summary}])
    staging.finish({**summary, "mixed": mixed})
    return IngestResult(out, staging.target, index, table, tuple(broken), (*notes, *mixed))


def _finished(out: Path, staging: Staging) -> IngestResult:
    """What an earlier run made."""
    import pandas as pd

    from cryosentinel.data import sanity

    index = pd.read_parquet(staging.target / INDEX_FILE)
    kept = index[index["status"] == KEPT]
    record = read_json(staging.record)
    notes = (*record.get("notes", ()), *record.get("mixed", ()))
    return IngestResult(out, staging.target, index, sanity.sanity_report(kept), tuple(record.get("broken", ())), notes)
