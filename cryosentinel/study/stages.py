"""The stages of a study, each made once: chips, run, soup, scores, audit.

Whatever is missing is made, and that is announced; whatever is there is used. The first argument of every stage is the
:class:`cryosentinel.study.study.Study`, whose methods they are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cryosentinel import paths
from cryosentinel.errors import ConfigError, CryoSentinelError, InputError
from cryosentinel.files import read_json, sha256
from cryosentinel.paths import SOUP
from cryosentinel.precision import choose

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.store import ChipStore
    from cryosentinel.evaluation.audit import Audit
    from cryosentinel.evaluation.evaluate import Evaluation, Reference
    from cryosentinel.evaluation.predictors import ModelPredictor, Predictor
    from cryosentinel.simulate import SimulationConfig, TruthStore
    from cryosentinel.study.comparison import Network
    from cryosentinel.study.study import Study


def chips(study: Study) -> Path:
    """The folder of shards; simulated first where the preset's are missing.

    Raises:
        InputError: the folder holds chips of another configuration or version of the simulator.
    """
    if study.simulated:
        from cryosentinel.simulate import PRESETS

        simulated(study, "simulate", study.root, PRESETS[study.preset], f"The simulated chips of preset {study.preset}")
    return study.root


def simulated(study: Study, stage: str, root: Path, config: SimulationConfig, what: str, workers: int = 0) -> None:
    """Make a dataset where it is not whole, which is announced and timed; one that is stale is refused.

    Args:
        study: whose stage it is.
        stage: name for the timings.
        root, config: see :func:`cryosentinel.simulate.simulate`, which returns at once where all is there.
        what: the dataset in words, the beginning of a sentence.
        workers: processes; 0 for one a core.
    """
    from cryosentinel.simulate import simulate
    from cryosentinel.simulate.build import RECORD_FILE

    record = root / RECORD_FILE
    whole = record.is_file() and read_json(record)["complete"]
    announced = study.metrics.timed(stage, f"{what} are missing; making them.")
    with contextlib.nullcontext() if whole else announced:
        simulate(root, config, workers=workers or os.cpu_count() or 1)


def learning_rates(config: str | os.PathLike[str]) -> pd.DataFrame:
    """The learning rate of each part of a configuration's network, as a share of the decoder's. No weights are made."""
    import torch

    from cryosentinel.models.segmenter import build_segmenter, without_weights
    from cryosentinel.sensors import PUBLISHED_STATISTICS
    from cryosentinel.training.config import parse
    from cryosentinel.training.fit import build
    from cryosentinel.training.optim import learning_rate_profile

    run = build(*parse(paths.config(config)))[0]
    with torch.device("meta"):
        return learning_rate_profile(build_segmenter(without_weights(run.model), PUBLISHED_STATISTICS), run.optim)


def fit(study: Study, network: Network | None = None, **overrides: Any) -> Path:
    """The run folder; trained first, or trained on, where the run is not finished.

    Args:
        study: its chips, configuration and seed.
        network: another network in the place of the study's, on the same chips and schedule.
        overrides: dotted keys of the configuration, with ``__`` for the dot; they make a run folder of their own.
    """
    from cryosentinel.training.fit import SUMMARY
    from cryosentinel.training.fit import fit as train

    keys = {name.replace("__", "."): value for name, value in overrides.items()}
    run = study.folders.fit(network.name if network else None, keys)
    config = yaml.safe_load(study.config_path.read_text(encoding="utf-8"))
    if network is not None:
        if network.model:
            config["model"], config["optim"]["backbone_mult"] = dict(network.model), network.backbone_mult
        config["loss"] |= network.loss
        if not config["model"].get("stem_channels"):
            config.pop("pixel_warmup", None)  # there is no stem to warm up
    keys = {"seed": study.seed} | keys | {"data.root": str(study.chips()), "run_name": run.name}
    if (run / SUMMARY).is_file():
        return train(config, keys, run)  # returns at once, or says that the folder holds another run
    stage = "fit" if run == study.folders.run else f"fit_{run.name}"
    sentence = f"The run {run.name} is missing or not finished; training (preset {study.preset})."
    with study.metrics.timed(stage, sentence):
        return train(config, keys, run)


def soup(study: Study, network: Network | None = None, **overrides: Any) -> Path:
    """The soup of a run (see :func:`fit`); made first where it is missing or older than a snapshot."""
    from cryosentinel.models.soup import make_soup

    run = fit(study, network, **overrides)
    path = run / "checkpoints" / SOUP
    newest = max(snapshot.stat().st_mtime for snapshot in paths.snapshots(run))
    if not path.is_file() or path.stat().st_mtime < newest:
        sentence = f"The soup of run {run.name} is missing; averaging its snapshots."
        with study.metrics.timed("soup", sentence):
            make_soup(run)
    return path


def reestimated_soup(study: Study, network: Network | None = None, batches: int = 32, **overrides: Any) -> Path:
    """The soup with BatchNorm statistics estimated anew on training chips, as ``soup_reestimated.ckpt`` beside it.

    Args:
        study, network, overrides: as for :func:`fit`.
        batches: of the first epoch's order, not augmented, of the run's batch size.
    """
    from cryosentinel.evaluation.evaluate import chip_batches
    from cryosentinel.models.checkpoint import load_segmenter, save_checkpoint
    from cryosentinel.models.soup import reestimate_batchnorm

    averaged = soup(study, network, **overrides)
    path = averaged.with_name("soup_reestimated.ckpt")
    if path.is_file() and path.stat().st_mtime >= averaged.stat().st_mtime:
        return path
    module = study.datamodule
    loader: Any = module.train_dataloader()
    # Whole batches alone: every one counts the same in the mean.
    count = min(batches, len(loader.sampler) // module.batch_size) * module.batch_size
    chosen = module.rows["train"][loader.sampler.order(0)[:count]]
    run = averaged.parent.parent.name
    sentence = f"BatchNorm statistics of the soup of {run}, from {count} training chips."
    with study.metrics.timed("batchnorm", sentence):
        segmenter = load_segmenter(averaged)
        drawn = (batch for _, batch in chip_batches(module.store, chosen, module.batch_size))
        layers = reestimate_batchnorm(segmenter, drawn)
        save_checkpoint(path, segmenter, batchnorm={"layers": layers, "chips": count})
    return path


def checkpoint(study: Study, ckpt: str = SOUP) -> Path:
    """The file that a ``ckpt`` parameter means; the study's own soup is made where nothing else is meant.

    Args:
        study: whose soup.
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path. One from elsewhere also decides how
            chips that were not simulated are split: as its own stage did, not as a preset does.

    Raises:
        CheckpointError: there is none, or it is refused.
        ConfigError: nothing says how its stage split the chips.
    """
    from cryosentinel.models.checkpoint import resolve_checkpoint

    runs = paths.runs()
    if ckpt == SOUP and not (study.folders.by_hand and any(runs.glob(f"*/checkpoints/{SOUP}"))):
        return soup(study)
    path = resolve_checkpoint(ckpt, runs)
    if not study.simulated and not path.resolve().is_relative_to(study.folders.run.resolve()):
        study.split_config = _stage(study, path)
    return path


def _stage(study: Study, path: Path) -> Path:
    """The configuration of the stage that a checkpoint from elsewhere comes from: the one given, or its run's own.

    Raises:
        CheckpointError: the checkpoint itself is refused.
        ConfigError: nothing says how its stage split the chips.
    """
    run = path.parent.parent / "logs" / "config.yaml"
    if study.model or run.is_file():
        return paths.config(study.model or run)
    from cryosentinel.models.checkpoint import load_segmenter

    load_segmenter(path, None, study.statistics)  # what is wrong with the file itself is said first
    raise ConfigError(
        f"{path} does not lie in the folder of its run, so nothing says how its stage split the chips (regions, "
        "filter, block size); name that stage's configuration: --model configs/terramind_v3_finetune_almaty_v2.yaml."
    )


@dataclass(frozen=True)
class Chips:
    """Chips to score on.

    Attributes:
        root: their dataset.
        store: random access to its chips.
        truth: chip id -> what is true of it, None where that is not known.
        rows: split -> positions in the store's index.
        block_size: of the split blocks, degrees.
    """

    root: Path
    store: ChipStore
    truth: TruthStore | None
    rows: Mapping[str, Sequence[int]]
    block_size: float

    @classmethod
    def of(cls, study: Study, splits: Sequence[str]) -> Chips:
        """Whole splits of a study."""
        module = study.datamodule
        rows = {split: module.rows[split].tolist() for split in splits}
        return cls(study.root, module.store, study.truth, rows, module.block_size)

    @property
    def key(self) -> list[Any]:
        """What tells them apart, in plain types."""
        return [str(self.root.resolve()), {split: list(rows) for split, rows in self.rows.items()}]

    @property
    def references(self) -> dict[str, Reference]:
        """What to score against beside the label: the truth, where it is known."""
        truth = self.truth
        return {} if truth is None else {"truth": lambda chip: truth[chip.chip_id].lake}


class _WhenNeeded:
    """A predictor that is opened for its first batch: where the predictions are there, the network never is."""

    def __init__(self, open_predictor: Callable[[], ModelPredictor], settings: Mapping[str, Any]) -> None:
        self._open, self.settings = open_predictor, dict(settings)
        from cryosentinel.evaluation.predictors import left_beside

        self.beside = left_beside(settings)

    @cached_property
    def _predictor(self) -> ModelPredictor:
        return self._open()

    def open(self) -> None:
        """Open it now."""
        _ = self._predictor

    @property
    def views(self) -> dict[str, Any]:
        return self._predictor.views

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        return self._predictor(batch)


def evaluate(
    study: Study,
    ckpt: str | os.PathLike[str] = SOUP,
    flips: int = 4,
    splits: Sequence[str] = ("val", "test"),
    precision: str = "auto",
    on: Chips | None = None,
    **changes: Any,
) -> Evaluation:
    """Scores of a checkpoint against the labels, and against the known truth where there is one.

    The same weights, settings and chips are predicted once, whoever asks. A run's own soup with four flips is kept in
    the run's ``diagnostics``, as the published run has it, all others in ``outputs/evaluations``.

    Args:
        study: the chips.
        ckpt: as for :func:`checkpoint`.
        flips: test-time flips, 1, 2 or 4.
        splits: which splits.
        precision: see :func:`cryosentinel.precision.choose`.
        on: other chips, or only some of the study's; ``splits`` are then theirs.
        changes: turns, without and adaptive, see :class:`cryosentinel.evaluation.predictors.ModelPredictor`.
    """
    path = checkpoint(study, os.fspath(ckpt))
    settings: dict[str, Any] = {"flips": flips, "precision": choose(precision, "cpu").name, **changes}
    if study.model:
        settings["model"] = sha256(paths.config(study.model))
    if study.statistics:
        if not Path(study.statistics).is_file():
            raise InputError(f"There is no file {study.statistics} of statistics; check the path.")
        settings["statistics"] = sha256(study.statistics)

    def open_predictor() -> ModelPredictor:
        from cryosentinel.evaluation.predictors import ModelPredictor
        from cryosentinel.models.checkpoint import load_segmenter

        if segmenters.get("digest") != digest:
            segmenters.update(digest=digest, segmenter=load_segmenter(path, study.model, study.statistics))
            print(choose(precision, "cpu"), flush=True)
        return ModelPredictor(segmenters["segmenter"], flips, precision, **changes)

    usual = {"flips": 4, "precision": choose("auto", "cpu").name}
    digest = sha256(path)
    segmenters = study.segmenters

    def folder_of(settings: Mapping[str, Any]) -> Path:
        if path == study.folders.run / "checkpoints" / SOUP and settings == usual and on is None:
            return study.folders.run / "diagnostics"
        name = f"{path.parent.parent.name}_{path.stem}_flips{settings['flips']}_{settings['precision']}"
        return study.folders.predictions(name, {"digest": digest, **settings} | ({"on": on.key} if on else {}))

    averaged = {**settings, "flips": 4}
    single_of = (folder_of(averaged), averaged) if flips == 1 and not changes.get("turns") else None
    predictor, folder = _WhenNeeded(open_predictor, settings), folder_of(settings)
    if not (folder.is_dir() or (single_of and single_of[0].is_dir())):
        predictor.open()  # there are no predictions yet: a refused checkpoint is said before chips are simulated
    return _evaluate(predictor, folder, digest, on or Chips.of(study, splits), single_of)


def baseline(study: Study, name: str = "mndwi", splits: Sequence[str] = ("val", "test")) -> Evaluation:
    """Scores of a baseline, by the same code as the network's.

    Args:
        study: the chips.
        name: of :data:`cryosentinel.evaluation.baselines.BASELINES`, or "oracle" for simulated chips.
        splits: which splits.
    """
    from cryosentinel.evaluation import baselines

    module = study.datamodule
    truth: Any = study.truth  # read by chip id, as a mapping is
    return evaluate_predictor(
        study, baselines.baseline(name, module.store, module.rows["train"].tolist(), truth=truth), name, splits
    )


def evaluate_predictor(
    study: Study, predict: Predictor, name: str, splits: Sequence[str] = ("val", "test")
) -> Evaluation:
    """Scores of a predictor that its name and its ``settings`` fix, kept in ``outputs/evaluations``."""
    folder = study.folders.predictions(name, getattr(predict, "settings", {}))
    return _evaluate(predict, folder, f"baseline {name}", Chips.of(study, splits))


def _evaluate(
    predict: Any, folder: Path, digest: str, on: Chips, single_of: tuple[Path, Mapping[str, Any]] | None = None
) -> Evaluation:
    from filelock import FileLock

    from cryosentinel.evaluation.evaluate import evaluate as run

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # two notebooks may ask for the same predictions at once
        try:
            return run(
                predict, on.store, on.rows, folder, on.references, digest=digest, block_size=on.block_size,
                single_of=single_of,
            )  # fmt: skip
        except CryoSentinelError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # a refused checkpoint leaves no empty folder
            raise


def audit(study: Study, ckpt: str | os.PathLike[str] = SOUP, worst: int = 20, control: int = 20) -> Audit:
    """The label-noise audit of the test split, by the rule of ``configs/audit.yaml``.

    Args:
        study: the chips.
        ckpt: as for :func:`checkpoint`.
        worst, control: chips shown: the largest disagreements of both kinds, and a random draw of the rest.
    """
    from cryosentinel.evaluation import audit as audits

    found = evaluate(study, ckpt)
    rule = audits.AuditRule.read(worst=worst, control=control)
    return audits.audit(found.maps("test"), study.datamodule.store, found.table("test"), rule, progress=True)
