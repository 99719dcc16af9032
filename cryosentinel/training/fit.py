"""Train a segmenter from a configuration, and write its run folder; go on where an interrupted run stopped."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping

from cryosentinel import paths
from cryosentinel.arguments import instantiate
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.files import replacing, write_json, write_text
from cryosentinel.models.checkpoint import load_checkpoint
from cryosentinel.precision import Precision, choose, device_of
from cryosentinel.training.callbacks import EMA, RunFiles, describe_ema
from cryosentinel.training.config import RunConfig, parse
from cryosentinel.training.logs import ProgressBar, RunLogger, rows_until
from cryosentinel.training.optim import (
    describe_profile,
    learning_rate_profile,
    plot_profile,
    plot_schedule,
    swa_first_epoch,
)
from cryosentinel.training.resume import (
    RUNNING,
    SUMMARY,
    check_optimizer,
    check_same_run,
    data_fingerprint,
    finished,
    forget,
    is_rank_zero,
    saved_config,
    standing,
    state_to_resume,
    take_over,
    write_summary,
)
from cryosentinel.training.task import SegmentationTask
from cryosentinel.training.warmup import warm_up

__all__ = ["SUMMARY", "build", "fit", "main", "prepare_task"]

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cryosentinel.data.dataset import ChipDataModule


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


def main(argv: Sequence[str] | None = None) -> Path:
    """``cryosentinel fit --config FILE [--run_dir DIR] [--resume auto|never|CKPT] [--section.key VALUE ...]``.

    Args:
        argv: the words after ``fit``.

    Returns:
        The run folder.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        raise ConfigError("fit needs a configuration: cryosentinel fit --config configs/quick.yaml")
    parser, namespace = parse({}, words)
    run_dir = _fit(parser, namespace, namespace.run_dir, namespace.resume)
    print(run_dir)
    return run_dir


def build(parser: ArgumentParser, namespace: Namespace) -> tuple[RunConfig, ChipDataModule, dict[str, Any]]:
    """Make the objects that a configuration describes.

    Returns:
        the run's configuration, its data module (not set up), and both as plain values.
    """
    plain = yaml.safe_load(parser.dump(namespace, skip_unset=False))
    for key in ("config", "run_dir", "resume"):
        plain.pop(key, None)
    made = instantiate(parser, namespace)
    data = made.pop("data")
    run = RunConfig(**{k: v for k, v in made.items() if k not in ("config", "run_dir", "resume")})
    data.root = paths.under_outputs(data.root)
    weights = run.model.weights
    if weights is not None and not weights.startswith("hf://"):
        run.model = replace(run.model, weights=str(paths.under_outputs(weights)))
    data.seed = run.seed
    if data.augment is not None:
        data.augment.seed = run.seed
    return run, data, plain


def _fit(parser: ArgumentParser, namespace: Namespace, run_dir: Any, resume: Any) -> Path:
    run, data, plain = build(parser, namespace)
    folder = Path(run_dir) if run_dir is not None else paths.runs() / run.run_name
    fingerprint = data_fingerprint(Path(data.root))
    precision = _choose_precision(run, folder, resume)
    plain["trainer"]["precision"] = run.trainer.precision = precision.name  # type: ignore[assignment]
    if resume not in (None, "never"):
        check_same_run(folder, plain, fingerprint)
        if finished(folder):
            return folder
    state = state_to_resume(folder, resume, plain)
    source = Path(resume) if state is not None and resume != "auto" else folder / "checkpoints" / "last.ckpt"
    stand = None if state is None else standing(state)
    if state is None:
        paths.start_weights(run.model.weights)

    if run.trainer.threads:
        torch.set_num_threads(run.trainer.threads)
    swa_start = swa_first_epoch(run.optim, run.trainer.max_epochs)
    files = RunFiles(folder / "checkpoints", run.checkpoints, run.checkpoints.epochs(run.trainer.max_epochs, swa_start))
    if state is not None and standing(state)["stopped"]:  # stopped early, then killed before it could say so
        take_over(state, source, folder)
        write_summary(folder, fingerprint, standing(state), None)
        return folder
    trainer = _trainer(run, files, folder)
    # A state brings its own weights: those that the run once started from need not be there any more.
    task = prepare_task(run, data, trainer, start_weights=state is None)
    if resume in (None, "never"):
        forget(folder)  # only now that nothing speaks against the new run
    if state is not None:
        check_optimizer(state, task)
        take_over(state, source, folder)
    del state  # of the size of the file
    if is_rank_zero():
        print(precision)
        _describe(run, data, task, files.snapshot_epochs, folder)
        write_text(folder / "logs" / "config.yaml", f"# {precision}\n{yaml.safe_dump(plain, sort_keys=False)}")
        write_json(folder / RUNNING, {"data": fingerprint})
        rows_until(folder / "logs" / "metrics.csv", -1 if stand is None else stand["step"])
    files.seconds_before = 0.0 if stand is None else stand["seconds"]
    with _quiet():
        _train(trainer, task, data, None if stand is None else files.last)
    if is_rank_zero():
        # From the file and not from the objects: a strategy may have trained in other processes.
        done = standing(load_checkpoint(files.last))
        write_summary(folder, fingerprint, done, sum(p.numel() for p in task.model.parameters()))
    return folder


def _choose_precision(run: RunConfig, folder: Path, resume: Any) -> Precision:
    """What the device or the configuration wants; a run that goes on keeps the precision that it began with."""
    device = device_of(run.trainer.accelerator)
    if run.trainer.precision == "auto" and (saved := saved_config(folder, resume)):
        return choose(saved["trainer"]["precision"], device, "as the run began")
    return choose(run.trainer.precision, device)


def _train(trainer: pl.Trainer, task: SegmentationTask, data: ChipDataModule, last: Path | None) -> None:
    try:
        trainer.fit(task, datamodule=data, ckpt_path=None if last is None else str(last), weights_only=True)
    except BaseException as error:
        if trainer.progress_bar_callback is not None:
            print(file=sys.stderr)  # what is said next does not belong on the bar's line
        if isinstance(error, SystemExit) and trainer.interrupted:  # Lightning makes an exit of the user's Ctrl-C
            raise KeyboardInterrupt from None
        raise


def prepare_task(
    run: RunConfig, data: ChipDataModule, trainer: pl.Trainer, start_weights: bool = True
) -> SegmentationTask:
    """Set up the data and build the task with its network.

    Args:
        run: the run's configuration.
        data: its data module.
        trainer: its trainer.
        start_weights: load the weights that the configuration names; off where a run goes on.

    Raises:
        InputError: a split is empty, or no validation chip shows a lake.
    """
    data.trainer = trainer  # the loaders share the chips among the trainer's ranks
    data.setup("fit")
    loader: Any = data.train_dataloader()
    batches = len(loader)
    if batches > 1 and len(loader.sampler) % data.batch_size == 1:
        batches -= 1  # UperNet normalises a pooled value over the batch, which one chip alone cannot give
        trainer.limit_train_batches = batches
    data.val_dataloader()  # an empty split is refused here, before the network is built
    if not data.store.index["water_frac"].to_numpy()[data.rows["val"]].any():
        raise InputError(
            f"None of the {len(data.rows['val'])} validation chips of {data.root} shows a lake, so no IoU would tell "
            "one epoch from another; use more data, more regions or another data.block_size."
        )
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
        start_weights=start_weights,
    )
    task.configure_model()
    # An encoder's file leaves the stem at random; a whole checkpoint has trained it already.
    if start_weights and run.pixel_warmup.steps and not task.model.started_whole:
        # Every rank draws the same pixels, so all begin with the same weights.
        store, rows = data.store, data.rows["train"]
        before, after = warm_up(task.model, store, rows, run.pixel_warmup, run.seed, run.loss.ignore_rim)  # type: ignore[arg-type]
        if is_rank_zero():
            print(f"Stem warmed up on single pixels: cross-entropy {before:.3f} before, {after:.3f} after.", flush=True)
    return task


def _trainer(run: RunConfig, files: RunFiles, folder: Path) -> pl.Trainer:
    callbacks: list[Callback] = [EMA(run.ema_decay), files]
    if run.validation.patience is not None:
        callbacks.append(EarlyStopping("val_iou", mode="max", patience=run.validation.patience))
    if run.trainer.progress_bar:
        callbacks.append(ProgressBar())
    t = run.trainer
    with _quiet(), _as_sentence():
        return pl.Trainer(
            max_epochs=t.max_epochs,
            precision=t.precision,  # type: ignore[arg-type]  # "auto" has been decided
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


@contextlib.contextmanager
def _as_sentence() -> Iterator[None]:
    """Say in a sentence what the trainer does not accept (an accelerator that is not there, an unknown strategy)."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError) as error:
        text = " ".join(str(error).split()).rstrip(".!")
        raise ConfigError(f"The section trainer cannot be used: {text}.") from None


def _describe(run: RunConfig, data: ChipDataModule, task: SegmentationTask, snapshots: list[int], folder: Path) -> None:
    """Print what the run will do, and print and draw what each part of the network will learn at."""
    import matplotlib
    from matplotlib.figure import Figure

    profile = learning_rate_profile(task.model, task.optim)
    print(f"{describe_profile(profile)}\n{_plan(run, data, task, snapshots)}", flush=True)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 5.6), layout="constrained")
        above, below = figure.subplots(2)
        plot_profile(profile, above)
        plot_schedule(run.optim, task.steps_per_epoch, run.trainer.max_epochs, ax=below)
        with replacing(folder / "logs" / "learning_rates.png") as part:
            figure.savefig(part, dpi=120)


def _plan(run: RunConfig, data: ChipDataModule, task: SegmentationTask, snapshots: list[int]) -> str:
    """Chips, steps, the epochs of the snapshots, and how far the average's decay will come."""
    lakes = data.store.index["water_frac"].to_numpy() > 0
    chips = {name: f"{len(rows)} ({int(lakes[rows].sum())} with a lake)" for name, rows in data.rows.items()}
    epochs, named = run.trainer.max_epochs, run.checkpoints.snapshot_epochs or []
    first, steps = swa_first_epoch(run.optim, epochs), epochs * task.steps_per_epoch
    phase = f"the SWA phase begins with epoch {first + 1}" if first < epochs else "there is no SWA phase"
    if run.optim.warmup_epochs >= epochs:
        phase += f" (the warm-up of {run.optim.warmup_epochs:g} epochs outlasts the run: the rate never falls)"
    lines = [
        f"Chips: {chips['train']} to train on, {chips['val']} to validate on; {task.steps_per_epoch} steps an epoch, "
        f"{epochs} epochs.",
        f"Snapshots for the soup: after epoch {', '.join(map(str, snapshots))}; {phase}.",
        describe_ema(run.ema_decay, steps),
    ]
    if beyond := [epoch for epoch in named if epoch > epochs]:
        instead = "" if len(beyond) < len(named) else ", so the last epochs take their place"
        lines.append(f"The run ends before the snapshots of epoch {', '.join(map(str, beyond))}{instead}.")
    return "\n".join(lines)


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
