"""The picture on the book's first page and in the README: one chip, its lakes, and the probability that was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel import colours
from cryosentinel.errors import InputError
from cryosentinel.evaluation.metrics import chip_iou
from cryosentinel.evaluation.scores import histograms
from cryosentinel.sensors import region_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from cryosentinel.evaluation.evaluate import Store
    from cryosentinel.evaluation.probability_maps import ProbabilityMaps


def cover_chip(table: pd.DataFrame, threshold: float = 0.5) -> int:
    """The chip that stands for the split: the one of median IoU among the fifth with the most lake.

    Args:
        table: score table of the split.
        threshold: of the IoU, a multiple of 1/200.

    Raises:
        InputError: no chip holds a lake.
    """
    lake, iou = histograms(table)[0].sum(axis=1), chip_iou(table, threshold)
    with_lake = np.flatnonzero(np.isfinite(iou) & (lake > 0))
    if not len(with_lake):
        raise InputError("No chip of this split holds a lake, so none can stand for it.")
    most = with_lake[np.argsort(-lake[with_lake], kind="stable")][: max(len(with_lake) // 5, 1)]
    return int(most[np.argsort(iou[most], kind="stable")[len(most) // 2]])


def cover(
    table: pd.DataFrame, store: Store, maps: ProbabilityMaps, kind: str, truth: Any = None, threshold: float = 0.5
) -> Figure:
    """The chip of :func:`cover_chip` in three panels: scene, outlines over it, probability.

    Args:
        table: score table of the split, rows in the order of the maps.
        store: the chips.
        maps: their probability maps.
        kind: of the data: simulated or real.
        truth: chip id -> truth with ``lake``, or None where it is not known.
        threshold: probability from which a pixel is water.
    """
    import matplotlib.pyplot as plt

    from cryosentinel.data.chip_plots import composite, outline

    i = cover_chip(table, threshold)
    chip = store[int(maps.rows[i])]
    figure, axes = plt.subplots(1, 3, figsize=(8, 3.3), layout="constrained")
    colour = composite(chip.s2)
    axes[0].imshow(colour)
    axes[1].imshow(colour.mean(axis=2) * 0.7, cmap="gray", vmin=0, vmax=1)
    if truth is not None:
        outline(axes[1], truth[chip.chip_id].lake, colours.TRUTH, "known truth")
    outline(axes[1], chip.mask, colours.LABEL, "label")
    outline(axes[1], maps.water(i, threshold), colours.PREDICTION, f"prediction, p ≥ {threshold:g}")
    image = axes[2].imshow(maps.probability(i), cmap=colours.PROBABILITY, vmin=0, vmax=1)
    figure.colorbar(image, ax=axes[2], shrink=0.8, pad=0.02)
    where = f"{region_name(chip.region)} {chip.snapshot_year}"
    for ax, title in zip(axes, (f"{where} ({kind})", "lakes", "probability of lake"), strict=True):
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10)
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=10, loc="outside lower center", ncols=3, frameon=False)
    return figure
