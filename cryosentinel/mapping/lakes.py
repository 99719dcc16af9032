"""Lakes as vectors: outlines of water with their area on the ellipsoid and what the rasters say about each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.sensors import HECTARE_M2

if TYPE_CHECKING:
    import geopandas as gpd
    import rasterio
    from affine import Affine

    from cryosentinel.mapping.scene import OpenScene

MIN_AREA_HA = 0.5  # the published system's smallest trustworthy lake: 50 pixels of 10 m


def label_lakes(water: np.ndarray, min_pixels: int = 1) -> tuple[np.ndarray, int]:
    """Number connected water; pixels that touch at a corner are connected.

    Args:
        water: (H, W), lake where 1; anything else, 255 for no data included, is not.
        min_pixels: smaller ones become 0.

    Returns:
        (H, W) int32, 0 outside lakes; and the number of lakes.
    """
    from scipy import ndimage

    if water.ndim != 2:
        raise InputError(f"Water is one (H, W) mask, not {water.shape}; vectorise one scene at a time.")
    labels = np.zeros(water.shape, np.int32)
    count = ndimage.label(water == 1, structure=np.ones((3, 3), np.uint8), output=labels)
    if min_pixels > 1 and count:
        wet = np.flatnonzero(labels)  # a few per cent of a scene: the rest is not looked at again
        numbers = labels.ravel()[wet]
        kept = np.bincount(numbers, minlength=count + 1) >= min_pixels
        kept[0] = False
        renumbered = np.cumsum(kept, dtype=np.int32) * kept
        labels.ravel()[wet] = renumbered[numbers]  # in place: a scene's labels are its largest array
        count = int(kept.sum())
    return labels, count


def outlines(labels: np.ndarray, count: int, transform: Affine) -> np.ndarray:
    """The outline of each lake, holes kept: (count,) polygons, or multipolygons where parts touch at corners only.

    Args:
        labels: (H, W) int32 from :func:`label_lakes`.
        count: number of lakes.
        transform: from (column, row) to coordinates.
    """
    import rasterio.features
    import shapely

    # Pieces that share edges: only those are valid polygons. The label says which of them are one lake.
    rings: list[Any] = []
    owner: list[int] = []
    pieces: list[int] = []
    for geometry, number in rasterio.features.shapes(labels, mask=labels > 0, transform=transform):
        for ring in geometry["coordinates"]:
            rings.append(ring)
            owner.append(len(pieces))
        pieces.append(int(number) - 1)
    if not pieces:
        return np.array([], dtype=object)
    # All rings in one call: shapely's own loop is in C.
    lengths = [len(ring) for ring in rings]
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(rings))
    points = np.fromiter(flat, np.float64, count=2 * sum(lengths)).reshape(-1, 2)
    linear = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), lengths))
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    holes = np.setdiff1d(np.arange(len(rings)), first)
    polygons = shapely.polygons(linear[first])
    if len(holes):
        counts = np.bincount(np.asarray(owner)[holes], minlength=len(pieces))
        bounds = np.concatenate([[0], np.cumsum(counts)])
        for i in np.flatnonzero(counts):
            polygons[i] = shapely.polygons(linear[first[i]], linear[holes[bounds[i] : bounds[i + 1]]])
    order = np.argsort(pieces, kind="stable")
    numbers = np.asarray(pieces)[order]
    found = np.empty(count, dtype=object)
    single = np.bincount(numbers, minlength=count) == 1
    found[numbers[single[numbers]]] = polygons[order][single[numbers]]
    several = order[~single[numbers]]
    if len(several):
        multi = shapely.multipolygons(
            polygons[several], indices=np.unique(np.asarray(pieces)[several], return_inverse=True)[1]
        )
        found[~single] = multi
    return found


def geodesic(geometries: np.ndarray, crs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Area and perimeter of polygons on the WGS 84 ellipsoid.

    The area is taken in an equal-area projection of the ellipsoid about the polygons' middle, which is exact but for
    the curvature of each edge (below 1e-6 for edges of a kilometre), and takes all polygons in one call; the perimeter
    is the sum of the edges' geodesics. A map's own areas are wrong by the square of its scale: 1.87 times too large at
    43 degrees north in Web Mercator, up to 0.1 % in UTM.

    Args:
        geometries: (n,) polygons or multipolygons.
        crs: of their coordinates, anything that pyproj takes.

    Returns:
        Area in m2 and perimeter in m, holes' edges included, (n,) each.
    """
    import shapely
    from pyproj import CRS, Geod, Transformer

    geometries = np.asarray(geometries, dtype=object)
    if not len(geometries):
        return np.zeros(0), np.zeros(0)
    points = shapely.get_coordinates(geometries)
    lon, lat = Transformer.from_crs(CRS.from_user_input(crs), 4326, always_xy=True).transform(*points.T)
    middle = f"+lon_0={np.median(lon):.6f} +lat_0={np.median(lat):.6f}"
    equal_area = Transformer.from_crs(4326, f"+proj=laea {middle} +ellps=WGS84 +units=m", always_xy=True)
    flat = shapely.set_coordinates(geometries.copy(), np.column_stack(equal_area.transform(lon, lat)))
    area = shapely.area(flat)

    parts, part_of = shapely.get_parts(geometries, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    ring = np.repeat(np.arange(len(rings)), shapely.get_num_coordinates(rings))
    _, _, length = Geod(ellps="WGS84").inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    inside = ring[:-1] == ring[1:]
    lake = part_of[ring_of[ring[:-1]]]
    return area, np.bincount(lake[inside], weights=length[inside], minlength=len(geometries))


def vectorise(
    water: np.ndarray, transform: Affine, crs: Any, min_area_ha: float = MIN_AREA_HA, **columns: Any
) -> gpd.GeoDataFrame:
    """Outlines of connected water (8 neighbours), largest first.

    Args:
        water: (H, W), lake where 1; anything else, 255 for no data included, is not.
        transform: from (column, row) to the coordinates of ``crs``.
        crs: of the raster, an EPSG code or anything that pyproj takes.
        min_area_ha: smaller lakes are left out, by their true area.
        columns: constant columns to add, e.g. ``year=2022``.

    Returns:
        Polygons with holes in the coordinates of ``crs``; ``area_ha`` and ``perimeter_m`` on the ellipsoid, see
        :func:`geodesic`.
    """
    frame, _ = vectorise_labels(water, transform, crs, min_area_ha)
    return frame.drop(columns="label").assign(**columns)


def vectorise_labels(
    water: np.ndarray, transform: Affine, crs: Any, min_area_ha: float = MIN_AREA_HA
) -> tuple[gpd.GeoDataFrame, np.ndarray]:
    """As :func:`vectorise`, with each lake's number in column ``label`` and the (H, W) int32 raster of the numbers."""
    import geopandas as gpd

    # Specks go before they become polygons. Half the area is safe for any projection: UTM is off by 0.1 %, Mercator
    # and its like show areas too large.
    pixel_ha = abs(transform.determinant) / HECTARE_M2
    floor = int(0.5 * min_area_ha / pixel_ha) if _is_metric(crs) else 1
    labels, count = label_lakes(water, max(1, floor))
    geometries = outlines(labels, count, transform)
    area, perimeter = geodesic(geometries, crs)
    frame = gpd.GeoDataFrame(
        {"area_ha": area / HECTARE_M2, "perimeter_m": perimeter, "label": np.arange(1, count + 1)},
        geometry=list(geometries),
        crs=crs,
    )
    frame = frame[frame["area_ha"] >= min_area_ha]
    return frame.sort_values(["area_ha", "label"], ascending=[False, True], ignore_index=True), labels


#: What a lake's flags say; several are joined with commas.
FLAGS = {
    "candidate": f"smaller than {MIN_AREA_HA} ha: to be looked at, not counted",
    "edge": "cut by the border of the scene: its area is a lower bound",
    "no data": "touches pixels without data: its area is a lower bound",
    "cloud": "a fifth of it or more looks like cloud",
    "frozen": "half of it or more looks like ice or snow",
    "shadow": "half of it or more is dark in every band and no brighter in green than in near infrared",
}
#: Flags of a lake that goes on where nobody looked, as a regular expression.
CUT = "edge|no data"
_CLOUD_SHARE, _FROZEN_SHARE, _SHADOW_SHARE = 0.2, 0.5, 0.5
# Reflectance: clouds are bright in blue and, unlike snow, in the short-wave infrared; ice is bright in green.
_BRIGHT_BLUE, _BRIGHT_SWIR, _BRIGHT_GREEN, _DARK_NIR = 0.30, 0.20, 0.22, 0.06
_ICE_MNDWI = 0.4  # the usual threshold of the snow index, which has the same formula (Hall et al. 1995)


def describe(
    frame: gpd.GeoDataFrame, labels: np.ndarray, scene: OpenScene, probability: rasterio.DatasetReader
) -> gpd.GeoDataFrame:
    """Add what the rasters say about each lake, reading them in bands of rows.

    Args:
        frame: from :func:`vectorise_labels`.
        labels: the raster of its numbers.
        scene: the scene that was predicted.
        probability: its open probability raster, floor(200 p) and 255 for no data.

    Returns:
        The lakes with ``lat``, ``lon`` (of a point inside), ``confidence`` (mean probability), ``elevation_m``,
        ``slope_deg`` (means) and ``flags`` (of :data:`FLAGS`).
    """
    import pandas as pd
    from rasterio.windows import Window

    from cryosentinel.evaluation.scores import BINS, INVALID
    from cryosentinel.indices import mndwi, ndwi, slope
    from cryosentinel.sensors import REFLECTANCE_SCALE, S2_BANDS

    size = int(labels.max(initial=0)) + 1
    sums = {
        n: np.zeros(size) for n in ("pixels", "confidence", "elevation_m", "slope_deg", "cloud", "frozen", "shadow")
    }
    touches = np.zeros(size, bool)
    height, width = labels.shape
    blue, green, nir, swir = (S2_BANDS.index(b) for b in ("B02", "B03", "B08", "B11"))
    for top in range(0, height, 256) if size > 1 else ():
        bottom = min(top + 256, height)
        above, below = max(0, top - 1), min(height, bottom + 1)  # a row more on each side: slope, neighbours
        inner = slice(top - above, top - above + bottom - top)
        rows = labels[top:bottom]
        wet = rows > 0
        if not wet.any():
            continue
        lake = rows[wet]
        s2, _, dem = scene.read(above, below - above)
        bins = probability.read(1, window=Window(0, above, width, below - above))
        optical = s2[:, inner].astype(np.float32)[:, wet] / REFLECTANCE_SCALE
        cloud = (optical[blue] > _BRIGHT_BLUE) & (optical[swir] > _BRIGHT_SWIR)
        index = mndwi(optical[:, :, None])[:, 0]
        layers = {
            "pixels": np.ones(len(lake)),
            "confidence": (bins[inner][wet] + 0.5) / BINS,
            "elevation_m": dem[0, inner][wet],
            "slope_deg": (slope(dem[0]) if min(dem[0].shape) > 1 else np.zeros(dem[0].shape))[inner][wet],
            "cloud": cloud,
            "frozen": (optical[green] > _BRIGHT_GREEN) & (index > _ICE_MNDWI) & ~cloud,
            "shadow": (optical[nir] < _DARK_NIR) & (ndwi(optical[:, :, None])[:, 0] <= 0),
        }
        for name, values in layers.items():
            sums[name] += np.bincount(lake, weights=values, minlength=size)
        gap = np.pad(bins == INVALID, 1)
        near = np.zeros(bins.shape, bool)
        for dy in range(3):
            for dx in range(3):
                near |= gap[dy : dy + bins.shape[0], dx : dx + width]
        touches[np.unique(rows[near[inner] & wet])] = True
    edge = np.zeros(size, bool)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        edge[border] = True
    number = frame["label"].to_numpy()
    share = {n: s[number] / np.maximum(sums["pixels"][number], 1) for n, s in sums.items()}
    area = frame["area_ha"].to_numpy()
    raised = {
        "candidate": area < MIN_AREA_HA,
        "edge": edge[number],
        "no data": touches[number],
        "cloud": share["cloud"] >= _CLOUD_SHARE,
        "frozen": share["frozen"] >= _FROZEN_SHARE,
        "shadow": share["shadow"] >= _SHADOW_SHARE,
    }
    said = [", ".join(n for n in FLAGS if raised[n][i]) for i in range(len(frame))]
    flags = pd.Series(said, index=frame.index, dtype="str")  # text also where there is no lake
    inside = frame.geometry.representative_point().to_crs(4326)
    return frame.assign(
        lat=inside.y.round(6), lon=inside.x.round(6), confidence=share["confidence"],
        elevation_m=share["elevation_m"], slope_deg=share["slope_deg"], flags=flags,
    )  # fmt: skip


def add_glacier_distance(lakes: gpd.GeoDataFrame, glaciers: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Add ``glacier_m``: distance on the map to the nearest glacier outline, 0 where they touch.

    Args:
        lakes: in a projected system.
        glaciers: outlines, in any system.

    Raises:
        InputError: the outlines have no CRS, or there are none.
    """
    import shapely

    if glaciers.crs is None or glaciers.empty:
        raise InputError("The glacier outlines hold no outline or have no CRS; give a file such as the RGI's.")
    tree = shapely.STRtree(glaciers.to_crs(lakes.crs).geometry.to_numpy())
    distance = np.full(len(lakes), np.nan)
    if len(lakes):
        pairs, found = tree.query_nearest(lakes.geometry.to_numpy(), return_distance=True, all_matches=False)
        distance[pairs[0]] = found
    return lakes.assign(glacier_m=distance)


WHOLE_SHARE = 0.8  # of a group's ground: a scene that shows less of it without a cut does not stand for the others


def join_scenes(
    frames: Sequence[gpd.GeoDataFrame], footprints: Sequence[gpd.GeoSeries] | None = None
) -> gpd.GeoDataFrame:
    """Lakes of several scenes as one table, each lake once: no lake is cut at the border between two scenes.

    Lakes of different scenes that overlap or share an edge belong together. Where one scene shows them all uncut (by
    its edge or by missing data) and holds :data:`WHOLE_SHARE` of their ground, its lakes stand for all, as many as they
    are; else the union does, with the values of its largest part and the cuts of every part.

    Args:
        frames: one a scene, from :func:`describe`, in any projected systems. A frame is in its own UTM zone; the result
            is in the first one's where all agree, else in degrees (EPSG:4326).
        footprints: what each scene covers, one outline each. A union that does not reach the border of what all cover
            together loses the flag "edge"; without footprints it stays.
    """
    import geopandas as gpd
    import pandas as pd
    import shapely
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    filled = [frame for frame in frames if len(frame)]
    if len(filled) < 2:
        return filled[0] if filled else frames[0]
    crs = filled[0].crs if all(frame.crs == filled[0].crs for frame in filled) else 4326
    lakes = gpd.GeoDataFrame(pd.concat([frame.to_crs(crs) for frame in filled], ignore_index=True), crs=crs)
    scene = np.repeat(np.arange(len(filled)), [len(frame) for frame in filled])
    geometries = lakes.geometry.to_numpy()
    left, right = shapely.STRtree(geometries).query(geometries, predicate="intersects")
    other = scene[left] < scene[right]
    left, right = left[other], right[other]
    shared = shapely.intersection(geometries[left], geometries[right])
    touching = (shapely.area(shared) > 0) | (shapely.length(shared) > 0)  # a common corner alone joins nothing here
    left, right = left[touching], right[touching]
    n = len(lakes)
    _, group = connected_components(coo_array((np.ones(len(left)), (left, right)), shape=(n, n)), directed=False)
    cut, areas = lakes["flags"].str.contains(CUT).to_numpy(), lakes["area_ha"].to_numpy()
    border, width = _border(footprints, crs) if footprints is not None else (None, 0.0)
    kept: list[int] = []
    for members in pd.Series(np.arange(n)).groupby(group).groups.values():
        rows = np.asarray(members)
        if len(rows) == 1:
            kept += rows.tolist()
            continue
        union = shapely.union_all(geometries[rows])
        shown = [rows[scene[rows] == number] for number in np.unique(scene[rows])]
        uncut = [own for own in shown if not cut[own].any()]
        best = max(uncut, key=lambda own: areas[own].sum(), default=rows[:0])
        if shapely.area(geometries[best]).sum() >= WHOLE_SHARE * shapely.area(union):
            kept += best.tolist()
            continue
        largest = int(rows[np.argmax(areas[rows])])
        raised = {flag for row in rows for flag in CUT.split("|") if flag in lakes.loc[row, "flags"]}
        raised |= {flag for flag in FLAGS if flag not in CUT and flag in lakes.loc[largest, "flags"]}
        if border is not None and shapely.distance(union, border) > width:
            raised.discard("edge")
        lakes.loc[largest, "geometry"] = union
        lakes.loc[largest, "flags"] = ", ".join(flag for flag in FLAGS if flag in raised)
        kept.append(largest)
    lakes = lakes.loc[sorted(kept)]
    area, perimeter = geodesic(lakes.geometry.to_numpy(), lakes.crs)
    lakes = lakes.assign(area_ha=area / HECTARE_M2, perimeter_m=perimeter)
    grown = lakes["area_ha"] >= MIN_AREA_HA
    lakes["flags"] = lakes["flags"].mask(grown, lakes["flags"].str.replace("candidate(?:, )?", "", regex=True))
    return lakes.sort_values(["area_ha", "lat", "lon"], ascending=[False, True, True], ignore_index=True)


def _border(footprints: Sequence[gpd.GeoSeries], crs: Any) -> tuple[Any, float]:
    """The border of what scenes cover together, and the half pixel within which something lies on it."""
    import shapely

    # Straight in one system is curved in another.
    covered = shapely.union_all([one.segmentize(1000).to_crs(crs).iloc[0] for one in footprints])
    return shapely.boundary(covered), 5.0 if _is_metric(crs) else 5.0 / 111_000


def read_glaciers(path: str | os.PathLike[str]) -> gpd.GeoDataFrame:
    """Glacier outlines for :func:`add_glacier_distance`.

    Raises:
        InputError: the file cannot be read, holds no outline or has no CRS.
    """
    import geopandas as gpd

    try:
        glaciers = gpd.read_parquet(path) if str(path).endswith(".parquet") else gpd.read_file(path)
    except Exception as error:  # pyogrio, pyarrow and GDAL each have their own
        raise InputError(f"{path} cannot be read as glacier outlines ({error}); check the file.") from None
    if not isinstance(glaciers, gpd.GeoDataFrame) or glaciers.crs is None or glaciers.empty:
        raise InputError(f"{path} holds no glacier outline or has no CRS; give a file such as the RGI's.")
    return glaciers


def _is_metric(crs: Any) -> bool:
    from pyproj import CRS

    return bool(CRS.from_user_input(crs).is_projected)
