"""Checkpoints: find, load into a segmenter, save, and clean for a resumed run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from cryosentinel import paths
from cryosentinel.errors import CheckpointError, CryoSentinelError
from cryosentinel.files import replacing
from cryosentinel.models.archive import load_checkpoint as load_checkpoint
from cryosentinel.models.segmenter import Segmenter, SegmenterConfig, build_segmenter, without_weights
from cryosentinel.models.statedict import Weights, load_state, segmenter_state
from cryosentinel.sensors import Statistics


def load_segmenter(
    path: str | os.PathLike[str],
    config: SegmenterConfig | str | os.PathLike[str] | None = None,
    statistics: Statistics | str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    weights: Weights = "auto",
    verbose: bool = True,
) -> Segmenter:
    """Load a segmenter, in evaluation mode.

    Args:
        path: a checkpoint of this package, or one in the published layout.
        config: needed where the file does not say what model it holds, as the published ones do not; where it does,
            it must agree. A configuration, or the YAML file of a run, whose section ``model`` is read.
        statistics: needed where the file holds none; where it does, the ones given here are used instead. Statistics,
            or the path of ``dataset_stats_v3.json``.
        device: where the model goes.
        weights: of a file with raw and averaged weights, which: "ema", "raw", or "auto" (the average where there is
            one).
        verbose: print which weights were taken, and how many tensors.

    Raises:
        CheckpointError: the file cannot be read safely, does not say what it holds, or does not fit the configuration.
        ConfigError: the configuration in the file cannot be used.
    """
    if not (config is None or isinstance(config, SegmenterConfig)):
        config = SegmenterConfig.read(config)
    if not (statistics is None or isinstance(statistics, Statistics)):
        statistics = Statistics.read(statistics)
    checkpoint = load_checkpoint(path)
    own_config, own_statistics = describe(checkpoint, path)
    if config is None:
        if own_config is None:
            raise CheckpointError(
                f"{path} does not say what model it holds; give its configuration (config=SegmenterConfig(...), on the "
                "command line --model with a run's YAML file)."
            )
        config = own_config
    elif own_config is not None:
        refuse_other_structure(path, own_config, config)
    statistics = statistics or own_statistics
    if statistics is None and config.standardisation == "dataset":
        raise CheckpointError(
            f"{path} does not hold the statistics that its model normalises by; give them (statistics=, on the command "
            "line --statistics with the dataset's dataset_stats_v3.json)."
        )
    state = segmenter_state(checkpoint, weights, str(path), verbose)
    with torch.device("meta"):  # no time and memory for random weights that are replaced at once
        segmenter = build_segmenter(without_weights(config), statistics)
    load_state(segmenter, state, str(path), assign=True)
    segmenter.set_statistics(segmenter.statistics)
    return segmenter.to(device).eval()


def describe(
    checkpoint: Mapping[str, Any], path: str | os.PathLike[str]
) -> tuple[SegmenterConfig | None, Statistics | None]:
    """What the file says of its model and statistics, where it says it in this package's words.

    Raises:
        CheckpointError: it says it in values that cannot be used.
    """
    hyper = checkpoint.get("hyper_parameters")
    hyper = hyper if isinstance(hyper, Mapping) else {}
    model, statistics = hyper.get("segmenter"), hyper.get("statistics")
    try:
        return (
            None if model is None else SegmenterConfig.from_dict(model),
            None if statistics is None else Statistics.from_dict(statistics),
        )
    except (CryoSentinelError, OverflowError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from None


def structure(config: SegmenterConfig) -> dict[str, Any]:
    """A configuration without the entries that do not change what is built."""
    return {k: v for k, v in config.as_dict().items() if k not in ("pretrained", "weights", "drop_path")}


def refuse_other_structure(path: str | os.PathLike[str], own: SegmenterConfig, asked: SegmenterConfig) -> None:
    """Compare the model that a file holds with the one that is asked for.

    Raises:
        CheckpointError: they differ in more than initial weights and drop path; the sentence names where.
    """
    own_values, asked_values = structure(own), structure(asked)
    differing = [k for k in own_values if own_values[k] != asked_values[k]]
    if differing:
        pairs = "; ".join(f"{k} is {own_values[k]!r} there, {asked_values[k]!r} asked" for k in differing[:3])
        raise CheckpointError(
            f"{path} holds another model ({pairs}); leave the configuration out, or give the one it was trained with."
        )


def save_checkpoint(path: str | os.PathLike[str], segmenter: Segmenter, **metadata: Any) -> None:
    """Write a segmenter's weights with its configuration and statistics, atomically.

    Args:
        path: the ``.ckpt`` file.
        segmenter: the model.
        **metadata: further entries, plain values or tensors; ``hyper_parameters`` are merged with the model's own.

    Raises:
        CheckpointError: an entry is neither a plain value nor a tensor, so the file could not be loaded safely.
        OSError: the folder cannot be written; an older file stays whole.
    """
    hyper = {
        **metadata.pop("hyper_parameters", {}),
        "segmenter": segmenter.config.as_dict(),
        "statistics": segmenter.statistics.as_dict(),
    }
    state = {f"model.{name}": value for name, value in segmenter.state_dict().items()}
    write_checkpoint(path, {**metadata, "state_dict": state, "hyper_parameters": hyper})


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint that loads with weights only, atomically.

    Raises:
        CheckpointError: an entry is neither a plain value nor a tensor.
    """
    _refuse_objects(checkpoint, "")
    with replacing(path) as part:
        torch.save(dict(checkpoint), part)


def _refuse_objects(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _refuse_objects(entry, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _refuse_objects(entry, f"{where}[{index}]")
    elif not (value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, torch.Tensor)):
        raise CheckpointError(
            f"The checkpoint's entry {where} is a {type(value).__module__}.{type(value).__qualname__}; give plain "
            "values or tensors, so that the file loads without running code."
        )


def resolve_checkpoint(ckpt: str | os.PathLike[str], runs_dir: str | os.PathLike[str] | None = None) -> Path:
    """Find a checkpoint by path, by name in the latest run, or on the hub.

    Args:
        ckpt: an existing path; or a bare name such as ``soup.ckpt``, looked for in the ``checkpoints`` folder of every
            run, the latest written wins; or ``hf://owner/repo/path[@revision]``.
        runs_dir: the folder of run folders; the outputs' own by default.

    Raises:
        CheckpointError: there is no such file.
        HubError: the hub cannot be reached or does not hold it.
    """
    if os.fspath(ckpt).startswith("hf://"):
        from cryosentinel.hub import download_file

        return Path(download_file(os.fspath(ckpt)))
    return paths.checkpoint(ckpt, runs_dir)


def sanitize_resume(ckpt: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the absolute paths that checkpoint callbacks remember, so that a run can go on elsewhere.

    Lightning's ModelCheckpoint keeps the paths of its best files and refuses or mixes up its state when the folder has
    moved. Scores, steps and everything outside such callbacks stay: weights, averages, optimiser, schedule, loops.

    Args:
        ckpt: a loaded checkpoint; it is not changed.

    Returns:
        The checkpoint with cleaned callback states; tensors are shared, not copied.
    """
    cleaned = dict(ckpt)
    callbacks = ckpt.get("callbacks")
    if isinstance(callbacks, Mapping):
        cleaned["callbacks"] = {
            name: _without_paths(state) if "checkpoint" in str(name).lower() or _remembers_files(state) else state
            for name, state in callbacks.items()
        }
    return cleaned


def _remembers_files(state: Any) -> bool:
    return isinstance(state, Mapping) and not {"best_model_path", "best_k_models", "dirpath"}.isdisjoint(state)


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute())


def _without_paths(value: Any) -> Any:
    """Absolute paths become "" as values and vanish as keys and list entries; a folder's entry vanishes whole."""
    if isinstance(value, Mapping):
        return {
            key: "" if _is_absolute(entry) else _without_paths(entry)
            for key, entry in value.items()
            if not _is_absolute(key) and not (key == "dirpath" and _is_absolute(entry))
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_without_paths(entry) for entry in value if not _is_absolute(entry))
    return value
