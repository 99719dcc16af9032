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
from cryosentinel.models.archive import Foreign, read_checkpoint
from cryosentinel.models.checkpoint import describe
from cryosentinel.models.statedict import Weights, is_backbone, segmenter_state

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
_DEPTH = 24  # what is written must be within what reading admits


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str], weights: Weights = "auto") -> Path:
    """Write the weights of any torch checkpoint as safetensors, with what it says of itself as JSON metadata.

    Names of weights are brought to this package's (``model.net.*``, ``model.refiner.*``); foreign objects (a class of
    hyperparameters, a callback's state) become their name and content as text. Nothing in the file is executed. Which
    weights were taken is printed.

    Args:
        src: a torch checkpoint in zip format, trusted or not.
        dst: the ``.safetensors`` file, written atomically.
        weights: of a file with raw and averaged weights, which: "ema", "raw", or "auto" (the average if there is one).

    Returns:
        ``dst`` as a path.

    Raises:
        CheckpointError: ``src`` is missing, damaged or deceptive, or holds no weights, or one that safetensors cannot
            hold; ``dst`` has another suffix.
    """
    if Path(dst).suffix != ".safetensors":
        raise CheckpointError(f"The converted checkpoint is a .safetensors file, not {Path(dst).name}; name it so.")
    file = read_checkpoint(src)
    describe(file.entries, src)
    prefix = "" if is_backbone(file.entries["state_dict"]) else "model."
    tensors = {f"{prefix}{k}": v for k, v in segmenter_state(file.entries, weights, str(src), verbose=True).items()}
    writer = _Plain()
    metadata = {k: json.dumps(writer.value(file.entries[k]), allow_nan=False) for k in _KEPT if k in file.entries}
    metadata["converted"] = json.dumps(
        {"source": Path(src).name, "sha256": sha256(src), "weights": weights, "foreign": file.foreign}
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
        try:
            save_file(separate, part, {"format": "pt", **metadata})
        except (KeyError, ValueError) as error:  # a type of numbers that the format or its release does not know
            raise CheckpointError(f"Weights of this checkpoint cannot be written as safetensors ({error}).") from None


class _Plain:
    """Turns what was read into JSON values, however deep, shared or circular the foreign objects in it are."""

    def __init__(self) -> None:
        self._left = _NODES

    def value(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEPTH:
            return "..."
        if value is None or isinstance(value, (bool, int)):
            return value if isinstance(value, (bool, type(None))) or abs(value) < 1 << 64 else "..."
        if isinstance(value, str):
            self._left -= len(value) // 64  # one long text may occur everywhere
            return "..." if self._left < 0 else value.encode(errors="replace").decode()
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if isinstance(value, Mapping):
            return self._mapping(value.items(), depth)
        if isinstance(value, torch.Tensor):
            return self.value(value.item(), depth + 1) if value.numel() == 1 else f"<tensor {tuple(value.shape)}>"
        if isinstance(value, Foreign):
            return self._foreign(value, depth)
        if type(value) in (list, tuple):
            return [self.value(entry, depth + 1) for entry in value]
        return f"<{type(value).__name__.lstrip('_')}>"

    def _foreign(self, value: Foreign, depth: int) -> Any:
        arguments = value.arguments
        if arguments is None:
            return f"<class {value.name}>"
        self._left -= len(arguments) + len(value.content)  # looked through below, wherever it occurs
        if self._left < 0:
            return "..."
        if value.name.startswith("pathlib.") and all(isinstance(p, str) and len(p) < 256 for p in arguments):
            return self.value("/".join(arguments).replace("//", "/", 1))
        # Two classes that only hold named values, and that Lightning files often hold hyperparameters in.
        if value.name == "argparse.Namespace" and len(value.content) == 1 and isinstance(value.content[0], Mapping):
            return self.value(value.content[0], depth + 1)
        if value.name.endswith(".AttributeDict") and all(isinstance(v, tuple) and len(v) == 2 for v in value.content):
            return self._mapping(value.content, depth)
        shown: dict[str, Any] = {"class": value.name}
        if arguments:
            shown["arguments"] = self.value(arguments, depth + 1)
        if value.content:
            shown["content"] = self.value(value.content, depth + 1)
        return shown

    def _mapping(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        # Only simple keys are written out: the text of a nested one can grow without bound.
        return {str(self.value(key, _DEPTH)): self.value(entry, depth + 1) for key, entry in items}
