"""Water to outlines with true areas: all lakes in a few calls against one polygon at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

IDS: tuple[str, ...] = ("vectorise",)

SIZE, QUICK_SIZE = 5490, 800  # half a Sentinel-2 tile a side
MIN_AREA_HA = 0.1
ROUNDS = 5


def _water(size: int) -> np.ndarray:
    """A mask with about 5,500 lakes of 0.1 ha and more at full size, and specks as networks leave them."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), 6)
    water = field > np.quantile(field, 0.98)
    water |= rng.random((size, size), dtype=np.float32) < 2e-4
    return water.astype(np.uint8)


def _one_at_a_time(water: np.ndarray, transform: Any, epsg: int) -> list[tuple[Any, float]]:
    """As usually written: GDAL's polygons in a loop, each transformed and measured by itself."""
    import rasterio.features
    import shapely
    from pyproj import Geod, Transformer
    from shapely.geometry import shape

    geod, to_degrees = Geod(ellps="WGS84"), Transformer.from_crs(epsg, 4326, always_xy=True)
    lakes = []
    for outline, value in rasterio.features.shapes(water, mask=water == 1, connectivity=8, transform=transform):
        if value == 1:
            polygon = shape(outline)
            degrees = shapely.transform(polygon, lambda x, y: to_degrees.transform(x, y), interleaved=False)
            area = abs(geod.geometry_area_perimeter(degrees)[0]) / 10_000
            if area >= MIN_AREA_HA:
                lakes.append((polygon, area))
    return lakes


def run(quick: bool) -> list[dict[str, Any]]:
    """Interleaved, the minimum of several rounds; both must find the same lakes and areas."""
    from affine import Affine

    from benchmarks.harness import interleaved
    from cryosentinel.mapping.lakes import vectorise

    water = _water(QUICK_SIZE if quick else SIZE)
    transform, epsg = Affine(10, 0, 500_000, 0, -10, 4_800_000), 32643
    ours = vectorise(water, transform, epsg, MIN_AREA_HA)
    peer = _one_at_a_time(water, transform, epsg)
    if len(ours) != len(peer) or not np.allclose(
        ours["area_ha"], sorted((a for _, a in peer), reverse=True), rtol=1e-6
    ):
        raise AssertionError("the two ways find different lakes or areas")
    seconds = interleaved(
        {"ours": lambda: vectorise(water, transform, epsg, MIN_AREA_HA),
         "peer": lambda: _one_at_a_time(water, transform, epsg)}, 1 if quick else ROUNDS,
    )  # fmt: skip
    ours_s, peer_s = min(seconds["ours"]), min(seconds["peer"])
    what = (
        f"{water.shape[0]} x {water.shape[1]} pixels to {len(ours)} lakes of 0.1 ha and more with area on the "
        "ellipsoid, specks left out (ours also gives their perimeters)"
    )
    return [
        {"id": "vectorise", "what": what, "ours": ours_s, "peer": peer_s,
         "peer_name": "rasterio.features.shapes, pyproj and Geod, one polygon at a time", "unit": "s",
         "ratio": peer_s / ours_s, "goal": 1.7}
    ]  # fmt: skip
