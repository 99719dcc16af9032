"""Figures of the realism measures, for notebooks: each takes what the measures return and gives a Matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryosentinel.data.chip_plots import hillshade
from cryosentinel.data.chips import Chip, clean
from cryosentinel.sensors import S2_BANDS
from cryosentinel.simulate.truth import Truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIMULATED, _REFERENCE = "#1f77b4", "#7f7f7f"
_WHITE_AT = 3500.0  # digital numbers shown as white


def draw_statistics(table: pd.DataFrame) -> Figure:
    """Means and standard deviations of the bands, simulated beside published.

    Args:
        table: of :func:`cryosentinel.simulate.realism.compare_statistics`.
    """
    import matplotlib.pyplot as plt

    groups = [(name, part) for name, part in table.groupby("modality", sort=False)]
    units = {"S2L2A": "reflectance x 10,000", "S1GRD": "dB", "DEM": "m"}
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(11, 3.6),
        width_ratios=[max(len(part), 1.6) for _, part in groups],
        layout="constrained",
    )
    for axis, (name, part) in zip(axes, groups, strict=True):
        x = np.arange(len(part))
        axis.errorbar(
            x - 0.14, part["published_mean"], part["published_std"], fmt="s", color=_REFERENCE, label="published"
        )
        axis.errorbar(x + 0.14, part["mean"], part["std"], fmt="o", color=_SIMULATED, label="simulated")
        axis.set_xticks(x, part["band"])
        axis.set_xlim(-0.6, len(part) - 0.4)
        axis.set_title(name)
        axis.set_ylabel(units[name])
    axes[0].legend(title="mean ± standard deviation")
    return figure


def draw_slopes(samples: dict[str, np.ndarray]) -> Figure:
    """Cumulative distributions of slopes at 90 m.

    Args:
        samples: name -> slopes in degrees.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, slopes in samples.items():
        axis.ecdf(slopes, label=f"{name} (median {np.median(slopes):.0f}°)")
    axis.set(xlabel="slope at 90 m (degrees)", ylabel="share of ground", xlim=(0, 75))
    axis.legend()
    return figure


def draw_lake_sizes(simulated_ha: np.ndarray, real_ha: np.ndarray) -> Figure:
    """Cumulative distributions of lake areas, each lake once.

    Args:
        simulated_ha, real_ha: areas; a sample without a lake is left out.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, areas, colour in (("mapped", real_ha, _REFERENCE), ("simulated", simulated_ha, _SIMULATED)):
        areas = np.asarray(areas)
        if not (areas > 0).any():
            continue
        axis.ecdf(areas[areas > 0], label=f"{name} (n = {(areas > 0).sum()})", color=colour)
    axis.set(xscale="log", xlabel="lake area (ha)", ylabel="share of lakes", xlim=(0.1, 1000))
    axis.legend()
    return figure


def draw_single_inputs(table: pd.DataFrame) -> Figure:
    """Best-threshold IoU of each single input against the truth.

    Args:
        table: of :func:`cryosentinel.simulate.difficulty.single_inputs`.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    part = table.sort_values("iou")
    axis.barh(part["input"], part["iou"], color=_SIMULATED)
    axis.set(xlabel="IoU against the truth at the best threshold", xlim=(0, 1))
    return figure


def draw_chips(chips: Sequence[tuple[Chip, Truth]]) -> Figure:
    """Chips as a reader can judge them: true colour, infrared, radar, relief, and label against truth.

    Args:
        chips: a few, of one size.
    """
    import matplotlib.pyplot as plt

    titles = ("true colour", "B11, B08, B03", "Sentinel-1 VV", "elevation", "label (red), truth (cyan)")
    figure, axes = plt.subplots(
        len(chips), len(titles), figsize=(2.4 * len(titles), 2.5 * len(chips)), squeeze=False, layout="constrained"
    )
    for row, (chip, truth) in zip(axes, chips, strict=True):
        s2, s1, dem = clean(chip.s2, chip.s1, chip.dem)

        def picture(*names: str, s2: np.ndarray = s2) -> np.ndarray:
            bands = np.stack([s2[S2_BANDS.index(name)] for name in names], axis=-1)
            return np.clip(bands / _WHITE_AT, 0, 1) ** 0.8

        colour = picture("B04", "B03", "B02")
        row[0].imshow(colour)
        row[1].imshow(picture("B11", "B08", "B03"))
        row[2].imshow(s1[0], cmap="gray", vmin=-25, vmax=0)
        row[3].imshow(hillshade(dem[0]), cmap="gray")
        row[4].imshow(colour)
        for mask, line in ((chip.mask, "red"), (truth.lake, "cyan")):
            if mask.any() and not mask.all():
                row[4].contour(mask, [0.5], colors=line, linewidths=0.8)
        row[0].set_ylabel(f"{chip.region}\n{chip.snapshot_year}", fontsize=8)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure
