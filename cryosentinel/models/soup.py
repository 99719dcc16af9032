"""Model soups: the mean of several checkpoints' weights (Wortsman et al. 2022, arXiv:2203.05482).

Members are streamed: blocks of their memory-mapped files are averaged and written to their place in the new file, so
that memory holds a few blocks and not a model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cryosentinel.errors import CheckpointError
from cryosentinel.files import replacing, sha256
from cryosentinel.models.archive import Archive
from cryosentinel.models.checkpoint import NOT_STRUCTURE
from cryosentinel.models.skeleton import Skeleton
from cryosentinel.models.statedict import listed
from cryosentinel.models.unpickle import read_archive

_BLOCK = 1 << 18  # elements averaged at a time: 1 MiB of float32, which stays in the cache
_WINDOW = 1 << 25  # bytes of a member that may stay mapped


@dataclass
class _Member:
    path: Path
    checkpoint: dict[str, Any]
    archive: Archive

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return self.checkpoint["state_dict"]


def uniform_soup(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], digests: bool = True, **metadata: Any
) -> Path:
    """Write the mean of several checkpoints as a checkpoint.

    Floating weights and BatchNorm statistics are averaged in float32 (float64 where they are float64) and keep their
    type. Integer and boolean buffers must agree, except BatchNorm's ``num_batches_tracked``, a counter without effect
    on the output: the largest is taken.

    Args:
        paths: the members, at least one; files of this package or of torch's zip format with a ``state_dict``.
        out: the file to write; it may be one of the members.
        digests: put the SHA-256 of each member's file into the metadata (reads every file once more).
        **metadata: further entries of the checkpoint.

    Returns:
        ``out`` as a path.

    Raises:
        CheckpointError: a member cannot be read safely, or differs from the first in names, shapes, types or
            configuration; the sentence names it.
    """
    members = _open(paths)
    return _write_mean(members, out, "uniform", digests, metadata)


def _open(paths: Sequence[str | os.PathLike[str]]) -> list[_Member]:
    if not paths:
        raise CheckpointError("A soup needs at least one checkpoint; name some.")
    members = []
    for path in map(Path, paths):
        checkpoint, foreign, archive = read_archive(path)
        if foreign:
            raise CheckpointError(
                f"{path} holds more than weights and plain values ({listed(foreign, 3)}); convert it safely with "
                f"`cryosentinel convert {path} {path.stem}.safetensors`, or leave it out of the soup."
            )
        members.append(_Member(path, checkpoint, archive))
        _check_alike(members[0], members[-1])
    return members


def _check_alike(first: _Member, other: _Member) -> None:
    a, b = first.state, other.state
    if differing := set(a) ^ set(b):
        raise CheckpointError(
            f"{other.path} and {first.path} do not hold the same weights: {listed(differing)} are in one only; soups "
            "mix checkpoints of one model."
        )
    for name, tensor in a.items():
        if tensor.shape != b[name].shape or tensor.dtype != b[name].dtype:
            raise CheckpointError(
                f"{other.path} has {name} as {b[name].dtype} {tuple(b[name].shape)} where {first.path} has "
                f"{tensor.dtype} {tuple(tensor.shape)}; soups mix checkpoints of one model."
            )
    for part in ("segmenter", "statistics"):
        mine, theirs = (_described(m, part) for m in (first, other))
        if mine != theirs:
            raise CheckpointError(
                f"{other.path} and {first.path} have a different {part} in their hyper_parameters; soups mix "
                "checkpoints of one model and data set."
            )


def _described(member: _Member, part: str) -> Any:
    hyper = member.checkpoint.get("hyper_parameters")
    value = hyper.get(part) if isinstance(hyper, Mapping) else None
    return {k: v for k, v in value.items() if k not in NOT_STRUCTURE} if isinstance(value, Mapping) else value


def _write_mean(
    members: list[_Member], out: str | os.PathLike[str], rule: str, digests: bool, metadata: Mapping[str, Any]
) -> Path:
    first = members[0]
    entries: list[dict[str, Any]] = [
        {"name": m.path.name, "epoch": m.checkpoint.get("epoch"), "global_step": m.checkpoint.get("global_step")}
        for m in members
    ]
    if digests:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets go of the interpreter lock
            for entry, digest in zip(entries, pool.map(sha256, [m.path for m in members]), strict=True):
                entry["sha256"] = digest
    kept = {k: v for k, v in first.checkpoint.items() if k == "hyper_parameters"}
    with (
        replacing(out) as part,
        Skeleton(part, first.state, {**kept, **metadata, "soup": {"rule": rule, "members": entries}}) as skeleton,
    ):
        for name in first.state:
            _write_tensor(skeleton, name, members)
    return Path(out)


def _write_tensor(skeleton: Skeleton, name: str, members: list[_Member]) -> None:
    tensors = [m.state[name] for m in members]
    if not tensors[0].is_floating_point():
        skeleton.write(name, 0, _counter(name, members))
        return
    flat = [t.contiguous().view(-1) for t in tensors]  # a mapped, contiguous tensor stays where it is
    width = tensors[0].element_size()
    exact = torch.promote_types(tensors[0].dtype, torch.float32)
    window = 0
    for start in range(0, flat[0].numel(), _BLOCK):
        block = flat[0][start : start + _BLOCK].to(exact, copy=True)
        for other in flat[1:]:
            block += other[start : start + _BLOCK]
        block /= len(flat)
        skeleton.write(name, start * width, block.to(tensors[0].dtype))
        end = min(start + _BLOCK, flat[0].numel()) * width
        if end - window >= _WINDOW or end == flat[0].numel() * width:
            for member in members:
                member.archive.release(member.archive.offset(member.state[name]) + window, end - window)
            window = end


def _counter(name: str, members: list[_Member]) -> torch.Tensor:
    values = [m.state[name] for m in members]
    if name.endswith("num_batches_tracked"):
        return torch.stack(values).amax(0)
    for member, value in zip(members, values, strict=True):
        if not torch.equal(value, values[0]):
            raise CheckpointError(
                f"{member.path} and {members[0].path} differ in {name}, a whole-number buffer that cannot be averaged; "
                "soups mix checkpoints of one model."
            )
    return values[0]
