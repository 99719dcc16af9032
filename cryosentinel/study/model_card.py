"""The model card of a run: metadata that the hub reads, and every figure with its interval from the metrics file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryosentinel import __version__
from cryosentinel.errors import InputError
from cryosentinel.files import write_text
from cryosentinel.paths import SOUP

CARD = "README.md"
#: Figure of the metrics file -> (split, hub's type of metric, what it is).
FIGURES: dict[str, tuple[str, str, str]] = {
    "val_iou@0.50_tta": ("validation", "iou", "global IoU against labels, threshold 0.50, four flips"),
    "test_iou@0.50_tta": ("test", "iou", "global IoU against labels, threshold 0.50, four flips"),
    "test_iou@best_tta": ("test", "iou", "global IoU against labels, threshold from validation, four flips"),
    "test_f1@0.50_tta": ("test", "f1", "F1 against labels, threshold 0.50, four flips"),
    "test_precision@0.50_tta": ("test", "precision", "precision against labels, threshold 0.50, four flips"),
    "test_recall@0.50_tta": ("test", "recall", "recall against labels, threshold 0.50, four flips"),
    "test_mean_chip_iou@0.50": ("test", "iou", "mean IoU of chips against labels, threshold 0.50"),
    "test_iou@0.50_label_corrected": ("test", "iou", "global IoU, labels corrected in both directions"),
    "test_iou@0.50_tta_truth": ("test", "iou", "global IoU against the known truth, threshold 0.50, four flips"),
}
_BODY = """
# {name}

Glacial lakes from Sentinel-2, Sentinel-1 and an elevation model, {parameters}trained on {chips} by CryoSentinel \
{version}.

{table}

Intervals are percentiles of a bootstrap over split blocks (95 %). {known}

## Use

```python
from cryosentinel import load_segmenter

segmenter = load_segmenter("checkpoints/{soup}")
```

The checkpoint holds weights and plain values: loading it runs no code. `cryosentinel predict SCENE.tif --ckpt {soup}`
maps a scene of 15 bands (twelve of Sentinel-2 L2A, VV, VH, elevation) at 10 m.

## Limits

- A map of lakes, not a forecast of their outbursts.
- Lakes below half a hectare, and water under cloud, ice or in the shadow of terrain, are found less often.
- Standing water that is no glacial lake (reservoirs, ponds) may be called one{other_water}.
"""


def write_model_card(
    folder: str | Path, metrics: Mapping[str, Mapping[str, Any]], name: str, preset: str, licence: str = "apache-2.0"
) -> Path:
    """Write ``<folder>/README.md``.

    Args:
        folder: of the run.
        metrics: figures, as a study's metrics file holds them; all of one kind of data.
        name: of the model.
        preset: of the study.
        licence: an identifier of the hub.

    Raises:
        InputError: the metrics hold none of :data:`FIGURES`.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    shown = {key: metrics[key] for key in FIGURES if (metrics.get(key) or {}).get("value") is not None}
    if not shown:
        raise InputError("The metrics file holds no score of a network; run the study first: make study.")
    simulated = next(iter(shown.values()))["data"] == "simulated"
    chips = f"simulated chips of preset {preset}" if simulated else "chips of real scenes"
    data_name = f"CryoSentinel embedded benchmark, {chips}" if simulated else f"CryoSentinel, {chips}"
    results, rows = [], ["| Split | Figure | Value | 95 % interval | Chips |", "| --- | --- | ---: | --- | ---: |"]
    for key, entry in shown.items():
        split, kind, words = FIGURES[key]
        known = entry["low"] is not None
        interval = f"{entry['low']:.4f} to {entry['high']:.4f}" if known else f"none: {entry.get('reason', '')}"
        bounds = {"interval_95": [round(entry["low"], 4), round(entry["high"], 4)]} if known else {}
        results.append(
            EvalResult(
                task_type="image-segmentation", task_name="Glacial-lake segmentation",
                dataset_type=f"cryosentinel-{preset}" if simulated else "cryosentinel-chips", dataset_name=data_name,
                dataset_split=split, metric_type=kind, metric_value=round(entry["value"], 4), metric_name=words,
                metric_args={"chips": entry["n"], **bounds},
            )
        )  # fmt: skip
        rows.append(f"| {split} | {words} | {entry['value']:.4f} | {interval} | {entry['n']} |")
    data = ModelCardData(
        model_name=name, language="en", license=licence, library_name="cryosentinel", pipeline_tag="image-segmentation",
        tags=["glacial-lakes", "earth-observation", "sentinel-1", "sentinel-2", "dem", "high-mountain-asia",
              *(["simulated"] if simulated else [])],
        metrics=["iou", "f1"], eval_results=results,
    )  # fmt: skip
    count = (metrics.get("parameters_total") or {}).get("value")
    body = _BODY.format(
        name=name, chips=chips, version=__version__, table="\n".join(rows), soup=SOUP,
        parameters=f"{count / 1e6:.1f} million parameters, " if count else "",
        known="The chips are simulated: figures are those of a benchmark whose truth is known, not of real lakes."
        if simulated else "", other_water=_other_water(metrics),
    )  # fmt: skip
    path = Path(folder) / CARD
    write_text(path, str(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}", ignore_metadata_errors=False)))
    return path


def _other_water(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """How many reservoirs and ponds were called a lake where that was measured, as the end of a sentence."""
    counts = []
    for kind in ("reservoirs", "ponds"):
        entry = metrics.get(f"other_water_truth/{kind} called a lake") or {}
        if entry.get("value") is not None:
            counts.append(f"{round(entry['value'] * entry['n'])} of {entry['n']} {kind}")
    return f": in a simulated stratum rich in them {' and '.join(counts)} were" if counts else ""
