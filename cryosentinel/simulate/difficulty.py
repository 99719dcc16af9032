"""How hard the simulated data are: indices, single inputs, and what a simulator could give away by mistake.

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

import numpy as np
import pandas as pd

from cryosentinel.data.chips import Chip, clean
from cryosentinel.indices import mndwi, ndwi, slope
from cryosentinel.sensors import MODALITIES
from cryosentinel.simulate.materials import WATER
from cryosentinel.simulate.truth import Truth, chips_with_truth

MNDWI_BAND = (0.20, 0.50)
ELEVATION_AUC = 0.8  # at most, for reservoirs and ponds against glacial lakes
SHORTCUT_AUC = 0.55  # at most, for the traces of a modality


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
    """How well elevation alone tells other standing water from glacial lakes, each body once.

    Args:
        lakes: of :func:`cryosentinel.simulate.realism.lake_table`.
    """
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


def single_inputs(root: str | os.PathLike[str], split: str | None = None) -> pd.DataFrame:
    """How well each band, index and slope alone tells lake pixels from all others, over a split's valid pixels.

    Returns:
        One row an input, the best first: auc (folded to 0.5 and above), iou (at the best threshold), threshold,
        water_is ("low" or "high"). From histograms of 1000 bins, so good to a thousandth of the input's range.
    """
    ranges = {f"S2L2A {band}": (0.0, 10_000.0) for band in MODALITIES["S2L2A"]}
    ranges |= {"S1GRD VV": (-35.0, 15.0), "S1GRD VH": (-40.0, 10.0), "DEM elevation": (0.0, 9_000.0)}
    ranges |= {"DEM slope": (0.0, 90.0), "MNDWI": (-1.0, 1.0), "NDWI": (-1.0, 1.0)}
    counts = {name: np.zeros((2, 1000)) for name in ranges}
    for chip, truth in chips_with_truth(root, split):
        s2, s1, dem = clean(chip.s2, chip.s1, chip.dem)
        layers = dict(zip(ranges, (*s2, *s1, dem[0], slope(dem[0]), mndwi(s2), ndwi(s2)), strict=True))
        lake, valid = truth.lake.astype(bool), chip.valid
        for name, layer in layers.items():
            low, high = ranges[name]
            for value, pixels in enumerate((valid & ~lake, valid & lake)):
                clipped = np.clip(layer[pixels].astype(np.float64), low, high)
                counts[name][value] += np.histogram(clipped, 1000, (low, high))[0]
    rows = []
    for name, (other, lake) in counts.items():
        rows.append({"input": name, **_separation(other, lake, np.linspace(*ranges[name], 1001))})
    return pd.DataFrame(rows).sort_values("iou", ascending=False, ignore_index=True)


def _separation(other: np.ndarray, lake: np.ndarray, edges: np.ndarray) -> dict[str, float | str]:
    """AUC and best-threshold IoU from two histograms over the same bins, in whichever direction is better."""
    below = np.concatenate([[0], other.cumsum()[:-1]])
    area = float((lake * (below + other / 2)).sum() / max(lake.sum() * other.sum(), 1))
    best: dict[str, float | str] = {
        "auc": max(area, 1 - area),
        "iou": 0.0,
        "threshold": float("nan"),
        "water_is": "high",
    }
    reached = 0.0
    for direction, step in (("high", -1), ("low", 1)):
        hit, false = lake[::step].cumsum()[::step], other[::step].cumsum()[::step]
        iou = hit / np.maximum(lake.sum() + false, 1)
        at = int(iou.argmax())
        if iou[at] > reached:
            reached = iou[at]
            edge = edges[at] if direction == "high" else edges[at + 1]
            best |= {"iou": float(iou[at]), "threshold": float(edge), "water_is": direction}
    return best


def index_difficulty(root: str | os.PathLike[str], split: str | None = "test") -> dict[str, float]:
    """Best-threshold IoU of MNDWI and NDWI against the truth of one split, global over its valid pixels.

    The threshold is the best one for this very split: no tuning of an index on validation can do better.

    Returns:
        mndwi_iou, mndwi_threshold, ndwi_iou, ndwi_threshold.
    """
    table = single_inputs(root, split).set_index("input")
    return {
        f"{name.lower()}_{column}": float(table.loc[name, column])
        for name in ("MNDWI", "NDWI")
        for column in ("iou", "threshold")
    }


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
