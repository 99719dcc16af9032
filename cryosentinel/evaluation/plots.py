"""Figures of the study: every one says whether its data are simulated, published or real.

Colours are those of :mod:`cryosentinel.colours`; what they separate differs in line or marker too. A page is some seven
inches wide, and wider figures would be shrunk with their text, so none is wider than eight. The functions return the
figure and leave showing it to the caller.
"""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel import colours
from cryosentinel.evaluation.audit import Audit
from cryosentinel.evaluation.audit_pieces import find_pieces, maps_of
from cryosentinel.evaluation.bootstrap import Estimate
from cryosentinel.evaluation.metrics import chip_counts, chip_iou, score
from cryosentinel.evaluation.scores import histograms
from cryosentinel.evaluation.tables import named, number, reasons, short_name
from cryosentinel.indices import mndwi, slope
from cryosentinel.sensors import region_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cryosentinel.evaluation.evaluate import Store
    from cryosentinel.evaluation.probability_maps import ProbabilityMaps

COLOURS, PUBLISHED_COLOUR = colours.SERIES, colours.PUBLISHED
_LINES, _MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v", "P", "X")


@functools.cache
def _published() -> dict[str, Any]:
    return json.loads(resources.files("cryosentinel").joinpath("published.json").read_text(encoding="utf-8"))


def _axes(width: float = 7.0, height: float = 3.8) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.set_axisbelow(True)
    return figure, ax


def _style(i: int, name: str = "") -> dict[str, Any]:
    return {"color": colours.of_layer(name, i), "linestyle": _LINES[i % len(_LINES)]}


def _error(found: Estimate) -> tuple[float, float]:
    """Lengths of the interval below and above the value; not a number where there is none."""
    if found.low is None or found.high is None:
        return np.nan, np.nan
    return max(found.value - found.low, 0.0), max(found.high - found.value, 0.0)


def threshold_sweep(sweeps: Mapping[str, pd.DataFrame], kind: str, published: bool = True) -> Figure:
    """Global IoU over the probability threshold.

    Args:
        sweeps: name -> :func:`cryosentinel.evaluation.metrics.sweep`.
        kind: of the data: simulated or real.
        published: draw the published sweep beside them (other data: for its shape, not its height).
    """
    figure, ax = _axes(7.0, 4.6)
    for i, (name, swept) in enumerate(sweeps.items()):
        style = _style(i, name)
        ax.plot(swept["threshold"], swept["iou"], **style, label=name)
        if swept["iou"].notna().any():
            best = swept.loc[swept["iou"].idxmax()]
            ax.plot(best["threshold"], best["iou"], marker=_MARKERS[i % len(_MARKERS)], color=style["color"])
    if published:
        for split, marker in (("val", "x"), ("test", "+")):
            points = [(t, _published().get(f"{split}_iou@{t:.2f}_tta")) for t in (k / 10 for k in range(1, 10))]
            known = [(t, entry["value"]) for t, entry in points if entry]
            ax.plot(*zip(*known, strict=True), marker=marker, linestyle="none", color=PUBLISHED_COLOUR,
                    label=f"{split}, label (published, other data)")  # fmt: skip
    ax.set(
        xlabel="probability threshold", ylabel=f"global IoU ({kind})", title="Markers on the lines: best threshold",
        xlim=(0, 1),
    )  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=2)
    return figure


def region_bars(estimates: Mapping[str, Mapping[str, Estimate]], kind: str, published: bool = True) -> Figure:
    """Global IoU by region, with intervals where there are enough lake-bearing blocks.

    Args:
        estimates: reference ("label", "truth") -> region -> estimate.
        kind: of the data: simulated or real.
        published: mark the published test IoU of the regions that have one.
    """
    regions = sorted({region for of_one in estimates.values() for region in of_one})
    figure, ax = _axes(7.0, 1.2 + 0.42 * max(len(regions), 2))
    height = 0.8 / max(len(estimates), 1)
    counts = {region: found.n for of_one in estimates.values() for region, found in of_one.items()}
    for i, (name, of_one) in enumerate(estimates.items()):
        at = np.arange(len(regions)) + (i - (len(estimates) - 1) / 2) * height
        found = [of_one.get(region) for region in regions]
        values = [e.value if e is not None else np.nan for e in found]
        errors = np.array([_error(e) if e is not None else (np.nan, np.nan) for e in found]).T
        ax.barh(at, values, height * 0.92, color=colours.of_layer(name, i), label=f"against the {name}",
                hatch=("", "//", "..")[i % 3], edgecolor="white", linewidth=0)  # fmt: skip
        ax.errorbar(values, at, xerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    if published:
        known = [(_published().get(f"test_iou@0.50_tta_{region}"), i) for i, region in enumerate(regions)]
        points = [(entry["value"], i) for entry, i in known if entry]
        if points:
            ax.plot(*zip(*points, strict=True), marker="D", linestyle="none", color=PUBLISHED_COLOUR,
                    markeredgecolor="white", label="against the label (published, other data)")  # fmt: skip
    ax.set_yticks(range(len(regions)), [f"{region_name(region)} ({counts[region]})" for region in regions])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=f"global IoU of the region's chips ({kind}; how many: in brackets)")
    if any(e.low is not None for of_one in estimates.values() for e in of_one.values()):
        ax.set_title("Whiskers: 95 % over split blocks", fontsize=9)
    ax.grid(visible=False, axis="y")
    figure.legend(*ax.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=2)
    return figure


def chip_iou_distribution(tables: Mapping[str, pd.DataFrame], threshold: float, kind: str) -> Figure:
    """How the IoU of single chips is distributed, over chips with lake or prediction.

    Args:
        tables: name -> score table.
        threshold: a multiple of 1/200.
        kind: of the data: simulated or real.
    """
    figure, ax = _axes()
    for i, (name, table) in enumerate(tables.items()):
        counts = chip_counts(table, threshold)
        ious = np.sort(chip_iou(table, threshold)[counts[:, :3].sum(axis=1) > 0])
        empty = int((counts[:, :3].sum(axis=1) == 0).sum())
        share = np.arange(1, len(ious) + 1) / max(len(ious), 1)
        label = f"{name}: {len(ious)} chips, {int((ious < 0.05).sum())} below 0.05, {empty} empty left out"
        style = _style(i, name)
        ax.step([0, *ious, 1], [0, *share, 1], where="post", **style, label=label)
        mean = score(table, "mean_chip_iou_lake", threshold)
        ax.axvline(mean, color=style["color"], linewidth=1)
    ax.set(xlabel=f"IoU of a chip at threshold {threshold:g} ({kind})", ylabel="share of chips at or below",
           xlim=(0, 1), ylim=(0, 1), title="Thin vertical lines: mean over chips that hold lake")  # fmt: skip
    ax.legend(fontsize=9, loc="upper left")
    return figure


def reliability(tables: Mapping[str, pd.DataFrame], kind: str, groups: int = 20) -> Figure:
    """Observed lake share over predicted probability; the size of a point grows with its pixels.

    Args:
        tables: name -> score table.
        kind: of the data: simulated or real.
        groups: classes of probability, a divisor of 200.
    """
    from cryosentinel.evaluation.calibration import calibration_error
    from cryosentinel.evaluation.calibration import reliability as curve_of

    figure, ax = _axes(5.2, 4.8)
    ax.plot([0, 1], [0, 1], color=PUBLISHED_COLOUR, linewidth=0.8, linestyle=":", label="probabilities are frequencies")
    for i, (name, table) in enumerate(tables.items()):
        curve = curve_of(table, groups)
        curve = curve[curve["pixels"] > 0]
        label, style = f"{name}, expected error {calibration_error(table, groups):.3f}", _style(i, name)
        ax.plot(curve["predicted"], curve["observed"], **style, linewidth=1.2, label=label)
        sizes = 6 * np.log10(curve["pixels"] + 1)
        ax.scatter(curve["predicted"], curve["observed"], s=sizes, color=style["color"],
                   marker=_MARKERS[i % len(_MARKERS)])  # fmt: skip
    ax.set(xlabel=f"predicted probability ({kind})", ylabel="observed share of lake", xlim=(0, 1), ylim=(0, 1),
           aspect="equal")  # fmt: skip
    ax.legend(fontsize=9, loc="lower right")
    return figure


def _dots(ax: Axes, found: Mapping[str, Estimate], highlight: str | None) -> None:
    for i, (name, value) in enumerate(found.items()):
        chosen = name == highlight
        ax.errorbar(
            [value.value], [i], xerr=np.array(_error(value))[:, None], fmt="D" if chosen else "o", capsize=3,
            color=colours.NETWORK if chosen else colours.BASELINE, markersize=8 if chosen else 6,
        )  # fmt: skip
        ax.annotate(number(value.value), (value.value, i), textcoords="offset points", xytext=(0, 7), ha="center",
                    fontsize=9)  # fmt: skip
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.4, -0.6)


def _note(found: Mapping[str, Estimate]) -> str:
    """Below an axis: what the whiskers are, or why there are none."""
    without = [e for e in found.values() if e.low is None]
    if len(without) < len(found):
        return "\nwhiskers: 95 % over split blocks"
    return "\n" + textwrap.fill(reasons(found), 60) if without else ""


def snapshots_vs_soup(found: Mapping[str, Estimate], kind: str, split: str = "validation") -> Figure:
    """Snapshots beside their soup, with intervals.

    Args:
        found: name -> estimate; the one named "soup" is set apart.
        kind: of the data: simulated or real.
        split: on which it was measured.
    """
    figure, ax = _axes(7.0, 1.4 + 0.42 * len(found))
    _dots(ax, found, "soup")
    ax.set_xlabel(f"global IoU, {split} ({kind}){_note(found)}")
    return figure


def comparison(
    found: Mapping[str, Estimate],
    kind: str,
    published: Mapping[str, float] | None = None,
    highlight: str = "soup",
    metric: str = "global IoU, test",
) -> Figure:
    """Predictors on one scale: ours with intervals, published figures set apart below.

    Args:
        found: name -> estimate.
        kind: of the data: simulated or real.
        published: name -> figure from elsewhere, on other data.
        highlight: which of ``found`` to set apart.
        metric: what is on the axis.
    """
    published = published or {}
    figure, ax = _axes(7.0, 1.3 + 0.4 * (len(found) + len(published)))
    _dots(ax, found, highlight)
    names = [named(name) for name in found]
    for i, (name, value) in enumerate(published.items(), start=len(found)):
        ax.plot(value, i, marker="x", color=PUBLISHED_COLOUR, linestyle="none", markersize=7)
        ax.annotate(f"{value:.3f}", (value, i), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9,
                    color=PUBLISHED_COLOUR)  # fmt: skip
        names.append(f"{name} (published, other data)")
    if published:
        ax.axhline(len(found) - 0.5, color=PUBLISHED_COLOUR, linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
    ax.set_xlabel(f"{metric} ({kind}){_note(found)}")
    return figure


def shares(panels: Mapping[str, Mapping[str, Estimate]], kind: str, lowest: float = 0.0) -> Figure:
    """Shares or differences with their intervals, a panel below the other.

    Args:
        panels: what is on the axis -> name -> estimate.
        kind: simulated, published or real.
        lowest: left end of the axes; below 0 for differences, whose axes adapt and mark 0.
    """
    import matplotlib.pyplot as plt

    rows = [1.3 + 0.38 * len(found) for found in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7.0, sum(rows)), height_ratios=rows, squeeze=False, layout="constrained"
    )
    for ax, (label, found) in zip(axes.flat, panels.items(), strict=True):
        _dots(ax, found, None)
        ax.grid(alpha=0.3, linewidth=0.6)
        if lowest < 0:
            ax.axvline(0, color=PUBLISHED_COLOUR, linewidth=0.8, linestyle=":")
            ax.margins(x=0.15)
        else:
            ax.set_xlim(-0.06, 1.06)
        ax.set_xlabel(f"{label} ({kind}){_note(found)}")
    return figure


def uncertainty(tables: Mapping[str, pd.DataFrame], kind: str) -> Figure:
    """Whether error rises with uncertainty, and what remains of it when the most uncertain pixels are left out.

    Args:
        tables: measure -> :func:`cryosentinel.evaluation.uncertainty.error_table`.
        kind: simulated, published or real.
    """
    import matplotlib.pyplot as plt

    from cryosentinel.evaluation.calibration import reliability as curve_of
    from cryosentinel.evaluation.uncertainty import ranking, referral

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
    for i, (name, table) in enumerate(tables.items()):
        curve, rest, style = curve_of(table), referral(table), _style(i)
        curve = curve[curve["pixels"] > 0]
        label = f"{name} (area under the curve {ranking(table).value:.3f})"
        left.plot(curve["predicted"], curve["observed"], marker=_MARKERS[i], markersize=4, **style, label=label)
        right.plot(rest["left_out"], rest["error"], **style)
    left.set(xlabel="uncertainty", ylabel="share of pixels that are wrong", xlim=(0, 1))
    right.set(xlabel="share left out, the most uncertain first", ylabel="share of the others that is wrong")
    right.set_xscale("symlog", linthresh=1e-3)
    for ax in (left, right):
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3, linewidth=0.6)
    figure.suptitle(f"Test split ({kind})", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), fontsize=9, loc="outside lower center")
    return figure


def region_support(found: Mapping[str, Estimate], training: Mapping[str, int], kind: str) -> Figure:
    """The score of each region, those with the most training chips on top.

    Args:
        found: region -> estimate of global IoU.
        training: region -> training chips.
        kind: simulated, published or real.
    """
    order = sorted(found, key=lambda region: -training.get(region, 0))
    figure, ax = _axes(7.0, 1.2 + 0.32 * len(order))
    for i, region in enumerate(order):
        value = found[region]
        ax.errorbar(
            [value.value], [i], xerr=np.array(_error(value))[:, None], fmt="o", color=colours.NETWORK, capsize=3
        )
    ax.set_yticks(range(len(order)), [f"{region_name(region)}, {training.get(region, 0)}" for region in order])
    ax.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.5), ylabel="region, and its training chips",
           xlabel=f"global IoU of the region's test chips ({kind}){_note(found)}")  # fmt: skip
    return figure


def training_curves(log: pd.DataFrame, kind: str) -> Figure:
    """Loss terms and validation IoU by epoch.

    Args:
        log: the run's ``metrics.csv``: epoch, loss, loss_<term>, val_iou.
        kind: of the data: simulated or real.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    terms = sorted(c for c in log.columns if c == "loss" or c.startswith("loss_"))
    labels = ("mean loss of an epoch", f"global IoU, validation ({kind})")
    for ax, names, label in zip(axes, (terms, ["val_iou"]), labels, strict=True):
        for i, name in enumerate(name for name in names if name in log):
            seen = log[["epoch", name]].dropna()
            style = {"color": COLOURS[i % len(COLOURS)] if name != "val_iou" else colours.NETWORK}
            ax.plot(seen["epoch"], seen[name], marker=_MARKERS[i % len(_MARKERS)], markersize=4, **style,
                    linestyle=_LINES[i % len(_LINES)], linewidth=2.2 if name == "loss" else 1.2,
                    label="total" if name == "loss" else name.removeprefix("loss_"))  # fmt: skip
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3, linewidth=0.6)
    axes[0].set_yscale("symlog", linthresh=0.01)
    if len(terms) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=4)
    return figure


def audit_panels(result: Audit, store: Store, maps: ProbabilityMaps, position: int, truth: Any = None) -> Figure:
    """One audited chip in four panels: true colour, MNDWI, slope, predicted probability; outlines over all.

    Args:
        result: an audit.
        store: its chips.
        maps: the stored predictions it was made from.
        position: of the chip in the verdict table.
        truth: chip id -> truth with ``lake``, or None.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke

    from cryosentinel.data.chip_plots import composite, outline

    row = result.verdicts.iloc[position]
    chip, bins = store[int(row["row"])], np.asarray(maps.bins[position])
    label, prediction, _ = maps_of(chip, bins, result.rule)
    figure, grid = plt.subplots(2, 2, figsize=(7.5, 7.4), layout="constrained")
    axes = grid.ravel()
    axes[0].imshow(composite(chip.s2))
    index = axes[1].imshow(mndwi(chip.s2), cmap="BrBG", vmin=-0.8, vmax=0.8)
    steep = axes[2].imshow(slope(chip.dem[0].astype(np.float32)), cmap="cividis", vmin=0, vmax=40)
    probability = axes[3].imshow(maps.probability(position), cmap="cividis", vmin=0, vmax=1)
    for ax, image in zip(axes[1:], (index, steep, probability), strict=True):
        figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02)
    threshold = f"probability, lake from {result.rule.threshold:g}"
    for ax, title in zip(axes, ("true colour", "MNDWI", "slope, degrees", threshold), strict=True):
        outline(ax, label, colours.LABEL, "label")
        outline(ax, prediction, colours.PREDICTION, "prediction")
        if truth is not None:
            outline(ax, truth[chip.chip_id].lake, colours.TRUTH, "known truth")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=10, loc="outside lower center", ncols=3)
    pieces = result.pieces[result.pieces["row"] == row["row"]]
    for i, piece in enumerate(find_pieces(label, prediction, result.rule)):
        y, x = (float(np.median(axis)) for axis in np.nonzero(piece.mask))
        number_ = axes[0].text(x, y, str(i + 1), color="white", fontsize=12, ha="center", va="center", weight="bold")
        number_.set_path_effects([withStroke(linewidth=2, foreground="black")])
    verdicts = ", ".join(
        f"{i + 1} {piece.verdict} ({piece.label_wrong:.2f})" for i, piece in enumerate(pieces.itertuples())
    )
    figure.suptitle(
        f"{short_name(chip.chip_id)}, IoU {row['iou']:.2f}: "
        + textwrap.fill(verdicts or "no piece of disagreement", 60), fontsize=11,
    )  # fmt: skip
    return figure


def lake_scores(found: Mapping[str, Mapping[str, Mapping[str, Estimate]]], kind: str) -> Figure:
    """Lakes found, false lakes, errors of area and outline, by class of lake.

    Args:
        found: predictor -> class of lake -> scores, from :func:`cryosentinel.evaluation.objects.by_size`.
        kind: simulated, published or real.
    """
    import matplotlib.pyplot as plt

    from cryosentinel.evaluation.objects import SCORES

    classes = list(next(iter(found.values())))
    others = iter((*COLOURS[:3], "#000000", colours.PUBLISHED) * len(found))
    drawn = {name: colours.NETWORK if name == "soup" else next(others) for name in found}
    rows = 0.2 + len(classes) * (0.3 + 0.13 * len(found))
    figure, axes = plt.subplots(2, 2, figsize=(8, 1.9 + 2 * rows), sharey=True, layout="constrained")
    for ax, name in zip(axes.flat, ("detected", "false", "area_error", "boundary_m"), strict=True):
        for i, (predictor, by_class) in enumerate(found.items()):
            at = np.arange(len(classes)) + (i - (len(found) - 1) / 2) * 0.8 / len(found)
            values = [by_class[c][name].value for c in classes]
            errors = np.array([_error(by_class[c][name]) for c in classes]).T
            ax.errorbar(values, at, xerr=errors, fmt=_MARKERS[i % len(_MARKERS)], color=drawn[predictor],
                        capsize=2, markersize=5, elinewidth=1, label=named(predictor))  # fmt: skip
        if name in ("detected", "false"):
            ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel(textwrap.fill(SCORES[name], 38), fontsize=9)
        for at in np.arange(len(classes) - 1) + 0.5:
            ax.axhline(at, color="#cccccc", linewidth=0.6)
        ax.grid(alpha=0.3, linewidth=0.6)
    counts = next(iter(found.values()))
    axes[0, 0].set_yticks(range(len(classes)), [f"{c} ({counts[c]['detected'].n})" for c in classes])
    axes[0, 0].invert_yaxis()
    figure.suptitle(f"Lakes by class ({kind}; how many: in brackets). Whiskers: 95 % over split blocks", fontsize=10)
    if len(found) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3)
    return figure


def error_causes(found: Mapping[str, pd.DataFrame], kind: str) -> Figure:
    """Erring pixels by cause and predictor, as a share of the true lake's pixels: missed lake and false alarms.

    Args:
        found: predictor -> :func:`cryosentinel.evaluation.causes.by_cause`.
        kind: simulated, published or real.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    causes = list(next(iter(found.values())).index)
    figure, axes = plt.subplots(2, 1, figsize=(8, 1.6 + 0.72 * len(found)), sharex=True, layout="constrained")
    for ax, column, title in zip(axes, ("missed", "false"), ("missed lake", "false alarms"), strict=True):
        share = np.array([of[column].to_numpy() / max(of["lake"].sum(), 1) for of in found.values()])
        ax.imshow(np.ma.masked_equal(share, 0), norm=LogNorm(1e-4, 1, clip=True), cmap="YlOrBr", aspect="auto")
        for (row, at), value in np.ndenumerate(share):
            text = "" if not value else f"{100 * value:.1f}" if value >= 0.0005 else "< 0.1"
            ax.text(at, row, text, ha="center", va="center", fontsize=9, color="white" if value > 0.2 else "black")
        ax.set_xticks(range(len(causes)), [textwrap.fill(cause, 10) for cause in causes], fontsize=9)
        ax.set_yticks(range(len(found)), [named(name) for name in found], fontsize=9)
        ax.set_title(f"{title}, pixels per 100 pixels of true lake ({kind})", fontsize=10)
    return figure


def overview(table: pd.DataFrame, store: Store, maps: ProbabilityMaps, kind: str, truth: Any = None) -> Figure:
    """Chips that stand for the split: at the 90th, 50th and 10th percentile of IoU among the chips with lake.

    Args:
        table: score table of the split, rows in the order of the maps; its reference ranks the chips.
        store: the chips.
        maps: their probability maps.
        kind: simulated, published or real.
        truth: chip id -> truth with ``lake``, or None where it is not known.
    """
    import matplotlib.pyplot as plt

    from cryosentinel.data.chip_plots import composite

    iou = chip_iou(table, 0.5)
    lakes = np.flatnonzero(np.isfinite(iou) & (histograms(table)[0].sum(axis=1) > 0))
    order = lakes[np.argsort(iou[lakes], kind="stable")]
    chosen = [int(order[round(q * (len(order) - 1))]) for q in (0.9, 0.5, 0.1)] if len(order) else []
    titles = ["true colour", "label", *(["known truth"] if truth is not None else []), "probability"]
    figure, axes = plt.subplots(
        max(len(chosen), 1), len(titles), figsize=(8, 0.9 + 7.4 / len(titles) * max(len(chosen), 1)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    image = None
    for line, i in zip(axes, chosen, strict=False):
        chip = store[int(maps.rows[i])]
        masks = [chip.mask > 0, *([truth[chip.chip_id].lake > 0] if truth is not None else [])]
        line[0].imshow(composite(chip.s2))
        for ax, mask in zip(line[1:], masks, strict=False):
            ax.imshow(mask, cmap="cividis", vmin=0, vmax=1)
        image = line[-1].imshow(maps.probability(i), cmap="cividis", vmin=0, vmax=1)
        line[0].set_ylabel(f"{region_name(chip.region)}\n{chip.snapshot_year}, IoU {iou[i]:.2f}", fontsize=9)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(f"{title} ({kind})" if title == "true colour" else title, fontsize=10)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
        bar.set_label("probability of glacial lake", fontsize=9)
    return figure
