"""Model soups: the mean of several checkpoints' weights (Wortsman et al. 2022, arXiv:2203.05482).

Members are memory-mapped and averaged tensor by tensor, so that memory holds one model: the mean.
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
from cryosentinel.errors import CheckpointError, InputError
from cryosentinel.files import sha256
from cryosentinel.models.archive import listed, read_checkpoint, refuse_foreign
from cryosentinel.models.checkpoint import describe, structure, write_checkpoint
from cryosentinel.models.segmenter import Segmenter
from cryosentinel.models.statedict import differences, segmenter_state

_BLOCK = 1 << 14  # elements summed at a time: the sum stays in the cache, and torch shares out nothing so small


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
    """Write the mean of several checkpoints as a checkpoint, names ``model.net.*`` and ``model.refiner.*``.

    Of a member with raw and averaged weights the average is taken, as loading it would. Floating weights and BatchNorm
    statistics are averaged in float64 and keep their type, so that a soup of equal members equals them. Integer and
    boolean buffers must agree, except BatchNorm's ``num_batches_tracked``, a counter without effect on the output: the
    largest is taken.

    Args:
        members: the checkpoints, at least one.
        out: the file to write; it may be one of the members.
        digests: put the SHA-256 of each member's file into the metadata (reads every file once more).
        **metadata: further entries of the checkpoint.

    Returns:
        ``out`` as a path.

    Raises:
        CheckpointError: a member cannot be read safely, or differs from the first in names, shapes, types or
            configuration; the sentence names it.
    """
    opened = _open(members)
    return _write(_mean(opened), opened, out, {"rule": "uniform"}, digests, metadata)


def greedy_soup(
    members: Sequence[str | os.PathLike[str]],
    score: Callable[[dict[str, torch.Tensor]], float],
    out: str | os.PathLike[str],
    digests: bool = True,
    **metadata: Any,
) -> Path:
    """Write the soup that grows by every member that does not lower a score on validation.

    Members are scored alone and tried from the best down; one stays when the mean with it scores at least as well as
    without it (Wortsman et al. 2022, recipe 1). Memory holds the best mean and one candidate.

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
    opened = _open(members)
    alone = [_scored(score, member.state, member) for member in opened]
    # Python's sort is stable: of equal members the one named first goes first.
    order = sorted(range(len(opened)), key=lambda i: -alone[i])
    kept, best = [opened[order[0]]], alone[order[0]]
    mean = _mean(kept)
    for index in order[1:]:
        candidate = _mean([*kept, opened[index]])
        value = _scored(score, candidate, opened[index])
        if value >= best:
            kept, best, mean = [*kept, opened[index]], value, candidate
    tried = [{"name": opened[i].path.name, "score": alone[i], "kept": opened[i] in kept} for i in order]
    return _write(mean, kept, out, {"rule": "greedy", "score": best, "tried": tried}, digests, metadata)


def _scored(
    score: Callable[[dict[str, torch.Tensor]], float], state: dict[str, torch.Tensor], member: _Member
) -> float:
    value = float(score(state))
    if not math.isfinite(value):
        raise CheckpointError(f"The score of {member.path} is {value}, not a number to compare; leave it out.")
    return value


class _Member:
    """One checkpoint of a soup, its tensors mapped and not yet read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = read_checkpoint(path)
        refuse_foreign(file)
        self.path, self.release = file.path, file.release
        self.state = segmenter_state(file.entries, source=str(path), verbose=True)
        hyper = file.entries.get("hyper_parameters")
        self.hyper: Mapping[str, Any] = hyper if isinstance(hyper, Mapping) else {}
        config, statistics = describe(file.entries, path)
        self.described = {
            "segmenter": None if config is None else structure(config),
            "statistics": None if statistics is None else statistics.as_dict(),
        }
        self.note = {
            "name": self.path.name,
            **{k: v if type(v := file.entries.get(k)) is int else None for k in ("epoch", "global_step")},
        }


def _open(paths: Sequence[str | os.PathLike[str]]) -> list[_Member]:
    """Open the members of a soup and compare each with the first."""
    if not paths:
        raise CheckpointError("A soup needs at least one checkpoint; name some.")
    members = [_Member(path) for path in paths]
    for member in members[1:]:
        _check_alike(members[0], member)
    return members


def _check_alike(first: _Member, other: _Member) -> None:
    def refuse(how: str) -> None:
        raise CheckpointError(f"{other.path} {how} {first.path}; soups mix checkpoints of one model and data set.")

    a, b = first.state, other.state
    if problems := list(differences(a, b)):
        refuse(f"has other weights ({'; '.join(problems)}) than")
    if retyped := [name for name in a if a[name].dtype != b[name].dtype]:
        refuse(f"has {listed(retyped)} as {b[retyped[0]].dtype} and not {a[retyped[0]].dtype} as")
    whole = [k for k, v in a.items() if not v.is_floating_point() and not k.endswith("num_batches_tracked")]
    if unequal := [name for name in whole if not torch.equal(a[name], b[name])]:
        refuse(f"differs in {listed(unequal)}, whole numbers that cannot be averaged, from")
    for part, value in first.described.items():
        if value != other.described[part]:
            refuse(f"has a different {part} in its hyper_parameters than")


def _mean(members: Sequence[_Member]) -> dict[str, torch.Tensor]:
    """The mean of the members' weights, of their types; of whole numbers the largest."""
    result = {name: torch.empty(first.shape, dtype=first.dtype) for name, first in members[0].state.items()}
    for name, mean in result.items():
        values, flat = [member.state[name].reshape(-1) for member in members], mean.view(-1)
        for start in range(0, len(flat), _BLOCK):
            part = slice(start, start + _BLOCK)
            total = values[0][part].to(torch.float64 if mean.is_floating_point() else mean.dtype, copy=True)
            for value in values[1:]:
                if mean.is_floating_point():
                    total += value[part]
                else:
                    torch.maximum(total, value[part], out=total)
            flat[part] = total.div_(len(members)) if mean.is_floating_point() else total
        for member in members:
            member.release()  # pages of a mapped file count as this program's memory until they are given back
    return result


def _write(
    mean: Mapping[str, torch.Tensor],
    members: Sequence[_Member],
    out: str | os.PathLike[str],
    note: Mapping[str, Any],
    digests: bool,
    metadata: Mapping[str, Any],
) -> Path:
    notes = [member.note | ({"sha256": sha256(member.path)} if digests else {}) for member in members]
    hyper = {"hyper_parameters": members[0].hyper} if members[0].hyper else {}
    state = {f"model.{name}": value for name, value in mean.items()}
    write_checkpoint(out, {**hyper, **metadata, "state_dict": state, "soup": {**note, "members": notes}})
    print(f"{paths.display_path(Path(out))}: the mean of {len(members)} checkpoints, {len(mean)} tensors.")
    return Path(out)


def reestimate_batchnorm(segmenter: Segmenter, batches: Iterable[Mapping[str, Any]]) -> int:
    """Estimate a model's BatchNorm statistics anew on data, in place: the mean over batches, as training would see it.

    The statistics of a soup are the mean of its members', which is not what the mean weights would produce. Everything
    but the BatchNorm layers stays in evaluation mode (no stochastic depth).

    Args:
        segmenter: the model; its weights do not change, its mode is restored. After an error its statistics are those
            it had.
        batches: training batches, not augmented, of the same size each (every batch counts the same), at least one.

    Returns:
        The number of BatchNorm layers; 0 where the model has none, and nothing was done.

    Raises:
        InputError: there is no batch, or one does not fit the model.
    """
    layers = [m for m in segmenter.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {module: module.training for module in segmenter.modules()}
    before = {layer: (layer.momentum, {k: v.clone() for k, v in layer.state_dict().items()}) for layer in layers}
    count = 0
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
                count += 1
        if layers and not count:
            raise InputError("BatchNorm statistics need at least one batch of training chips; none was given.")
    except BaseException:
        for layer, (_, state) in before.items():
            layer.load_state_dict(state)
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, (momentum, _) in before.items():
            layer.momentum = momentum
    return len(layers)
