"""How hard the simulated data are, measured: what colour, context and relief each say, and what a simulator gives away.

Every measure is a function of a dataset and its truth; the limits beside them are the guards that the tests hold. They
were argued from sources and from real chips before a network was trained on these data (see the first chapter).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from cryosentinel.data.chips import Chip, clean
from cryosentinel.data.pixels import draw, few_values
from cryosentinel.data.split import block_ids
from cryosentinel.errors import InputError
from cryosentinel.indices import dem_shape, mndwi, ndwi, slope
from cryosentinel.sensors import MODALITIES, PIXEL_SIZE_M
from cryosentinel.simulate.materials import WATER, Material
from cryosentinel.simulate.truth import Truth, chips_with_truth
from cryosentinel.simulate.water import GLACIAL

COLOUR_AUC = 0.65  # at most, twelve bands and backscatter: glacial lake against other standing water
CONTEXT_AUC = 0.85  # at least, what surrounds a body: the same question
SPECTRAL_VARIANCE = 0.09  # at least, colour beyond three components; real chips have 0.11 (see colour_variance)
RELIEF_AUC = 0.90  # at most, the elevation model's shape alone: lake against all else
OTHER_WATER = 0.05  # at most, share of reservoirs and ponds in standing water, by number and by area
SHORTCUT_AUC = 0.57  # at most, for the traces of a modality; texture of land is skewed, noise over water is not: 0.55
MIN_BODY_PX = 20
BINS = 1000  # of the histograms of single inputs

_ICE = (Material.ICE, Material.DEBRIS_ICE, Material.SNOW, Material.WET_SNOW)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    from sklearn.metrics import roc_auc_score

    if not len(positive) or not len(negative):
        return float("nan")
    classes = np.repeat([True, False], [len(positive), len(negative)])
    return float(roc_auc_score(classes, np.concatenate([positive, negative])))


def _block(chip: Chip) -> str:
    """The block of the split: half-overlapping neighbours share one, places do not."""
    return str(block_ids([chip.lat], [chip.lon])[0])


def colour_variance(spectra: list[np.ndarray]) -> dict[str, float]:
    """How many dimensions the colours of chips have.

    Per chip, ln reflectance is standardised band by band and freed of brightness (its mean over the bands).

    Args:
        spectra: (12, ...) reflectance x 10,000 of each chip, valid pixels only.

    Returns:
        beyond_three: share of the pooled variance beyond the first three principal components; beyond_tilt: share of
        the variance of the standardised spectra that is neither brightness nor a linear tilt over the bands.
    """
    rows = []
    for one in spectra:
        x = np.log(np.clip(one.reshape(len(one), -1), 1, None).astype(np.float64)).T
        x = x[:: max(1, len(x) // 4000)]
        rows.append((x - x.mean(0)) / np.maximum(x.std(0), 1e-9))
    x = np.concatenate(rows)
    shape = x - x.mean(1, keepdims=True)
    power = np.linalg.eigvalsh(np.cov(shape.T))
    ramp = np.linspace(-1, 1, x.shape[1])
    ramp /= np.linalg.norm(ramp)
    rest = shape - np.outer(shape @ ramp, ramp)
    return {
        "beyond_three": float(power[:-3].sum() / power.sum()),
        "beyond_tilt": float((rest**2).sum() / (x**2).sum()),
    }


def _held_out(x: np.ndarray, y: np.ndarray, groups: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Log odds by gradient boosting, each from a model that saw nothing of its group (three folds)."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    x, score = few_values(x), np.zeros(len(y))
    with threadpool_limits(1):  # so few pixels: threads would mostly wait for each other
        for fit, rest in StratifiedGroupKFold(3, shuffle=True, random_state=0).split(x, y, groups):
            model = HistGradientBoostingClassifier(
                max_iter=50, max_leaf_nodes=12, min_samples_leaf=8, early_stopping=False, random_state=0
            )
            score[rest] = model.fit(x[fit], y[fit], sample_weight=weight[fit]).decision_function(x[rest])
    return score


def _weighted_auc(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, score, sample_weight=weight))


def _bodies(chip: Chip, truth: Truth) -> Iterator[tuple[np.ndarray, bool]]:
    """Each body of standing water that a chip shows enough of: its mask, and whether it is a glacial lake."""
    seen = chip.valid & (truth.cloud == 0)
    for number, body in enumerate(truth.bodies, start=1):
        mask = seen & (truth.body == number)
        if mask.sum() >= MIN_BODY_PX:
            yield mask, body.kind in GLACIAL


def _surroundings(truth: Truth, dem: np.ndarray, steep: np.ndarray, ice: np.ndarray, body: np.ndarray) -> list[float]:
    """What surrounds a body: ice, the shape of the ground, and the body's own outline. Layers (H, W)."""
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import regionprops

    away = distance_transform_edt(~body) * PIXEL_SIZE_M
    level = float(np.median(dem[body]))
    features = [float(away[ice].min()) if ice.any() else 3000.0]
    for low, high in ((0, 100), (100, 300), (300, 1000)):
        ring = (away > low) & (away <= high)
        height = dem[ring] - level
        features += [*np.percentile(height, (10, 50, 90)), float(np.median(steep[ring])), float(ice[ring].mean())]
        features += [float(np.mean(truth.material[ring] == m)) for m in (Material.TILL, Material.GRAVEL)]
    shape = regionprops(body.astype(np.uint8))[0]
    hull_gap = 1 - shape.solidity
    return [*features, shape.area, hull_gap, shape.eccentricity]


def standing_water_aucs(root: str | os.PathLike[str], per_body: int = 40) -> dict[str, float]:
    """What tells glacial lakes from other standing water: their colour, and what surrounds them.

    Both by gradient boosting, held out by place; each body has the same weight.

    Returns:
        colour (twelve bands, VV and VH of single pixels), context (distance to ice, relief, outline), and the number
        of bodies of each class, lakes and others.
    """
    rng = np.random.default_rng(0)
    colour, context, lake, block, counts = [], [], [], [], []
    for chip, truth in chips_with_truth(root):
        s2, s1, dem = clean(chip.s2, chip.s1, chip.dem)
        bands = np.concatenate([s2, 10 ** (s1 / 10) * 1e4]).reshape(14, -1)
        ground = dem[0].astype(np.float64), slope(dem[0]), np.isin(truth.material, _ICE)
        for body, glacial in _bodies(chip, truth):
            at = draw(body, per_body, rng)
            colour.append(bands[:, at].T)
            counts.append(len(at))
            context.append(_surroundings(truth, *ground, body))
            lake.append(glacial)
            block.append(_block(chip))
    y, groups = np.array(lake), np.unique(block, return_inverse=True)[1]
    if min(y.sum(), (~y).sum()) < 3:
        raise InputError(
            f"{root} shows {y.sum()} glacial lakes and {(~y).sum()} other bodies of standing water; three of each are "
            "needed to compare them: simulate the preset reservoirs."
        )
    balance = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum()) * len(y)
    each, share = np.repeat(np.arange(len(y)), counts), np.repeat(balance / counts, counts)
    pixels = np.log(np.maximum(np.concatenate(colour), 1.0))
    return {
        "colour": _weighted_auc(y[each], _held_out(pixels, y[each], groups[each], share), share),
        "context": _weighted_auc(y, _held_out(np.array(context), y, groups, balance), balance),
        "lakes": int(y.sum()),
        "others": int((~y).sum()),
    }


def relief_difficulty(root: str | os.PathLike[str], per_class: int = 120) -> dict[str, float]:
    """How well the shape of the elevation model alone tells lakes from all else (no elevation among its inputs).

    Gradient boosting, held out by place, weighted to the true shares.

    Returns:
        auc and iou (at the best threshold).
    """
    return _scores(*_pixels(root, per_class, lambda s2, s1, dem: dem_shape(dem[0])))


def place_gap(root: str | os.PathLike[str], per_class: int = 60) -> dict[str, float]:
    """What unseen places cost a pixel classifier on the bands, slope and indices.

    Returns:
        iou_places (held out by place) and iou_pixels (the same pixels, held out at random), at the best threshold.
    """

    def layers(s2: np.ndarray, s1: np.ndarray, dem: np.ndarray) -> np.ndarray:
        return np.stack([*s2, *s1, slope(dem[0]), mndwi(s2), ndwi(s2)])

    x, lake, weight, block = _pixels(root, per_class, layers)
    mixed = np.random.default_rng(0).integers(0, 3000, len(lake))
    return {
        "iou_places": _scores(x, lake, weight, block)["iou"],
        "iou_pixels": _scores(x, lake, weight, mixed)["iou"],
    }


def _pixels(
    root: str | os.PathLike[str], per_class: int, layers: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sampled pixels of every other chip: layers (n, F), lake (n,), how many pixels each stands for, its block."""
    x, lake, weight, blocks = [], [], [], []
    for chip, truth, at in _sample(root, per_class, every=2):
        planes = layers(*clean(chip.s2, chip.s1, chip.dem))
        x.append(planes.reshape(len(planes), -1)[:, at].T)
        own = truth.lake.ravel()[at] > 0
        lake.append(own)
        drawn = np.maximum(np.bincount(own, minlength=2), 1)
        stands_for = np.bincount(truth.lake[chip.valid] > 0, minlength=2) / drawn
        weight.append(stands_for[own.astype(int)])
        blocks += [_block(chip)] * len(at)
    return np.concatenate(x), np.concatenate(lake), np.concatenate(weight), np.unique(blocks, return_inverse=True)[1]


def _scores(x: np.ndarray, y: np.ndarray, weight: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Held-out AUC and best-threshold IoU of weighted pixels."""
    score = _held_out(x, y, groups, weight)
    order = np.argsort(-score)
    hit, false = (weight * y)[order].cumsum(), (weight * ~y)[order].cumsum()
    return {"auc": _weighted_auc(y, score, weight), "iou": float((hit / (hit[-1] + false)).max())}


def single_inputs(root: str | os.PathLike[str], split: str | None = None) -> pd.DataFrame:
    """How well each band, index and slope alone tells lake pixels from all others, over a split's valid pixels.

    Returns:
        One row an input, the best first: auc (folded to 0.5 and above), iou (at the best threshold), threshold,
        water_is ("low" or "high"). From histograms of 1000 bins, so good to a thousandth of the input's range.
    """
    ranges = {f"S2L2A {band}": (0.0, 10_000.0) for band in MODALITIES["S2L2A"]}
    ranges |= {"S1GRD VV": (-35.0, 15.0), "S1GRD VH": (-40.0, 10.0), "DEM elevation": (0.0, 9_000.0)}
    ranges |= {"DEM slope": (0.0, 90.0), "MNDWI": (-1.0, 1.0), "NDWI": (-1.0, 1.0)}
    counts = {name: np.zeros((2, BINS)) for name in ranges}
    for chip, truth in chips_with_truth(root, split):
        s2, s1, dem = clean(chip.s2, chip.s1, chip.dem)
        layers = dict(zip(ranges, (*s2, *s1, dem[0], slope(dem[0]), mndwi(s2), ndwi(s2)), strict=True))
        valid = chip.valid
        lake = (truth.lake[valid] > 0) * BINS
        for name, layer in layers.items():
            low, high = ranges[name]
            bins = ((layer[valid].astype(np.float64) - low) * (BINS / (high - low))).astype(np.int64)
            counts[name] += np.bincount(bins.clip(0, BINS - 1) + lake, minlength=2 * BINS).reshape(2, BINS)
    rows = []
    for name, (other, lake) in counts.items():
        rows.append({"input": name, **_separation(other, lake, np.linspace(*ranges[name], BINS + 1))})
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


def _sample(
    root: str | os.PathLike[str], per_class: int, split: str | None = None, from_shore: int = 0, every: int = 1
) -> Iterator[tuple[Chip, Truth, np.ndarray]]:
    """Chips with flat indices of up to ``per_class`` lake and other pixels each, two pixels inside the chip.

    Args:
        root, split: the dataset, and one of its splits or None.
        per_class: pixels a chip and class.
        from_shore: pixels nearer than this to the other class are left out.
        every: one chip in so many.
    """
    from scipy.ndimage import distance_transform_cdt

    generator = np.random.default_rng(0)
    for chip, truth in chips_with_truth(root, split, every):
        usable = chip.valid.copy()
        if from_shore:
            water = np.isin(truth.material, WATER)
            if water.any() and not water.all():  # without a shore there is no distance to it
                shore = distance_transform_cdt(water, "taxicab") + distance_transform_cdt(~water, "taxicab")
                usable &= shore > from_shore
        usable[:2], usable[-2:], usable[:, :2], usable[:, -2:] = False, False, False, False
        chosen = [draw(usable & (truth.lake == value), per_class, generator) for value in (0, 1)]
        yield chip, truth, np.concatenate(chosen)


def _traces(chip: Chip, at: np.ndarray, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """What a simulator can leave behind and a sensor does not: rounding, the sign of the noise, grids, chip edges.

    No feature holds the signal or the size of its texture: water is dark and smooth in reality too.

    Args:
        chip: with its neighbours' values.
        at: (n,) flat indices of pixels that are not on the chip's rim.
        rng: of the noise that undoes rounding.

    Returns:
        modality -> name -> (n,) values.
    """
    height, width = chip.mask.shape
    around = at[:, None] + np.add.outer([-width, 0, width], [-1, 0, 1]).ravel()  # the fifth is the pixel itself

    def grain(layer: np.ndarray) -> np.ndarray:
        # The sign of a pixel against its neighbours' mean. Half a step of noise undoes the rounding: without it ties,
        # which are common where it is dark and smooth, would tell so.
        a = layer[around] + rng.uniform(-0.5, 0.5, around.shape)
        return np.sign(9 * a[:, 4] - a.sum(axis=1))

    s2, dem = chip.s2.reshape(len(chip.s2), -1), chip.dem.ravel()[at]
    s1 = np.where(np.isfinite(chip.s1), chip.s1, 0).astype(np.float32).reshape(len(chip.s1), -1)
    rows, cols = np.divmod(at, width)
    traces: dict[str, dict[str, np.ndarray]] = {"S2L2A": {}, "S1GRD": {}, "DEM": {}, "chip": {}}
    for i, band in enumerate(MODALITIES["S2L2A"]):
        traces["S2L2A"] |= {f"{band} last digit": s2[i, at] % 10, f"{band} parity": s2[i, at] % 2}
        traces["S2L2A"][f"{band} grain"] = grain(s2[i])
    for i, band in enumerate(MODALITIES["S1GRD"]):
        traces["S1GRD"] |= {f"{band} last bits": s1[i, at].view(np.uint32) % 256, f"{band} grain": grain(1e6 * s1[i])}
    traces["DEM"] |= {"parity": dem % 2, "last digit": dem % 10}
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
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features: dict[str, list[np.ndarray]] = {}
    names: dict[str, list[str]] = {}
    labels, fold, rng = [], [], np.random.default_rng(0)
    for number, (chip, truth, at) in enumerate(_sample(root, per_class, split, from_shore=12)):
        for modality, traces in _traces(chip, at, rng).items():
            names[modality] = list(traces)
            features.setdefault(modality, []).append(np.stack(list(traces.values()), axis=1).astype(np.float64))
        labels.append(truth.lake.ravel()[at])
        fold.append(np.full(len(at), number % 2))
    lake, fit = np.concatenate(labels).astype(bool), np.concatenate(fold) == 0
    rows = []
    for modality, blocks in features.items():
        x = np.concatenate(blocks)
        singles = [auc(x[lake & ~fit, i], x[~lake & ~fit, i]) for i in range(x.shape[1])]
        folded = [max(a, 1 - a) for a in singles]
        x = np.concatenate([x, ((x - x.mean(0)) / np.maximum(x.std(0), 1e-9)) ** 2], axis=1)
        discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3).fit(x[fit], lake[fit])
        score = discriminant.decision_function(x)
        best = int(np.argmax(folded))
        rows.append((modality, auc(score[~fit & lake], score[~fit & ~lake]), folded[best], names[modality][best]))
    return pd.DataFrame(rows, columns=["modality", "auc", "best_single_auc", "best_single"])
