"""Pictures of chips and of where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel import colours
from cryosentinel.sensors import PIXEL_SIZE_M, S2_BANDS, region_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RGB = ("B04", "B03", "B02")
#: White is the reflectance x 10,000 that few pixels pass, and at least this: a chip in shadow stays a dark one.
DARKEST_WHITE = 2000.0
SPLIT_COLOURS = {"train": "#4477aa", "val": "#ccbb44", "test": "#ee6677", "buffer": "#bbbbbb"}


def composite(s2: np.ndarray, bands: Sequence[str] = RGB, white: float | None = None) -> np.ndarray:
    """Three bands as the eye would see them, shadows lifted.

    Black is no light and white is one for the three bands: a black point, or a white point for each band, would make
    grey rock colourful.

    Args:
        s2: (12, H, W) reflectance x 10,000; pixels with all bands 0 are drawn black and do not count.
        bands: for red, green and blue.
        white: reflectance x 10,000 that becomes white; by default the 99th percentile of the picture.

    Returns:
        (H, W, 3) float32 in 0..1.
    """
    rgb = np.stack([s2[S2_BANDS.index(b)] for b in bands], axis=-1).astype(np.float32)
    if white is None:
        seen = rgb[(s2 > 0).any(axis=0)]
        white = max(float(np.percentile(seen, 99)) if len(seen) else 0.0, DARKEST_WHITE)
    return np.clip(rgb / white, 0, 1) ** np.float32(1 / 1.8)


def hillshade(
    elevation: np.ndarray, azimuth: float = 315.0, altitude: float = 45.0, pixel_m: float = PIXEL_SIZE_M
) -> np.ndarray:
    """Relief lit from the north-west, (H, W) in 0..1.

    Args:
        elevation: (H, W) metres.
        azimuth, altitude: of the light, degrees.
        pixel_m: size of a pixel.
    """
    from matplotlib.colors import LightSource

    return LightSource(azimuth, altitude).hillshade(elevation.astype(float), dx=pixel_m, dy=pixel_m)


def outline(ax: Any, mask: np.ndarray, colour: str, label: str) -> None:
    """Draw the outline of a mask and an entry for the legend."""
    if (mask > 0).any():
        ax.contour(mask > 0, levels=[0.5], colors=[colour], linewidths=1.2)
    ax.plot([], [], color=colour, label=label)


def example_chips(store: Any, rows: Sequence[int], count: int, truth: Any = None, seed: int = 7) -> Figure:
    """A row of pictures for each of some lake-bearing chips: true colour, short-wave composite, radar, relief.

    Args:
        store: random access to chips.
        rows: candidates, positions in the store's index.
        count: how many to draw.
        truth: mapping from chip id to its known truth, or None.
        seed: of the draw.
    """
    import matplotlib.pyplot as plt

    candidates = np.asarray(rows)
    shares = store.index["water_frac"].to_numpy()[candidates]
    lakes = candidates[shares > 0.002] if (shares > 0.002).any() else candidates
    chosen = np.random.default_rng(seed).permutation(lakes)[:count]
    figure, axes = plt.subplots(
        len(chosen), 4, figsize=(8, 0.6 + 1.95 * len(chosen)), squeeze=False, layout="constrained"
    )
    for line, row in zip(axes, chosen, strict=True):
        chip = store[int(row)]
        line[0].imshow(composite(chip.s2))
        line[1].imshow(composite(chip.s2, ("B12", "B08", "B03")))
        line[2].imshow(chip.s1[0], cmap="gray", vmin=-25, vmax=0)
        line[3].imshow(hillshade(chip.dem[0]), cmap="gray")
        for ax in line:
            outline(ax, chip.mask, colours.LABEL, "label")
            if truth is not None:
                outline(ax, truth[chip.chip_id].lake, colours.TRUTH, "known truth")
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{region_name(chip.region)}\n{chip.snapshot_year}", fontsize=9)
    for ax, title in zip(axes[0], ("true colour", "B12, B08, B03", "radar VV", "relief"), strict=True):
        ax.set_title(title, fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=10, loc="outside lower center", ncols=2)
    return figure


def split_map(index: pd.DataFrame, splits: np.ndarray) -> Figure:
    """Chip centres by split.

    Args:
        index: rows with lat and lon, degrees.
        splits: (len(index),) of train, val, test, buffer.
    """
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, colour in SPLIT_COLOURS.items():
        here = index[splits == name]
        if len(here):
            ax.scatter(here["lon"], here["lat"], s=14, color=colour, edgecolor="white", linewidth=0.3,
                       label=f"{name} ({len(here)})")  # fmt: skip
    ax.set(xlabel="longitude, degrees east", ylabel="latitude, degrees north", title="Chip centres by split")
    ax.set_aspect(1 / np.cos(np.radians(index["lat"].mean())))
    ax.legend(fontsize=9)
    return figure
