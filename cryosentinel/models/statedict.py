"""Names of weights: the layouts in which a segmenter's state dict arrives, brought to ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from cryosentinel.errors import CheckpointError

Weights = Literal["auto", "ema", "raw"]

#: First parts of the names in TerraTorch's and segmentation_models_pytorch's own layouts.
_NET_PARTS = ("encoder", "neck", "decoder", "head", "aux_heads", "segmentation_head")
_BACKBONE_MARK = "encoder_embeddings."


def canonical_keys(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Bring the names of a state dict to the segmenter's: ``net.*`` and ``refiner.*``.

    Handles ``model.``, ``_orig_mod.`` (compiled) and ``module.`` (averaged, data-parallel) prefixes in any order, and
    names that are TerraTorch's own (``encoder.``, ``neck.``, ``decoder.``, ``head.``). Where some names start with
    ``model.``, those that do not belong to the task around the model (a loss's buffers) and are left out.
    """
    tensors = {k.replace("_orig_mod.", ""): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    if any(k.startswith("model.") for k in tensors):
        tensors = {k: v for k, v in tensors.items() if k.startswith("model.")}
    result = {}
    for key, value in tensors.items():
        while key.startswith(("model.", "module.")):
            key = key.partition(".")[2]
        result[f"net.{key}" if key.partition(".")[0] in _NET_PARTS else key] = value
    return result


def is_backbone(state: Mapping[str, Any]) -> bool:
    """Whether the state is TerraMind's encoder alone, as its authors publish it."""
    return any(key.startswith(_BACKBONE_MARK) for key in state)


def segmenter_state(
    checkpoint: Mapping[str, Any], weights: Weights = "auto", source: str = ""
) -> dict[str, torch.Tensor]:
    """Take the segmenter's weights out of a checkpoint.

    A checkpoint may hold two sets: the raw weights and their exponential moving average (EMA). Lightning's averaging
    callbacks put the average into ``state_dict`` and the raw weights into ``current_model_state``; the published runs
    put the raw weights into ``state_dict`` and the average into the state of the callback ``EMA``.

    Args:
        checkpoint: what :func:`cryosentinel.models.reading.load_checkpoint` returns.
        weights: ``"ema"`` or ``"raw"`` takes that set; ``"auto"`` the average where there is one.
        source: the file's name, for the message.

    Raises:
        CheckpointError: the wanted set is not there.
    """
    state = checkpoint["state_dict"]
    raw = checkpoint.get("current_model_state")
    shadow = _shadow_weights(checkpoint.get("callbacks"))
    if raw is not None:
        chosen = raw if weights == "raw" else state
    elif shadow is not None:
        # The callback averages parameters; what it lacks (buffers) comes from the raw weights.
        base = canonical_keys(state)
        chosen = base if weights == "raw" else {**base, **_named_alike(shadow, base)}
    elif weights == "ema":
        raise CheckpointError(f"The checkpoint {source} holds no EMA weights; ask for weights 'raw' or 'auto'.")
    else:
        chosen = state
    return canonical_keys(chosen)


def _shadow_weights(callbacks: Any) -> dict[str, torch.Tensor] | None:
    """The largest name-to-tensor mapping in the state of the callback whose name says EMA."""
    if not isinstance(callbacks, Mapping):
        return None
    found: list[dict[str, torch.Tensor]] = []

    def search(value: Any, depth: int) -> None:
        if not isinstance(value, Mapping) or depth > 4:
            return
        tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
        if tensors:
            found.append(tensors)
        for inner in value.values():
            search(inner, depth + 1)

    for name, value in callbacks.items():
        if "ema" in str(name).lower():
            search(value, 0)
    return max(found, key=len, default=None)


def _named_alike(shadow: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The average's entries that name weights of the model; counters of the callback are left out."""
    return {key: value for key, value in canonical_keys(shadow).items() if key in base}


def listed(keys: Iterable[str], count: int = 4) -> str:
    """The first few names and how many more there are."""
    names = sorted(keys)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], source: str, assign: bool = False) -> None:
    """Load every weight of a module, all or nothing.

    Args:
        module: the model.
        state: its weights, under its names.
        source: the file's name, for the message.
        assign: put copies of the tensors in the place of the module's (which may be on the meta device), floating
            ones as float32.

    Raises:
        CheckpointError: names or shapes differ; the sentence names the first few.
    """
    own = module.state_dict()
    problems = _differences(own, state)
    if problems:
        raise CheckpointError(
            f"The weights in {source} do not fit this model: {'; '.join(problems)}; give the configuration they were "
            "trained with."
        )
    if assign:
        # Copies: a model must not hang on a memory-mapped file that someone may overwrite.
        state = {k: v.to(torch.float32 if v.is_floating_point() else v.dtype, copy=True) for k, v in state.items()}
    module.load_state_dict(state, assign=assign)


def load_backbone(net: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load TerraMind's published encoder into the encoder of ``net``.

    The published file also holds decoders and modalities that the encoder here does not use: they are ignored.
    Buffers that follow from the configuration (position embeddings, the zero bias of the norms) may be missing.

    Raises:
        CheckpointError: a weight of the encoder is missing or of another shape; the sentence names the first few.
    """
    encoder = net.get_submodule("encoder")
    own = encoder.state_dict()
    parameters = dict(encoder.named_parameters())
    wanted = {k: v for k, v in own.items() if k in parameters or k in state}
    problems = _differences(wanted, {k: v for k, v in state.items() if k in own})
    if problems:
        raise CheckpointError(
            f"The weights in {source} do not fit this backbone: {'; '.join(problems)}; give the file of the same "
            "TerraMind size and modalities."
        )
    encoder.load_state_dict({k: state[k] for k in wanted}, strict=False)


def _differences(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    problems = []
    if missing := own.keys() - state.keys():
        problems.append(f"{len(missing)} missing ({listed(missing)})")
    if unexpected := state.keys() - own.keys():
        problems.append(f"{len(unexpected)} unexpected ({listed(unexpected)})")
    if reshaped := [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]:
        first = min(reshaped)
        problems.append(
            f"{len(reshaped)} of another shape ({listed(reshaped)}: {first} is {tuple(state[first].shape)}, here "
            f"{tuple(own[first].shape)})"
        )
    return problems
