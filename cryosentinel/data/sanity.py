"""The sanity filter: does a chip's label agree with the water that the image shows?

A chip with a label is kept when label and MNDWI water overlap (IoU at least 0.20) and the water is at most three times
the label; a chip without a label when at most 5 % of it is water. The published text puts the MNDWI threshold at 0, the
published code at 0.3, so both are computed for every chip when it is converted. The filter is a column, applied on
reading and never a deletion: the chips that it would drop are the ones that a label audit looks for.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cryosentinel.indices import mndwi

THRESHOLDS = (0.0, 0.3)  # of MNDWI: the published text's, the published code's
DEFAULT_THRESHOLD = 0.3
MIN_IOU, MAX_RATIO, MAX_BACKGROUND_WATER = 0.20, 3.0, 0.05
LOW_IOU, HIGH_RATIO, UNLABELLED_WATER = "low_iou", "high_ratio", "unlabelled_water"
IOU_STEPS = (0.05, 0.10, 0.15, 0.20)  # of the published report table


def column(threshold: float, what: str) -> str:
    """The index column of ``what`` ("iou" or "water") at an MNDWI threshold, such as ``mndwi_iou_0.3``."""
    return f"mndwi_{what}_{threshold:.1f}"


def agreement(s2: np.ndarray, mask: np.ndarray, thresholds: Iterable[float] = THRESHOLDS) -> list[tuple[float, float]]:
    """Compare a label with MNDWI water, on raw values.

    Args:
        s2: (12, H, W) reflectance x 10,000, unclipped.
        mask: (H, W), above 0 where the label is lake.
        thresholds: water is where MNDWI exceeds this.

    Returns:
        For each threshold (IoU of label and water, 0 where neither exists; share of the chip that is water).
    """
    index, label = mndwi(s2), mask > 0
    results = []
    for threshold in thresholds:
        water = index > threshold
        both, either = int((water & label).sum()), int((water | label).sum())
        results.append((both / either if either else 0.0, float(water.mean())))
    return results


def reasons(iou: np.ndarray, water: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Why the filter would drop each chip: (n,) of "" (kept), "low_iou", "high_ratio" or "unlabelled_water".

    Args:
        iou: (n,) of label and MNDWI water.
        water, label: (n,) share of the chip's pixels.
    """
    labelled = label > 0
    return np.select(
        [
            labelled & (iou < MIN_IOU),
            labelled & (water > MAX_RATIO * label),
            ~labelled & (water > MAX_BACKGROUND_WATER),
        ],
        [LOW_IOU, HIGH_RATIO, UNLABELLED_WATER],
        default="",
    ).astype(object)


def sanity_report(index: pd.DataFrame, thresholds: Iterable[float] = THRESHOLDS) -> pd.DataFrame:
    """The report table of the filter, in the form of the published one.

    Args:
        index: of a :class:`cryosentinel.data.store.ChipStore`, or some rows of it.
        thresholds: of MNDWI, among those in the index.

    Returns:
        One row a threshold: chips, lake_kept, lakes dropped by IoU in steps, lake_dropped_ratio (IoU passes, ratio
        above 3), ratio_above_3 (all lakes with it, whatever their IoU), background_kept and background_dropped.
    """
    rows = {}
    for threshold in thresholds:
        iou = index[column(threshold, "iou")].to_numpy()
        water, label = index[column(threshold, "water")].to_numpy(), index["water_frac"].to_numpy()
        why, labelled = reasons(iou, water, label), label > 0
        row: dict[str, int] = {"chips": len(index), "lake_kept": int((labelled & (why == "")).sum())}
        low = 0.0
        for high in IOU_STEPS:
            row[f"lake_dropped_iou_{low:.2f}_{high:.2f}"] = int((labelled & (iou >= low) & (iou < high)).sum())
            low = high
        row["lake_dropped_ratio"] = int((why == HIGH_RATIO).sum())
        row["ratio_above_3"] = int((labelled & (water > MAX_RATIO * label)).sum())
        row["background_kept"] = int((~labelled & (why == "")).sum())
        row["background_dropped"] = int((why == UNLABELLED_WATER).sum())
        rows[threshold] = row
    report = pd.DataFrame.from_dict(rows, orient="index")
    report.index.name = "mndwi_threshold"
    return report
