"""The chapter of lake maps: scenes around test places in every year, mapped, and held against what is true there."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryosentinel import colours
from cryosentinel.data.geotiff import Raster, read_geotiff, write_geotiff
from cryosentinel.data.split import block_ids
from cryosentinel.errors import InputError
from cryosentinel.geo import chip_corner
from cryosentinel.mapping.areas import COVERAGE, Intervals, calibrate, matched_areas
from cryosentinel.mapping.change import Changes, link_years
from cryosentinel.mapping.lakes import label_lakes, vectorise
from cryosentinel.sensors import CHIP_SIZE, PIXEL_SIZE_M, SNAPSHOT_YEARS
from cryosentinel.simulate.materials import Material

if TYPE_CHECKING:
    import geopandas as gpd
    from matplotlib.figure import Figure

    from cryosentinel.evaluation.probability_maps import ProbabilityMaps
    from cryosentinel.mapping.maps import Overlay
    from cryosentinel.study.study import Study

SIDE = 336  # pixels of a scene: within the block of the chip in its middle, which no network was trained on
DRAWS = 100  # divisions of the blocks into those that calibrate and those that are tested


def lake_areas(study: Study, maps: ProbabilityMaps, threshold: float = 0.5) -> pd.DataFrame:
    """Areas of the lakes of a split as mapped and as labelled or true, each lake once a year.

    Neighbouring chips overlap by half: a lake that two of them show whole has its middle at the same pixel and counts
    once. See :func:`cryosentinel.mapping.areas.matched_areas` for which lakes are left out.

    Args:
        study: simulated chips, with their truth.
        maps: predictions of the split.
        threshold: probability from which a pixel is water.

    Returns:
        Columns reference ("label" or "truth"), mapped_ha, reference_ha, block, year.
    """
    store, truth = study.datamodule.store, study.truth
    assert truth is not None
    found = []
    for i, position in enumerate(maps.rows):
        chip = store[position]
        water, valid = maps.water(i, threshold), chip.valid
        _, top, left = chip_corner(chip.chip_id)
        (block,) = block_ids([chip.lat], [chip.lon], study.datamodule.block_size)
        for name, mask in (("label", chip.mask), ("truth", truth[chip.chip_id].lake)):
            lakes = matched_areas(water, mask, valid)
            lakes = lakes.assign(row=(lakes["row"] + top).round(1), col=(lakes["col"] + left).round(1))
            found.append(lakes.assign(reference=name, block=block, year=chip.snapshot_year))
    table = pd.concat(found, ignore_index=True).drop_duplicates(["reference", "block", "year", "row", "col"])
    return table.drop(columns=["row", "col"]).reset_index(drop=True)


def blocks_of(study: Study, maps: ProbabilityMaps) -> list[str]:
    """The split block of each chip of a split."""
    index = study.datamodule.store.index.iloc[list(maps.rows)]
    return [str(name) for name in block_ids(index["lat"], index["lon"], study.datamodule.block_size)]


def halves(blocks: Sequence[str], draw: int = 0) -> tuple[set[str], set[str]]:
    """Blocks to calibrate on and blocks to test on, drawn at random; draw 0 is the one of the chapter's maps."""
    names = np.random.default_rng(draw).permutation(sorted(set(blocks))).tolist()
    return set(names[: (len(names) + 1) // 2]), set(names[(len(names) + 1) // 2 :])


def intervals_of(areas: pd.DataFrame, blocks: set[str], reference: str = "label") -> Intervals:
    """Area intervals from the lakes of some blocks.

    Raises:
        InputError: there are too few.
    """
    lakes = areas[(areas["reference"] == reference) & areas["block"].isin(blocks)]
    source = f"{len(lakes)} simulated lakes of {lakes['block'].nunique()} test blocks"
    return calibrate(lakes["mapped_ha"].to_numpy(), lakes["reference_ha"].to_numpy(), reference, source)


def interval_coverage(areas: pd.DataFrame) -> pd.DataFrame:
    """How often intervals hold the areas of lakes in blocks that they were not calibrated on.

    Args:
        areas: from :func:`lake_areas`.

    Returns:
        One row for each reference calibrated on and each one held against: calibrated_on, held_against, covered (mean
        over :data:`DRAWS` divisions), low and high (5th and 95th percentile over them), lakes (tested, in the mean),
        width (median of upper over lower bound). No row where there are too few lakes.
    """
    rows: dict[tuple[str, str], list[tuple[float, int, float]]] = {}
    for draw in range(DRAWS):
        known, others = halves(areas["block"], draw)
        for reference in ("label", "truth"):
            try:
                intervals = intervals_of(areas, known, reference)
            except InputError:
                continue
            for against in ("label", "truth"):
                lakes = areas[(areas["reference"] == against) & areas["block"].isin(others)]
                if len(lakes):
                    low, high = intervals.bounds(lakes["mapped_ha"].to_numpy())
                    held = lakes["reference_ha"].between(low, high).mean()
                    width = float(np.median(high / low))
                    rows.setdefault((reference, against), []).append((float(held), len(lakes), width))
    out = []
    for (reference, against), values in rows.items():
        held, lakes, width = np.array(values).T
        low, high = np.percentile(held, [5, 95])
        out.append({"calibrated_on": reference, "held_against": against, "asked": COVERAGE, "covered": held.mean(),
                    "low": low, "high": high, "lakes": lakes.mean(), "width": width.mean()})  # fmt: skip
    columns = ["calibrated_on", "held_against", "asked", "covered", "low", "high", "lakes", "width"]
    return pd.DataFrame(out, columns=columns)


@dataclass(frozen=True)
class PlaceScenes:
    """One place in every snapshot year.

    Attributes:
        name: of the place.
        paths: year -> 15-band GeoTIFF.
        layers: year -> what the simulator knows: truth, material, cloud, terrain_shadow.
        truth: year -> outlines of its glacial lakes of 0.1 ha and more.
    """

    name: str
    paths: dict[int, Path]
    layers: dict[int, dict[str, np.ndarray]]
    truth: dict[int, gpd.GeoDataFrame]


def make_scenes(study: Study, maps: ProbabilityMaps, blocks: set[str], count: int, folder: Path) -> list[PlaceScenes]:
    """Scenes of the simulated world around the test places of some blocks that show most open, whole glacial lake.

    Args:
        study: simulated chips, with their truth.
        maps: of the test split.
        blocks: to choose from.
        count: places, each in a block of its own.
        folder: of the GeoTIFFs.
    """
    from affine import Affine
    from rasterio.crs import CRS

    from cryosentinel.simulate.field import pixel_window, render_year
    from cryosentinel.simulate.ground import make_ground

    index, truth, config = study.datamodule.store.index.iloc[list(maps.rows)], study.truth, study.simulation
    assert truth is not None and config is not None
    water = [_open_whole_lake(truth[name].lake, truth[name].material) for name in index["chip_id"]]
    index = index.assign(water=water, block=blocks_of(study, maps))
    index = index[index["block"].isin(blocks)].sort_values(["water", "chip_id"], ascending=[False, True])
    scenes = []
    for number, chip in enumerate(index.drop_duplicates("block").head(count).itertuples(), start=1):
        epsg, row, col = chip_corner(str(chip.chip_id))
        margin = (SIDE - CHIP_SIZE) // 2
        left, top = (col - margin) * PIXEL_SIZE_M, -(row - margin) * PIXEL_SIZE_M
        transform, window = Affine(PIXEL_SIZE_M, 0, left, 0, -PIXEL_SIZE_M, top), pixel_window(left, top, SIDE, SIDE)
        ground = make_ground(config.seed, epsg, window)
        place = PlaceScenes(f"{chip.region}_{number}", {}, {}, {})
        for year in SNAPSHOT_YEARS:
            layers = render_year(ground, window, year)[0]
            tags = {"snapshot_year": str(year), "date": f"{year}-09-01", "region": str(chip.region)}
            place.paths[year] = folder / f"{place.name}_{year}.tif"
            place.layers[year] = layers
            place.truth[year] = vectorise(layers["truth"], transform, epsg, 0.1, year=year)
            raster = Raster(layers["s2"], layers["s1"], layers["dem"], CRS.from_epsg(epsg), transform, tags)
            write_geotiff(place.paths[year], raster)
        scenes.append(place)
    return scenes


def _open_whole_lake(lake: np.ndarray, material: np.ndarray) -> int:
    """Pixels of a chip's open glacial lakes that its border does not cut."""
    labels, _ = label_lakes(lake)
    cut = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return int(((labels > 0) & ~np.isin(labels, cut) & (material != Material.FROZEN_LAKE)).sum())


def overlays(place: PlaceScenes, year: int, folder: Path) -> dict[str, Overlay]:
    """True colour, hillshade and probability of a mapped scene, for :func:`cryosentinel.mapping.maps.lake_map`."""
    from cryosentinel.data.chip_plots import hillshade
    from cryosentinel.mapping.maps import Overlay, true_colour
    from cryosentinel.mapping.product import probability_image

    scene = read_geotiff(place.paths[year])
    epsg = scene.crs.to_epsg()
    shade = np.rint(255 * hillshade(scene.dem[0])).astype(np.uint8)
    images = {
        "true colour": true_colour(scene.s2), "hillshade": np.dstack([shade] * 3),
        "probability": probability_image(folder / f"{place.paths[year].stem}_probability.tif"),
    }  # fmt: skip
    return {f"{name} {year}": Overlay(image, scene.transform, epsg) for name, image in images.items()}


def true_changes(places: Sequence[PlaceScenes], crs: Any) -> Changes:
    """The true lakes of all places linked over the years, in a coordinate system; their areas have no interval."""
    import geopandas as gpd

    years = {}
    for year in SNAPSHOT_YEARS:
        frame = gpd.GeoDataFrame(pd.concat([place.truth[year].to_crs(crs) for place in places], ignore_index=True))
        years[year] = frame.assign(area_low_ha=frame["area_ha"], area_high_ha=frame["area_ha"], flags="")
    return link_years(years)


def against_truth(mapped: Changes, true: Changes) -> pd.DataFrame:
    """The lakes of :class:`Changes` with the true lake that shares most ground with each, in the last year of each.

    Returns:
        ``mapped.lakes`` with the columns true_identity, true_first_ha and true_last_ha (in the same years; 0 where the
        lake was not there), true_change_ha; not a number where a mapped lake is none.
    """
    import geopandas as gpd

    shapes = [changes.outlines.sort_values("year").groupby("identity").tail(1) for changes in (mapped, true)]
    pairs = gpd.overlay(
        shapes[0][["identity", "geometry"]], shapes[1][["identity", "geometry"]].rename(columns={"identity": "true"}),
        how="intersection",
    )  # fmt: skip
    pairs = pairs.assign(common=pairs.area).sort_values("common").groupby("identity").tail(1)
    partner = pairs.set_index("identity")["true"]
    areas = true.outlines.groupby(["identity", "year"])["area_ha"].sum()
    lakes = mapped.lakes.assign(true_identity=mapped.lakes["identity"].map(partner))
    for name in ("first", "last"):
        keys = zip(lakes["true_identity"], lakes[f"{name}_year"], strict=True)
        lakes[f"true_{name}_ha"] = [areas.get((n, year), 0.0) if n == n else np.nan for n, year in keys]
    return lakes.assign(true_change_ha=lakes["true_last_ha"] - lakes["true_first_ha"])


def years_figure(place: PlaceScenes, years: Mapping[int, gpd.GeoDataFrame], title: str) -> Figure:
    """True colour of every year, with the mapped lakes and the true ones."""
    import matplotlib.pyplot as plt

    from cryosentinel.mapping.maps import true_colour

    rows = (len(place.paths) + 1) // 2
    figure, axes = plt.subplots(
        rows, 2, figsize=(7, 0.8 + 3.5 * rows), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for ax in list(axes.flat)[len(place.paths) :]:
        ax.set_visible(False)
    for ax, (year, path) in zip(axes.flat, place.paths.items(), strict=False):
        scene = read_geotiff(path)
        a, _, c, _, e, f = scene.transform[:6]
        ax.imshow(true_colour(scene.s2), extent=(c, c + a * SIDE, f + e * SIDE, f))
        for lakes, colour, width in ((place.truth[year], colours.TRUTH, 2.2), (years[year], colours.PREDICTION, 1.2)):
            if len(lakes):
                lakes.to_crs(scene.crs).boundary.plot(ax=ax, color=colour, linewidth=width)
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="", xlim=(c, c + a * SIDE), ylim=(f + e * SIDE, f))
        ax.set_title(str(year), fontsize=10)
    handles = [plt.Line2D([], [], color=colour) for colour in (colours.PREDICTION, colours.TRUTH)]
    figure.legend(handles, ["mapped", "truth"], loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def growth_figure(lakes: pd.DataFrame, mapped: Changes, true: Changes, count: int = 6) -> Figure:
    """Mapped area with its interval, and true area, of lakes of :func:`against_truth`: compared ones first."""
    import matplotlib.pyplot as plt

    several = lakes[lakes["true_identity"].notna() & (lakes["call"] != "seen once")]
    shown = several.iloc[np.argsort(several["call"] == "not compared", kind="stable")].head(count)
    rows = max((len(shown) + 2) // 3, 1)
    figure, axes = plt.subplots(
        rows, 3, figsize=(8, 0.7 + 2.2 * rows), layout="constrained", sharex=True, squeeze=False
    )
    for ax, lake in zip(axes.flat, shown.itertuples(), strict=False):
        series = mapped.outlines[mapped.outlines["identity"] == lake.identity].sort_values("year")
        area = series["area_ha"]
        error = [np.maximum(area - series["area_low_ha"], 0), np.maximum(series["area_high_ha"] - area, 0)]
        ax.errorbar(
            series["year"], area, error, fmt="o-", color=colours.PREDICTION, capsize=3, label="mapped, 90 % interval"
        )
        known = true.outlines[true.outlines["identity"] == lake.true_identity].sort_values("year")
        ax.plot(known["year"], known["area_ha"], "s--", color=colours.TRUTH, label="truth")
        ax.set_title(textwrap.fill(f"lake {lake.identity}: {lake.call}", 26), fontsize=9)
    for ax in list(axes.flat)[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("area (ha)")
    if len(shown):
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def gate_table(places: Sequence[PlaceScenes], overlap: int = CHIP_SIZE // 2) -> dict[str, int]:
    """What the physics gate would do with the scenes: windows, windows skipped, true lake pixels, and those kept."""
    from cryosentinel.mapping.gate import Gate
    from cryosentinel.mapping.scene import Options, seen_by_windows

    total = {"windows": 0, "skipped": 0, "lake_pixels": 0, "kept": 0}
    options = Options(overlap=overlap, gate=Gate.read())
    for place in places:
        for layers in place.layers.values():
            states, seen = seen_by_windows((layers["s2"], layers["s1"], layers["dem"]), options)
            lake = layers["truth"] > 0
            counts = len(states), int((states != 0).sum()), int(lake.sum()), int((lake & seen).sum())
            for name, value in zip(total, counts, strict=True):
                total[name] += value
    return total
