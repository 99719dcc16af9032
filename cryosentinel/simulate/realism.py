"""How close the simulated data come to the published and the real ones: measured, not claimed.

:mod:`.difficulty` measures how hard they are, :mod:`.realism_plots` draws both, and :func:`guards` holds every measure
against its limit. Limits are argued from sources and from real chips, never from how a network fares.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cryosentinel.data import sanity
from cryosentinel.data.split import assign_splits
from cryosentinel.data.stats import training_statistics
from cryosentinel.errors import InputError
from cryosentinel.geo import place_id
from cryosentinel.indices import slope
from cryosentinel.sensors import MODALITIES, PUBLISHED_STATISTICS, Statistics
from cryosentinel.simulate import difficulty
from cryosentinel.simulate.materials import Material
from cryosentinel.simulate.truth import chips_with_truth, opened


class Limit(NamedTuple):
    """What a guard is held to.

    Attributes:
        low, high: the range; None where that side has no limit.
        why: what the limit rests on.
        before: measured on the simulator's first version, on preset quick, where it was measured.
    """

    low: float | None
    high: float | None
    why: str
    before: float | None = None

    def within(self, value: float) -> bool:
        """Whether a value meets it."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def words(self) -> str:
        """The range as text."""
        ends = [f"at least {self.low:g}" if self.low is not None else ""]
        ends += [f"at most {self.high:g}" if self.high is not None else ""]
        return ", ".join(filter(None, ends)) or "none"


#: guard -> what it is held to.
LIMITS: dict[str, Limit] = {
    "colour_auc": Limit(None, difficulty.COLOUR_AUC, "one water for all standing water", 0.99),
    "context_auc": Limit(difficulty.CONTEXT_AUC, None, "ice, position, dam and relief answer the question"),
    "colours_beyond_three": Limit(difficulty.SPECTRAL_VARIANCE, None, "real chips: 0.11", 0.033),
    "colours_beyond_tilt": Limit(None, None, "real chips: 0.43 to 0.45", 0.155),
    "relief_auc": Limit(None, difficulty.RELIEF_AUC, "the elevation model alone must not give lakes away"),
    "flat_ground": Limit(0.07, 0.30, "below 4 degrees at 90 m: Baltoro 0.09, around Icelandic lakes 0.6", 0.013),
    "other_water_number": Limit(None, difficulty.OTHER_WATER, "some 1,800 hydropower projects on 32,000 lakes", 0.25),
    "other_water_area": Limit(None, difficulty.OTHER_WATER, "as by number"),
    "empty_labels": Limit(0.12, 0.24, "published test: 37 of 210 chips", 0.08),
    "vv_vh_correlation": Limit(0.67, 0.91, "real chips at 90 m", 0.99),
}
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


def kept_statistics(root: str | os.PathLike[str]) -> Statistics:
    """Statistics over the valid pixels of the chips that the sanity filter keeps: the published ones are of such."""
    store = opened(root)[0]
    return training_statistics(store, np.flatnonzero(store.index["sanity"] == ""), progress=False)


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
    store = opened(root)[0]
    rows = store.index if region is None else store.index[store.index["region"] == region]
    if rows.empty:
        raise InputError(f"The dataset {root} has no chip of the region {region!r}; give another region or none.")
    once = rows.index[~rows["chip_id"].map(place_id).duplicated()]
    return np.concatenate([_slopes_90(_at_90_m(store.record(row)["dem"][0]), 90.0, 90.0) for row in once])


def _at_90_m(layer: np.ndarray) -> np.ndarray:
    """Means of nine by nine pixels, (H // 9, W // 9) float64."""
    rows, cols = (side // 9 for side in layer.shape)
    return layer[: rows * 9, : cols * 9].reshape(rows, 9, cols, 9).mean(axis=(1, 3), dtype=np.float64)


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


def real_chips(folder: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Real chips in the folders of TerraMesh: name -> Sentinel-2 (12, H, W), Sentinel-1 (2, H, W) in dB, elevation."""
    import rasterio

    def read(path: Path) -> np.ndarray:
        with rasterio.open(path) as source:
            return source.read()

    optical = sorted(Path(folder).glob("S2L2A/*.tif"))
    folders = [(p, p.parents[1]) for p in optical]
    return {p.stem: (read(p), read(at / "S1RTC" / p.name), read(at / "DEM" / p.name)[0]) for p, at in folders}


def radar_agreement(s1: np.ndarray) -> float:
    """Correlation of VV and VH (2, H, W) in dB after averaging over 90 m; not a number where a pixel is missing."""
    vv, vh = (10 * np.log10(_at_90_m(10 ** (band.astype(np.float64) / 10))) for band in s1)
    return float(np.corrcoef(vv.ravel(), vh.ravel())[0, 1])


def contents(root: str | os.PathLike[str]) -> pd.DataFrame:
    """One row a chip: its split, shares of its pixels, and how label, truth and MNDWI agree.

    Returns:
        Columns chip_id, region, year, split, label_error; shares label, truth, cloud, terrain_shadow, invalid and one a
        material; flat (share of the ground that is no lake below 4 degrees at 90 m); radar (see
        :func:`radar_agreement`); counts of valid pixels both, either (of label and truth), lake_px, standing_px (water
        of any kind that stands); mndwi_iou, mndwi_water (see :func:`cryosentinel.data.sanity.agreement`).
    """
    store = opened(root)[0]
    splits = assign_splits(store.index["lat"], store.index["lon"])
    agreement = (store.index[sanity.column(sanity.DEFAULT_THRESHOLD, what)] for what in ("iou", "water"))
    rows = []
    for (chip, truth), split, iou, water in zip(chips_with_truth(root), splits, *agreement, strict=True):
        shares = np.bincount(truth.material.ravel(), minlength=len(Material)) / truth.material.size
        label, lake = (chip.mask > 0) & chip.valid, (truth.lake > 0) & chip.valid
        rows.append(
            {
                "chip_id": chip.chip_id,
                "region": chip.region,
                "year": chip.snapshot_year,
                "split": str(split),
                "label_error": truth.label_error,
                "label": chip.water_frac,
                "truth": truth.lake.mean(),
                "cloud": (truth.cloud == 1).mean(),
                "terrain_shadow": truth.terrain_shadow.mean(),
                "invalid": 1 - chip.valid.mean(),
                "flat": (slope(_at_90_m(chip.dem[0]), 90.0)[_at_90_m(truth.lake) == 0] < 4).mean(),
                "radar": radar_agreement(chip.s1),
                "both": int((label & lake).sum()),
                "either": int((label | lake).sum()),
                "lake_px": int(lake.sum()),
                "standing_px": int(((truth.body > 0) & chip.valid).sum()),
                "mndwi_iou": iou,
                "mndwi_water": water,
                **{m.name.lower(): float(shares[m]) for m in Material},
            }
        )
    return pd.DataFrame(rows)


def ceilings(contents: pd.DataFrame) -> dict[str, float]:
    """What no map can pass: the true map against the labels, and all standing water called lake against the truth.

    Args:
        contents: of :func:`contents`, or some of its rows.

    Returns:
        IoU over all valid pixels: truth_against_label, standing_water_against_truth.
    """
    total = contents[["both", "either", "lake_px", "standing_px"]].sum()
    return {
        "truth_against_label": float(total["both"] / max(total["either"], 1)),
        "standing_water_against_truth": float(total["lake_px"] / max(total["standing_px"], 1)),
    }


def label_sanity(contents: pd.DataFrame) -> dict[str, float]:
    """How the sanity filter meets labels as raw as the inventory's, in shares of chips.

    Published in one region: 0.28 kept, 0.59 dropped by an IoU below 0.05.

    Returns:
        kept and iou_below_0.05 (of all chips), iou_0.05_to_0.20, high_ratio, unlabelled_water.
    """
    iou, labelled = contents["mndwi_iou"].to_numpy(), contents["label"].to_numpy() > 0
    why = sanity.reasons(iou, contents["mndwi_water"].to_numpy(), contents["label"].to_numpy())
    low = labelled & (iou < sanity.IOU_STEPS[0])
    return {
        "kept": float((why == "").mean()),
        "iou_below_0.05": float(low.mean()),
        "iou_0.05_to_0.20": float(((why == sanity.LOW_IOU) & ~low).mean()),
        "high_ratio": float((why == sanity.HIGH_RATIO).mean()),
        "unlabelled_water": float((why == sanity.UNLABELLED_WATER).mean()),
    }


def guards(
    root: str | os.PathLike[str],
    found: pd.DataFrame,
    lakes: pd.DataFrame,
    enriched: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Every measure that has a limit, with its limit and whether it is met.

    Args:
        root: the dataset.
        found: its :func:`contents`.
        lakes: around its places, see :meth:`cryosentinel.simulate.TruthStore.lakes`.
        enriched: a dataset of the preset "reservoirs", for the two questions that need other standing water; without
            it they are left out.

    Returns:
        One row a guard of :data:`LIMITS`: guard, before, value, n (of chips, lakes or bodies of water, whatever it
        counts), low, high, within, why.
    """
    water = lakes[lakes["area_ha"] > 0]
    other = ~water["glacial"]
    spectra = [chip.s2[:, chip.valid] for chip, _ in chips_with_truth(root, every=5)]
    colours = difficulty.colour_variance(spectra)
    values = {
        "colours_beyond_three": colours["beyond_three"],
        "colours_beyond_tilt": colours["beyond_tilt"],
        "relief_auc": difficulty.relief_difficulty(root)["auc"],
        "flat_ground": found["flat"].mean(),
        "other_water_number": other.mean(),
        "other_water_area": water["area_ha"][other].sum() / water["area_ha"].sum(),
        "empty_labels": (found["label"] == 0).mean(),
        "vv_vh_correlation": found["radar"].median(),
    }
    counts = dict.fromkeys(values, len(found))
    counts |= dict.fromkeys(("colours_beyond_three", "colours_beyond_tilt"), len(spectra))
    counts["relief_auc"] = -(-len(found) // 2)  # of every other chip
    counts |= dict.fromkeys(("other_water_number", "other_water_area"), len(water))
    if enriched is not None:
        told = difficulty.standing_water_aucs(enriched)
        values |= {"colour_auc": told["colour"], "context_auc": told["context"]}
        counts |= dict.fromkeys(("colour_auc", "context_auc"), int(told["lakes"] + told["others"]))
    rows = []
    for name, limit in LIMITS.items():
        if name in values:
            value = float(values[name])
            row = (name, limit.before, value, counts[name], limit.low, limit.high, limit.within(value), limit.why)
            rows.append(row)
    return pd.DataFrame(rows, columns=["guard", "before", "value", "n", "low", "high", "within", "why"])
