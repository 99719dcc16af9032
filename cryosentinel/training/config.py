"""The configuration of a run: one typed tree, read from YAML and the command line, unknown keys refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from cryosentinel.arguments import as_options, read
from cryosentinel.errors import ConfigError
from cryosentinel.models.segmenter import SegmenterConfig
from cryosentinel.precision import Choice
from cryosentinel.training.callbacks import CheckpointConfig
from cryosentinel.training.losses import LossConfig
from cryosentinel.training.optim import OptimConfig

#: Keys that say where and how a run is carried out, not what it computes: a run may go on with others.
PLACE_KEYS = (
    "data.root", "data.cache_dir", "data.workers", "trainer.accelerator", "trainer.devices", "trainer.threads",
    "trainer.progress_bar", "checkpoints.every_n_steps",
)  # fmt: skip


@dataclass
class ValidationConfig:
    """How a run is validated.

    Attributes:
        flips: test-time flips averaged in logit space: 1 (none), 2 or 4.
        patience: stop after so many epochs without a better IoU; None to train to the end.
    """

    flips: Literal[1, 2, 4] = 4
    patience: int | None = None


@dataclass
class TrainerConfig:
    """How Lightning's trainer runs.

    Attributes:
        max_epochs: length of the run.
        precision: "auto" (bfloat16 where the device computes in it natively, else float32), "32-true", "bf16-mixed" or
            "16-mixed". A run that goes on keeps what it began with; its config.yaml names it.
        gradient_clip_val: largest norm of the gradient.
        accumulate_grad_batches: batches an optimiser step.
        limit_train_batches: at most so many batches an epoch.
        limit_val_batches: at most so many validation batches.
        accelerator: cpu, gpu or auto.
        devices: number of devices, or auto.
        num_nodes: number of machines.
        strategy: Lightning's strategy: auto, ddp, ...
        compile: compile the network with torch.compile.
        threads: CPU threads a process; None for torch's own choice.
        progress_bar: show one.
    """

    max_epochs: int = 30
    precision: Choice = "auto"
    gradient_clip_val: float | None = 1.0
    accumulate_grad_batches: int = 1
    limit_train_batches: int | None = None
    limit_val_batches: int | None = None
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    threads: int | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.max_epochs < 1 or self.accumulate_grad_batches < 1:
            raise ConfigError("trainer.max_epochs and accumulate_grad_batches are at least 1.")


@dataclass
class PixelWarmupConfig:
    """Training of the stem on single pixels, before anything else learns.

    Attributes:
        steps: of AdamW, along a cosine to zero; 0 for none. A run that starts from a whole checkpoint (model.weights)
            takes none either: its stem has learned.
        pixels: a step.
        per_chip: pixels of each class drawn from a training chip, weighted by what they stand for.
        lr: its learning rate.
    """

    steps: int = 0
    pixels: int = 4096
    per_chip: int = 200
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.pixels, self.per_chip) < 1 or self.lr <= 0:
            raise ConfigError("pixel_warmup needs steps of at least 0, pixels and per_chip of at least 1, lr above 0.")


@dataclass
class RunConfig:
    """Everything about a run but its data.

    Attributes:
        run_name: name of the run and of its folder.
        seed: of initial weights, order of the chips, dropout and augmentation.
        model: what to build, and the weights to start from (model.weights).
        loss: weights and constants of the loss.
        optim: learning rates and schedule.
        pixel_warmup: of the stem on single pixels.
        ema_decay: decay of the averaged weights; 0 keeps no history.
        validation: flips and patience.
        checkpoints: snapshots and how often to save.
        trainer: length, precision, devices.
    """

    run_name: str
    seed: int = 42
    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    pixel_warmup: PixelWarmupConfig = field(default_factory=PixelWarmupConfig)
    ema_decay: float = 0.999
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@functools.cache
def run_parser() -> ArgumentParser:
    """The parser of ``cryosentinel fit``."""
    from cryosentinel.data.dataset import ChipDataModule

    parser = ArgumentParser(
        prog="cryosentinel fit",
        exit_on_error=False,
        allow_abbrev=False,
        description="Train a segmenter and write its run folder.",
    )
    parser.add_argument("--config", action="config", help="YAML file; other options override it.")
    parser.add_argument("--run_dir", type=Path | None, default=None, help="outputs/runs/RUN_NAME by default.")
    parser.add_argument(
        "--resume", type=str | None, default="auto",
        help="auto: go on from the folder's last.ckpt; never: begin anew; or a checkpoint to go on from.",
    )  # fmt: skip
    parser.add_class_arguments(RunConfig)
    parser.add_class_arguments(ChipDataModule, "data", skip={"seed"})  # the run's seed is that of the data, too
    return parser


def parse(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str] = ()
) -> tuple[ArgumentParser, Namespace]:
    """Read a configuration.

    Args:
        config: a YAML file or its content.
        overrides: further values, nested or with dotted keys (``{"trainer.max_epochs": 2}``), or as on the command
            line (``["--trainer.max_epochs=2"]``). Wherever they stand, options override files, and of two files named
            with ``--config`` the later one overrides the earlier.

    Returns:
        the parser and what it read.

    Raises:
        ConfigError: a file that is missing or not YAML, an unknown key, a value of the wrong type or out of range.
    """
    given = [] if isinstance(overrides, Mapping) else list(overrides)
    words = as_options(given if isinstance(config, Mapping) else [f"--config={config}", *given])
    if isinstance(config, Mapping) and config:
        words.insert(0, _as_word(config))
    if isinstance(overrides, Mapping) and overrides:
        words.append(_as_word(overrides))
    parser = run_parser()
    return parser, read(parser, words)


def _as_word(values: Mapping[str, Any]) -> str:
    """Values, nested or with dotted keys, as the content of a file: JSON is YAML, and the parser takes both for one."""
    nested = Namespace()
    for key, value in flatten(values).items():
        nested[key] = value
    return f"--config={json.dumps(nested.as_dict(), default=str)}"


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys to dotted ones."""
    result: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            result.update(flatten(entry, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = list(entry) if isinstance(entry, tuple) else entry
    return result


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two configurations compute different things."""
    a, b = flatten(first), flatten(second)
    return sorted(k for k in {*a, *b} if k not in PLACE_KEYS and a.get(k) != b.get(k))
