"""Random access to the chips of a dataset, at the speed of memory and in memory that does not grow with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryosentinel.data import sanity
from cryosentinel.data.cache import INDEX, PIXELS, cache_shard, default_cache_dir, entry_of
from cryosentinel.data.pixels import Chip
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.paths import dataset

PLACE_DIGITS = 5  # degrees: about a metre; two chips of one year nearer than that are one chip
WATER_TOLERANCE = 0.001


class ChipStore:
    """The chips of ``<root>/<region>/<year>/shard_NNN.parquet``, any of them at any time.

    Each shard is converted once into a memory map that all processes share (see :mod:`cryosentinel.data.cache`); the
    system keeps as much of it in memory as there is room for. Nothing is decoded on reading.

    Args:
        root: folder of the dataset.
        cache_dir: folder of the converted shards; by default inside ``root``, or in the user's cache where ``root``
            cannot be written.
        regions, years: read only these folders; None for all.
        workers: threads that convert.

    Attributes:
        index: one row a chip: chip_id, region, year, lat, lon, lake_id, water_frac, valid_frac, shard, row, sanity (""
            if the sanity filter at MNDWI threshold 0.3 keeps the chip, else why not), and the filter's figures at both
            thresholds (``mndwi_iou_0.0``, ``mndwi_water_0.0``, ``mndwi_iou_0.3``, ``mndwi_water_0.3``). Chips without
            a centre have lat and lon not a number.
        chip_size: (H, W) in pixels.

    Raises:
        InputError: there is no dataset, a shard is corrupt, or shards hold chips of different sizes.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        regions: Iterable[str] | None = None,
        years: Iterable[int] | None = None,
        workers: int | None = None,
    ) -> None:
        self.root = Path(root).resolve()
        shards = find_shards(self.root, regions, years)
        self.cache_dir = Path(cache_dir).resolve() if cache_dir else default_cache_dir(self.root)
        entries = _convert_all(shards, self.cache_dir, workers)
        self.paths = [entries[name] / PIXELS for name in shards]
        self._maps: dict[int, np.ndarray] = {}
        tables = [pd.read_parquet(entries[name] / INDEX) for name in shards]
        self.index = pd.concat(tables, ignore_index=True)
        self.index["sanity"] = self.sanity(sanity.DEFAULT_THRESHOLD)
        self._shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self._row = self.index["row"].to_numpy()
        self.chip_size = self._one_size(list(shards))
        self._say_what_is_amiss()

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, position: int) -> Chip:
        """The chip at a position of the index, unclipped. Its arrays are read-only views of the memory map."""
        record, row = self.record(position), self.index.iloc[int(position)]
        lat, lon = (None if np.isnan(row[name]) else float(row[name]) for name in ("lat", "lon"))
        chip = Chip(
            s2=record["s2"],
            s1=record["s1"],
            dem=record["dem"],
            mask=record["mask"],
            chip_id=row["chip_id"],
            region=row["region"],
            snapshot_year=int(row["year"]),
            lat=lat,
            lon=lon,
            lake_id=row["lake_id"],
            split=row["published_split"],
            water_frac=float(row["water_frac"]),
        )
        vars(chip)["valid"] = record["valid"]  # counted when the shard was converted, so not again
        return chip

    def __iter__(self) -> Iterator[Chip]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a worker maps the files itself

    def record(self, position: int) -> Any:
        """The arrays at a position, with fields s2, s1, dem, mask and valid: views of the memory map.

        Raises:
            IndexError: there is no such position.
        """
        shard = int(self._shard[position])
        pixels = self._maps.get(shard)
        if pixels is None:
            # A plain array over the map: indexing a numpy.memmap costs several times as much.
            pixels = self._maps[shard] = np.asarray(np.load(self.paths[shard], mmap_mode="r"))
        return pixels[self._row[position]]

    def sanity(self, threshold: float) -> np.ndarray:
        """Why the sanity filter would drop each chip: (n,) of strings, empty where it keeps it.

        The thresholds 0 and 0.3 come from the index; any other one is computed from the pixels, chip by chip.
        """
        label = self.index["water_frac"].to_numpy()
        if threshold in sanity.THRESHOLDS:
            iou = self.index[sanity.column(threshold, "iou")].to_numpy()
            water = self.index[sanity.column(threshold, "water")].to_numpy()
        else:
            records = (self.record(i) for i in range(len(self)))
            found = [sanity.agreement(r["s2"], r["mask"], (threshold,))[0] for r in records]
            iou, water = np.array(found).T
        return sanity.reasons(iou, water, label)

    def sanity_report(self) -> pd.DataFrame:
        """The filter's report table at both thresholds, see :func:`cryosentinel.data.sanity.sanity_report`."""
        return sanity.sanity_report(self.index)

    def duplicates(self) -> pd.DataFrame:
        """Chips that appear more than once, which happens where region boxes overlap.

        Returns:
            One row a repeated chip: position, kind ("place": the centre and year of an earlier chip; "chip_id": only
            the identifier of one), chip_id, region, year, first (position of that earlier chip), first_region.
        """
        index = self.index
        place = index.assign(lat=index["lat"].round(PLACE_DIGITS), lon=index["lon"].round(PLACE_DIGITS))
        position = np.arange(len(index))
        found = pd.DataFrame({"position": position, "kind": "", "first": position})
        for kind, keys in (("chip_id", ["chip_id"]), ("place", ["lat", "lon", "year"])):  # a place outweighs a name
            first = place.assign(at=position).dropna(subset=keys).groupby(keys, sort=False)["at"].transform("first")
            repeated = first.index[first != first.index]
            found.loc[repeated, "kind"], found.loc[repeated, "first"] = kind, first[repeated]
        found = found[found["kind"] != ""].sort_values(["kind", "position"], ascending=[False, True], ignore_index=True)
        columns = {name: index[name].to_numpy()[found["position"]] for name in ("chip_id", "region", "year")}
        return found.assign(**columns, first_region=index["region"].to_numpy()[found["first"]])

    def _one_size(self, names: list[str]) -> tuple[int, int]:
        sizes = [np.load(path, mmap_mode="r").dtype["mask"].shape for path in self.paths]
        for name, size in zip(names, sizes, strict=True):
            if size != sizes[0]:
                raise InputError(
                    f"The shard {name} of {self.root} holds chips of {size[0]} x {size[1]} pixels and {names[0]} of "
                    f"{sizes[0][0]} x {sizes[0][1]}; a dataset holds chips of one size."
                )
        return sizes[0]

    def _say_what_is_amiss(self) -> None:
        index, stated = self.index, self.index["stated_water_frac"]
        nowhere = index["lat"].isna() | index["lon"].isna()
        wrong = (stated - index["water_frac"]).abs() > WATER_TOLERANCE
        for chips, what in (
            (nowhere, "have no lat and lon ({shards} shards); they are read, but belong to no split."),
            (stated.isna(), "state no water_frac; it is counted from their masks."),
            (
                wrong,
                "state a water_frac that their masks do not have (first {first!r}); the masks' own is used.",
            ),
        ):
            if chips.any():
                about = {"shards": index.loc[chips, "shard"].nunique(), "first": index.loc[chips, "chip_id"].iloc[0]}
                text = f"{int(chips.sum())} of {len(index)} chips of {self.root} {what.format(**about)}"
                warnings.warn(text, stacklevel=3)


def find_shards(
    root: Path, regions: Iterable[str] | None = None, years: Iterable[int] | None = None
) -> dict[str, Path]:
    """The shards of a dataset: name below the root (with forward slashes) -> path, sorted by name.

    Raises:
        InputError: the folder is missing, or holds no shard of the regions and years asked for.
        ConfigError: a region or year is asked for that the dataset does not have.
    """
    shards = dataset(root)
    folders = {(path.parts[-3], path.parts[-2]) for path in shards}
    for asked, have, what in ((regions, {r for r, _ in folders}, "region"), (years, {y for _, y in folders}, "year")):
        unknown = sorted({str(value) for value in asked} - have) if asked is not None else []
        if unknown:
            raise ConfigError(f"{root} has no {what} {', '.join(unknown)}; it has {', '.join(sorted(have))}.")
    wanted_regions = None if regions is None else set(regions)
    wanted_years = None if years is None else {str(year) for year in years}
    chosen = {
        path.relative_to(root).as_posix(): path
        for path in shards
        if (wanted_regions is None or path.parts[-3] in wanted_regions)
        and (wanted_years is None or path.parts[-2] in wanted_years)
    }
    if not chosen:
        raise InputError(f"{root} holds no shards of these regions in these years.")
    return chosen


def _convert_all(shards: dict[str, Path], cache_dir: Path, workers: int | None) -> dict[str, Path]:
    """Convert what is not converted yet, in threads (decoding and copying run outside Python's lock)."""
    from tqdm import tqdm

    try:
        entries = {name: entry_of(cache_dir, name, path) for name, path in shards.items()}
        todo = {name: path for name, path in shards.items() if not entries[name].is_dir()}
        if todo:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(workers or min(len(todo), os.cpu_count() or 1, 8)) as pool:
                jobs = {pool.submit(cache_shard, name, path, cache_dir): name for name, path in todo.items()}
                try:
                    for job in tqdm(as_completed(jobs), total=len(jobs), desc="Converting shards", unit="shard"):
                        entries[jobs[job]] = job.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    except OSError as error:
        raise InputError(
            f"The chip cache {cache_dir} cannot be written ({error.strerror or error}); free some space or pass "
            "another cache_dir."
        ) from None
    return entries
