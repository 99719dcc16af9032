"""Ingest: a region and year from a STAC service to shards in the published format, going on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import as_completed as as_threads_complete
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryosentinel.data.chips import write_shard
from cryosentinel.data.pixels import YEAR_RANGE
from cryosentinel.errors import ConfigError, HubError, InputError
from cryosentinel.files import read_json, sha256
from cryosentinel.ingest.grid import Box, Cell, Window, all_cells, make_windows, region_box, with_background
from cryosentinel.ingest.inventory import lake_cells, outlines_of, read_inventory
from cryosentinel.ingest.report import (
    INDEX_FILE,
    IngestResult,
    make_index,
    write_dataset_card,
    write_index,
    write_statistics,
)
from cryosentinel.ingest.search import Found, collections, open_service, search_windows
from cryosentinel.ingest.settings import Settings, fingerprint
from cryosentinel.ingest.staging import RECORD_FILE, Staging
from cryosentinel.ingest.window import KEPT, SERVER_DOWN, Result, Task, build_window
from cryosentinel.paths import shard_path

PathLike = str | os.PathLike[str]
CONNECT_S = 20  # to a Dask scheduler


def plan(region: str, box: Box, lakes: Any, settings: Settings) -> list[Window]:
    """Which chips to build, grouped into windows, always in the same order.

    Raises:
        InputError: no lake lies in the box, and not every chip of the box is wanted.
    """
    if settings.background is None:
        cells: set[Cell] = set(all_cells(region, box))
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
    return make_windows(cells, settings)


def ingest(
    region: str,
    year: int,
    inventory: PathLike | Sequence[PathLike],
    stac: str,
    out: PathLike,
    bbox: Box | None = None,
    scheduler: str | None = None,
    workers: int = 2,
    settings: Settings | None = None,
    allow_failed: bool = False,
    progress: bool = True,
) -> IngestResult:
    """Build chips of a region and year from a STAC service, in the published format.

    Windows are done one by one and kept when they are; an interrupted run (killed, a server down, a full disk) goes on
    where it stopped when it is started again with the same arguments.

    Args:
        region: a name of :data:`cryosentinel.sensors.REGIONS`, or any name together with ``bbox``.
        year: of the images.
        inventory: lake outlines, one file or several, of any format that geopandas reads; of several years the nearest
            one counts.
        stac: address of the STAC API.
        out: folder of the dataset; others may already be in it.
        bbox: west, south, east, north in degrees; the region's own box by default.
        scheduler: address of a Dask scheduler whose workers build the windows (the package installed there); threads of
            this process by default. Chips come back over the cluster's network: no shared disk is needed.
        workers: threads.
        settings: everything else.
        allow_failed: finish without the windows of which a server stays down, instead of asking to run again.
        progress: show a progress bar.

    Returns:
        Index, sanity table and what was left out; ``<out>/<region>/<year>/`` holds the shards, ``<out>`` the statistics
        (of all its shards' training split) and the dataset card.

    Raises:
        ConfigError: an argument cannot be used.
        InputError: the inventory cannot be used, the folder holds something else or cannot be written, or the service
            has nothing there.
        HubError: the service or the cluster cannot be reached, or fails in spite of the retries.
    """
    settings = settings or Settings()
    box = region_box(region, bbox)
    if not YEAR_RANGE[0] <= year <= YEAR_RANGE[1]:
        raise ConfigError(f"The year is {year}; the satellites have flown since {YEAR_RANGE[0]}.")
    if workers < 1:
        raise ConfigError(f"workers is {workers}; give at least 1.")
    out = Path(out)
    files = [Path(p) for p in ([inventory] if isinstance(inventory, (str, os.PathLike)) else inventory)]
    lakes = read_inventory(files, year, box)
    identity = fingerprint(
        version=1,
        region=region,
        year=year,
        box=box,
        stac=stac,
        settings=settings,
        inventory=sorted(map(_digest, files)),
    )
    try:
        staging = Staging(out, region, year, identity)
        if staging.check():
            return _finished(out, staging)
        windows = plan(region, box, lakes, settings)
        todo = [window for window in windows if not staging.done(window.number)]
        failures: list[str] = []
        if todo:
            client = open_service(stac, settings)
            names = collections(client, settings)
            found = search_windows(client, names, todo, year, settings)
            _refuse_nothing(found, names, stac, region, year, nothing_yet=len(todo) == len(windows))
            staging.begin(
                {
                    "region": region,
                    "year": year,
                    "box": list(box),
                    "stac": stac,
                    "collections": names,
                    "inventory": [file.name for file in files],
                    "inventory_year": int(lakes["year"].iloc[0]) if len(lakes) else 0,
                    "settings": asdict(settings),
                }
            )
            tasks = (
                Task(window, region, year, stac, settings, found[window.number], outlines_of(lakes, window))
                for window in todo
            )
            for number, result in _run(tasks, len(todo), scheduler, workers, progress):
                if result.failure:
                    failures.append(result.failure)
                else:
                    staging.put(number, result)
        if failures and not allow_failed:
            raise HubError(
                f"{len(failures)} of {len(windows)} windows could not be read ({failures[0].rstrip('.')}); the others "
                "are kept: run the same command again to go on, or allow failed windows."
            )
        return _assemble(out, staging, windows, settings)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}); what is done is kept: free some space and run the "
            "same command again to go on."
        ) from None


def _digest(path: Path) -> str:
    return sha256(path) if path.is_file() else path.name


def _refuse_nothing(
    found: dict[int, Found], names: dict[str, str], stac: str, region: str, year: int, nothing_yet: bool
) -> None:
    for key, label in (("s2", "Sentinel-2"), ("s1", "Sentinel-1"), ("dem", "elevation")):
        if nothing_yet and not any(getattr(items, key) for items in found.values()):
            raise InputError(
                f"{stac} holds no {label} acquisition ({names[key]}) over {region} in the season of {year} that passes "
                "the limits; check year, box, season and cloud limit."
            )


@contextmanager
def _pool(
    scheduler: str | None, workers: int
) -> Iterator[tuple[Callable[..., Any], Callable[..., Any], Callable[[], None]]]:
    """How to submit, how to wait, and how to give up: a Dask cluster's or a thread pool's."""
    if scheduler is None:
        with ThreadPoolExecutor(workers) as threads:
            yield threads.submit, as_threads_complete, lambda: threads.shutdown(wait=False, cancel_futures=True)
        return
    from distributed import Client, as_completed

    try:
        client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise HubError(f"The Dask scheduler {scheduler} cannot be reached ({error}); check its address.") from None
    with client, client.as_current():

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
        tqdm(total=count, desc="Ingest", unit="window", disable=not progress) as bar,
    ):
        ahead = workers + 1 if scheduler is None else max(2 * workers, 64)
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < ahead and (task := next(tasks, None)) is not None:
                    running[submit(build_window, task)] = task.window.number
                if not running:
                    return
                future = next(iter(as_completed(list(running))))
                number = running.pop(future)
                yield number, future.result()
                bar.update()
        finally:
            for future in running:
                future.cancel()
            give_up()


def _assemble(out: Path, staging: Staging, windows: Sequence[Window], settings: Settings) -> IngestResult:
    """Finished windows to shards, index, statistics and card."""
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    groups: list[list[int]] = [[]]
    size = 0
    for window in windows:
        if not staging.done(window.number):
            rows += [
                {"chip_id": cell.chip_id(staging.region, staging.year), "status": SERVER_DOWN} for cell in window.cells
            ]
            continue
        own, failed = staging.rows(window.number)
        kept = sum(row["status"] == KEPT for row in own)
        if size + kept > settings.chips_per_shard and size:
            groups.append([])
            size = 0
        for row in own:
            if row["status"] == KEPT:
                row |= {"shard": len(groups) - 1, "row": size}
                size += 1
        groups[-1].append(window.number)
        rows += own
        broken += failed
    index = make_index(rows)
    if not (index["status"] == KEPT).any():
        reasons = ", ".join(f"{n} {status}" for status, n in index["status"].value_counts().items())
        raise InputError(f"None of the {len(index)} planned chips could be built ({reasons}); widen season or limits.")
    for number, group in enumerate(groups):
        write_shard(shard_path(out, staging.region, staging.year, number), staging.chips(group))
    table = write_index(staging.target, index)
    write_statistics(out)
    broken = sorted(set(broken))
    summary = {"chips": int((index["status"] == KEPT).sum()), "planned": len(index), "broken": broken}
    others = sorted(path for path in out.glob(f"[!.]*/*/{RECORD_FILE}") if path != staging.record)
    records = [read_json(path) for path in others]
    begun = read_json(staging.folder / RECORD_FILE)
    records = [*records, {**begun, **summary}]
    write_dataset_card(out, records, sum(record["planned"] - record["chips"] for record in records))
    staging.finish(summary)
    return IngestResult(out, staging.target, index, table, tuple(broken))


def _finished(out: Path, staging: Staging) -> IngestResult:
    """What an earlier run made."""
    import pandas as pd

    from cryosentinel.data import sanity

    index = pd.read_parquet(staging.target / INDEX_FILE)
    kept = index[index["status"] == KEPT]
    record = read_json(staging.record)
    return IngestResult(out, staging.target, index, sanity.sanity_report(kept), tuple(record.get("broken", ())))
