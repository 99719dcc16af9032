"""Averaged weights and the files of a run: EMA, snapshots for the soup, and the checkpoint to resume from.

Why Lightning's ``StochasticWeightAveraging`` is not used: it swaps the learning-rate schedule at the start of an epoch,
a hook that is skipped when a run resumes in the middle of one; its weights and those of an EMA callback overwrite each
other when training ends; and checkpoints written on the way hold raw weights (Lightning issue 6074). Here the phase's
learning rate is part of the schedule (:mod:`cryosentinel.training.optim`, equal to torch's ``SWALR``), the running
average is Lightning's ``WeightAveraging``, and the equal-weight average over the phase is the soup of its snapshots.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor

from cryosentinel.errors import ConfigError
from cryosentinel.models.checkpoint import write_checkpoint


def ema_decay(updates: int, decay: float) -> float:
    """min(decay, (1 + t) / (10 + t)): in a short run a fixed decay would keep mostly the initial weights."""
    return min(decay, (1 + updates) / (10 + updates))


def ema_warmup_steps(decay: float) -> int:
    """The optimiser step, counted from 1, from which on the average keeps ``decay``: 8,991 for 0.999."""
    # The first step copies the weights, so step s is update s - 1; rounding takes the floats' last digits off.
    return max(0, math.ceil(round((10 * decay - 1) / (1 - decay), 6))) + 1


def describe_ema(decay: float, steps: int) -> str:
    """A sentence on how far the average's decay comes in a run of so many optimiser steps."""
    return (
        f"Averaged weights: the decay warms up and reaches {decay:g} at step {ema_warmup_steps(decay):,}; this run "
        f"takes {steps:,} and ends at {ema_decay(steps - 1, decay):.3g}."
    )


class EMA(WeightAveraging):
    """Exponential moving average of weights and buffers after every optimiser step, used in validation.

    Checkpoints hold the average as ``state_dict`` and the raw weights as ``current_model_state``.

    Args:
        decay: share of the old average that an update keeps, once warmed up.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), not {decay}.")
        self.decay = decay
        super().__init__(multi_avg_fn=self._update)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the average where the model will be: at this point the model itself has not been moved yet."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    @torch.no_grad()
    def _update(self, averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - ema_decay(int(updates), self.decay))
        else:
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)

    def averaged_state(self) -> dict[str, Tensor]:
        """The average under the task's names (``model.*``)."""
        assert self._average_model is not None
        return self._average_model.module.state_dict()


@dataclass
class CheckpointConfig:
    """Which files a run writes.

    Attributes:
        snapshot_epochs: epochs, counted from 1, after which the averaged weights go into the soup.
        snapshot_last: the last so many epochs do, if ``snapshot_epochs`` is not given or the run ends before them.
        best: also keep the averaged weights of the epoch with the best validation IoU, as best.ckpt.
        every_n_steps: also write last.ckpt every so many optimiser steps within an epoch; 0 for epoch ends alone.
    """

    snapshot_epochs: list[int] | None = None
    snapshot_last: int = 5
    best: bool = True
    every_n_steps: int = 0

    def __post_init__(self) -> None:
        if self.snapshot_last < 1 or self.every_n_steps < 0 or any(e < 1 for e in self.snapshot_epochs or []):
            raise ConfigError(
                "checkpoints.snapshot_last is at least 1, every_n_steps at least 0, snapshot_epochs count from 1."
            )

    def epochs(self, total: int, swa_start: int) -> list[int]:
        """The snapshots' epochs, counted from 1, in a run of ``total`` whose SWA phase begins after ``swa_start``.

        Without such a phase (``swa_start`` is ``total``) all epochs may have one. Named epochs beyond the end of a run
        that was cut short are left out; if none is left, the last ones count.

        Raises:
            ConfigError: a named epoch lies before the phase.
        """
        swa_start = 0 if swa_start >= total else swa_start
        named = sorted({e for e in self.snapshot_epochs or [] if e <= total})
        if not named:
            return list(range(max(swa_start, total - self.snapshot_last) + 1, total + 1))
        if named[0] <= swa_start:
            raise ConfigError(
                f"checkpoints.snapshot_epochs names {named[0]}, but the SWA phase of this run is epochs "
                f"{swa_start + 1} to {total}; change the epochs, optim.swa.start or trainer.max_epochs."
            )
        return named


class RunFiles(Checkpoint):
    """Write ``last.ckpt``, ``best.ckpt`` and the snapshots ``stepNNNNNN-iouX.XXX.ckpt``, each in one step.

    Only names are remembered, never folders, so that a run goes on wherever it is moved to.

    Args:
        folder: the run's ``checkpoints`` folder.
        config: which files.
        snapshot_epochs: epochs of the snapshots, counted from 1.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, snapshot_epochs: list[int]) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.config = config
        self.snapshot_epochs = snapshot_epochs
        self.snapshots: list[str] = []
        self.best_iou = -1.0
        self.epochs_done = 0
        self.stopped = False
        self.seconds_before = 0.0  # of earlier sessions of an interrupted run
        self._started = time.monotonic()

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "last.ckpt"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Within an epoch, every so many steps."""
        every = self.config.every_n_steps
        progress = trainer.fit_loop.epoch_loop.batch_progress
        at_step = every and trainer.global_step % every == 0 and not trainer.fit_loop.epoch_loop._should_accumulate()
        if at_step and not progress.is_last_batch:
            self._write_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After validation: the snapshot if this epoch has one, the best so far, and the checkpoint to resume from."""
        epoch = trainer.current_epoch + 1
        iou = float(pl_module.val_iou)  # type: ignore[arg-type]
        self.epochs_done = epoch
        self.stopped = bool(trainer.should_stop)
        if epoch in self.snapshot_epochs or (self.stopped and not self.snapshots):
            # A run stopped early, before its phase began, still has its last average to show.
            self._write_average(trainer, pl_module, f"step{trainer.global_step:06d}-iou{iou:.3f}.ckpt", iou)
        if self.config.best and iou > self.best_iou:
            self.best_iou = iou
            self._write_average(trainer, pl_module, "best.ckpt", iou)
        self._write_last(trainer)

    def _write_average(self, trainer: pl.Trainer, task: pl.LightningModule, name: str, iou: float) -> None:
        if name != "best.ckpt" and name not in self.snapshots:
            self.snapshots.append(name)
        if not trainer.is_global_zero:
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        ema = next((c for c in callbacks if isinstance(c, EMA)), None)
        state = ema.averaged_state() if ema is not None else task.state_dict()
        write_checkpoint(
            self.folder / name,
            {
                "state_dict": {key: value.detach().cpu() for key, value in state.items()},
                "hyper_parameters": dict(task.hparams),
                "epoch": trainer.current_epoch + 1,
                "global_step": trainer.global_step,
                "val_iou": iou,
                "weights": "ema" if ema is not None else "raw",
            },
        )

    def _write_last(self, trainer: pl.Trainer) -> None:
        # The same name on every rank; a file left by a kill is written over by the next attempt.
        part = self.folder / ".last.part.ckpt"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            with open(part, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(part, self.last)
        trainer.strategy.barrier("last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Names, counts and the best score."""
        return {
            "snapshots": list(self.snapshots),
            "best_iou": self.best_iou,
            "epochs_done": self.epochs_done,
            "stopped": self.stopped,
            "seconds": round(self.seconds_before + time.monotonic() - self._started, 1),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self.snapshots = list(state_dict["snapshots"])
        self.best_iou = float(state_dict["best_iou"])
        self.epochs_done = int(state_dict["epochs_done"])
        self.stopped = bool(state_dict["stopped"])
