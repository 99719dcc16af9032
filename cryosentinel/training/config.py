"""The configuration of a run: one typed tree, read from YAML and the command line, unknown keys refused."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from cryosentinel.errors import ConfigError, CryoSentinelError
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

#: How the parser refuses what it is given.
_REFUSALS = (ArgumentError, TypeError, ValueError, KeyError, OSError)


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
class RunConfig:
    """Everything about a run but its data.

    Attributes:
        run_name: name of the run and of its folder.
        seed: of initial weights, order of the chips, dropout and augmentation.
        model: what to build, and the weights to start from (model.weights).
        loss: weights and constants of the loss.
        optim: learning rates and schedule.
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
    ema_decay: float = 0.999
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@functools.cache
def run_parser() -> ArgumentParser:
    """The parser of ``cryosentinel fit``."""
    from cryosentinel.data.dataset import ChipDataModule

    parser = ArgumentParser(
        prog="cryosentinel fit", exit_on_error=False, description="Train a segmenter and write its run folder."
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
    options = [] if isinstance(overrides, Mapping) else list(overrides)
    files, options = _config_files(options)
    if not isinstance(config, Mapping):
        files.insert(0, str(config))
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"There is no configuration file {file}; the ones that come along are in configs/.")
    words = [f"--config={file}" for file in files]
    for values in (config, overrides):  # JSON is YAML, and the parser takes a file's content for a file
        if isinstance(values, Mapping) and values:
            words.append(f"--config={json.dumps(_nested(values), default=str)}")
    parser = run_parser()
    try:
        return parser, _read(parser, [*words, *options])
    except CryoSentinelError:
        raise
    except _REFUSALS as error:
        raise ConfigError(_sentence(parser, files, options, error)) from None


def _config_files(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that ``--config`` names, and the other options."""
    files: list[str] = []
    others: list[str] = []
    words = iter(options)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            file = word.partition("=")[2] if "=" in word else next(words, "")
            if not file:
                raise ConfigError("--config needs a file: cryosentinel fit --config configs/quick.yaml")
            files.append(file)
        else:
            others.append(word)
    return files, others


@contextlib.contextmanager
def _ours_first() -> Iterator[None]:
    """A sentence of our own, raised by a configuration class, says it better than what the parser makes of it."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except _REFUSALS as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, CryoSentinelError):
                    raise cause from None
                cause = cause.__cause__ or cause.__context__
            raise


def _read(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    with _ours_first():
        return parser.parse_args(list(words))


def instantiate(parser: ArgumentParser, namespace: Namespace) -> dict[str, Any]:
    """Make the objects that a configuration describes.

    Raises:
        ConfigError: a value is out of range.
    """
    try:
        with _ours_first():
            return parser.instantiate(namespace).as_dict()
    except _REFUSALS as error:
        raise ConfigError(f"The configuration cannot be used: {_plain(' '.join(str(error).split()))}.") from None


def _sentence(parser: ArgumentParser, files: Sequence[str], options: Sequence[str], error: Exception) -> str:
    """What the parser complains of, in one sentence that names the file or the option."""
    text = " ".join(str(error).split()).rstrip(".")
    if match := re.fullmatch(r"unrecognized arguments: (\S+).*", text):
        return _unknown_option(parser, match.group(1))
    if match := re.fullmatch(r"the following arguments are required: (.*)", text):
        return f"The configuration gives no {match.group(1)}; name one that does: --config configs/quick.yaml."
    source = "An option" if options else "The configuration"
    for file in files:
        try:
            _read(parser, [f"--config={file}"])
        except Exception as own:
            if not str(own).startswith("the following arguments are required"):  # options may give these
                source = file
    if text.startswith("Unexpected config:"):
        return f"{source} cannot be used: it must hold keys and values, as the files in configs/ do."
    return f"{source} cannot be used: {_plain(text)}."


def _plain(text: str) -> str:
    """The parser's words without Python's names, and of all the ways in which a value fails only what it may be."""

    def may_be(match: re.Match[str]) -> str:
        return f"expected {match.group(1).replace('], ', '] or ').replace('>, ', '> or ')}; got "

    inner = re.search(r"Problem with given class_path \S+: (.*?) - Expected", text)
    if inner:  # a section that may also be null: what is wrong with it says more than that it is not null
        text = (
            text.partition(":")[0] + ": " + re.sub(r"Option '(\w+)' is not accepted", r"it has no \1", inner.group(1))
        )
    union = r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*?Given value: "
    text = re.sub(union, may_be, text)
    text = re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1; got ", text)
    text = re.sub(r"Parser key \"([\w.]+)\":", r"\1:", text)
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text).replace("NoneType", "null")
    text = re.sub(r"(?:typing|collections\.abc)\.", "", text)
    text = re.sub(r"Sequence\[(\w+)\]", r"a list of \1 ([a, b])", text)
    return re.sub(r"Literal\[(.*?)\]", r"one of \1", text).rstrip(".")


def _unknown_option(parser: ArgumentParser, word: str) -> str:
    if not word.startswith("-"):
        return f"fit takes no {word!r} by itself; a configuration is named with --config {word}."
    name = word.partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    last = name.removeprefix("--").rpartition(".")[2]
    near = [k for k in known if k.removeprefix("--").rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(name, known, 2, 0.75)
    advice = f"the nearest is {' or '.join(near[:3])}" if near else "cryosentinel fit --help lists them"
    return f"There is no option {name}; {advice}."


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to nested ones."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = result
        *parents, last = key.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        entry = _nested(value) if isinstance(value, Mapping) else value
        if isinstance(entry, dict) and isinstance(inner.get(last), dict):
            inner[last].update(entry)
        else:
            inner[last] = entry
    return result


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys to dotted ones."""
    result: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            result.update(flatten(entry, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = list(entry) if isinstance(entry, tuple) else entry
    return result


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two configurations compute different things."""
    a, b = flatten(first), flatten(second)
    return sorted(k for k in {*a, *b} if k not in PLACE_KEYS and a.get(k) != b.get(k))


def wants_help(words: Sequence[str]) -> bool:
    """Print the options and say so, if they are asked for."""
    if any(word in ("-h", "--help") for word in words):
        run_parser().print_help(sys.stdout)
        return True
    return False
