"""How close the simulated data come to the published and the real ones: measured, not claimed.

:mod:`.difficulty` measures how hard they are and :mod:`.figures` draws both; their functions are imported here, so that
one module serves the notebook.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryosentinel.data.split import assign_splits
from cryosentinel.data.stats import RunningStatistics
from cryosentinel.errors import InputError
from cryosentinel.geo import place_id
from cryosentinel.sensors import MODALITIES, PIXEL_SIZE_M, PUBLISHED_STATISTICS, Statistics
from cryosentinel.simulate.cover import IMAGE_DATE
from cryosentinel.simulate.difficulty import (
    ELEVATION_AUC,
    MNDWI_BAND,
    SHORTCUT_AUC,
    elevation_auc,
    index_difficulty,
    shortcut_aucs,
    single_inputs,
)
from cryosentinel.simulate.materials import Material
from cryosentinel.simulate.places import draw_places
from cryosentinel.simulate.realism_plots import (
    draw_chips,
    draw_lake_sizes,
    draw_single_inputs,
    draw_slopes,
    draw_statistics,
)
from cryosentinel.simulate.truth import chips_with_truth
from cryosentinel.simulate.water import CELL_PX, cell_lakes

if TYPE_CHECKING:
    from cryosentinel.simulate.presets import SimulationConfig

__all__ = [
    "ELEVATION_AUC",
    "MNDWI_BAND",
    "SHORTCUT_AUC",
    "chips_with_truth",
    "compare_statistics",
    "contents",
    "dataset_statistics",
    "draw_chips",
    "draw_lake_sizes",
    "draw_single_inputs",
    "draw_slopes",
    "draw_statistics",
    "elevation_auc",
    "index_difficulty",
    "lake_table",
    "real_lake_areas",
    "real_slopes",
    "shortcut_aucs",
    "simulated_slopes",
    "single_inputs",
    "size_distance",
]

MEAN_TOLERANCE = 0.5  # published standard deviations
STD_RATIO = (0.7, 1.4)


def compare_statistics(simulated: Statistics, published: Statistics = PUBLISHED_STATISTICS) -> pd.DataFrame:
    """Band by band: means and standard deviations beside the published ones.

    Returns:
        One row a band: modality, band, mean, published_mean, offset (difference of means in published standard
        deviations), std, published_std, ratio (of standard deviations), within (both in the stated range).
    """
    rows = []
    for modality, bands in MODALITIES.items():
        for i, band in enumerate(bands):
            mean, std = simulated.means[modality][i], simulated.stds[modality][i]
            p_mean, p_std = published.means[modality][i], published.stds[modality][i]
            offset, ratio = (mean - p_mean) / p_std, std / p_std
            ok = abs(offset) <= MEAN_TOLERANCE and STD_RATIO[0] <= ratio <= STD_RATIO[1]
            rows.append((modality, band, mean, p_mean, offset, std, p_std, ratio, ok))
    columns = ["modality", "band", "mean", "published_mean", "offset", "std", "published_std", "ratio", "within"]
    return pd.DataFrame(rows, columns=columns)


def dataset_statistics(root: str | os.PathLike[str], split: str | None = None) -> Statistics:
    """Statistics over the valid pixels of a dataset or one split of it."""
    running = RunningStatistics()
    for chip, _ in chips_with_truth(root, split):
        running.add(chip.s2, chip.s1, chip.dem, chip.valid)
    return running.result()


def _slopes_90(elevation: np.ndarray, pixel_y: float, pixel_x: float) -> np.ndarray:
    dy, dx = np.gradient(elevation.astype(np.float32))
    return np.degrees(np.arctan(np.hypot(dy / pixel_y, dx / pixel_x))).ravel()


def real_slopes(path: str | os.PathLike[str]) -> np.ndarray:
    """Slopes in degrees of a real elevation model in geographic coordinates of about 90 m (SRTM)."""
    import rasterio

    with rasterio.open(path) as source:
        elevation = source.read(1)
        latitude = (source.bounds.top + source.bounds.bottom) / 2
        metres = 111_320.0
        return _slopes_90(elevation, source.res[1] * metres, source.res[0] * metres * np.cos(np.radians(latitude)))


def simulated_slopes(root: str | os.PathLike[str], region: str | None = None) -> np.ndarray:
    """Slopes in degrees of the chips' elevation at 90 m (means of nine by nine pixels), each place once."""
    seen, slopes = set(), []
    for chip, _ in chips_with_truth(root):
        place = place_id(chip.chip_id)
        if place in seen or (region is not None and chip.region != region):
            continue
        seen.add(place)
        n = chip.dem.shape[-1] // 9
        means = chip.dem[0, : n * 9, : n * 9].reshape(n, 9, n, 9).mean(axis=(1, 3), dtype=np.float64)
        slopes.append(_slopes_90(means, 90.0, 90.0))
    if not slopes:
        raise InputError(f"The dataset {root} has no chip of the region {region!r}; give another region or none.")
    return np.concatenate(slopes)


def lake_table(config: SimulationConfig, year: int = 2022) -> pd.DataFrame:
    """The standing water of the cells under a dataset's places, each body once, whether a chip shows it or not.

    Returns:
        Columns lake_id, region, kind, glacial, area_ha (at the images' date, as flooded), area_2017_ha, elevation,
        compactness (4 pi area / perimeter squared of the pixel outline, smoothed by the measure of scikit-image).
    """
    from skimage.measure import perimeter_crofton

    rows, seen = [], set()
    for place in draw_places(config):
        window = place.window
        for i in range(window.row // CELL_PX, (window.row + window.height - 1) // CELL_PX + 1):
            for j in range(window.col // CELL_PX, (window.col + window.width - 1) // CELL_PX + 1):
                if (place.epsg, i, j) in seen:
                    continue
                seen.add((place.epsg, i, j))
                for lake in cell_lakes(config.seed, place.epsg, i, j):
                    mask, before = lake.mask(year + IMAGE_DATE), lake.mask(2017 + IMAGE_DATE)
                    area = mask.sum() * PIXEL_SIZE_M**2
                    around = perimeter_crofton(np.pad(mask, 1), 4) * PIXEL_SIZE_M if area else np.nan
                    compact = 4 * np.pi * area / around**2 if area else np.nan
                    rows.append(
                        (lake.lake_id, place.region, lake.kind, lake.glacial, area / 1e4, before.sum() / 100,
                         lake.level, compact)
                    )  # fmt: skip
    columns = ["lake_id", "region", "kind", "glacial", "area_ha", "area_2017_ha", "elevation", "compactness"]
    return pd.DataFrame(rows, columns=columns)


def size_distance(areas_ha: np.ndarray, real_areas_ha: np.ndarray) -> dict[str, float]:
    """Kolmogorov-Smirnov distance between two samples of lake areas, with their percentiles."""
    from scipy.stats import ks_2samp

    areas_ha = np.asarray(areas_ha)[np.asarray(areas_ha) > 0]
    result = {
        "distance": float(ks_2samp(areas_ha, real_areas_ha).statistic),
        "n": len(areas_ha),
        "n_real": len(real_areas_ha),
    }
    for q in (5, 50, 95):
        result[f"p{q}"] = float(np.percentile(areas_ha, q))
        result[f"p{q}_real"] = float(np.percentile(real_areas_ha, q))
    return result


def real_lake_areas(path: str | os.PathLike[str]) -> np.ndarray:
    """Areas in ha of real outlines in any format that geopandas reads."""
    import geopandas as gpd

    outlines = gpd.read_file(path)
    return outlines.to_crs("ESRI:102025").area.to_numpy() / 1e4  # Asia North Albers Equal Area


def contents(root: str | os.PathLike[str]) -> pd.DataFrame:
    """One row a chip: split, lake share of label and truth, shares of materials, cloud, shadow, invalid pixels."""
    rows = []
    for chip, truth in chips_with_truth(root):
        shares = np.bincount(truth.material.ravel(), minlength=len(Material)) / truth.material.size
        rows.append(
            {
                "chip_id": chip.chip_id,
                "region": chip.region,
                "year": chip.snapshot_year,
                "split": str(assign_splits([chip.lat], [chip.lon])[0]),
                "label": chip.water_frac,
                "truth": truth.lake.mean(),
                "cloud": (truth.cloud == 1).mean(),
                "terrain_shadow": truth.terrain_shadow.mean(),
                "invalid": 1 - chip.valid.mean(),
                "label_error": truth.label_error,
                **{m.name.lower(): float(shares[m]) for m in Material},
            }
        )
    return pd.DataFrame(rows)
