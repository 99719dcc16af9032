"""Reading a checkpoint as data: weights and plain values only, never code."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from cryosentinel.errors import CheckpointError


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``.ckpt``/``.pt`` (torch) or ``.safetensors`` file without running anything that it holds.

    Tensors stay on the CPU and, where the format allows it, memory-mapped: they are read when they are used.

    Args:
        path: the file.

    Returns:
        The checkpoint. A bare state dict comes back as ``{"state_dict": ...}``; the JSON metadata of a safetensors
        file become the other entries (``hyper_parameters``, ...).

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or holds objects beyond weights and plain
            values (the sentence names the safe conversion).
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}; check the path.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders at foreign pickle protocols; the sentences below do better
            # mmap needs the zip format (torch >= 1.6); the older one is read whole.
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) or "weights_only" in str(error):
            raise CheckpointError(_refusal(path, str(error))) from None
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged; fetch or write it again.") from None
    except Exception:
        # torch reports damage by many types (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError, ...).
        raise CheckpointError(
            f"{path} is not a checkpoint, or is truncated or damaged; fetch or write it again."
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where a checkpoint holds a dictionary.")
    if "state_dict" in value:
        return value
    if value and all(isinstance(entry, torch.Tensor) for entry in value.values()):
        return {"state_dict": value}
    raise CheckpointError(f"{path} has no 'state_dict': it is not a model's checkpoint.")


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def _refusal(path: Path, reason: str) -> str:
    """Say that the file needs more than weights, naming what it asked for where torch names it."""
    if not _is_zip(path):
        return f"{path} is not a checkpoint in torch's zip format, or is damaged; fetch or write it again."
    match = re.search(r"GLOBAL ([\w.]+)", reason)
    name = match.group(1) if match else ""
    asks = f" (it asks for {name})" if name else ""
    return (
        f"{path} holds more than weights and plain values{asks}, so loading it could run code; convert it safely "
        f"with `cryosentinel convert {path} {path.with_suffix('.safetensors').name}` and use the result."
    )


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            metadata = handle.metadata() or {}
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError):
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated or damaged; fetch or write it again."
        ) from None
    checkpoint: dict[str, Any] = {"state_dict": state}
    for key, text in metadata.items():
        try:
            checkpoint[key] = json.loads(text)
        except json.JSONDecodeError:  # metadata of other programs are plain strings
            checkpoint[key] = text
    checkpoint["state_dict"] = state
    return checkpoint
