"""What a run folder holds: whose run it is, where it stopped, and whether this configuration may go on from there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cryosentinel.errors import CheckpointError, ConfigError
from cryosentinel.files import read_json, replacing, write_json
from cryosentinel.models.checkpoint import load_checkpoint, refuse_other_structure, sanitize_resume, write_checkpoint
from cryosentinel.models.segmenter import SegmenterConfig
from cryosentinel.paths import SHARDS, STATISTICS_FILE
from cryosentinel.training.config import differences
from cryosentinel.training.optim import parameter_groups
from cryosentinel.training.task import SegmentationTask

SUMMARY = "logs/summary.json"
RUNNING = "logs/data.json"


def is_rank_zero() -> bool:
    """Whether this process writes the run's files."""
    return getattr(rank_zero_only, "rank", 0) in (None, 0)


def forget(folder: Path) -> None:
    """Delete a run's files, and nothing else that lies in its folder."""
    if is_rank_zero():
        for part in ("checkpoints", "logs", "diagnostics"):
            shutil.rmtree(folder / part, ignore_errors=True)


def data_fingerprint(root: Path) -> str:
    """What tells one dataset from another without reading it: names and sizes of its shards, and its statistics."""
    digest = hashlib.sha256()
    for path in sorted([*root.glob(SHARDS), *root.glob(STATISTICS_FILE)]):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def saved_config(folder: Path, resume: Any) -> dict[str, Any] | None:
    """The configuration of the run that is to go on, as its folder keeps it.

    Args:
        folder: the run folder.
        resume: as for :func:`state_to_resume`.

    Returns:
        The configuration as plain values; None where no run is to go on, or it left none.
    """
    if resume in (None, "never"):
        return None
    last = folder / "checkpoints" / "last.ckpt" if resume == "auto" else Path(resume)
    saved = last.resolve().parent.parent / "logs" / "config.yaml"
    return yaml.safe_load(saved.read_text(encoding="utf-8")) if last.is_file() and saved.is_file() else None


def check_same_run(folder: Path, plain: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse to mix two runs in one folder.

    Args:
        folder: the run folder.
        plain: the configuration, as plain values.
        fingerprint: of the data, see :func:`data_fingerprint`.

    Raises:
        ConfigError: the folder holds a run of another configuration, or on other data.
    """
    saved = saved_config(folder, "auto")
    if saved is None:
        return
    advice = "choose another --run_dir, or begin anew with --resume never"
    if changed := differences(saved, plain):
        raise ConfigError(f"{folder} holds a run of another configuration (it differs in {_few(changed)}); {advice}.")
    if (folder / RUNNING).is_file() and read_json(folder / RUNNING)["data"] != fingerprint:
        raise ConfigError(f"{folder} holds a run on other data than those now in the dataset's folder; {advice}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def finished(folder: Path) -> bool:
    """Whether the run in the folder came to its end."""
    return (folder / SUMMARY).is_file() and bool(read_json(folder / SUMMARY).get("finished"))


def state_to_resume(folder: Path, resume: Any, plain: Mapping[str, Any]) -> dict[str, Any] | None:
    """Load the state to go on from, and check that this configuration may.

    Args:
        folder: the run folder.
        resume: "auto" for the folder's own ``last.ckpt``, "never" or None for none, or a checkpoint.
        plain: the configuration, as plain values.

    Returns:
        The checkpoint, without the absolute paths that it remembers; None to begin at the beginning.

    Raises:
        CheckpointError: it cannot be read safely, holds weights alone, or a state that is ill-typed or of another run.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if resume in (None, "never") or (resume == "auto" and not last.is_file()):
        return None
    source = last if resume == "auto" else Path(resume)
    checkpoint = sanitize_resume(load_checkpoint(source))
    if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
        raise CheckpointError(
            f"{source} holds weights alone, not the state of a run; go on from a last.ckpt, or start from these "
            "weights with --model.weights."
        )
    _check_types(checkpoint, source)
    own = checkpoint.get("hyper_parameters", {}).get("segmenter")
    if isinstance(own, Mapping):
        refuse_other_structure(source, SegmenterConfig.from_dict(own), SegmenterConfig.from_dict(plain["model"]))
    if resume != "auto" and (saved := saved_config(folder, resume)):
        named = {"run_name": plain["run_name"]}  # a copy of the run may have a name of its own
        if changed := differences({**saved, **named}, plain):
            raise CheckpointError(
                f"{source} is of a run of another configuration (it differs in {_few(changed)}); go on with its own, "
                "logs/config.yaml of that run, or start from its weights with --model.weights."
            )
    return checkpoint


def _check_types(checkpoint: Mapping[str, Any], source: Path) -> None:
    try:
        # Files are copied by these names: none may leave its folder.
        sound = all(Path(name).name == name for name in standing(checkpoint)["snapshots"]) and bool(_groups(checkpoint))
        sound &= all(isinstance(checkpoint.get(key, {}), Mapping) for key in ("loops", "hyper_parameters"))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"{source} holds the state of a run in a form that no run writes; go on from a last.ckpt that cryosentinel "
            "fit wrote, or start from these weights with --model.weights."
        )


def _groups(checkpoint: Mapping[str, Any]) -> list[tuple[str | None, int]]:
    """The optimiser's groups: name and number of parameters."""
    return [(g.get("name"), len(g["params"])) for g in checkpoint["optimizer_states"][0]["param_groups"]]


def check_optimizer(checkpoint: Mapping[str, Any], task: SegmentationTask) -> None:
    """Refuse a state whose optimiser has other parts than the task's will have.

    Raises:
        CheckpointError: it has.
    """
    there = _groups(checkpoint)
    here = [(g["name"], len(g["params"])) for g in parameter_groups(task.model, task.depth, task.optim)]
    if there != here:
        raise CheckpointError(
            f"The state to go on from is of an optimiser with other parts ({len(there)} groups of parameters there, "
            f"{len(here)} here); go on with the configuration it was trained with (optim.frozen_blocks, "
            "backbone_mult), or start from its weights with --model.weights."
        )


def take_over(checkpoint: Mapping[str, Any], source: Path, folder: Path) -> None:
    """Make a state the folder's ``last.ckpt``, with the snapshots and the log of its run where they are still there."""
    last = folder / "checkpoints" / "last.ckpt"
    if not is_rank_zero() or source.resolve() == last.resolve():
        return
    write_checkpoint(last, checkpoint)
    run, state = source.resolve().parent.parent, checkpoint.get("callbacks", {}).get("RunFiles", {})
    for name in [*(f"checkpoints/{n}" for n in [*state.get("snapshots", []), "best.ckpt"]), "logs/metrics.csv"]:
        if (run / name).is_file() and not (folder / name).is_file():
            with replacing(folder / name) as part:
                shutil.copyfile(run / name, part)


def standing(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run stands: step, stopped (early), snapshots, seconds."""
    state = checkpoint.get("callbacks", {}).get("RunFiles", {})
    return {
        "step": int(checkpoint["global_step"]),
        "stopped": bool(state.get("stopped", False)),
        "snapshots": list(state.get("snapshots", [])),
        "seconds": float(state.get("seconds", 0.0)),
    }


def write_summary(folder: Path, fingerprint: str, done: Mapping[str, Any], parameters: int | None) -> None:
    """Say that the run is finished.

    Args:
        folder: the run folder.
        fingerprint: of the data.
        done: where it stands, see :func:`standing`.
        parameters: of the network.
    """
    write_json(
        folder / SUMMARY,
        {
            "finished": True,
            "stopped_early": done["stopped"],
            "steps": done["step"],
            "seconds": done["seconds"],
            "snapshots": list(done["snapshots"]),
            "parameters": parameters,
            "data": fingerprint,
            "torch": torch.__version__,
            "lightning": pl.__version__,
        },
    )
