"""How close the simulated data come to the published and the real ones, and how hard they are: measured, not claimed.

Difficulty, fixed before any network saw the data: the best threshold of MNDWI, against the truth on the test split, is
to reach an IoU within :data:`MNDWI_BAND` = 0.20 to 0.50. The lower edge is where the index stands on a public
Himalayan benchmark with Sentinel-1, Sentinel-2 and DEM (0.22 for the index; 0.27 to 0.39 for small U-Nets); the upper
edge allows for what is easier here (the truth has no labelling errors, and most chips are centred near a lake). Below
the band the optical data would say too little about water; above it a threshold would do, and no network be needed.
Snow and ice share MNDWI's sign with water, so the band is a statement on the mix of ground, not on water's spectrum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryosentinel.data.chips import Chip, clean, iter_shard
from cryosentinel.data.simulate.cover import IMAGE_DATE
from cryosentinel.data.simulate.lakes import CELL_PX, cell_lakes
from cryosentinel.data.simulate.materials import WATER, Material
from cryosentinel.data.simulate.places import draw_places
from cryosentinel.data.simulate.truth import Truth, TruthStore
from cryosentinel.data.split import assign_splits
from cryosentinel.data.stats import RunningStatistics
from cryosentinel.errors import InputError
from cryosentinel.indices import mndwi, ndwi, slope
from cryosentinel.sensors import MODALITIES, PIXEL_SIZE_M, PUBLISHED_STATISTICS, Statistics

if TYPE_CHECKING:
    from cryosentinel.data.simulate.config import SimulationConfig

MNDWI_BAND = (0.20, 0.50)
MEAN_TOLERANCE = 0.5  # published standard deviations
STD_RATIO = (0.7, 1.4)
ELEVATION_AUC = 0.8
SHORTCUT_AUC = 0.55


def chips_with_truth(
    root: str | os.PathLike[str], split: str | None = None, every: int = 1
) -> Iterator[tuple[Chip, Truth]]:
    """Chips of a simulated dataset with their truth, in the order of the shards.

    Args:
        root: of the dataset.
        split: of the published finetune split (0.15 degree blocks); all chips, also the buffer's, when None.
        every: take one chip in so many.
    """
    truths = TruthStore(root)
    count = 0
    for path in sorted(Path(root).glob("*/*/shard_*.parquet")):
        for chip in iter_shard(path):
            if split is not None and assign_splits([chip.lat], [chip.lon])[0] != split:
                continue
            count += 1
            if (count - 1) % every == 0:
                yield chip, truths[chip.chip_id]


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
        place = chip.chip_id.rsplit("_", 1)[0]
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


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    from scipy.stats import rankdata

    positive, negative = np.asarray(positive), np.asarray(negative)
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def elevation_auc(lakes: pd.DataFrame) -> dict[str, float]:
    """How well elevation alone tells other standing water from glacial lakes (each body once); see :func:`lake_table`."""
    lakes = lakes[lakes.area_ha > 0]
    high, low = lakes[lakes.glacial].elevation, lakes[~lakes.glacial].elevation
    only = lakes[lakes.kind == "reservoir"].elevation
    return {
        "auc": auc(high.to_numpy(), low.to_numpy()),
        "auc_reservoirs": auc(high.to_numpy(), only.to_numpy()),
        "n_glacial": len(high),
        "n_other": len(low),
        "median_glacial_m": float(high.median()),
        "median_other_m": float(low.median()),
    }


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


_EDGES = np.linspace(-1, 1, 401)


def index_difficulty(root: str | os.PathLike[str], split: str = "test") -> dict[str, float]:
    """Best-threshold IoU of MNDWI and NDWI against the truth of one split, global over its valid pixels.

    The threshold is the best one for this very split: no tuning of an index on validation can do better.
    """
    counts = {name: np.zeros((2, len(_EDGES) - 1)) for name in ("mndwi", "ndwi")}
    for chip, truth in chips_with_truth(root, split):
        valid = chip.valid
        for name, index in (("mndwi", mndwi), ("ndwi", ndwi)):
            values = index(chip.s2)[valid]
            lake = truth.lake[valid].astype(bool)
            counts[name][0] += np.histogram(values[~lake], _EDGES)[0]
            counts[name][1] += np.histogram(values[lake], _EDGES)[0]
    result: dict[str, float] = {}
    for name, (other, lake) in counts.items():
        hit = lake[::-1].cumsum()[::-1]
        false = other[::-1].cumsum()[::-1]
        iou = hit / np.maximum(lake.sum() + false, 1)
        best = int(iou.argmax())
        result[f"{name}_iou"], result[f"{name}_threshold"] = float(iou[best]), float(_EDGES[best])
    return result


def _sample(
    root: str | os.PathLike[str], per_class: int, split: str | None, from_shore: int = 0
) -> Iterator[tuple[Chip, Truth, np.ndarray]]:
    """Chips with flat indices of up to ``per_class`` lake and other pixels each, two pixels inside the chip.

    Args:
        root, split: the dataset, and one of its splits or None.
        per_class: pixels a chip and class.
        from_shore: pixels nearer than this to the other class are left out.
    """
    from scipy.ndimage import binary_dilation

    generator = np.random.default_rng(0)
    for chip, truth in chips_with_truth(root, split):
        usable = chip.valid.copy()
        if from_shore:
            water = np.isin(truth.material, WATER)
            usable &= ~(binary_dilation(water, iterations=from_shore) & binary_dilation(~water, iterations=from_shore))
        usable[:2], usable[-2:], usable[:, :2], usable[:, -2:] = False, False, False, False
        chosen = []
        for value in (0, 1):
            at = np.flatnonzero(usable & (truth.lake == value))
            chosen.append(generator.choice(at, min(per_class, len(at)), replace=False))
        yield chip, truth, np.concatenate(chosen)


def single_input_aucs(root: str | os.PathLike[str], split: str | None = None, per_class: int = 300) -> pd.DataFrame:
    """How well each band, index and slope alone tells lake pixels from others: AUC, folded to 0.5 and above."""
    scores: dict[str, list[np.ndarray]] = {}
    labels = []
    for chip, truth, at in _sample(root, per_class, split):
        s2, s1, dem = clean(chip.s2, chip.s1, chip.dem)
        layers = {f"S2L2A {band}": s2[i] for i, band in enumerate(MODALITIES["S2L2A"])}
        layers |= {f"S1GRD {band}": s1[i] for i, band in enumerate(MODALITIES["S1GRD"])}
        layers |= {"DEM elevation": dem[0], "DEM slope": slope(dem[0]), "MNDWI": mndwi(s2), "NDWI": ndwi(s2)}
        for name, layer in layers.items():
            scores.setdefault(name, []).append(layer.ravel()[at])
        labels.append(truth.lake.ravel()[at])
    lake = np.concatenate(labels).astype(bool)
    rows = []
    for name, parts in scores.items():
        values = np.concatenate(parts)
        area = auc(values[lake], values[~lake])
        rows.append((name, max(area, 1 - area), "low" if area < 0.5 else "high"))
    return pd.DataFrame(rows, columns=["input", "auc", "water_is"]).sort_values(
        "auc", ascending=False, ignore_index=True
    )


def _traces(chip: Chip) -> dict[str, dict[str, np.ndarray]]:
    """What a simulator can leave behind and a sensor does not: rounding, the sign of the noise, grids, chip edges.

    No feature holds the signal or the size of its texture: water is dark and smooth in reality too.
    """
    from scipy.ndimage import uniform_filter

    height, width = chip.mask.shape

    def grain(layer: np.ndarray) -> np.ndarray:
        # The sign of a pixel against its neighbours' mean, 0 on ties.
        a = layer.astype(np.float64)
        return np.sign(a - (uniform_filter(a, 3, mode="nearest") * 9 - a) / 8).astype(np.float32)

    s1 = np.where(np.isfinite(chip.s1), chip.s1, 0).astype(np.float32)
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    traces: dict[str, dict[str, np.ndarray]] = {"S2L2A": {}, "S1GRD": {}, "DEM": {}, "chip": {}}
    for i, band in enumerate(MODALITIES["S2L2A"]):
        traces["S2L2A"] |= {f"{band} last digit": chip.s2[i] % 10, f"{band} parity": chip.s2[i] % 2}
        traces["S2L2A"][f"{band} grain"] = grain(chip.s2[i])
    for i, band in enumerate(MODALITIES["S1GRD"]):
        traces["S1GRD"] |= {f"{band} last bits": s1[i].view(np.uint32) % 256, f"{band} grain": grain(s1[i])}
    traces["DEM"] |= {"parity": chip.dem[0] % 2, "last digit": chip.dem[0] % 10}
    traces["chip"] |= {
        "distance to edge": np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(cols, width - 1 - cols)),
        "row": rows, "column": cols, "row modulo 6": rows % 6, "column modulo 6": cols % 6,
    }  # fmt: skip
    return traces


def shortcut_aucs(root: str | os.PathLike[str], split: str | None = None, per_class: int = 300) -> pd.DataFrame:
    """Whether noise, rounding, grids or chip edges give lakes away: a pixel classifier on each modality's traces.

    The classifier is a linear discriminant on the traces and their squares, fitted on every other chip and scored on
    the rest; beside it the best single trace. Positions within the chip are reported too (chips are cut near lakes, so
    the middle of a chip holds a lake more often than its rim: that is the sampling, and networks that see whole chips
    under flips cannot use much of it).

    Returns:
        One row a modality: auc (of the classifier, held out), best_single_auc, best_single.
    """
    features: dict[str, list[np.ndarray]] = {}
    names: dict[str, list[str]] = {}
    labels, fold = [], []
    for number, (chip, truth, at) in enumerate(_sample(root, per_class, split, from_shore=12)):
        for modality, traces in _traces(chip).items():
            names[modality] = list(traces)
            block = np.stack([t.ravel()[at].astype(np.float64) for t in traces.values()], axis=1)
            features.setdefault(modality, []).append(block)
        labels.append(truth.lake.ravel()[at])
        fold.append(np.full(len(at), number % 2))
    lake, fit = np.concatenate(labels).astype(bool), np.concatenate(fold) == 0
    rows = []
    for modality, blocks in features.items():
        x = np.concatenate(blocks)
        singles = [auc(x[lake & ~fit, i], x[~lake & ~fit, i]) for i in range(x.shape[1])]
        folded = [max(a, 1 - a) for a in singles]
        x = (x - x[fit].mean(0)) / np.maximum(x[fit].std(0), 1e-9)
        x = np.concatenate([x, x**2], axis=1)
        difference = x[fit & lake].mean(0) - x[fit & ~lake].mean(0)
        within = np.cov(x[fit & lake].T) + np.cov(x[fit & ~lake].T) + 1e-3 * np.eye(x.shape[1])
        score = x @ np.linalg.solve(within, difference)
        best = int(np.argmax(folded))
        rows.append((modality, auc(score[~fit & lake], score[~fit & ~lake]), folded[best], names[modality][best]))
    return pd.DataFrame(rows, columns=["modality", "auc", "best_single_auc", "best_single"])
