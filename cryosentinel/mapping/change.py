"""Lakes over years: stable identities, events, and change that is called only where it exceeds the areas' intervals."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.files import replacing, write_text
from cryosentinel.mapping.areas import add_interval
from cryosentinel.mapping.lakes import CUT, geodesic
from cryosentinel.sensors import HECTARE_M2

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

MIN_OVERLAP = 0.1  # of the smaller outline: outlines of one lake are shifted by a pixel or two against each other
SEASON_DAYS = 30  # images further apart in the year see another water level, ice or snow
_UNSURE = f"{CUT}|cloud|frozen"  # flags of an outline whose area says little


@dataclass(frozen=True)
class Changes:
    """Lakes linked over years.

    Attributes:
        outlines: every outline of every year with its ``identity``, largest identity first.
        lakes: one row an identity: first and last year, areas with intervals, change_ha, change_percent, rate_ha_a (ha
            a year), ``call`` ("grew", "shrank", "no change beyond the intervals", "seen once", "not compared") and
            ``note`` (why, and what differs between the images). Called growth first, then the others that were
            compared, then the rest; the fastest growing of each first.
        events: one row an event: year, event (birth, gone, split, merge; "not imaged" where a lake is missing only
            because no image of that or any further year shows its place), identity, others (the identities involved).
    """

    outlines: gpd.GeoDataFrame
    lakes: pd.DataFrame
    events: pd.DataFrame


def read_outlines(files: Sequence[str | os.PathLike[str]], pixel_m: float = 10.0) -> dict[int, gpd.GeoDataFrame]:
    """Outlines by year, with true areas and intervals, from GeoParquet or any vector file.

    Args:
        files: each of one year: its column ``year``, or four digits in the file's name. Files of one year are joined.
        pixel_m: of the images that outlines without an interval were drawn from.

    Raises:
        InputError: a file is missing, cannot be read, has no CRS, or its year is unknown.
    """
    import geopandas as gpd
    import pandas as pd

    found: dict[int, list[gpd.GeoDataFrame]] = {}
    for path in map(Path, files):
        if not path.is_file():
            raise InputError(f"There is no file {path}; check the path.")
        try:
            frame = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)
        except Exception as error:  # pyogrio, pyarrow and GDAL each have their own
            raise InputError(f"{path} cannot be read as outlines ({error}); check the file.") from None
        if frame.crs is None:
            raise InputError(f"{path} has no CRS; set it before the years are compared.")
        name = re.search(r"(?<!\d)(?:19|20)\d\d(?!\d)", path.stem)
        # A number, a text or a date.
        said = frame["year"].astype(str).str.extract(r"^\s*((?:19|20)\d\d)(?!\d)")[0] if "year" in frame else None
        if said is not None and len(frame) and said.notna().all():
            years = said.astype(int)
        elif name:
            years = pd.Series(int(name[0]), index=frame.index)
        else:
            raise InputError(f"{path} does not say its year, in a column year or in its name; rename it.")
        frame = frame[frame.geometry.notna() & ~frame.geometry.is_empty].assign(year=years)
        frame = frame.set_geometry(gpd.GeoSeries(_polygonal(frame.geometry), frame.index, frame.crs))
        frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])]
        area, perimeter = geodesic(frame.geometry.to_numpy(), frame.crs)
        frame = frame.assign(area_ha=area / HECTARE_M2, perimeter_m=perimeter)
        if "flags" not in frame:
            frame = frame.assign(flags="")
        if not {"area_low_ha", "area_high_ha"} <= set(frame):
            frame = add_interval(frame, None, pixel_m)
        for year, part in frame.groupby("year"):
            found.setdefault(int(year), []).append(part)
    if len(found) < 2:
        raise InputError(f"The files hold outlines of {len(found)} year; give at least two.")
    crs = next(iter(found.values()))[0].crs
    if not crs.is_projected:  # one system for all, in which overlaps can be measured
        crs = next(iter(found.values()))[0].estimate_utm_crs()
    return {
        year: gpd.GeoDataFrame(pd.concat([part.to_crs(crs) for part in found[year]], ignore_index=True), crs=crs)
        for year in sorted(found)
    }


def _polygonal(geometries: gpd.GeoSeries) -> list[Any]:
    """Valid outlines; of one with a spike the polygons alone."""
    import shapely

    return [
        shapely.union_all([part for part in shape.geoms if part.geom_type.endswith("Polygon")])
        if shape.geom_type == "GeometryCollection"
        else shape
        for shape in geometries.make_valid()
    ]


def read_footprints(files: Sequence[str | os.PathLike[str]], crs: Any) -> dict[int, Any]:
    """What the scenes of each year cover, in ``crs``: layer scenes of a map's lakes.gpkg, also beside lakes.parquet.

    Nothing where one of the files has none.
    """
    import geopandas as gpd
    import pandas as pd
    import pyogrio

    frames = []
    for path in map(Path, files):
        package = path.with_suffix(".gpkg")
        if not package.is_file() or "scenes" not in {name for name, _ in pyogrio.list_layers(package)}:
            return {}
        frames.append(gpd.read_file(package, layer="scenes").to_crs(crs))
    both = pd.concat(frames, ignore_index=True)
    return {int(year): part.geometry.union_all() for year, part in both.groupby("year")}


def link_years(
    years: Mapping[int, gpd.GeoDataFrame],
    min_overlap: float = MIN_OVERLAP,
    footprints: Mapping[int, Any] | None = None,
) -> Changes:
    """Give the outlines of one lake in all years one identity.

    Outlines of a year are held against the latest outline of every identity, so that a lake missed in one year (cloud)
    is found again in the next. Two belong together where they share ``min_overlap`` of the smaller. One to one, the
    identity goes on. Where a lake splits or lakes merge, the pair with the largest common area carries it on; other
    parts of a split are new identities, and other members of a merge end.

    Args:
        years: year -> outlines in one projected system, with area_ha, area_low_ha and area_high_ha; optional columns
            date, orbit, radar_product, cloud and flags say whether two years can be compared.
        min_overlap: share of the smaller outline.
        footprints: year -> what its images cover, in the outlines' system; a year without shows every place.
    """
    import geopandas as gpd
    import pandas as pd
    import shapely

    def imaged(shape: Any, among: Sequence[int]) -> list[int]:
        """The years that show half of an outline's place or more."""
        covered = footprints or {}
        return [y for y in among if y not in covered or covered[y].intersection(shape).area >= 0.5 * shape.area]

    latest: dict[int, Any] = {}  # identity -> its latest outline
    events: list[dict[str, Any]] = []
    parts: list[gpd.GeoDataFrame] = []
    for year in sorted(years):
        frame = years[year].reset_index(drop=True)
        now = frame.geometry.to_numpy()
        names = list(latest)
        before = np.array([latest[name] for name in names], dtype=object)
        left, right = (
            shapely.STRtree(now).query(before, predicate="intersects") if len(before) else np.zeros((2, 0), int)
        )
        common = shapely.area(shapely.intersection(before[left], now[right])) if len(left) else np.zeros(0)
        smaller = np.minimum(shapely.area(before[left]), shapely.area(now[right])) if len(left) else np.zeros(0)
        kept = common >= min_overlap * smaller
        left, right, common = left[kept], right[kept], common[kept]
        # Of each side the partner with the largest common area; who chose each other go on together.
        order = np.lexsort((right, left, -common))
        chosen_by_old = {int(left[i]): int(right[i]) for i in order[::-1]}
        chosen_by_new = {int(right[i]): int(left[i]) for i in order[::-1]}
        identity = np.full(len(frame), -1)
        for new, old in chosen_by_new.items():
            if chosen_by_old[old] == new:
                identity[new] = names[old]
        fresh = identity < 0
        identity[fresh] = np.arange(fresh.sum()) + 1 + max(latest, default=0)
        if parts:  # everything is new in the first year
            for born in np.flatnonzero(fresh & ~np.isin(np.arange(len(frame)), right)):
                earlier = [y for y in sorted(years) if y < year]
                seen_before = bool(imaged(now[born], earlier))
                events.append(_event(*((year, "birth") if seen_before else (earlier[-1], "not imaged")),
                                     identity[born], []))  # fmt: skip
        for old in np.unique(left[np.bincount(left, minlength=len(names))[left] > 1]) if len(left) else ():
            events.append(_event(year, "split", names[old], identity[right[left == old]]))
        for new in np.unique(right[np.bincount(right, minlength=len(frame))[right] > 1]) if len(right) else ():
            others = np.array(names)[left[right == new]]
            events.append(_event(year, "merge", identity[new], others))
            for other in others:
                if other not in identity:
                    latest.pop(int(other), None)  # it is part of another lake now
        latest |= {int(name): geometry for name, geometry in zip(identity, now, strict=True)}
        parts.append(frame.assign(identity=identity, year=year))
    outlines = gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), crs=parts[0].crs)
    last_year = max(years)
    merged = {o for e in events if e["event"] == "merge" for o in e["others"].split() if int(o) != e["identity"]}
    ends = outlines.groupby("identity")["year"].max()
    later = sorted(years)
    for name, seen in ends[ends < last_year].items():
        if str(name) not in merged:
            after = later[later.index(seen) + 1 :]
            shown = imaged(latest[int(name)], after)
            events.append(_event(*((shown[0], "gone") if shown else (after[0], "not imaged")), name, []))
    table = pd.DataFrame(events, columns=["year", "event", "identity", "others"]).sort_values(
        ["year", "event", "identity"], ignore_index=True
    )
    lakes = _summary(outlines, table)
    return Changes(outlines.sort_values(["identity", "year"], ignore_index=True), lakes, table)


def _event(year: int, event: str, identity: Any, others: Any) -> dict[str, Any]:
    return {"year": year, "event": event, "identity": int(identity), "others": " ".join(str(int(o)) for o in others)}


def _summary(outlines: gpd.GeoDataFrame, events: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    mixed: dict[int, list[str]] = {}
    unseen = events[events["event"] == "not imaged"].groupby("identity")["year"].apply(list).to_dict()
    for row in events[events["event"].isin(["split", "merge"])].itertuples():
        for name in {row.identity, *map(int, row.others.split())}:
            mixed.setdefault(name, []).append(f"{row.event} in {row.year}")
    rows = []
    for name, series in outlines.sort_values("year").groupby("identity"):
        first, last = series.iloc[0], series.iloc[-1]
        span = int(last["year"] - first["year"])
        change = float(last["area_ha"] - first["area_ha"])
        notes = list(mixed.get(int(name), []))
        for row in (first, last):
            if re.search(_UNSURE, str(row["flags"])):
                notes.append(f"{row['year']}: {row['flags']}")
        differs = comparison_notes(first, last) if span else []
        differs += [f"not imaged in {year}" for year in unseen.get(int(name), [])]
        if not span:
            call = "seen once"
        elif notes:
            call = "not compared"
        elif last["area_low_ha"] > first["area_high_ha"]:
            call = "grew"
        elif last["area_high_ha"] < first["area_low_ha"]:
            call = "shrank"
        else:
            call = "no change beyond the intervals"
        point = last.geometry.representative_point()
        rows.append({
            "identity": int(name), "first_year": int(first["year"]), "last_year": int(last["year"]),
            "years": len(series), "first_ha": first["area_ha"], "first_low_ha": first["area_low_ha"],
            "first_high_ha": first["area_high_ha"], "last_ha": last["area_ha"], "last_low_ha": last["area_low_ha"],
            "last_high_ha": last["area_high_ha"], "change_ha": change,
            "change_percent": 100 * change / first["area_ha"] if first["area_ha"] else np.nan,
            "rate_ha_a": change / span if span else np.nan, "call": call, "note": "; ".join([*notes, *differs]),
            "x": point.x, "y": point.y,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    # What was not compared may jump by any amount: false outlines come and go.
    rank = table["call"].map({"grew": 0, "not compared": 2, "seen once": 3}).fillna(1)
    return table.assign(_rank=rank).sort_values(
        ["_rank", "rate_ha_a", "identity"], ascending=[True, False, True], ignore_index=True
    ).drop(columns="_rank")  # fmt: skip


def comparison_notes(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """What differs between the images of two outlines, or is not known of them, in words: date, radar, cloud."""
    import pandas as pd

    notes = []
    empty = ("", "nan", "None", "NaT")
    columns = {"date": ["date"], "radar": ["orbit", "radar_product"]}
    if unknown := [
        what
        for what, names in columns.items()
        if any(all(str(row.get(name, "")) in empty for name in names) for row in (first, last))
    ]:
        notes.append(f"{' and '.join(unknown)} unknown")
    dates = [pd.to_datetime(row.get("date", ""), errors="coerce") for row in (first, last)]
    if not any(date is pd.NaT for date in dates):
        apart = abs(dates[0].day_of_year - dates[1].day_of_year)
        if min(apart, 365 - apart) > SEASON_DAYS:
            notes.append(f"season differs: {dates[0]:%d %b} and {dates[1]:%d %b}")
    for column in ("orbit", "radar_product"):
        one, two = (str(row.get(column, "") or "") for row in (first, last))
        if one and two and one != two:
            notes.append(f"{column.replace('_', ' ')} differs: {one} and {two}")
    for row in (first, last):
        cloud = pd.to_numeric(str(row.get("cloud", "")), errors="coerce")
        if cloud > 0.2:
            notes.append(f"{row['year']}: {cloud:.0%} cloud")
    return notes


def write_changes(changes: Changes, out: str | os.PathLike[str]) -> None:
    """Write ``outlines.parquet``, ``lakes.csv`` and ``events.csv`` into a folder, each atomically."""
    out = Path(out)
    with replacing(out / "outlines.parquet") as part:
        changes.outlines.to_parquet(part, index=False)
    write_text(out / "lakes.csv", changes.lakes.to_csv(index=False, float_format="%.4f"))
    write_text(out / "events.csv", changes.events.to_csv(index=False))
