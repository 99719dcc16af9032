"""Scores lake by lake: detection, false lakes, area and boundary error by size class.

Lakes and predicted lakes are the connected parts (8 neighbours) of a chip's valid pixels. The matching rule:

- a lake is detected when at least half of its pixels are predicted water;
- a predicted lake belongs to the lake with which it shares most pixels (of equals the first in reading order), and is
  false when it shares none with any;
- area and boundary of a detected lake are compared with the union of the predicted lakes that belong to it. Where
  predicted water joins two lakes, it belongs to one of them: the other may be detected without an area of its own.

A lake cut by the chip's edge or by missing data is judged by what is inside, and the cut is no boundary. Overlapping
chips and several years show a lake several times, each of which counts: intervals resample whole split blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.evaluation.bootstrap import RESAMPLES, SEED, Estimate, ratio_of_sums
from cryosentinel.evaluation.scores import INVALID
from cryosentinel.sensors import PIXEL_HA, PIXEL_SIZE_M

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.chips import Chip
    from cryosentinel.evaluation.evaluate import Reference, Store
    from cryosentinel.evaluation.probability_maps import ProbabilityMaps

#: Size class -> hectares, from (inclusive) and to (exclusive). The first edge is the published system's smallest
#: trustworthy lake.
SIZE_CLASSES: dict[str, tuple[float, float]] = {
    "under 0.5 ha": (0.0, 0.5),
    "0.5 to 1 ha": (0.5, 1.0),
    "1 to 10 ha": (1.0, 10.0),
    "over 10 ha": (10.0, np.inf),
}
#: Finer edges, hectares, for what is fitted by size (area intervals) rather than reported by it.
SIZE_EDGES_HA = (0.0, 0.5, 1.0, 2.0, 5.0, 20.0, np.inf)
MIN_COVER = 0.5  # share of a lake's pixels that must be predicted water

#: Score -> what it is, see :func:`by_size`.
SCORES: dict[str, str] = {
    "detected": "share of lakes that are detected",
    "covered": "share of the lakes' pixels that are predicted water",
    "false": "share of predicted lakes that are false, by the predicted lake's own size",
    "area_bias": "predicted over true area of the detected lakes, summed, less 1",
    "area_error": "mean of |predicted - true| / true area over the detected lakes",
    "boundary_m": "mean distance between predicted and true boundary of the detected lakes, metres",
}


def _boundary(mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside (4 neighbours) a valid pixel outside it: (H, W) bool."""
    from scipy import ndimage

    return mask & ndimage.binary_dilation(valid & ~mask)


def boundary_distance(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> float:
    """Mean distance in metres between the boundaries of two masks, averaged over both directions.

    Args:
        a, b: (H, W) bool, False where not valid.
        valid: (H, W) bool; an edge of a mask against missing data or the chip's edge is no boundary.

    Returns:
        Not a number where either mask has no boundary.
    """
    from scipy import ndimage

    edges = _boundary(a, valid), _boundary(b, valid)
    if not (edges[0].any() and edges[1].any()):
        return float("nan")
    away = [ndimage.distance_transform_edt(~edge) for edge in edges]
    return float((away[1][edges[0]].mean() + away[0][edges[1]].mean()) / 2 * PIXEL_SIZE_M)


def match(
    reference: np.ndarray, water: np.ndarray, valid: np.ndarray, layers: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """Match the lakes of one chip with the predicted ones, by the rule of the module's text.

    Args:
        reference: (H, W), lake where non-zero.
        water: (H, W) bool, predicted.
        valid: (H, W) bool.
        layers: name -> (H, W); the mean over its pixels enters each record.

    Returns:
        One record a lake (``lake`` True: area_ha, detected, covered (share of its pixels that are predicted),
        area_error = predicted / true area - 1, boundary_m; the last two not a number where it is not detected or has no
        predicted lake of its own) and one a predicted lake (``lake`` False: area_ha, false).
    """
    from scipy import ndimage

    eight = np.ones((3, 3))
    lakes, n_lakes = ndimage.label((reference != 0) & valid, structure=eight)
    found, n_found = ndimage.label(water & valid, structure=eight)
    shared = np.zeros((n_lakes + 1, n_found + 1), np.int64)
    np.add.at(shared, (lakes.ravel(), found.ravel()), 1)
    owner = shared[1:].argmax(axis=0) + 1 if n_lakes else np.zeros(n_found + 1, np.int64)
    owner[shared[1:].sum(axis=0) == 0] = 0  # shares no pixel with a lake
    windows = ndimage.find_objects(lakes), ndimage.find_objects(found)
    records: list[dict[str, Any]] = []
    for k in range(1, n_lakes + 1):
        area = shared[k].sum()
        detected = bool(shared[k, 1:].sum() >= MIN_COVER * area)
        own = 1 + np.flatnonzero(owner[1:] == k)
        error = boundary = float("nan")
        if detected and len(own):
            error = float(shared[:, own].sum() / area - 1)
            parts = [windows[0][k - 1], *(windows[1][j - 1] for j in own)]
            # The smallest window that holds all, and a rim by which an inner edge is told from the chip's.
            cut = tuple(
                slice(max(min(p[d].start for p in parts) - 1, 0), max(p[d].stop for p in parts) + 1) for d in (0, 1)
            )
            boundary = boundary_distance(lakes[cut] == k, np.isin(found[cut], own), valid[cut])
        records.append(
            {"lake": True, "area_ha": area * PIXEL_HA, "detected": detected, "covered": shared[k, 1:].sum() / area,
             "area_error": error, "boundary_m": boundary}
        )  # fmt: skip
    sizes = shared.sum(axis=0)
    records += [
        {"lake": False, "area_ha": sizes[j] * PIXEL_HA, "false": bool(owner[j] == 0)} for j in range(1, n_found + 1)
    ]
    for name, layer in (layers or {}).items():
        means = [
            ndimage.mean(layer, numbers, np.arange(1, count + 1)) if count else np.zeros(0)
            for numbers, count in ((lakes, n_lakes), (found, n_found))
        ]
        for record, value in zip(records, np.concatenate(means), strict=True):
            record[name] = float(value)
    return records


def lake_table(
    maps: ProbabilityMaps,
    store: Store,
    reference: Reference | None = None,
    threshold: float = 0.5,
    block_size: float = 0.15,
    progress: bool = False,
    layers: Callable[[Chip], Mapping[str, np.ndarray]] | None = None,
) -> pd.DataFrame:
    """Every lake and every predicted lake of a split.

    Args:
        maps: stored predictions of the split.
        store: its chips.
        reference: from a chip to its mask; None for the label.
        threshold: a multiple of 1/200.
        block_size: of the split blocks, degrees.
        progress: show a bar.
        layers: from a chip to (H, W) arrays by name, whose means over each lake become columns (cloud, turbidity, ...).

    Returns:
        chip_id, region, year, block, the records of :func:`match`, and a column for each layer.
    """
    import pandas as pd
    from tqdm import tqdm

    from cryosentinel.data.split import block_ids

    at = store.index.iloc[list(maps.rows)]
    blocks = block_ids(at["lat"].to_numpy(), at["lon"].to_numpy(), block_size)
    rows = []
    for i, row in enumerate(tqdm(maps.rows, desc="lakes", unit="chip", disable=not progress)):
        chip = store[row]
        about = {"chip_id": chip.chip_id, "region": chip.region, "year": chip.snapshot_year, "block": blocks[i]}
        mask = chip.mask if reference is None else reference(chip)
        shown = {} if layers is None else layers(chip)
        found = match(mask, maps.water(i, threshold), np.asarray(maps.bins[i]) != INVALID, shown)
        rows += [{**about, **record} for record in found]
    names = ["chip_id", "region", "year", "block", "lake", "area_ha", "detected", "covered", "area_error", "boundary_m"]
    names += ["false"]
    names += [name for name in (rows[0] if rows else ()) if name not in names]
    types = {"lake": bool, "area_ha": float, "detected": float, "covered": float, "false": float}
    return pd.DataFrame(rows, columns=names).astype(types)


def scores(
    table: pd.DataFrame, level: float = 0.95, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Estimate]:
    """The scores of some lakes, with block-bootstrap intervals.

    Args:
        table: rows of :func:`lake_table`.
        level, resamples, seed: as for :func:`cryosentinel.evaluation.bootstrap.estimate`.

    Returns:
        Name of :data:`SCORES` -> estimate; ``n`` counts the lakes that it rests on, and there is no interval where they
        lie in too few blocks.
    """
    lakes, predicted = table[table["lake"]], table[~table["lake"]]
    judged = lakes[lakes["area_error"].notna()]
    drawn = judged[judged["boundary_m"].notna()]
    area = judged["area_ha"].to_numpy()
    sums = {
        "detected": (lakes, lakes["detected"], np.ones(len(lakes))),
        "false": (predicted, predicted["false"], np.ones(len(predicted))),
        "area_bias": (judged, judged["area_error"] * area, area),
        "area_error": (judged, judged["area_error"].abs(), np.ones(len(judged))),
        "boundary_m": (drawn, drawn["boundary_m"], np.ones(len(drawn))),
    }
    if "covered" in lakes:  # not in tables of earlier versions
        size = lakes["area_ha"].to_numpy()
        sums["covered"] = (lakes, lakes["covered"] * size, size)
    return {
        score: ratio_of_sums(
            np.asarray(numerator, dtype=float), denominator, of["block"].to_numpy(), np.ones(len(of)), level, resamples,
            seed,
        )
        for score, (of, numerator, denominator) in sums.items()
    }  # fmt: skip


def by_size(table: pd.DataFrame, **options: Any) -> dict[str, dict[str, Estimate]]:
    """The scores of each size class: that of the true lake, for false lakes that of the predicted one.

    Args:
        table: from :func:`lake_table`.
        options: as for :func:`scores`.

    Returns:
        Size class (and "all sizes") -> scores.
    """
    area = table["area_ha"]
    classes = {**SIZE_CLASSES, "all sizes": (0.0, np.inf)}
    return {name: scores(table[(area >= low) & (area < high)], **options) for name, (low, high) in classes.items()}
