"""Conversion of checkpoints that hold foreign objects to safetensors, without running any of their code."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from cryosentinel.errors import CheckpointError
from cryosentinel.files import replacing, sha256
from cryosentinel.models.statedict import Weights, is_backbone, segmenter_state
from cryosentinel.models.unpickle import Foreign, read_archive

#: Entries of a Lightning checkpoint that describe the model and the run; optimiser and loop states stay behind.
_KEPT = (
    "hyper_parameters",
    "datamodule_hyper_parameters",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "soup",
)
_NODES = 100_000  # values of metadata that are written at most
_DEPTH = 32


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str], weights: Weights = "auto") -> Path:
    """Write the weights of any torch checkpoint as safetensors, with what it says of itself as JSON metadata.

    Names of weights are brought to this package's (``model.net.*``, ``model.refiner.*``); foreign objects (a class of
    hyperparameters, a callback's state) become their name and content as text. Nothing in the file is executed.

    Args:
        src: a torch checkpoint in zip format, trusted or not.
        dst: the ``.safetensors`` file, written atomically.
        weights: of a file with raw and averaged weights, which: "ema", "raw", or "auto" (the average if there is one).

    Returns:
        ``dst`` as a path.

    Raises:
        CheckpointError: ``src`` is missing, damaged or deceptive, or holds no weights; ``dst`` has another suffix.
    """
    if Path(dst).suffix != ".safetensors":
        raise CheckpointError(f"The converted checkpoint is a .safetensors file, not {Path(dst).name}; name it so.")
    checkpoint, foreign, _ = read_archive(src)
    if is_backbone(checkpoint["state_dict"]):
        tensors = {k: v for k, v in checkpoint["state_dict"].items() if isinstance(v, torch.Tensor)}
    else:
        tensors = {f"model.{k}": v for k, v in segmenter_state(checkpoint, weights, str(src)).items()}
    if not tensors:
        raise CheckpointError(f"{src} holds no weights; check the path.")
    writer = _Plain()
    metadata = {k: json.dumps(writer.value(checkpoint[k]), allow_nan=False) for k in _KEPT if k in checkpoint}
    metadata["converted"] = json.dumps(
        {"source": Path(src).name, "sha256": sha256(src), "weights": weights, "foreign": foreign}
    )
    _save(tensors, dst, metadata)
    return Path(dst)


def _save(tensors: Mapping[str, torch.Tensor], dst: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        # safetensors refuses tensors that share memory, as tied weights do: each name gets its own.
        packed = tensor.detach().contiguous()
        separate[name] = packed.clone() if packed.data_ptr() in seen else packed
        seen.add(packed.data_ptr())
    with replacing(dst) as part:
        save_file(separate, part, {"format": "pt", **metadata})


class _Plain:
    """Turns what was unpickled into JSON values, however deep, shared or circular it is."""

    def __init__(self) -> None:
        self._left = _NODES

    def value(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEPTH:
            return "..."
        if isinstance(value, int) and abs(value) >= 1 << 64:
            return "..."
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if isinstance(value, Mapping):
            return self._mapping(value.items(), depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(entry, depth + 1) for entry in value]
        if isinstance(value, torch.Tensor):
            shown = value.numel() == 1 and value.dtype is not torch.bfloat16
            return self.value(value.item(), depth + 1) if shown else f"<tensor {tuple(value.shape)}>"
        if isinstance(value, Foreign):
            return self._foreign(value, depth)
        if isinstance(value, type) and issubclass(value, Foreign):
            return f"<class {value.name}>"
        return f"<{type(value).__name__}>"

    def _foreign(self, value: Foreign, depth: int) -> Any:
        if value.name.startswith("pathlib.") and all(isinstance(part, str) for part in value.arguments):
            return "/".join(value.arguments).replace("//", "/", 1)
        # Two classes that only hold named values, and that Lightning files often hold hyperparameters in.
        if value.name == "argparse.Namespace" and len(value.content) == 1 and isinstance(value.content[0], Mapping):
            return self.value(value.content[0], depth + 1)
        if value.name.endswith(".AttributeDict") and all(isinstance(v, tuple) and len(v) == 2 for v in value.content):
            return self._mapping(value.content, depth)
        shown: dict[str, Any] = {"class": value.name}
        if value.arguments:
            shown["arguments"] = self.value(value.arguments, depth + 1)
        if value.content:
            shown["content"] = self.value(value.content, depth + 1)
        return shown

    def _mapping(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        # Only simple keys are written out: the text of a nested one can grow without bound.
        named = (
            (
                k
                if isinstance(k, str)
                else repr(k)
                if isinstance(k, (float, bool, Foreign)) or _small(k)
                else f"<{type(k).__name__}>",
                v,
            )
            for k, v in items
        )
        return {key: self.value(entry, depth + 1) for key, entry in named}


def _small(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 1 << 64
