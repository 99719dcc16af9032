"""Counts of a whole test split at all 200 thresholds: per-chip histograms against torchmetrics, on the same pixels.

Every side starts from the same float32 probabilities and labels in memory, and ends with the same table: pixels of lake
predicted (tp), of background predicted (fp) and of lake missed (fn), over all chips, at each threshold k/200 for k from
0 to 199. Ours keeps the histograms of every chip on the way, which the peers do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness import interleaved

IDS: tuple[str, ...] = ("scores_vs_binned_curve", "scores_vs_per_threshold")

CHIPS, QUICK_CHIPS, SIZE = 665, 16, 224  # the published test split
BATCH = 8  # chips an update of the peers: faster for them than one chip at a time, or all at once
THRESHOLDS = tuple(k / 200 for k in range(200))


def _chips(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as a trained network gives them (mostly near 0, some in between), and labels: (n, 224, 224)."""
    rng = np.random.default_rng(0)
    label = np.zeros((n, SIZE, SIZE), np.uint8)
    for i in range(n):
        row, column, side = rng.integers(0, (SIZE - 60, SIZE - 60, 60)).tolist()
        label[i, row : row + side, column : column + side] = i % 3 > 0
    logits = rng.standard_normal(label.shape, dtype=np.float32) * 1.5 - 5 + 9 * label
    return 1 / (1 + np.exp(-logits)), label


def _ours(probability: np.ndarray, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(200, 3) by the package's own path: bins, histograms of every chip, table, sweep."""
    import pandas as pd

    from cryosentinel.evaluation.metrics import sweep
    from cryosentinel.evaluation.scores import ScoreBuilder, probability_bins

    n = len(label)
    index = pd.DataFrame({"chip_id": [str(i) for i in range(n)], "region": "r", "year": 2022, "lat": 43.0, "lon": 77.0})
    builder = ScoreBuilder(index, np.full(n, "0|0", dtype=object))
    for i in range(n):
        builder.add(i, probability_bins(probability[i]), label[i], valid[i])
    return sweep(builder.table(), THRESHOLDS)[["tp", "fp", "fn"]].to_numpy()


def _binned(probability: Any, label: Any) -> np.ndarray:
    """(200, 3) from one binned precision-recall curve, updated batch by batch."""
    import torch
    from torchmetrics.classification import BinaryPrecisionRecallCurve

    curve = BinaryPrecisionRecallCurve(thresholds=torch.tensor(THRESHOLDS), validate_args=False)
    for p, y in zip(probability.split(BATCH), label.split(BATCH), strict=True):
        curve.update(p, y)
    counts = curve.confmat.numpy()  # (200, label, prediction)
    return np.stack([counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0]], axis=1)


def _each(probability: Any, label: Any) -> np.ndarray:
    """(200, 3) from one Jaccard index a threshold, each updated batch by batch."""
    from torchmetrics.classification import BinaryJaccardIndex

    metrics = [BinaryJaccardIndex(threshold=t, validate_args=False) for t in THRESHOLDS]
    for p, y in zip(probability.split(BATCH), label.split(BATCH), strict=True):
        for metric in metrics:
            metric.update(p, y)
    counts = np.stack([metric.confmat.numpy() for metric in metrics])
    return np.stack([counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0]], axis=1)


def run(quick: bool) -> list[dict[str, Any]]:
    """All sides in turns on the same chips, the minimum of the rounds; they must count the same pixels.

    Everything runs on one thread. One metric a threshold takes minutes, so that it runs once.
    """
    import torch

    chips = QUICK_CHIPS if quick else CHIPS
    probability, label = _chips(chips)
    valid = np.ones(label.shape, bool)
    tensors = torch.from_numpy(probability), torch.from_numpy(label.astype(np.int64))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    counts: dict[str, np.ndarray] = {}
    tasks = {
        "ours": lambda: counts.update(ours=_ours(probability, label, valid)),
        "binned": lambda: counts.update(binned=_binned(*tensors)),
        "each": lambda: counts.update(each=_each(*tensors)),
    }
    try:
        _ours(probability[:2], label[:2], valid[:2])  # compiles the counter
        _binned(tensors[0][:2], tensors[1][:2])  # imports torchmetrics
        seconds = interleaved(tasks, rounds=1)
        for name, more in interleaved({"ours": tasks["ours"], "binned": tasks["binned"]}, rounds=2).items():
            seconds[name] += more
    finally:
        torch.set_num_threads(threads)
    if not np.array_equal(counts["ours"], counts["binned"]):
        raise AssertionError("histograms and the binned curve count different pixels")
    # The Jaccard index takes p > threshold: pixels exactly on a threshold differ.
    if np.abs(counts["ours"] - counts["each"]).max() > 1e-5 * label.size:
        raise AssertionError("histograms and the Jaccard index count different pixels")
    ours, binned, each = (min(seconds[name]) for name in ("ours", "binned", "each"))
    what = (
        f"tp, fp and fn of {chips} chips of {SIZE} x {SIZE} at all 200 thresholds, from the same probabilities in "
        "memory, one thread (ours also keeps every chip's histograms)"
    )
    return [
        {"id": name, "what": what, "ours": ours, "peer": peer, "peer_name": f"torchmetrics {how}, batches of {BATCH}",
         "unit": "s", "ratio": peer / ours, "goal": goal}
        for name, peer, how, goal in zip(
            IDS, (binned, each),
            ("BinaryPrecisionRecallCurve, 200 thresholds", "BinaryJaccardIndex, one a threshold"), (8, 200),
            strict=True,
        )
    ]  # fmt: skip
