"""How far training moved each part of the network: the learning-rate profile as it shows in the weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from cryosentinel.errors import CheckpointError
from cryosentinel.models.archive import listed
from cryosentinel.models.checkpoint import load_checkpoint
from cryosentinel.models.segmenter import Segmenter, SegmenterConfig, build_segmenter, without_weights
from cryosentinel.models.statedict import segmenter_state
from cryosentinel.sensors import PUBLISHED_STATISTICS
from cryosentinel.training.optim import OptimConfig, learning_rate, part_of, rate_at

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def movement(before: str | os.PathLike[str], after: str | os.PathLike[str]) -> pd.DataFrame:
    """Compare the weights of two checkpoints of one network, part by part.

    Both files are memory-mapped and read tensor by tensor. Of a checkpoint with raw and averaged weights (a run's
    ``last.ckpt``), ``before`` counts with its average, which is what a run that starts from it loads, and ``after``
    with its raw weights: over a few steps the average lags behind what the optimiser did.

    Args:
        before: the checkpoint that the run started from.
        after: one of the run's own; it says what network it holds.

    Returns:
        As :func:`part_movement`.

    Raises:
        CheckpointError: a file cannot be read, does not say what it holds, or the two hold different networks.
    """
    first, second = load_checkpoint(before), load_checkpoint(after)
    hyper = second.get("hyper_parameters")
    described = hyper.get("segmenter") if isinstance(hyper, Mapping) else None
    if not isinstance(described, Mapping):
        raise CheckpointError(f"{after} does not say what network it holds; compare with a checkpoint of a run.")
    with torch.device("meta"):  # only names are wanted
        network = build_segmenter(without_weights(SegmenterConfig.from_dict(described)), PUBLISHED_STATISTICS)
    return part_movement(
        segmenter_state(first, source=str(before)),
        segmenter_state(second, "raw", str(after)),
        [name for name, _ in network.named_parameters()],
        names=(str(before), str(after)),
    )


def part_movement(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    parameters: Iterable[str],
    names: tuple[str, str] = ("the first state", "the second state"),
) -> pd.DataFrame:
    """Relative distance ||after - before|| / ||before|| of each part's parameters, as one vector in float64.

    Buffers (BatchNorm statistics, position embeddings) follow the data or never change: they are not counted.

    Args:
        before, after: state dicts of a segmenter, names ``net.*`` and ``refiner.*``.
        parameters: the names in them that an optimiser could change.
        names: what to call the two in an error.

    Returns:
        One row a part, from the input to the decoder, as in
        :func:`cryosentinel.training.optim.learning_rate_profile`: part, parameters (how many), norm (of ``before``),
        distance, movement (distance / norm; infinite where weights left zero), still (not one weight changed).

    Raises:
        CheckpointError: a parameter is missing on one side, or its shape differs.
    """
    import pandas as pd

    parameters = list(parameters)
    _check_alike(before, after, parameters, names)
    depth = 1 + max((block for name in parameters if (block := Segmenter.block_of(name)) is not None), default=-1)
    sums: dict[str, list[float]] = {}
    for name in parameters:
        old, new = before[name].double(), after[name].double()
        part = sums.setdefault(part_of(name, depth), [0, 0.0, 0.0])
        part[0] += old.numel()
        part[1] += float(old.square().sum())
        part[2] += float((new - old).square().sum())
    rows = []
    for name in ["encoder", *(f"block {i:02d}" for i in range(depth)), "decoder"]:
        if name in sums:
            count, norm, distance = sums[name][0], sums[name][1] ** 0.5, sums[name][2] ** 0.5
            share = distance / norm if norm > 0 else float("inf") if distance > 0 else 0.0
            rows.append((name, int(count), norm, distance, share, distance == 0))
    return pd.DataFrame(rows, columns=["part", "parameters", "norm", "distance", "movement", "still"])


def beside_rates(moved: pd.DataFrame, config: OptimConfig, steps: int, epochs: int = 1) -> pd.DataFrame:
    """Movement beside the learning rates that made it.

    AdamW divides a gradient by a running estimate of its size, so a step changes a weight by about the learning rate
    (Kingma and Ba 2015, arXiv:1412.6980, section 2.1). Where that holds, the last column is much alike in all parts.

    Args:
        moved: from :func:`movement`.
        config: the run's learning rates and schedule.
        steps: optimiser steps an epoch.
        epochs: of the run.

    Returns:
        ``moved`` with the columns share (of the decoder's learning rate) and of_rates: the root mean square change of
        the part's weights over the sum of its learning rates of all steps. 1 where every step moved every weight by
        its rate and the same way; NaN where the part is frozen.
    """
    depth = sum(part.startswith("block") for part in moved.part)
    peaks = [learning_rate(part, depth, config) for part in moved.part]
    sums = [sum(rate_at(at, peak, config, steps, epochs) for at in range(steps * epochs)) for peak in peaks]
    rms = moved.distance / moved.parameters**0.5
    walked = [change / total if total else float("nan") for change, total in zip(rms, sums, strict=True)]
    return moved.assign(share=[peak / config.lr for peak in peaks], of_rates=walked)


def _check_alike(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    parameters: Iterable[str],
    names: tuple[str, str],
) -> None:
    for state, name, other in ((before, *names), (after, *reversed(names))):
        if missing := [key for key in parameters if key not in state]:
            raise CheckpointError(
                f"{name} lacks {len(missing)} of the weights that are compared with {other} ({listed(missing)}); "
                "movement is between two checkpoints of one network."
            )
    if reshaped := [key for key in parameters if before[key].shape != after[key].shape]:
        key = min(reshaped)
        raise CheckpointError(
            f"{names[0]} has {key} as {tuple(before[key].shape)}, {names[1]} as {tuple(after[key].shape)} "
            f"({len(reshaped)} such weights); movement is between two checkpoints of one network."
        )


def plot_movement(moved: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Draw how far each part moved, on a logarithmic axis; parts that stood still are crosses at its foot.

    Args:
        moved: name of the run -> table from :func:`movement`, of one network.
        ax: where to draw; a new figure by default.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    ax.set_yscale("log")
    smallest = min((table.movement[~table.still].min() for table in moved.values() if not table.still.all()), default=1)
    parts: list[str] = []
    for (name, table), marker in zip(moved.items(), "osD^v" * len(moved), strict=False):
        parts = list(table.part)
        going, still = table[~table.still], table[table.still]
        (line,) = ax.plot(going.index, going.movement, marker=marker, label=name)
        if len(still):
            # Zero has no place on this axis.
            ax.plot(still.index, [smallest / 3] * len(still), "x", color=line.get_color(), label=f"{name}: exactly 0")
    ax.set_xticks(range(len(parts)), [part.replace("block ", "") for part in parts], rotation=90)
    ax.set_xlabel("part, from the input to the decoder (numbers: encoder blocks)")
    ax.set_ylabel("distance moved / norm before")
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.legend()
    return ax
