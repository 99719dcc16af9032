"""The members of a soup: opened side by side, compared, and averaged block by block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cryosentinel.errors import CheckpointError
from cryosentinel.files import replacing, sha256
from cryosentinel.models.checkpoint import NOT_STRUCTURE
from cryosentinel.models.reading import load_checkpoint
from cryosentinel.models.skeleton import Skeleton
from cryosentinel.models.statedict import listed
from cryosentinel.models.unpickle import read_archive

_BLOCK = 1 << 18  # elements averaged at a time: 1 MiB of float32, which stays in the cache
_WINDOW = 1 << 25  # bytes of a member that may stay mapped


class Member:
    """One checkpoint of a soup, its tensors mapped and not yet read.

    Attributes:
        path: the file.
        checkpoint: its entries.
        state: name -> tensor.
    """

    def __init__(self, path: Path) -> None:
        """Open a checkpoint.

        Raises:
            CheckpointError: it cannot be read, or holds more than weights and plain values.
        """
        self.path = path
        self._archive = None
        if path.suffix == ".safetensors":
            self.checkpoint = load_checkpoint(path)
        else:
            self.checkpoint, foreign, self._archive = read_archive(path)
            if foreign:
                raise CheckpointError(
                    f"{path} holds more than weights and plain values ({listed(foreign, 3)}); convert it safely with "
                    f"`cryosentinel convert {path} {path.stem}.safetensors`, or leave it out of the soup."
                )
        self.state: dict[str, torch.Tensor] = self.checkpoint["state_dict"]
        if other := [name for name, value in self.state.items() if not isinstance(value, torch.Tensor)]:
            raise CheckpointError(f"{path} holds no tensor under {listed(other)}; it is not a model's checkpoint.")

    def release(self, name: str, start: int, size: int) -> None:
        """Give back the memory of bytes of a tensor that were read."""
        if self._archive is not None:
            self._archive.release(self._archive.offset(self.state[name]) + start, size)


def open_members(paths: Sequence[str | os.PathLike[str]]) -> list[Member]:
    """Open the members of a soup and compare each with the first.

    Raises:
        CheckpointError: there is none, one cannot be read safely, or it is of another model; the sentence names it.
    """
    if not paths:
        raise CheckpointError("A soup needs at least one checkpoint; name some.")
    members: list[Member] = []
    for path in map(Path, paths):
        members.append(Member(path))
        _check_alike(members[0], members[-1])
    return members


def _check_alike(first: Member, other: Member) -> None:
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
        whole = not tensor.is_floating_point() and not name.endswith("num_batches_tracked")
        if whole and not torch.equal(tensor, b[name]):
            raise CheckpointError(
                f"{other.path} and {first.path} differ in {name}, a whole-number buffer that cannot be averaged; soups "
                "mix checkpoints of one model."
            )
    for part in ("segmenter", "statistics"):
        mine, theirs = (_described(m, part) for m in (first, other))
        if mine != theirs:
            raise CheckpointError(
                f"{other.path} and {first.path} have a different {part} in their hyper_parameters; soups mix "
                "checkpoints of one model and data set."
            )


def _described(member: Member, part: str) -> Any:
    hyper = member.checkpoint.get("hyper_parameters")
    value = hyper.get(part) if isinstance(hyper, Mapping) else None
    return {k: v for k, v in value.items() if k not in NOT_STRUCTURE} if isinstance(value, Mapping) else value


def write_mean(
    members: list[Member], out: str | os.PathLike[str], note: dict[str, Any], digests: bool, metadata: Mapping[str, Any]
) -> Path:
    """Write the mean of the members as a checkpoint, with ``soup`` = ``note`` and what went in."""
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
        Skeleton(part, first.state, {**kept, **metadata, "soup": {**note, "members": entries}}) as skeleton,
        _one_thread(),
    ):
        for name in first.state:
            _write_tensor(skeleton, name, members)
    return Path(out)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A block is too small to share out: threads that wait for each other cost more than they add."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_tensor(skeleton: Skeleton, name: str, members: list[Member]) -> None:
    tensors = [m.state[name] for m in members]
    if not tensors[0].is_floating_point():
        # Members agree in whole numbers, but for BatchNorm's counter of batches: the largest counts.
        skeleton.write(name, 0, torch.stack([t.long() for t in tensors]).amax(0).to(tensors[0].dtype))
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
                member.release(name, window, end - window)
            window = end
