"""From scenes to a lake inventory: rasters, outlines with areas and flags, a metrics file, a picture and a map."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel import colours, paths
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.scores import threshold_bin
from cryosentinel.files import read_json, replacing, sha256, write_json, write_text
from cryosentinel.mapping.areas import Intervals, add_interval
from cryosentinel.mapping.scene import GATED, WINDOW_STATES, Options, Scene, open_scene, predict_scene
from cryosentinel.sensors import DEM_NODATA

if TYPE_CHECKING:
    import geopandas as gpd

    from cryosentinel.mapping.maps import Overlay
    from cryosentinel.mapping.scene import OpenScene

SCENES_AT_ONCE = 4  # on a cluster, so that its workers do not wait while one scene becomes outlines here
PREVIEW_PX = 1000  # side of the pictures in the map
MIN_MAPPED_HA = 0.1  # ten pixels; below MIN_AREA_HA a lake is flagged as a candidate
DEFAULT_THRESHOLD = 0.5
_PREVIEWS = 12  # scenes whose picture goes into the map: a page of 30 pictures opens slowly
_ABOUT = "It maps water and forecasts nothing; the weights in the box were trained on simulated chips alone."


@dataclass(frozen=True)
class LakeMap:
    """What a run wrote.

    Attributes:
        folder: of the outputs.
        lakes: GeoParquet file, ``lakes.parquet``; ``lakes.gpkg`` beside it holds the same and the windows.
        metrics: ``metrics.json``.
        page: ``lakes.html``, which opens without a network.
        summary: what the metrics file holds.
    """

    folder: Path
    lakes: Path
    metrics: Path
    page: Path
    summary: dict[str, Any]


def default_weights() -> Path:
    """The weights that come with the package.

    Raises:
        InputError: this version comes without.
    """
    found = sorted((paths.PACKAGE / "weights").glob("*.safetensors"))
    if not found:
        raise InputError("This version comes without weights; name a checkpoint (--ckpt).")
    return found[0]


def default_intervals() -> Path | None:
    """The area intervals of the package's own weights at the default threshold and flips; None where there are none."""
    path = paths.PACKAGE / "weights" / "intervals.json"
    return path if path.is_file() else None


def chosen_weights(ckpt: str | os.PathLike[str] | None) -> Path:
    """The file that a checkpoint means, or the package's own weights where none is named."""
    from cryosentinel.models.checkpoint import resolve_checkpoint

    return default_weights() if ckpt is None else Path(resolve_checkpoint(ckpt))


def chip_scenes(
    data: str | os.PathLike[str], region: str, year: int, folder: str | os.PathLike[str], n_chips: int | None = None
) -> list[Scene]:
    """Chips of a dataset as scenes: each becomes a 15-band GeoTIFF; those that are there already stay as they are.

    Args:
        data: folder of chips in the published format.
        region, year: of the chips.
        folder: where the GeoTIFFs go.
        n_chips: the first so many in the order of the shards; all by default.

    Raises:
        InputError: there are no such chips, or one has no centre.
    """
    from cryosentinel.data.chips import read_geotiff, write_geotiff
    from cryosentinel.data.store import ChipStore

    if n_chips is not None and n_chips < 1:
        raise ConfigError(f"{n_chips} chips cannot be mapped; ask for at least one.")
    store = ChipStore(data, regions=[region], years=[year])
    scenes = []
    for position in range(min(len(store), n_chips or len(store))):
        chip = store[position]
        path = Path(folder) / f"{chip.chip_id}.tif"
        same = False
        with contextlib.suppress(InputError):
            there = read_geotiff(path)
            same = all(
                np.array_equal(getattr(there, name), getattr(chip, name), equal_nan=name == "s1")
                for name in ("s2", "s1", "dem")
            )
        if not same:
            write_geotiff(path, chip)
        scenes.append(Scene.of(path))
    return scenes


def map_lakes(
    scenes: Sequence[Scene | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]],
    out: str | os.PathLike[str],
    ckpt: str | os.PathLike[str] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    options: Options | None = None,
    min_area_ha: float = MIN_MAPPED_HA,
    year: int | None = None,
    glaciers: str | os.PathLike[str] | None = None,
    intervals: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    scheduler: str | None = None,
    progress: bool = True,
) -> LakeMap:
    """Map the lakes of scenes.

    A run that was stopped goes on; a finished one with the same inputs is found and no file is touched.

    Args:
        scenes: each a 15-band raster, or three rasters (Sentinel-2, Sentinel-1, DEM) on one grid. Names must differ.
        out: folder of the outputs: ``<scene>_probability.tif`` and ``<scene>_water.tif`` (cloud-optimised),
            ``<scene>.json`` and ``<scene>.png`` for each scene; ``lakes.parquet`` (GeoParquet), ``lakes.gpkg`` (layers
            lakes, windows and scenes: what each one covers), ``metrics.json`` and ``lakes.html`` for all.
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path; the packaged weights by default.
        threshold: probability from which a pixel is water; a multiple of 1/200.
        options: windows, flips and gate; by default half overlap, four flips and no gate.
        min_area_ha: smaller lakes are left out.
        year: of the images, a column of the lakes; by default what the scenes' own tags say.
        glaciers: file of glacier outlines, for each lake's distance to the nearest.
        intervals: file of :class:`cryosentinel.mapping.areas.Intervals`; by default those of the packaged weights where
            these map at the default threshold and with the default flips, else area bounds come from the outlines.
        model: configuration of a checkpoint that does not say what model it holds.
        statistics: dataset_stats_v3.json, for a checkpoint that holds none.
        device: cpu or cuda.
        scheduler: address of a Dask scheduler, or "local"; one process without.
        progress: show progress bars.

    Raises:
        InputError, ConfigError, CheckpointError, HubError: something cannot be used; found before the model is built.
    """
    out, options = Path(out), options or Options()
    found = [Scene.of(scene) for scene in scenes]
    threshold_bin(threshold)
    if not found:
        raise InputError("There is no scene to map; give at least one.")
    names = [scene.name for scene in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two scenes are named {twice[0]}, and so would be their outputs; rename one.")
    if reserved := {"lakes", "metrics"} & set(names):
        raise InputError(f"A scene named {reserved.pop()} would overwrite a file of the map; rename it.")
    for path in (glaciers, intervals, statistics):
        if path is not None and not Path(path).is_file():
            raise InputError(f"There is no file {path}; check the path.")
    from cryosentinel.mapping.lakes import add_glacier_distance, join_scenes, read_glaciers

    ice = read_glaciers(glaciers) if glaciers is not None else None
    if intervals is None and ckpt is None and threshold == DEFAULT_THRESHOLD and options.flips == Options.flips:
        intervals = default_intervals()
    area_intervals = Intervals.read(intervals) if intervals is not None else None
    model = None if model is None else paths.config(model)
    from cryosentinel.precision import choose

    checkpoint = chosen_weights(ckpt).resolve()
    precision = choose(options.precision, device.partition(":")[0])
    options = replace(options, precision=precision.name)  # decided here for all workers
    settings = {
        "weights": sha256(checkpoint), "threshold": threshold, "min_area_ha": min_area_ha, "year": year,
        "options": json.loads(json.dumps(options, default=vars)),
        "files": {n: sha256(p) for n, p in (("glaciers", glaciers), ("intervals", intervals), ("model", model),
                                            ("statistics", statistics)) if p is not None},
    }  # fmt: skip
    text = json.dumps(
        [settings, [[scene.name, scene.s2_offset, scene.s1_linear, scene.signature()] for scene in found]],
        sort_keys=True,
    )
    key = hashlib.sha256(text.encode()).hexdigest()
    done = _finished(out, key)
    if done:
        return done

    load = _Loader(os.fspath(checkpoint), settings["weights"], _absolute(model), _absolute(statistics), device,
                   progress)  # fmt: skip
    if progress:
        print(precision)
    results = _predict(found, out, load, threshold, options, settings["weights"], scheduler, progress)
    frames, windows, footprints = [], [], []
    overlays: dict[str, Overlay] = {}
    for number, (scene, result) in enumerate(zip(found, results, strict=True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when it was predicted
            with open_scene(scene) as opened:
                frame = scene_lakes(opened, result, min_area_ha, year)
                # In the scene's own projection: all scenes together may span several.
                frame = frame if ice is None else add_glacier_distance(frame, ice)
                frames.append(frame)
                windows.append(window_boxes(opened, result))
                footprints.append(scene_footprint(opened, result, year))
                pictures = _pictures(opened, result)
                _quicklook(out / f"{scene.name}.png", pictures["true colour"], pictures["probability"], frame,
                           windows[-1])  # fmt: skip
                if number < _PREVIEWS:
                    overlays |= {f"{name} {scene.name}": picture for name, picture in pictures.items()}
    lakes = join_scenes(frames, [footprint.geometry for footprint in footprints])
    lakes = named(add_interval(lakes, area_intervals))
    summary = {
        "key": key, "settings": settings, "scenes": names, "lakes": len(lakes),
        "lakes_cut": int(lakes["area_high_ha"].isna().sum()),
        "lakes_not_candidates": int((~lakes["flags"].str.contains("candidate")).sum()),
        "area_ha": float(lakes["area_ha"].sum()), "area_low_ha": float(lakes["area_low_ha"].sum()),
        # A cut lake has no upper bound: what was mapped of it counts.
        "area_high_ha": float(lakes["area_high_ha"].fillna(lakes["area_ha"]).sum()),
        "windows": {s: sum(r["windows"][s] for r in results) for s in WINDOW_STATES},
        "valid_pixels": sum(r["valid_pixels"] for r in results), "pixels": sum(r["pixels"] for r in results),
        "resampled": {r["scene"]: r["resampled"] for r in results if r["resampled"]},
        "interval": "" if area_intervals is None else f"{area_intervals.source}",
        "scenes_pictured": min(len(found), _PREVIEWS),
        "pooled_size_classes": sorted({c.pooled for c in area_intervals.classes if c.pooled} if area_intervals else []),
    }  # fmt: skip
    write_lakes(out, lakes, windows, footprints)
    about = [_ABOUT]
    if len(found) > _PREVIEWS:
        about.append(f"Pictures of the first {_PREVIEWS} of {len(found)} scenes; those of all lie beside this page.")
    _page(out / "lakes.html", lakes, windows, overlays, about)
    summary["outputs"] = {name: sha256(out / name) for name in ("lakes.parquet", "lakes.gpkg", "lakes.html")}
    write_json(out / "metrics.json", summary)  # last: a run without it is not finished
    return LakeMap(out, out / "lakes.parquet", out / "metrics.json", out / "lakes.html", summary)


def _absolute(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.path.abspath(path)


@dataclass(frozen=True)
class _Loader:
    """Opens the network; equal ones open the same, so that a process opens it once for several maps."""

    ckpt: str
    digest: str
    model: str | None
    statistics: str | None
    device: str
    verbose: bool

    def __call__(self) -> Any:
        return _load(self.ckpt, self.model, self.statistics, self.device, self.verbose)


def _load(ckpt: str, model: str | None, statistics: str | None, device: str, verbose: bool) -> Any:
    from cryosentinel.models.checkpoint import load_segmenter

    return load_segmenter(ckpt, model, statistics, device, verbose=verbose)


def _finished(out: Path, key: str) -> LakeMap | None:
    """The finished run with the same key, all its files in place; None where there is none."""
    try:
        summary = read_json(out / "metrics.json")
        if summary["key"] != key or any(sha256(out / name) != digest for name, digest in summary["outputs"].items()):
            return None
        needed = [out / f"{s}{e}" for s in summary["scenes"] for e in ("_probability.tif", "_water.tif", ".png")]
        if not all(path.is_file() for path in needed):
            return None
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return None
    return LakeMap(out, out / "lakes.parquet", out / "metrics.json", out / "lakes.html", summary)


def _predict(
    scenes: Sequence[Scene],
    out: Path,
    load: Any,
    threshold: float,
    options: Options,
    weights: str,
    scheduler: str | None,
    progress: bool,
) -> list[dict[str, Any]]:
    from cryosentinel.mapping.cluster import cluster, cluster_maker, local_maker

    def predict(scene: Scene, maker: Any, bar: bool) -> dict[str, Any]:
        return predict_scene(None, scene, out, threshold, options, progress=bar, weights=weights, maker=maker)

    if scheduler is None:
        maker = local_maker(load)
        return [predict(scene, maker, progress) for scene in scenes]
    from tqdm import tqdm

    with cluster(scheduler) as client, ThreadPoolExecutor(SCENES_AT_ONCE) as threads:
        maker = cluster_maker(load, client)
        jobs = [threads.submit(predict, scene, maker, False) for scene in scenes]
        return [job.result() for job in tqdm(jobs, unit="scene", disable=not progress)]


def scene_lakes(scene: OpenScene, result: dict[str, Any], min_area_ha: float, year: int | None) -> gpd.GeoDataFrame:
    """The lakes of one predicted scene, with what its rasters say about each.

    Args:
        scene: open scene.
        result: of :func:`cryosentinel.mapping.scene.predict_scene`.
        min_area_ha: smaller lakes are left out.
        year: of the images; what the scene's tags say by default.
    """
    import rasterio

    from cryosentinel.mapping.lakes import describe, vectorise_labels

    with rasterio.open(result["water"]) as water:
        frame, labels = vectorise_labels(water.read(1), scene.transform, scene.crs, min_area_ha)
    with rasterio.open(result["probability"]) as probability:
        frame = describe(frame, labels, scene, probability).drop(columns="label")
    frame["year"] = _year(scene, year)
    frame["scene"] = result["scene"]
    for column in ("date", "orbit", "radar_product", "cloud"):
        frame[column] = scene.tags.get(column, "")
    return frame


def _year(scene: OpenScene, year: int | None) -> int:
    said = scene.tags.get("snapshot_year", "")
    return year if year is not None else int(said) if said.isdigit() else 0


def scene_footprint(scene: OpenScene, result: dict[str, Any], year: int | None) -> gpd.GeoDataFrame:
    """What a scene covers, as one outline with its name and year."""
    import geopandas as gpd
    import shapely
    from rasterio.transform import array_bounds

    box = shapely.box(*array_bounds(*scene.shape, scene.transform))
    return gpd.GeoDataFrame({"scene": [result["scene"]], "year": [_year(scene, year)]}, geometry=[box], crs=scene.crs)


def named(lakes: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Lakes with ``lake_id`` in the manner of GLIMS, from a point inside: G077123E42987N; twins get a letter."""
    ids = [
        f"G{abs(lon) * 1000:06.0f}{'E' if lon >= 0 else 'W'}{abs(lat) * 1000:05.0f}{'N' if lat >= 0 else 'S'}"
        for lat, lon in zip(lakes["lat"], lakes["lon"], strict=True)
    ]
    seen: dict[str, int] = {}
    unique = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    order = ["lake_id", "year", "area_ha", "area_low_ha", "area_high_ha", "interval", "perimeter_m", "confidence",
             "flags", "elevation_m", "slope_deg", "glacier_m", "lat", "lon", "scene", "date", "orbit", "radar_product",
             "cloud"]  # fmt: skip
    lakes = lakes.assign(lake_id=unique)
    return lakes[[*(c for c in order if c in lakes), lakes.geometry.name]]


def window_boxes(scene: OpenScene, result: dict[str, Any]) -> gpd.GeoDataFrame:
    """The windows of a scene that were not run, as boxes with their state."""
    import geopandas as gpd
    import shapely

    from cryosentinel.mapping.scene import window_starts

    window = result["options"]["window"]
    stride = window - result["options"]["overlap"]
    states = result["window_states"]
    probe = scene.shape
    tops, lefts = window_starts(probe[0], window, stride), window_starts(probe[1], window, stride)
    rows, columns = np.nonzero(states)
    x0, y0 = np.array(lefts)[columns], np.array(tops)[rows]
    x1, y1 = np.minimum(x0 + window, probe[1]), np.minimum(y0 + window, probe[0])
    a, _, c, _, e, f = scene.transform[:6]
    boxes = shapely.box(a * x0 + c, e * y1 + f, a * x1 + c, e * y0 + f)
    state = [WINDOW_STATES[s] for s in states[rows, columns]]
    return gpd.GeoDataFrame({"scene": result["scene"], "state": state}, geometry=boxes, crs=scene.crs)


def write_lakes(
    out: Path, lakes: gpd.GeoDataFrame, windows: Sequence[gpd.GeoDataFrame], scenes: Sequence[gpd.GeoDataFrame]
) -> None:
    """Write ``lakes.parquet`` and ``lakes.gpkg`` (layers lakes, windows, scenes), atomically, without a time in them.

    Raises:
        OSError: a file could not be written whole, as on a full disk; an older one stays.
    """
    import pandas as pd
    import pyogrio

    with replacing(out / "lakes.parquet") as part:
        lakes.to_parquet(part, index=False)
    skipped, covered = (
        pd.concat([frame.to_crs(lakes.crs) for frame in frames], ignore_index=True) for frames in (windows, scenes)
    )
    # GeoPackage stamps its contents with the time of writing; a second run is to give the same bytes.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
    try:
        with replacing(out / "lakes.gpkg") as part:
            # A wide type of geometry where lakes of several parts are among them.
            pyogrio.write_dataframe(lakes, part, layer="lakes", promote_to_multi=True)
            pyogrio.write_dataframe(skipped, part, layer="windows", append=True, geometry_type="Polygon")
            pyogrio.write_dataframe(covered, part, layer="scenes", append=True, geometry_type="Polygon")
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError) as error:
        # GDAL does not tell a full disk from other failures.
        raise OSError(errno.ENOSPC, f"the lakes could not be written whole: {error}", str(out / "lakes.gpkg")) from None
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _pictures(scene: OpenScene, result: dict[str, Any]) -> dict[str, Overlay]:
    """True colour, hillshade and probability of a scene, thinned."""
    from cryosentinel.data.chip_plots import hillshade
    from cryosentinel.mapping.maps import Overlay, true_colour

    (s2, _, dem), transform = scene.preview(PREVIEW_PX)
    epsg = scene.crs.to_epsg() or scene.crs.to_wkt()
    known = (dem[0] > DEM_NODATA[0]) & (dem[0] < DEM_NODATA[1])
    ground = np.where(known, dem[0], dem[0][known].mean() if known.any() else 0)
    opaque = np.where(known, 255, 0).astype(np.uint8)
    relief = np.zeros(ground.shape) if min(ground.shape) < 2 else hillshade(ground, pixel_m=transform.a)
    grey = np.rint(255 * relief).astype(np.uint8)
    images = {
        "true colour": true_colour(s2), "hillshade": np.dstack([grey, grey, grey, opaque]),
        "probability": probability_image(result["probability"], s2.shape[1:]),
    }  # fmt: skip
    return {name: Overlay(image, transform, epsg) for name, image in images.items()}


def probability_image(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> np.ndarray:
    """A probability raster in colours, (H, W, 4) uint8, transparent below 5 %; thinned to ``shape`` where given."""
    import matplotlib
    import rasterio

    from cryosentinel.evaluation.scores import BINS, INVALID

    with rasterio.open(path) as source:
        bins = source.read(1, out_shape=shape or source.shape)
    shade = matplotlib.colormaps[colours.PROBABILITY](bins / BINS, bytes=True)
    shade[..., 3] = np.where((bins == INVALID) | (bins < BINS // 20), 0, 255)
    return shade


def _quicklook(
    path: Path, colour: Overlay, probability: Overlay, lakes: gpd.GeoDataFrame, windows: gpd.GeoDataFrame
) -> None:
    """True colour with the lakes' outlines, and the probability with the windows that were skipped."""
    from matplotlib.figure import Figure

    height, width = colour.image.shape[:2]
    a, _, c, _, e, f = colour.transform[:6]
    extent = (c, c + a * width, f + e * height, f)
    figure = Figure(figsize=(8, 8 * height / (2 * width) + 0.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.imshow(colour.image, extent=extent)
    right.imshow(colour.image, extent=extent, alpha=0.4)
    right.imshow(probability.image, extent=extent)
    if len(lakes):
        lakes.boundary.plot(ax=left, color=colours.PREDICTION, linewidth=1.2)
    gated = windows[windows["state"] == WINDOW_STATES[GATED]]
    if len(gated):
        gated.boundary.plot(ax=right, color="#888888", linewidth=0.3)
    left.set_title(f"{len(lakes)} lakes, {lakes['area_ha'].sum():.1f} ha", fontsize=10)
    right.set_title(
        "probability" + (f"; {len(gated)} windows skipped by the gate (grey)" if len(gated) else ""), fontsize=10
    )
    for ax in (left, right):
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="", xlim=extent[:2], ylim=extent[2:])
    with replacing(path) as part:
        figure.savefig(part, dpi=140, metadata={"Software": None})


def _page(
    path: Path,
    lakes: gpd.GeoDataFrame,
    windows: Sequence[gpd.GeoDataFrame],
    overlays: dict[str, Overlay],
    about: Sequence[str],
) -> None:
    import folium
    import pandas as pd

    from cryosentinel.mapping.maps import lake_map, self_contained

    shown = lakes.drop(columns=["scene", "date", "orbit", "radar_product", "cloud"], errors="ignore")
    shown = shown.round({"area_ha": 2, "area_low_ha": 2, "area_high_ha": 2, "perimeter_m": 0, "confidence": 2,
                         "elevation_m": 0, "slope_deg": 1, "glacier_m": 0})  # fmt: skip
    gated = pd.concat([frame[frame["state"] == WINDOW_STATES[GATED]].to_crs(lakes.crs) for frame in windows])
    layers = {"lakes": shown} | ({"skipped by the gate": gated} if len(gated) else {})
    figure = lake_map(layers, overlays, height=720, hidden=("hillshade", "probability", "skipped")).get_root()
    for sentence in about:
        figure.html.add_child(folium.Element(f'<p style="font: 14px sans-serif; margin: 6px">{sentence}</p>'))
    write_text(path, self_contained(figure.render()))
