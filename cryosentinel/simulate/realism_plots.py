"""Figures of the realism measures, for notebooks: each takes what the measures return and gives a Matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIMULATED, _REFERENCE = "#1f77b4", "#7f7f7f"


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


def draw_guards(table: pd.DataFrame) -> Figure:
    """Each guard's value and the range that it is held in.

    Args:
        table: of :func:`cryosentinel.simulate.realism.guards`.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 0.42 * len(table) + 1.1), layout="constrained")
    y = np.arange(len(table))[::-1]
    low, high = table["low"].astype(float).fillna(0), table["high"].astype(float).fillna(1)
    axis.barh(y, high - low, left=low, height=0.5, color="#d9d9d9", label="limits")
    axis.plot(table["value"], y, "o", color=_SIMULATED, label="simulated")
    for at, value in zip(y, table["value"], strict=True):
        axis.annotate(f"{value:.2f}", (value, at), (6, 5), textcoords="offset points", fontsize=8)
    axis.set_yticks(y, table["guard"].str.replace("_", " "))
    axis.set(xlim=(0, 1), xlabel="share, correlation or area under the ROC curve")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure
