"""The diagnostics files of the published run folder, and the metrics file's entries, from score tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cryosentinel.evaluation.bootstrap import estimate, estimate_by
from cryosentinel.evaluation.metrics import THRESHOLDS, best_threshold, sweep
from cryosentinel.files import write_json

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.evaluation.evaluate import Evaluation


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def threshold_sweep(tables: dict[tuple[str, str], pd.DataFrame]) -> dict[str, dict[str, float | None]]:
    """Global IoU by threshold, in the published layout: ``{"0.30": {"val": ..., "test": ..., "test_truth": ...}}``."""
    out: dict[str, dict[str, float | None]] = {f"{t:.2f}": {} for t in THRESHOLDS}
    for (split, reference), table in tables.items():
        name = split if reference == "label" else f"{split}_{reference}"
        for threshold, iou in zip(THRESHOLDS, sweep(table)["iou"], strict=True):
            out[f"{threshold:.2f}"][name] = _number(iou)
    return out


def region_breakdown(tables: dict[tuple[str, str], pd.DataFrame], threshold: float = 0.5) -> dict[str, dict[str, Any]]:
    """Global IoU by region: ``{region: {"n", "raw", "low", "high", "reason", "val", "raw_truth", "val_truth"}}``.

    ``n`` counts test chips and ``raw`` is their IoU, as in the published table; the interval is of ``raw``.
    """
    out: dict[str, dict[str, Any]] = {}
    for (split, reference), table in sorted(tables.items()):
        tail = "" if reference == "label" else f"_{reference}"
        for region, found in estimate_by(table, "region", "iou", threshold).items():
            row = out.setdefault(region, {"n": 0})
            if split == "test" and not tail:
                row |= {"n": found.n, "raw": _number(found.value), "low": found.low, "high": found.high}
                row["reason"] = found.reason
            else:
                row[("raw" if split == "test" else split) + tail] = _number(found.value)
    return dict(sorted(out.items()))


def write_summaries(evaluation: Evaluation, threshold: float = 0.5) -> None:
    """Write ``threshold_sweep.json`` and ``per_region_breakdown.json`` beside the tables."""
    write_json(evaluation.folder / "threshold_sweep.json", threshold_sweep(evaluation.tables))
    write_json(evaluation.folder / "per_region_breakdown.json", region_breakdown(evaluation.tables, threshold))


def headline(
    tables: dict[tuple[str, str], pd.DataFrame],
    data: str,
    source: str,
    prefix: str = "",
    tta: bool = True,
    thresholds: tuple[float, ...] = (0.5, 0.7),
    candidates: Sequence[float] = THRESHOLDS,
) -> dict[str, dict[str, Any]]:
    """Entries of the metrics file under the published names.

    Args:
        tables: (split, reference) -> score table, from an evaluation.
        data: simulated, published or real.
        source: what computed them.
        prefix: of every name, e.g. ``"mndwi_"``; the best threshold is the validation's against its label.
        tta: whether the predictions average flips: global IoU is then named ``..._tta``, as published.
        thresholds: the fixed ones; the best on validation is added as ``@best``.
        candidates: for the best threshold; give an index all of ``metrics.ALL_THRESHOLDS``, whose step is then 0.01.

    Returns:
        ``<prefix><split>_iou@0.50_tta[_truth]``, ``..._f1@0.50_tta``, ``_precision``, ``_recall``,
        ``<prefix><split>_mean_chip_iou@0.50[_truth]``, ``..._mean_chip_iou_lake@0.50``,
        ``<prefix><split>_iou@best_tta[_truth]`` and ``<prefix>best_threshold``.
    """
    suffix = "_tta" if tta else ""
    out: dict[str, dict[str, Any]] = {}
    best = best_threshold(tables["val", "label"], thresholds=candidates) if ("val", "label") in tables else None
    named: list[tuple[str, float]] = [(f"{t:.2f}", t) for t in thresholds]
    if best is not None:
        named.append(("best", best))
        entry = {"value": best, "low": None, "high": None, "n": len(tables["val", "label"]), "data": data}
        out[f"{prefix}best_threshold"] = entry | {"source": source, "reason": "a choice on validation has no interval"}
    for (split, reference), table in tables.items():
        tail = "" if reference == "label" else f"_{reference}"
        for name, threshold in named:
            out[f"{prefix}{split}_iou@{name}{suffix}{tail}"] = estimate(table, "iou", threshold).entry(data, source)
        for metric in ("f1", "precision", "recall"):
            out[f"{prefix}{split}_{metric}@0.50{suffix}{tail}"] = estimate(table, metric).entry(data, source)
        for metric in ("mean_chip_iou", "mean_chip_iou_lake"):
            out[f"{prefix}{split}_{metric}@0.50{tail}"] = estimate(table, metric).entry(data, source)
    return out
