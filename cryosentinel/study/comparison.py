"""The study's network beside indices, a pixel classifier and other networks: same chips, same scores, and the cost.

Every network is trained by the same task, loss, schedule and seed; only the model differs
(:func:`cryosentinel.study.stages.fit`). Every threshold is the best one on the validation split, and so is the
choice between a soup's two sets of BatchNorm statistics: averaged over its snapshots, or estimated anew on training
chips. In a short run from random weights the running statistics of a deep convolutional encoder lag so far behind its
weights that the averaged set alone would be no honest baseline.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryosentinel import colours, paths
from cryosentinel.errors import ConfigError
from cryosentinel.files import read_json
from cryosentinel.study.machine import machine
from cryosentinel.study.metrics_file import COUNT, MetricsFile

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from cryosentinel.study.study import Study

BASELINES = {
    "mndwi": "MNDWI",
    "ndwi": "NDWI",
    "dem": "shape of the ground alone, gradient boosting",
    "pixel": "pixel classifier, gradient boosting, all bands",
    "pixel_slope": "pixel classifier with slope, gradient boosting",
    "mlp": "MLP on single pixels with slope",
    "mlp_context": "MLP with surroundings and relief",
    "oracle": "oracle: all true standing water",
}


@dataclass(frozen=True)
class Network:
    """A network in the place of the study's own; the rest of the preset's configuration stays.

    Attributes:
        name: of its run and of its figures.
        title: what it is, in words.
        model: the configuration's section ``model``; empty for the study's own.
        backbone_mult: the encoder's learning rate as a share of the decoder's.
        loss: what differs in the section ``loss``.
    """

    name: str
    title: str
    model: Mapping[str, Any] = field(hash=False)
    backbone_mult: float = 1.0
    loss: Mapping[str, Any] = field(default_factory=dict, hash=False)


_STEM = {"stem_channels": [64, 32]}
_TERRAMIND = {"backbone": "terramind_v1_tiny", "decoder": "UNetDecoder", "decoder_channels": [64, 48, 32, 24],
              "head_channels": []}  # fmt: skip
NETWORKS = {
    network.name: network
    for network in (
        Network("stem", "all-band stem alone, no context", {"architecture": "pixel", **_STEM}),
        Network("rim_counted", "the study's own network, the rim of the labels counted", {}, loss={"ignore_rim": 0}),
        Network("stem_terramind", "all-band stem with TerraMind tiny", {**_TERRAMIND, **_STEM}, 0.5),
        Network("terramind", "TerraMind tiny with index refiner", {**_TERRAMIND, "refiner": True}, 0.5),
        Network(
            "smp_unet", "U-Net EfficientNet-B3, all bands",
            {"architecture": "smp_unet", "encoder_name": "efficientnet-b3"},
        ),
    )
}  # fmt: skip
OWN = "soup"


def chosen(networks: str) -> list[str]:
    """Names of :data:`NETWORKS` from words as "all", "stem,terramind" or "".

    Raises:
        ConfigError: there is no such network.
    """
    found = list(NETWORKS) if networks == "all" else [name.strip() for name in networks.split(",") if name.strip()]
    for name in found:
        if name not in NETWORKS:
            raise ConfigError(f"There is no network {name!r} to compare with; choose among all, {', '.join(NETWORKS)}.")
    return found


def names() -> dict[str, str]:
    """Everything that can be compared, in the order of the table: name -> what it is."""
    networks = {name: network.title for name, network in NETWORKS.items()}
    return {**BASELINES, **networks, OWN: "all-band stem with a small U-Net (the study's own)"}


def add(network: Network) -> None:
    """Take a network of your own into the comparison (:func:`cryosentinel.models.segmenter.add_architecture` first).

    Raises:
        ConfigError: its name is taken, or its model cannot be built from.
    """
    from cryosentinel.models.segmenter import SegmenterConfig

    if network.name in names() and NETWORKS.get(network.name) != network:
        raise ConfigError(f"The comparison has a {network.name} already; give your network another name.")
    if network.model:
        SegmenterConfig.from_dict(network.model)
    NETWORKS[network.name] = network


def compare(study: Study, networks: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train what is missing, score everything on the validation and test splits, and time it.

    Args:
        study: its chips, schedule and seed.
        networks: which of :data:`NETWORKS` beside the study's own, by default all; they run without test-time flips, in
            the precision that suits the device, which the entries' source names.

    Returns:
        Entries of the metrics file: ``compared_<name>_test_iou[_truth]`` and ``compared_soup_minus_<name>_test_iou
        [_truth]`` with intervals over the same resampled blocks, ``compared_<name>_parameters`` and
        ``compared_<name>_seconds_a_chip``, and ``compared_<name>_val_iou_averaged`` and ``..._reestimated``: the two
        sets of BatchNorm statistics that the choice was between.
    """
    from cryosentinel.evaluation.baselines import baseline
    from cryosentinel.evaluation.bootstrap import difference, estimate
    from cryosentinel.evaluation.evaluate import chip_batches
    from cryosentinel.evaluation.metrics import ALL_THRESHOLDS, best_threshold
    from cryosentinel.evaluation.predictors import ModelPredictor
    from cryosentinel.models.checkpoint import load_segmenter
    from cryosentinel.models.segmenter import parameter_counts
    from cryosentinel.precision import choose

    precision = choose("auto", "cpu")
    print(precision, flush=True)
    source = f"cryosentinel.study.comparison, preset {study.preset}, seed {study.seed}, precision {precision.name}"
    metrics = MetricsFile(study.out, study.kind, study.preset, source)
    soups = {}
    for name in (*(NETWORKS if networks is None else networks), OWN):
        network = NETWORKS.get(name)
        variants = {"averaged": study.soup(network), "reestimated": study.reestimated_soup(network)}
        tables = {which: study.evaluate(path, 1, ("val",)).table("val") for which, path in variants.items()}
        scores = {which: estimate(of_one) for which, of_one in tables.items()}
        for which, score in scores.items():
            metrics.add(f"compared_{name}_val_iou_{which}", score)
        soups[name] = variants[max(scores, key=lambda which: scores[which].value)]
    baselines = [name for name in BASELINES if name != "oracle" or study.simulated]
    found = {name: study.baseline(name) for name in baselines}
    found |= {name: study.evaluate(path, 1) for name, path in soups.items()}
    thresholds = {name: best_threshold(e.table("val"), thresholds=ALL_THRESHOLDS) for name, e in found.items()}

    module = study.datamodule
    predictors: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        name: baseline(name, module.store, module.rows["train"].tolist(), truth=study.truth) for name in baselines
    }
    segmenters = {name: load_segmenter(path) for name, path in soups.items()}
    predictors |= {name: ModelPredictor(segmenter, flips=1) for name, segmenter in segmenters.items()}
    _, batch = next(chip_batches(module.store, module.rows["test"].tolist(), 4))
    seconds = seconds_a_chip(predictors, batch)

    references = [reference for split, reference in found[OWN].tables if split == "test"]
    for name, evaluation in found.items():
        for reference in references:
            table, own = evaluation.table("test", reference), found[OWN].table("test", reference)
            score = estimate(table, "iou", thresholds[name])
            metrics.add(f"compared_{name}_test_iou", score, reference=reference)
            if name != OWN:
                gain = difference(table, own, "iou", thresholds[name], thresholds[OWN])
                metrics.add(f"compared_{OWN}_minus_{name}_test_iou", gain, reference=reference)
        count = parameter_counts(segmenters[name])["total"] if name in segmenters else None
        reason = COUNT if count is not None else "an index, or a classifier of scikit-learn: not counted"
        metrics.add(f"compared_{name}_parameters", count, reason=reason)
        reason = f"wall time, the minimum of several, on {machine()}"
        metrics.add(f"compared_{name}_seconds_a_chip", seconds[name], reason=reason)
    return metrics.added


def seconds_a_chip(
    predictors: Mapping[str, Callable[[Mapping[str, Any]], Any]], batch: Mapping[str, Any], rounds: int = 5
) -> dict[str, float]:
    """Wall time of each predictor on one batch, divided by its chips: the minimum of several, taken in turns.

    Args:
        predictors: name -> predictor.
        batch: chips in physical units, as for an evaluation.
        rounds: how often each one runs, after a first time that does not count.
    """
    seconds = dict.fromkeys(predictors, float("inf"))
    for round_ in range(rounds + 1):
        for name, predict in predictors.items():
            begun = time.perf_counter()
            predict(batch)
            if round_:
                seconds[name] = min(seconds[name], time.perf_counter() - begun)
    return {name: value / len(batch["row"]) for name, value in seconds.items()}


def standard_run() -> tuple[dict[str, dict[str, Any]], str]:
    """The comparison of the committed standard run, and a sentence that names the run.

    Returns:
        the entries that :func:`compare` made there (none where it was not made), and the sentence.
    """
    root = paths.clone()
    path = root / "book" / "standard_metrics.json" if root is not None else None
    record = read_json(path) if path is not None and path.is_file() else {"metrics": {}}
    entries = {name: entry for name, entry in record["metrics"].items() if name.startswith("compared_")}
    if not entries:
        return (
            {},
            "No comparison is recorded: cryosentinel study --preset standard --parameters.networks all makes it.",
        )
    precisions = {entry["source"].partition("precision ")[2] for entry in entries.values()} - {""}
    named = f", in precision {', '.join(sorted(precisions))}" if precisions else ""
    return entries, (
        f"The comparison of the recorded standard run ({record['date']}, commit {record['commit'][:12]}{named}); what "
        "the table lacks was not trained there, and this study has compared nothing (parameter networks)."
    )


def _compared(entries: Mapping[str, Mapping[str, Any]], against: str) -> dict[str, tuple[Any, Any]]:
    """Name -> the entries of its score and of the soup's lead over it, which the soup itself has not."""
    tail = "" if against == "label" else f"_{against}"
    found = {
        name: tuple(entries.get(f"compared_{what}_test_iou{tail}") for what in (name, f"{OWN}_minus_{name}"))
        for name in names()
    }
    return {name: (score, lead) for name, (score, lead) in found.items() if score is not None}


def table(entries: Mapping[str, Mapping[str, Any]], against: str = "truth") -> pd.DataFrame:
    """The comparison as people read it: score, difference from the study's soup, parameters, seconds a chip.

    Args:
        entries: from :func:`compare`.
        against: the reference: label or truth.
    """
    import pandas as pd

    rows = {}
    for name, (score, lead) in _compared(entries, against).items():
        parameters = entries[f"compared_{name}_parameters"]["value"]
        variants = [entries.get(f"compared_{name}_val_iou_{which}") for which in ("averaged", "reestimated")]
        rows[names()[name]] = {
            f"test IoU, {against}": f"{score['value']:.3f} ({_span(score, '.3f')})",
            "our network's lead": "" if lead is None else f"{lead['value']:+.3f} ({_span(lead, '+.3f')})",
            "validation IoU*": " / ".join(f"{v['value']:.3f}" for v in variants if v),
            "million weights": "" if parameters is None else f"{parameters / 1e6:.2g}",
            "seconds a chip": f"{entries[f'compared_{name}_seconds_a_chip']['value']:.2g}",
        }
    return pd.DataFrame(rows).T


def _span(entry: Mapping[str, Any], form: str) -> str:
    return "none" if entry["low"] is None else f"{entry['low']:{form}} to {entry['high']:{form}}"


def verdict(entries: Mapping[str, Mapping[str, Any]], against: str = "truth") -> str:
    """Who is ahead of the study's soup, who behind, and from whom it cannot be told, by the intervals."""
    ahead, behind, level = "Ahead of this study's network", "Behind it", "Not told apart from it"
    groups: dict[str, list[str]] = {ahead: [], behind: [], level: []}
    for name, (_, lead) in _compared(entries, against).items():
        if lead is not None:
            known = lead["low"] is not None and (lead["low"] > 0 or lead["high"] < 0)
            where = level if not known else behind if lead["value"] > 0 else ahead
            groups[where].append(names()[name])
    return "\n".join(f"{where}: {'; '.join(names) or 'none'}." for where, names in groups.items())


def plot(entries: Mapping[str, Mapping[str, Any]], kind: str, against: str = "truth") -> Figure:
    """Score and cost side by side, the best on top: test IoU with its interval, seconds a chip.

    Args:
        entries: from :func:`compare`.
        kind: of the data: simulated or real.
        against: the reference: label or truth.
    """
    import matplotlib.pyplot as plt

    from cryosentinel.evaluation.plots import COLOURS

    scores = {name: score for name, (score, _) in _compared(entries, against).items()}
    order = sorted(scores, key=lambda name: scores[name]["value"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 1.4 + 0.42 * len(order)), width_ratios=(3, 2), sharey=True, layout="constrained"
    )
    for i, name in enumerate(order):
        group = 0 if name == OWN else 1 if name in NETWORKS else 2
        value, low, high = (scores[name][key] for key in ("value", "low", "high"))
        error = [[value - low], [high - value]] if low is not None else None
        style = {"color": (colours.NETWORK, COLOURS[2], colours.BASELINE)[group], "marker": "Dso"[group]}
        left.errorbar(value, i, xerr=error, capsize=3, linewidth=1, **style)
        seconds = entries[f"compared_{name}_seconds_a_chip"]["value"]
        right.plot(seconds, i, linestyle="none", **style)
        right.annotate(f"{seconds:.2g}", (seconds, i), textcoords="offset points", xytext=(6, -3), fontsize=9)
    left.set_yticks(
        range(len(order)), [textwrap.fill(names()[name].partition(", gradient")[0], 28) for name in order], fontsize=9
    )
    left.set(xlim=(0, 1), xlabel=f"global IoU, test, against the {against}")
    right.set(xscale="log", xlabel="seconds a chip")
    right.margins(x=0.2)
    for ax in (left, right):
        ax.grid(alpha=0.3, linewidth=0.6)
    figure.suptitle(f"Score and cost ({kind}). Whiskers: 95 % over split blocks", fontsize=10)
    return figure
