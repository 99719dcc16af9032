"""Scores of a whole test split at 17 thresholds: per-chip histograms against torchmetrics, on the same pixels."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

IDS: tuple[str, ...] = ("scores_vs_binned_curve", "scores_vs_per_threshold")

CHIPS, QUICK_CHIPS, SIZE = 665, 40, 224  # the published test split
BATCH = 8  # chips an update of the peers: faster for them than one chip at a time, or all at once


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
    """(17, 3) tp, fp, fn by the package's own path: bins, histograms of every chip, table, sweep."""
    import pandas as pd

    from cryosentinel.evaluation.metrics import sweep
    from cryosentinel.evaluation.scores import ScoreBuilder, probability_bins

    n = len(label)
    index = pd.DataFrame({"chip_id": [str(i) for i in range(n)], "region": "r", "year": 2022, "lat": 43.0, "lon": 77.0})
    builder = ScoreBuilder(index, np.full(n, "0|0", dtype=object))
    for i in range(n):
        builder.add(i, probability_bins(probability[i]), label[i], valid[i])
    return sweep(builder.table())[["tp", "fp", "fn"]].to_numpy()


def _binned(probability: Any, label: Any) -> np.ndarray:
    """(17, 3) from one binned precision-recall curve, updated batch by batch."""
    import torch
    from torchmetrics.classification import BinaryPrecisionRecallCurve

    from cryosentinel.evaluation.metrics import THRESHOLDS

    curve = BinaryPrecisionRecallCurve(thresholds=torch.tensor(THRESHOLDS), validate_args=False)
    for p, y in zip(probability.split(BATCH), label.split(BATCH), strict=True):
        curve.update(p, y)
    counts = curve.confmat.numpy()  # (17, label, prediction)
    return np.stack([counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0]], axis=1)


def _each(probability: Any, label: Any) -> np.ndarray:
    """(17, 3) from one Jaccard index a threshold, each updated batch by batch."""
    from torchmetrics.classification import BinaryJaccardIndex

    from cryosentinel.evaluation.metrics import THRESHOLDS

    metrics = [BinaryJaccardIndex(threshold=t, validate_args=False) for t in THRESHOLDS]
    for p, y in zip(probability.split(BATCH), label.split(BATCH), strict=True):
        for metric in metrics:
            metric.update(p, y)
    counts = np.stack([metric.confmat.numpy() for metric in metrics])
    return np.stack([counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0]], axis=1)


def run(quick: bool) -> list[dict[str, Any]]:
    """Interleaved, the minimum of several rounds. All three must count the same pixels.

    Ours runs on one thread. The peers get one thread and all cores in turns, and the better of both counts: on a busy
    machine torch's threads wait for each other.
    """
    import torch

    chips = QUICK_CHIPS if quick else CHIPS
    probability, label = _chips(chips)
    valid = np.ones(label.shape, bool)
    tensors = torch.from_numpy(probability), torch.from_numpy(label.astype(np.int64))
    for warm in (lambda: _ours(probability[:2], label[:2], valid[:2]), lambda: _binned(tensors[0][:2], tensors[1][:2])):
        warm()  # compiles the counter, imports torchmetrics
    seconds: dict[str, list[float]] = {"ours": [], "binned": [], "each": []}
    counts: dict[str, np.ndarray] = {}
    threads = torch.get_num_threads()
    for turn in range(6):
        torch.set_num_threads(threads if turn % 2 else 1)
        for name, function, arguments in (
            ("ours", _ours, (probability, label, valid)), ("binned", _binned, tensors), ("each", _each, tensors),
        ):  # fmt: skip
            if name == "each" and turn >= 2:  # slow; two rounds are enough for its minimum
                continue
            start = time.perf_counter()
            counts[name] = function(*arguments)
            seconds[name].append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    if not np.array_equal(counts["ours"], counts["binned"]):
        raise AssertionError("histograms and the binned curve count different pixels")
    # The Jaccard index takes p > threshold: pixels exactly on a threshold differ.
    if np.abs(counts["ours"] - counts["each"]).max() > 1e-5 * label.size:
        raise AssertionError("histograms and the Jaccard index count different pixels")
    ours = min(seconds["ours"])
    what = (
        f"tp, fp and fn of {chips} chips of {SIZE} x {SIZE} at 17 thresholds (ours also keeps every chip's histogram)"
    )
    return [
        {"id": IDS[i], "what": what, "ours": ours, "peer": min(seconds[name]), "peer_name": peer, "unit": "s",
         "ratio": min(seconds[name]) / ours, "goal": None}
        for i, (name, peer) in enumerate(
            [("binned", "torchmetrics BinaryPrecisionRecallCurve, 17 thresholds, batches of 8"),
             ("each", "torchmetrics BinaryJaccardIndex, one a threshold, batches of 8")]
        )
    ]  # fmt: skip
