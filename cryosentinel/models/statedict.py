"""A segmenter's weights in a checkpoint: which set, under which names, and whether all of them were taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cryosentinel import paths
from cryosentinel.errors import CheckpointError
from cryosentinel.models.archive import Foreign, listed

Weights = Literal["auto", "ema", "raw"]

#: First parts of the names in TerraTorch's and segmentation_models_pytorch's own layouts.
_NET_PARTS = ("encoder", "neck", "decoder", "head", "aux_heads", "segmentation_head")
_BACKBONE_MARK = "encoder_embeddings."
#: Last parts of the names of buffers, which an average of parameters does not cover.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "pos_emb")
#: TerraMind's norms keep a bias of zeros as a buffer.
_ZERO_BIAS = re.compile(r"^net\.encoder\..*norm\d?\.bias$")
#: Not StochasticWeightAveraging: the published runs had it beside their EMA.
_EMA_NAME = re.compile(r"(?<![a-z])ema(?![a-z])|EMA|Ema(?![a-z])|(?i:moving.?average|(?<!stochastic)weight.?averag)")
#: Where averaging callbacks keep the raw weights while the average is in use.
_BACKUPS = re.compile(r"backup|collected|original|raw|online")


def canonical_keys(state: Mapping[str, Any], source: str = "The checkpoint") -> dict[str, Any]:
    """Bring the names of a state dict to the segmenter's: ``net.*`` and ``refiner.*``.

    Handles ``model.``, ``_orig_mod.`` (compiled) and ``module.`` (averaged, data-parallel) prefixes in any order, and
    names that are TerraTorch's own (``encoder.``, ``neck.``, ``decoder.``, ``head.``). Where some names start with
    ``model.``, those that do not belong to the task around the model (a loss's buffers) and are left out.

    Raises:
        CheckpointError: two names become one.
    """
    bare = {key: key.replace("_orig_mod.", "").removeprefix("module.") for key in state}
    if any(name.startswith("model.") for name in bare.values()):
        bare = {key: name for key, name in bare.items() if name.startswith("model.")}
    result: dict[str, Any] = {}
    for key, name in bare.items():
        while name.startswith(("model.", "module.")):
            name = name.partition(".")[2]
        name = f"net.{name}" if name.partition(".")[0] in _NET_PARTS else name
        if name in result:
            raise CheckpointError(f"{source} holds two weights that are both the model's {name}; keep one of them.")
        result[name] = state[key]
    return result


def is_backbone(state: Mapping[str, Any]) -> bool:
    """Whether the state is TerraMind's encoder alone, as its authors publish it."""
    return any(key.startswith(_BACKBONE_MARK) for key in state)


def segmenter_state(
    checkpoint: Mapping[str, Any], weights: Weights = "auto", source: str = "", verbose: bool = False
) -> dict[str, torch.Tensor]:
    """Take the segmenter's weights out of a checkpoint: all of one set, or an error.

    A checkpoint may hold two sets: the raw weights and their exponential moving average (EMA). Lightning's averaging
    callbacks put the average into ``state_dict`` and the raw weights into ``current_model_state``; the published runs
    put the raw weights into ``state_dict`` and the average into the state of the callback ``EMA``. Other programs keep
    it in an entry of the checkpoint beside ``state_dict``: ``ema``, ``model_ema``, ``state_dict_ema``.

    Args:
        checkpoint: what :func:`cryosentinel.models.archive.load_checkpoint` returns.
        weights: ``"ema"`` or ``"raw"`` takes that set; ``"auto"`` the average where there is one.
        source: the file's name, for messages.
        verbose: print which set was taken, and how many tensors.

    Returns:
        Name (``net.*``, ``refiner.*``) -> tensor; of a backbone alone, its own names.

    Raises:
        CheckpointError: the wanted set is not there or not whole, or a weight is not a tensor of real numbers.
    """
    state = checkpoint["state_dict"]
    base = dict(state) if is_backbone(state) else canonical_keys(state, source)
    raw = checkpoint.get("current_model_state")
    shadow = _average(checkpoint, source) if weights != "raw" and raw is None else None
    filled = 0
    if raw is not None:
        if not isinstance(raw, Mapping) or canonical_keys(raw).keys() != base.keys():
            raise CheckpointError(f"{source} holds raw and averaged weights of different names; do not trust it.")
        chosen, kind = (canonical_keys(raw), "raw") if weights == "raw" else (base, "averaged (EMA)")
    elif shadow is not None:
        chosen, filled = _averaged(base, shadow, source)
        kind = "averaged (EMA)"
    elif weights == "ema":
        raise CheckpointError(f"The checkpoint {source} holds no EMA weights; ask for weights 'raw' or 'auto'.")
    else:
        chosen, kind = base, "raw" if weights == "raw" else "only"
    _check_tensors(chosen, source)
    if verbose:
        notes = f", {filled} of them buffers that the average does not cover" if filled else ""
        left = len(state) - len(base)
        notes += f"; {left} entries outside the model left out" if left else ""
        # Notebooks show this line on pages, which name no folder of a machine.
        print(f"{paths.display_path(Path(source))}: its {kind} weights, {len(chosen)} tensors{notes}.")
    return chosen


def _check_tensors(state: Mapping[str, Any], source: str) -> None:
    if not state:
        raise CheckpointError(f"{source} holds no weights of a model; check the path.")
    for name, value in state.items():
        kind = None
        if not isinstance(value, torch.Tensor):
            # A Foreign has the name of what was to make it: sparse, quantised, meta, of a subclass, NumPy's.
            kind = value.name if isinstance(value, Foreign) else type(value).__name__
        elif value.is_complex() or (name.endswith(("weight", "bias")) and not value.is_floating_point()):
            kind = str(value.dtype)
        if kind is not None:
            raise CheckpointError(
                f"{source} holds the weight {name} as {kind}, which is no dense tensor of floating numbers; convert it "
                "to one where the file was written."
            )


def _average(checkpoint: Mapping[str, Any], source: str) -> Mapping[str, Any] | list[Any] | tuple[Any, ...] | None:
    """The average that a callback or an entry keeps: name -> tensor, or a list in the order of the parameters."""
    found: list[Mapping[str, Any] | list[Any] | tuple[Any, ...]] = []
    opaque: list[str] = []

    def search(value: Any, depth: int) -> None:
        pairs = (
            value.items() if isinstance(value, Mapping) else enumerate(value if type(value) in (list, tuple) else ())
        )
        entries = list(pairs)
        if any(isinstance(entry, torch.Tensor) and entry.ndim for _, entry in entries):
            found.append(value)
        if isinstance(value, Foreign):
            opaque.append(value.name)
        for key, entry in entries if depth < 5 else ():
            if not _BACKUPS.search(str(key).lower()):
                search(entry, depth + 1)

    callbacks = checkpoint.get("callbacks")
    for name, value in [*checkpoint.items(), *(callbacks.items() if isinstance(callbacks, Mapping) else ())]:
        if _EMA_NAME.search(str(name)):
            search(value, 0)
    largest = [entry for entry in found if len(entry) == max(map(len, found))]
    if len(largest) > 1 or (opaque and not largest):
        what = f"{len(largest)} sets of averaged weights" if largest else f"an average inside {listed(opaque)}"
        raise CheckpointError(f"{source} holds {what}; choose the weights 'raw', or save the average as one set.")
    return largest[0] if largest else None


def _averaged(
    base: Mapping[str, Any], shadow: Mapping[str, Any] | list[Any] | tuple[Any, ...], source: str
) -> tuple[dict[str, Any], int]:
    """The average with the buffers of the raw weights that it lacks, and how many those are."""
    advice = "choose the weights 'raw', or save the average under the names of the weights"
    parameters = [name for name in base if not _is_buffer(name, base[name])]
    if not isinstance(shadow, Mapping):
        shapes = [getattr(base[name], "shape", None) for name in parameters]
        if [getattr(entry, "shape", None) for entry in shadow] != shapes:
            raise CheckpointError(
                f"{source} holds its average as a list of {len(shadow)} tensors without names, which do not fit the "
                f"model's {len(parameters)} parameters one by one; {advice}."
            )
        named: dict[str, Any] = dict(zip(parameters, shadow, strict=True))
    else:
        named = canonical_keys({k: v for k, v in shadow.items() if isinstance(k, str)})
        # What counts updates lies beside the average; it is no weight.
        named = {k: v for k, v in named.items() if k in base or (isinstance(v, torch.Tensor) and v.ndim)}
    missing, unknown = set(parameters) - named.keys(), named.keys() - base.keys()
    if missing or unknown:
        raise CheckpointError(
            f"The average in {source} does not cover the model: {len(missing)} weights are missing "
            f"({listed(missing) or 'none'}), {len(unknown)} are of other names ({listed(unknown) or 'none'}); {advice}."
        )
    return {name: named.get(name, value) for name, value in base.items()}, len(base.keys() - named.keys())


def _is_buffer(name: str, value: Any) -> bool:
    """Whether a weight is one that no optimiser changes, so that an average of parameters lacks it."""
    if name.rpartition(".")[2] in _BUFFERS or not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return True
    return bool(_ZERO_BIAS.search(name)) and not value.float().any()


def differences(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """How the names, shapes and kinds of two sets of weights differ, as parts of a sentence."""
    if missing := own.keys() - state.keys():
        yield f"{len(missing)} missing ({listed(missing)})"
    if unexpected := state.keys() - own.keys():
        yield f"{len(unexpected)} unexpected ({listed(unexpected)})"
    shared = sorted(own.keys() & state.keys())
    if reshaped := [k for k in shared if own[k].shape != state[k].shape]:
        first = reshaped[0]
        yield (
            f"{len(reshaped)} of another shape ({listed(reshaped)}: {first} is {tuple(state[first].shape)}, here "
            f"{tuple(own[first].shape)})"
        )
    if retyped := [k for k in shared if own[k].is_floating_point() != state[k].is_floating_point()]:
        yield f"{len(retyped)} of another kind ({listed(retyped)}: {retyped[0]} is {state[retyped[0]].dtype})"


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], source: str, assign: bool = False) -> None:
    """Load every weight of a module, all or nothing.

    Args:
        module: the model.
        state: its weights, under its names.
        source: the file's name, for the message.
        assign: put copies of the tensors in the place of the module's (which may be on the meta device), floating
            ones as float32.

    Raises:
        CheckpointError: names, shapes or kinds differ; the sentence names the first few.
    """
    if problems := list(differences(module.state_dict(), state)):
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
    if problems := list(differences(wanted, {k: v for k, v in state.items() if k in own})):
        raise CheckpointError(
            f"The weights in {source} do not fit this backbone: {'; '.join(problems)}; give the file of the same "
            "TerraMind size and modalities."
        )
    encoder.load_state_dict({k: state[k] for k in wanted}, strict=False)
