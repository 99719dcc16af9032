"""Model soups: the mean of several checkpoints' weights (Wortsman et al. 2022, arXiv:2203.05482).

Members are streamed: blocks of their memory-mapped files are averaged and written to their place in the new file, so
that memory holds a few blocks and not a model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cryosentinel import paths
from cryosentinel.errors import CheckpointError
from cryosentinel.models.members import Member, open_members, write_mean
from cryosentinel.models.segmenter import Segmenter
from cryosentinel.models.statedict import canonical_keys


def make_soup(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """The uniform soup of a run's snapshots.

    Args:
        run: run folder.
        out: checkpoint to write; ``<run>/checkpoints/soup.ckpt`` by default.

    Raises:
        InputError: the run has no snapshots.
    """
    return uniform_soup(paths.snapshots(run), Path(run) / "checkpoints" / paths.SOUP if out is None else out)


def uniform_soup(
    members: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], digests: bool = True, **metadata: Any
) -> Path:
    """Write the mean of several checkpoints as a checkpoint.

    Floating weights and BatchNorm statistics are averaged in float32 (float64 where they are float64) and keep their
    type. Integer and boolean buffers must agree, except BatchNorm's ``num_batches_tracked``, a counter without effect
    on the output: the largest is taken.

    Args:
        members: the checkpoints, at least one; files of this package or of torch's zip format with a ``state_dict``.
        out: the file to write; it may be one of the members.
        digests: put the SHA-256 of each member's file into the metadata (reads every file once more).
        **metadata: further entries of the checkpoint.

    Returns:
        ``out`` as a path.

    Raises:
        CheckpointError: a member cannot be read safely, or differs from the first in names, shapes, types or
            configuration; the sentence names it.
    """
    return write_mean(open_members(members), out, {"rule": "uniform"}, digests, metadata)


def greedy_soup(
    members: Sequence[str | os.PathLike[str]],
    score: Callable[[dict[str, torch.Tensor]], float],
    out: str | os.PathLike[str],
    digests: bool = True,
    **metadata: Any,
) -> Path:
    """Write the soup that grows by every member that does not lower a score on validation.

    Members are scored alone and tried from the best down; one stays when the mean with it scores at least as well as
    without it (Wortsman et al. 2022, recipe 1). Memory holds one candidate and the running sum.

    Args:
        members: the checkpoints.
        score: maps the segmenter's state dict (``net.*``, ``refiner.*``) to a number, higher is better.
        out: the file to write.
        digests: put the SHA-256 of each file into the metadata.
        **metadata: further entries of the checkpoint.

    Returns:
        ``out`` as a path. The entry ``soup`` tells each member's own score, who stayed, and the soup's score.

    Raises:
        CheckpointError: as for :func:`uniform_soup`, or a score is not a number.
    """
    opened = open_members(members)
    alone = [_scored(score, canonical_keys(m.state), m) for m in opened]
    # Python's sort is stable: of equal members the one named first goes first.
    order = sorted(range(len(opened)), key=lambda i: -alone[i])
    kept, best = [opened[order[0]]], alone[order[0]]
    total = _sum(None, kept[0].state)
    for index in order[1:]:
        member = opened[index]
        candidate = _sum(total, member.state)
        mean = {
            k: (v / (len(kept) + 1)).to(member.state[k].dtype) if v.is_floating_point() else v
            for k, v in candidate.items()
        }
        value = _scored(score, canonical_keys(mean), member)
        if value >= best:
            kept, best, total = [*kept, member], value, candidate
    tried = [{"name": opened[i].path.name, "score": alone[i], "kept": any(opened[i] is m for m in kept)} for i in order]
    return write_mean(kept, out, {"rule": "greedy", "score": best, "tried": tried}, digests, metadata)


def _scored(score: Callable[[dict[str, torch.Tensor]], float], state: dict[str, torch.Tensor], member: Member) -> float:
    value = float(score(state))
    if not math.isfinite(value):
        raise CheckpointError(f"The score of {member.path} is {value}, not a number to compare; leave it out.")
    return value


def _sum(total: Mapping[str, torch.Tensor] | None, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add a member to a running sum, in float32 or better; of whole numbers the largest counts."""
    result = {}
    for name, value in state.items():
        exact = value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
        if total is None:
            result[name] = exact.clone()
        else:
            result[name] = total[name] + exact if value.is_floating_point() else torch.maximum(total[name], value)
    return result


def reestimate_batchnorm(segmenter: Segmenter, batches: Iterable[Mapping[str, Any]]) -> int:
    """Estimate a model's BatchNorm statistics anew on data, in place: the mean over batches, as training would see it.

    The statistics of a soup are the mean of its members', which is not what the mean weights would produce. Everything
    but the BatchNorm layers stays in evaluation mode (no stochastic depth).

    Args:
        segmenter: the model; its weights do not change, its mode is restored.
        batches: training batches, not augmented, of the same size each (every batch counts the same).

    Returns:
        The number of BatchNorm layers; 0 where the model has none, and nothing was done.

    Raises:
        InputError: a batch does not fit the model.
    """
    layers = [m for m in segmenter.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {module: module.training for module in segmenter.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    try:
        segmenter.eval()
        segmenter.training = True  # its own check of the batch size is the one for training
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over batches
            layer.train()
        with torch.no_grad():
            for batch in batches if layers else ():
                segmenter(batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum in momenta.items():
            layer.momentum = momentum
    return len(layers)
