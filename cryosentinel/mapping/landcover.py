"""Predicted water on real chips, held against an independent land-cover map of the same grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Classes of the land-cover layer that TerraMesh ships with its chips (ESRI's annual land cover, renumbered).
TERRAMESH_CLASSES = {
    1: "water", 2: "trees", 3: "flooded vegetation", 4: "crops", 5: "built area", 6: "bare ground", 7: "snow and ice",
    8: "clouds", 9: "rangeland",
}  # fmt: skip
WATER_CLASS = 1


def water_by_class(water: np.ndarray, cover: np.ndarray, names: dict[int, str] | None = None) -> list[dict[str, Any]]:
    """How much of each land-cover class was predicted as water.

    Args:
        water: (H, W) uint8: 1 water, 0 not, 255 invalid.
        cover: (H, W) class numbers on the same grid.
        names: class number -> name; numbers without a name are named by their number.

    Returns:
        One row a class that occurs: class, pixels (valid), predicted_water (share of them), and the row "all classes"
        with the IoU of predicted water with the water class (None where neither holds a pixel).
    """
    if water.shape != cover.shape:
        raise InputError(f"Prediction {water.shape} and land cover {cover.shape} differ in size; use one grid.")
    names = TERRAMESH_CLASSES if names is None else names
    valid, wet = water != 255, water == 1
    rows = []
    for number in np.unique(cover[valid]).tolist():
        here = valid & (cover == number)
        rows.append({"class": names.get(number, str(number)), "pixels": int(here.sum()),
                     "predicted_water": float(wet[here].mean()), "iou": None})  # fmt: skip
    true = valid & (cover == WATER_CLASS)
    union = int((valid & (wet | true)).sum())
    rows.append({"class": "all classes", "pixels": int(valid.sum()), "predicted_water": float(wet[valid].mean()),
                 "iou": int((wet & true).sum()) / union if union else None})  # fmt: skip
    return rows


def score_terramesh(
    segmenter: Any, folder: str | os.PathLike[str], out: str | os.PathLike[str], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Stack, predict and score every real chip of a folder laid out as TerraMesh: S2L2A, S1RTC, DEM, LULC.

    Args:
        segmenter: network in evaluation mode.
        folder: holds the four folders, with files of the same names.
        out: folder for the 15-band chips and the predictions.
        threshold: probability from which a pixel is water.

    Returns:
        Rows of :func:`water_by_class` with the chip's name in "chip" and the prediction's path in "water".

    Raises:
        InputError: the folder holds no chips, or one of them cannot be used.
    """
    import rasterio

    from cryosentinel.data.stack import stack_rasters
    from cryosentinel.mapping.scene import predict_scene

    folder, out = Path(folder), Path(out)
    chips = sorted((folder / "S2L2A").glob("*.tif"))
    if not chips:
        raise InputError(f"{folder} holds no chips (S2L2A/*.tif); give the folder of the real chips.")
    rows = []
    for s2 in chips:
        stacked = stack_rasters(s2, folder / "S1RTC" / s2.name, folder / "DEM" / s2.name, out / s2.name)
        result = predict_scene(segmenter, stacked, out, threshold=threshold, progress=False)
        with rasterio.open(result["water"]) as water, rasterio.open(folder / "LULC" / s2.name) as cover:
            found = water_by_class(water.read(1), cover.read(1))
        rows += [{"chip": s2.stem, **row, "water": result["water"]} for row in found]
    return rows


def draw_terramesh(rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str]) -> Figure:
    """True colour, land cover and predicted water of each scored chip.

    Args:
        rows: from :func:`score_terramesh`.
        folder: the same folder of chips.
    """
    import matplotlib.pyplot as plt
    import rasterio
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    from cryosentinel.data.chip_plots import composite

    predictions = {row["chip"]: row["water"] for row in rows}
    colours = [f"C{n}" for n in range(10)]
    shown: set[int] = set()
    figure, axes = plt.subplots(
        len(predictions), 3, figsize=(9, 3 * len(predictions)), squeeze=False, layout="constrained"
    )
    for line, (chip, path) in zip(axes, predictions.items(), strict=True):
        arrays = []
        for source in (Path(folder) / "S2L2A" / f"{chip}.tif", Path(folder) / "LULC" / f"{chip}.tif", path):
            with rasterio.open(source) as raster:
                arrays.append(raster.read())
        line[0].imshow(composite(arrays[0]))
        line[1].imshow(arrays[1][0], cmap=ListedColormap(colours), vmin=0, vmax=9, interpolation="nearest")
        line[2].imshow(arrays[2][0] == 1, cmap=ListedColormap(["#dddddd", colours[0]]), vmin=0, vmax=1)
        line[0].set_ylabel(chip, fontsize=8)
        shown |= set(np.unique(arrays[1][0]).tolist())
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], ("true colour, real", "land cover (reference)", "predicted lake"), strict=True):
        ax.set_title(title, fontsize=10)
    patches = [Patch(color=colours[n], label=TERRAMESH_CLASSES.get(n, str(n))) for n in sorted(shown)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    return figure
