"""Figures of the realism measures, for notebooks: each takes what the measures return and gives a Matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryosentinel import colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIMULATED, _REFERENCE = colours.SERIES[0], colours.PUBLISHED

#: What each guard of :func:`cryosentinel.simulate.realism.guards` measures, in words.
GUARDS = {
    "colour_auc": "colour and radar tell water apart (AUC)",
    "context_auc": "surroundings tell water apart (AUC)",
    "colours_beyond_three": "colours beyond three directions",
    "colours_beyond_tilt": "colours beyond brightness and tilt",
    "relief_auc": "relief alone finds lakes (AUC)",
    "flat_ground": "flat ground that is no lake",
    "other_water_number": "other water, share of bodies",
    "other_water_area": "other water, share of area",
    "empty_labels": "chips without a label",
    "vv_vh_correlation": "correlation of VV and VH",
}


def draw_statistics(table: pd.DataFrame) -> Figure:
    """Means and standard deviations of the bands, simulated beside published.

    Args:
        table: of :func:`cryosentinel.simulate.realism.compare_statistics`.
    """
    import matplotlib.pyplot as plt

    groups = dict(list(table.groupby("modality", sort=False)))
    units = {"S2L2A": "Sentinel-2, reflectance x 10,000", "S1GRD": "Sentinel-1, dB", "DEM": "elevation, m"}
    figure = plt.figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplot_mosaic([["S2L2A", "S2L2A"], ["S1GRD", "DEM"]])
    for name, axis in axes.items():
        part = groups.get(name)
        if part is None:
            axis.set_visible(False)
            continue
        x = np.arange(len(part))
        published, own = (part["published_mean"], part["published_std"]), (part["mean"], part["std"])
        axis.errorbar(x - 0.14, *published, fmt="s", color=_REFERENCE, label="published")
        axis.errorbar(x + 0.14, *own, fmt="o", color=_SIMULATED, label="simulated")
        axis.set_xticks(x, part["band"])
        axis.set_xlim(-0.6, len(part) - 0.4)
        axis.set_title(units[name], fontsize=10)
        axis.grid(alpha=0.3, linewidth=0.6)
    figure.suptitle("Mean ± standard deviation of each band", fontsize=10)
    figure.legend(*next(iter(axes.values())).get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_slopes(samples: dict[str, np.ndarray]) -> Figure:
    """Cumulative distributions of slopes at 90 m.

    Args:
        samples: name -> slopes in degrees.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, slopes), style in zip(samples.items(), ("-", "--", "-.", ":") * len(samples), strict=False):
        axis.ecdf(slopes, linestyle=style, label=f"{name} (median {np.median(slopes):.0f}°)")
    axis.set(xlabel="slope at 90 m (degrees)", ylabel="share of ground", xlim=(0, 75))
    axis.legend()
    return figure


def draw_lake_sizes(simulated_ha: np.ndarray, real_ha: np.ndarray) -> Figure:
    """Cumulative distributions of lake areas, each lake once.

    Args:
        simulated_ha, real_ha: areas; a sample without a lake is left out.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
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

    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    part = table.sort_values("iou")
    axis.barh(part["input"], part["iou"], color=_SIMULATED)
    axis.set(xlabel="IoU against the truth at the best threshold", xlim=(0, 1))
    return figure


def draw_guards(table: pd.DataFrame) -> Figure:
    """Each guard's value, the range that it is held in, and its value before the simulator was mended.

    Args:
        table: of :func:`cryosentinel.simulate.realism.guards`.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.42 * len(table) + 1.1), layout="constrained")
    y = np.arange(len(table))[::-1]
    low, high = table["low"].astype(float).fillna(0), table["high"].astype(float).fillna(1)
    held = table[["low", "high"]].notna().any(axis=1).to_numpy()
    axis.barh(y[held], (high - low)[held], left=low[held], height=0.5, color="#d9d9d9", label="limits")
    axis.plot(table["before"].astype(float), y, "x", color=_REFERENCE, label="before")
    axis.plot(table["value"], y, "o", color=_SIMULATED, label="simulated")
    for at, value in zip(y, table["value"], strict=True):
        axis.annotate(f"{value:.2f}", (value, at), (6, 5), textcoords="offset points", fontsize=9)
    axis.set_yticks(y, [GUARDS.get(name, name.replace("_", " ")) for name in table["guard"]])
    axis.set(xlim=(0, 1), xlabel="share, correlation or area under the ROC curve")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
