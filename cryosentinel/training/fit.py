"""Train a segmenter from a configuration, and write its run folder; go on where an interrupted run stopped."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cryosentinel.errors import CheckpointError, ConfigError
from cryosentinel.files import read_json, replacing, write_json, write_text
from cryosentinel.models.checkpoint import load_checkpoint, sanitize_resume, write_checkpoint
from cryosentinel.training.callbacks import EMA, RunFiles
from cryosentinel.training.config import RunConfig, differences, parse, wants_help
from cryosentinel.training.logs import ProgressBar, RunLogger, rows_until
from cryosentinel.training.optim import (
    describe_profile,
    learning_rate_profile,
    plot_profile,
    swa_first_epoch,
)
from cryosentinel.training.task import SegmentationTask

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cryosentinel.data.dataset import ChipDataModule

SUMMARY = "logs/summary.json"
RUNNING = "logs/data.json"


def fit(
    config: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    run_dir: str | Path | None = None,
    resume: str | Path | None = "auto",
) -> Path:
    """Train, or go on training, or return at once if the run is finished.

    Args:
        config: a YAML file (see ``configs/``) or its content.
        overrides: values that take the place of the file's: nested, with dotted keys, or words of a command line.
        run_dir: the run folder; ``outputs/runs/<run_name>`` by default.
        resume: "auto" goes on from the folder's ``last.ckpt``, and returns at once where the same run is finished;
            "never" (or None) deletes an earlier run in the folder; a path goes on from that checkpoint.

    Returns:
        The run folder, with ``checkpoints/``, ``logs/metrics.csv``, ``logs/config.yaml`` and ``logs/summary.json``.

    Raises:
        ConfigError: the configuration cannot be used, or the folder holds a run of another one.
        InputError: the data cannot be used, or the loss stopped being a number.
        CheckpointError: the checkpoint to go on from cannot be used.
    """
    parser, namespace = parse(config, overrides)
    return _fit(parser, namespace, run_dir, resume)


def main(argv: Sequence[str] | None = None) -> Path | None:
    """``cryosentinel fit --config FILE [--run_dir DIR] [--resume auto|never|CKPT] [--section.key VALUE ...]``.

    Args:
        argv: the words after ``fit``.

    Returns:
        The run folder; None if only help was asked for.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if wants_help(words):
        return None
    if not words:
        raise ConfigError("fit needs a configuration: cryosentinel fit --config configs/quick.yaml")
    parser, namespace = parse({}, words) if "--config" not in " ".join(words) else _parse_words(words)
    run_dir = _fit(parser, namespace, namespace.run_dir, namespace.resume)
    print(run_dir)
    return run_dir


def _parse_words(words: list[str]) -> tuple[ArgumentParser, Namespace]:
    """A configuration file named among the options; those after it override it."""
    for i, word in enumerate(words):
        if word == "--config" and i + 1 < len(words):
            return parse(words[i + 1], words[:i] + words[i + 2 :])
        if word.startswith("--config="):
            return parse(word.partition("=")[2], words[:i] + words[i + 1 :])
    raise ConfigError("--config needs a file: cryosentinel fit --config configs/quick.yaml")


def build(parser: ArgumentParser, namespace: Namespace) -> tuple[RunConfig, ChipDataModule, dict[str, Any]]:
    """Make the objects that a configuration describes.

    Returns:
        the run's configuration, its data module (not set up), and both as plain values.
    """
    plain = yaml.safe_load(parser.dump(namespace, skip_unset=False))
    for key in ("config", "run_dir", "resume"):
        plain.pop(key, None)
    made = parser.instantiate(namespace).as_dict()
    data = made.pop("data")
    run = RunConfig(**{k: v for k, v in made.items() if k not in ("config", "run_dir", "resume")})
    data.seed = run.seed
    if data.augment is not None:
        data.augment.seed = run.seed
    return run, data, plain


def _fit(parser: ArgumentParser, namespace: Namespace, run_dir: Any, resume: Any) -> Path:
    run, data, plain = build(parser, namespace)
    folder = Path(run_dir) if run_dir is not None else Path("outputs/runs") / run.run_name
    fingerprint = data_fingerprint(Path(data.root))
    if resume in (None, "never"):
        _forget(folder)
    else:
        _check_same_run(folder, plain, fingerprint)
        if _finished(folder):
            return folder
    resumed = _checkpoint_to_resume(folder, resume)

    if run.trainer.threads:
        torch.set_num_threads(run.trainer.threads)
    swa_start = swa_first_epoch(run.optim, run.trainer.max_epochs)
    files = RunFiles(folder / "checkpoints", run.checkpoints, run.checkpoints.epochs(run.trainer.max_epochs, swa_start))
    if resumed is not None and resumed["stopped"]:  # stopped early, then killed before it could say so
        _write_summary(folder, fingerprint, resumed, None)
        return folder
    trainer = _trainer(run, files, folder)
    task = prepare_task(run, data, trainer)
    if _is_rank_zero():
        _describe(task, folder)
        write_text(folder / "logs" / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
        write_json(folder / RUNNING, {"data": fingerprint})
        rows_until(folder / "logs" / "metrics.csv", -1 if resumed is None else resumed["step"])
    files.seconds_before = 0.0 if resumed is None else resumed["seconds"]
    with _quiet():
        trainer.fit(task, datamodule=data, ckpt_path=None if resumed is None else str(files.last), weights_only=True)
    if _is_rank_zero():
        # From the file and not from the objects: a strategy may have trained in other processes.
        done = _checkpoint_to_resume(folder, "auto")
        assert done is not None
        _write_summary(folder, fingerprint, done, sum(p.numel() for p in task.model.parameters()))
    return folder


def prepare_task(run: RunConfig, data: ChipDataModule, trainer: pl.Trainer) -> SegmentationTask:
    """Set up the data and build the task with its network."""
    data.trainer = trainer  # the loaders share the chips among the trainer's ranks
    data.setup("fit")
    loader: Any = data.train_dataloader()
    batches = len(loader)
    if batches > 1 and len(loader.sampler) % data.batch_size == 1:
        batches -= 1  # UperNet normalises a pooled value over the batch, which one chip alone cannot give
        trainer.limit_train_batches = batches
    data.val_dataloader()  # an empty split is refused here, before the network is built
    if run.trainer.limit_train_batches is not None:
        batches = trainer.limit_train_batches = min(batches, run.trainer.limit_train_batches)
    task = SegmentationTask(
        run.model.as_dict(),
        data.statistics.as_dict(),
        run.loss,
        run.optim,
        seed=run.seed,
        val_flips=run.validation.flips,
        steps_per_epoch=math.ceil(batches / run.trainer.accumulate_grad_batches),
        compile_model=run.trainer.compile,
    )
    task.configure_model()
    return task


def _trainer(run: RunConfig, files: RunFiles, folder: Path) -> pl.Trainer:
    callbacks: list[Callback] = [EMA(run.ema_decay), files]
    if run.validation.patience is not None:
        callbacks.append(EarlyStopping("val_iou", mode="max", patience=run.validation.patience))
    if run.trainer.progress_bar:
        callbacks.append(ProgressBar())
    t = run.trainer
    with _quiet():
        return pl.Trainer(
            max_epochs=t.max_epochs,
            precision=t.precision,
            gradient_clip_val=t.gradient_clip_val,
            accumulate_grad_batches=t.accumulate_grad_batches,
            limit_train_batches=t.limit_train_batches,
            limit_val_batches=t.limit_val_batches,
            accelerator=t.accelerator,
            devices=t.devices,
            num_nodes=t.num_nodes,
            strategy=t.strategy,
            callbacks=callbacks,
            logger=RunLogger(folder),
            num_sanity_val_steps=0,
            enable_progress_bar=t.progress_bar,
            enable_model_summary=False,
            # The data module's sampler already shares the chips among the ranks.
            use_distributed_sampler=False,
        )


def _describe(task: SegmentationTask, folder: Path) -> None:
    """Print and draw what each part of the network will learn at."""
    import matplotlib
    from matplotlib.figure import Figure

    profile = learning_rate_profile(task.model, task.optim)
    print(describe_profile(profile), flush=True)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        plot_profile(profile, figure.subplots())
        with replacing(folder / "logs" / "learning_rates.png") as part:
            figure.savefig(part, dpi=120)


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) in (None, 0)


def _forget(folder: Path) -> None:
    if _is_rank_zero():
        for part in ("checkpoints", "logs", "diagnostics"):
            shutil.rmtree(folder / part, ignore_errors=True)


def data_fingerprint(root: Path) -> str:
    """What tells one dataset from another without reading it: names and sizes of its shards, and its statistics."""
    digest = hashlib.sha256()
    for path in sorted([*root.glob("*/*/shard_*.parquet"), *root.glob("dataset_stats*.json")]):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _check_same_run(folder: Path, plain: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse to mix two runs in one folder."""
    saved = folder / "logs" / "config.yaml"
    if not (folder / "checkpoints" / "last.ckpt").is_file() or not saved.is_file():
        return
    advice = "choose another --run_dir, or begin anew with --resume never"
    changed = differences(yaml.safe_load(saved.read_text(encoding="utf-8")), plain)
    if changed:
        shown = ", ".join(changed[:4]) + (", ..." if len(changed) > 4 else "")
        raise ConfigError(f"{folder} holds a run of another configuration (it differs in {shown}); {advice}.")
    if (folder / RUNNING).is_file() and read_json(folder / RUNNING)["data"] != fingerprint:
        raise ConfigError(f"{folder} holds a run on other data than those now in the dataset's folder; {advice}.")


def _finished(folder: Path) -> bool:
    return (folder / SUMMARY).is_file() and bool(read_json(folder / SUMMARY).get("finished"))


def _checkpoint_to_resume(folder: Path, resume: Any) -> dict[str, Any] | None:
    """Bring the checkpoint to go on from to ``last.ckpt`` and say where it stands.

    Returns:
        step, stopped, snapshots, seconds; None to begin at the beginning.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if resume in (None, "never"):
        return None
    if resume == "auto":
        if not last.is_file():
            return None
        checkpoint = load_checkpoint(last)
    else:
        checkpoint = sanitize_resume(load_checkpoint(resume))
        if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
            raise CheckpointError(
                f"{resume} holds weights alone, not the state of a run; go on from a last.ckpt, or start from these "
                "weights with --model.weights."
            )
        if _is_rank_zero() and Path(resume).resolve() != last.resolve():
            write_checkpoint(last, checkpoint)
            _carry_run(Path(resume).resolve().parent.parent, folder, checkpoint)
    state = checkpoint.get("callbacks", {}).get("RunFiles", {})
    return {
        "step": int(checkpoint["global_step"]),
        "stopped": bool(state.get("stopped", False)),
        "snapshots": list(state.get("snapshots", [])),
        "seconds": float(state.get("seconds", 0.0)),
    }


def _carry_run(source: Path, folder: Path, checkpoint: Mapping[str, Any]) -> None:
    """Take along the snapshots and the log of the run that a checkpoint comes from, where they are still there."""
    state = checkpoint.get("callbacks", {}).get("RunFiles", {})
    for name in [*(f"checkpoints/{n}" for n in [*state.get("snapshots", []), "best.ckpt"]), "logs/metrics.csv"]:
        if (source / name).is_file() and not (folder / name).is_file():
            with replacing(folder / name) as part:
                shutil.copyfile(source / name, part)


def _write_summary(folder: Path, fingerprint: str, done: Mapping[str, Any], parameters: int | None) -> None:
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice that does not apply here from the user; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",  # chips are memory-mapped: one process mostly suffices
                ".*WeightAveraging callback with a model that overrides.*",  # nothing is sharded
                ".*Found .* module\\(s\\) in eval mode.*",
                ".*Trying to infer the `batch_size`.*",
                ".*Checkpoint directory .* exists and is not empty.*",
                ".*GPU available but not used.*",
                ".*sync_dist=True.*",  # counts are summed over the ranks before the score is logged
                ".*treespec.*",
                ".*is smaller than the logging interval.*",  # the log has one row an epoch, whatever the interval
                ".*You have overridden `on_before_batch_transfer`.*",  # on purpose: the task looks, the data augment
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
