"""The stages of the study, each made once: chips, run, soup, scores, audit. The notebooks call these and tell the rest.

Whatever is missing is made, and that is announced; whatever is there is used. Everything generated lies under one
folder, ``outputs/`` (or ``$CRYOSENTINEL_OUTPUTS``): ``data/<preset>``, ``runs/<run>``, ``study``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cryosentinel import paths
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.files import read_json, sha256, write_json
from cryosentinel.paths import SOUP, STATISTICS_FILE, shown, snapshots

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.dataset import ChipDataModule
    from cryosentinel.evaluation.audit import Audit
    from cryosentinel.evaluation.evaluate import Evaluation
    from cryosentinel.simulate import SimulationConfig
    from cryosentinel.simulate.truth import TruthStore

PRESET_NAMES = ("tiny", "quick", "standard")


class Study:
    """One study: a preset of the embedded benchmark or a folder of published chips, a run on it, and its figures.

    Args:
        preset: tiny, quick or standard: the size of the simulated benchmark and the configuration of the run.
        out: folder of metrics.json, timings.json and figures. None for the study's own, ``outputs/study``; an empty
            string for a new folder under ``outputs/runs``, as notebooks use that are run by hand.
        data: folder of shards in the published format to use instead of the simulated ones.
        notebook: who asks; names the new folder.
        seed: of the run (initial weights, order, augmentation); 0 for the configuration's own. The chips stay the same.
        model, statistics: for checkpoints that do not describe themselves (``load_segmenter``).

    Raises:
        ConfigError: an unknown preset.
        InputError: ``data`` is no folder.
    """

    def __init__(
        self,
        preset: str = "quick",
        out: str | Path | None = None,
        data: str | Path = "",
        notebook: str = "notebook",
        seed: int = 0,
        model: str | Path | None = None,
        statistics: str | Path | None = None,
    ) -> None:
        if preset not in PRESET_NAMES:
            raise ConfigError(f"There is no preset {preset!r}; known are {', '.join(PRESET_NAMES)}.")
        if data and not Path(data).is_dir():
            raise InputError(f"There is no folder {data} of chips; download them first: cryosentinel download.")
        self.preset = preset
        self.simulated = not data
        self._model, self._statistics = model, statistics
        self.root = Path(data) if data else paths.datasets() / preset
        self.seed = seed or self.own_seed
        self.run = paths.runs() / (preset if self.simulated else f"{Path(data).resolve().name}_{preset}")
        if self.seed != self.own_seed:
            # Within the run's folder, so that "the latest run" of a bare checkpoint name is never one of them.
            self.run = self.run / "seeds" / f"{self.run.name}_seed{seed}"
        self.by_hand = out == ""
        if self.by_hand:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
            self.out = paths.runs() / f"{notebook}_{preset}_{stamp}"
        else:
            self.out = Path(out) if out is not None else paths.study()
        self.out.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        chips = f"simulated chips, preset {self.preset}" if self.simulated else f"chips of {shown(self.root)}"
        return f"Study on {chips}; its files go to {shown(self.out)}"

    # --- bookkeeping -------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """The word that goes with every figure: simulated or real."""
        return "simulated" if self.simulated else "real"

    @property
    def config_path(self) -> Path:
        """The run's configuration, ``configs/<preset>.yaml``."""
        return paths.config(self.preset)

    @cached_property
    def own_seed(self) -> int:
        """The seed that the configuration names."""
        return int(yaml.safe_load(self.config_path.read_text(encoding="utf-8"))["seed"])

    @property
    def metrics_path(self) -> Path:
        """The table that every number of the book is read from."""
        return self.out / "metrics.json"

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Everything recorded so far."""
        return read_json(self.metrics_path) if self.metrics_path.is_file() else {}

    def record(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Add entries to the metrics file; see :func:`cryosentinel.evaluation.metrics.metric_entry` for their form."""
        write_json(self.metrics_path, dict(sorted({**self.metrics(), **entries}.items())))

    def begin(self) -> None:
        """Drop the figures of another preset: those of two never stand in one file."""
        path = self.out / "timings.json"
        if path.is_file() and any(entry["preset"] != self.preset for entry in read_json(path).values()):
            path.unlink()
            self.metrics_path.unlink(missing_ok=True)

    def entry(
        self, value: float | None, n: int, source: str, reason: str = "no interval is computed"
    ) -> dict[str, Any]:
        """An entry of the metrics file without an interval, for :meth:`record`.

        Args:
            value: the figure; None with a ``reason`` that says why.
            n: how many chips, lakes or pixels it rests on.
            source: what computed it.
            reason: why there is no interval.
        """
        from cryosentinel.evaluation.metrics import metric_entry

        return metric_entry(value, None, None, n, self.kind, source, reason)

    def note_time(self, stage: str, seconds: float) -> None:
        """Add the wall time of a stage that was made to ``timings.json``."""
        path = self.out / "timings.json"
        times = read_json(path) if path.is_file() else {}
        entry = {"seconds": round(seconds, 1), "preset": self.preset, "date": datetime.now().date().isoformat()}
        write_json(path, {**times, stage: entry})

    @contextlib.contextmanager
    def making(self, stage: str, sentence: str) -> Iterator[None]:
        """Announce a stage that has to be made, and note how long it took."""
        print(sentence, flush=True)
        begun = time.monotonic()
        yield
        self.note_time(stage, time.monotonic() - begun)

    # --- stages ------------------------------------------------------------------------------------------------

    def chips(self) -> Path:
        """The folder of shards; simulated first where the preset's are missing."""
        if self.simulated and not (self.root / STATISTICS_FILE).is_file():
            from cryosentinel.simulate import PRESETS, simulate

            with self.making("simulate", f"The simulated chips of preset {self.preset} are missing; making them."):
                simulate(self.root, PRESETS[self.preset], workers=os.cpu_count() or 1)
        return self.root

    @cached_property
    def _configuration(self) -> tuple[Any, ChipDataModule]:
        from cryosentinel.training.config import parse
        from cryosentinel.training.fit import build

        run, module, _ = build(*parse(self.config_path, {"data.root": str(self.chips()), "seed": self.seed}))
        module.setup()
        return run, module

    @property
    def datamodule(self) -> ChipDataModule:
        """The chips as the run's configuration splits them, set up."""
        return self._configuration[1]

    def learning_rates(self, config: str | None = None) -> pd.DataFrame:
        """The learning rate of each part of the network as a share of the decoder's.

        Args:
            config: name of another configuration in ``configs/``; the run's own by default. No weights are made.
        """
        import torch

        from cryosentinel.models.segmenter import build_segmenter, without_weights
        from cryosentinel.sensors import PUBLISHED_STATISTICS
        from cryosentinel.training.config import parse
        from cryosentinel.training.fit import build
        from cryosentinel.training.optim import learning_rate_profile

        path = self.config_path if config is None else self.config_path.with_name(f"{config}.yaml")
        run = build(*parse(path))[0]
        with torch.device("meta"):
            return learning_rate_profile(build_segmenter(without_weights(run.model), PUBLISHED_STATISTICS), run.optim)

    @cached_property
    def truth(self) -> TruthStore | None:
        """The known truth of simulated chips; None for others."""
        if not self.simulated:
            return None
        from cryosentinel.simulate.truth import TruthStore

        return TruthStore(self.chips())

    def rows(self, *splits: str) -> dict[str, list[int]]:
        """Positions in the store's index of each split, after filter and buffer."""
        return {split: self.datamodule.rows[split].tolist() for split in splits}

    def fit(self, network: str | None = None, **overrides: Any) -> Path:
        """The run folder; trained first, or trained on, where the run is not finished.

        Args:
            network: another network in the place of the study's, on the same chips and schedule: the name of a
                configuration whose ``model`` and ``optim.backbone_mult`` are taken.
            overrides: dotted keys of the configuration, with ``__`` for the dot; they make a run folder of their own.
        """
        from cryosentinel.training.fit import SUMMARY, fit

        keys = {name.replace("__", "."): value for name, value in overrides.items()}
        run = self.run if network is None else self.run / "networks" / f"{self.run.name}_{network}"
        if keys:
            digest = hashlib.sha256(repr(sorted(keys.items())).encode()).hexdigest()[:8]
            run = run.with_name(f"{run.name}_{digest}")
        config = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        if network is not None:
            other = yaml.safe_load((self.config_path.with_name(f"{network}.yaml")).read_text(encoding="utf-8"))
            config["model"] = other["model"]
            config["optim"]["backbone_mult"] = other["optim"]["backbone_mult"]
        keys = {"seed": self.seed} | keys | {"data.root": str(self.chips()), "run_name": run.name}
        if (run / SUMMARY).is_file():
            return fit(config, keys, run)  # returns at once, or says that the folder holds another run
        with self.making(
            "fit" if run == self.run else f"fit_{run.name}",
            f"The run {run.name} is missing or not finished; training (preset {self.preset}).",
        ):
            return fit(config, keys, run)

    def soup(self, network: str | None = None, **overrides: Any) -> Path:
        """The soup of a run (see :meth:`fit`); made first where it is missing or older than a snapshot."""
        from cryosentinel.models.soup import make_soup

        run = self.fit(network, **overrides)
        path = run / "checkpoints" / SOUP
        newest = max(snapshot.stat().st_mtime for snapshot in snapshots(run))
        if not path.is_file() or path.stat().st_mtime < newest:
            with self.making("soup", f"The soup of run {run.name} is missing; averaging its snapshots."):
                make_soup(run)
        return path

    def reestimated_soup(self, network: str | None = None, batches: int = 32, **overrides: Any) -> Path:
        """The soup with BatchNorm statistics estimated anew on training chips, as ``soup_reestimated.ckpt`` beside it.

        Args:
            network, overrides: as for :meth:`fit`.
            batches: of the first epoch's order, not augmented, of the run's batch size.
        """
        from cryosentinel.evaluation.evaluate import chip_batches
        from cryosentinel.models.checkpoint import load_segmenter, save_checkpoint
        from cryosentinel.models.soup import reestimate_batchnorm

        soup = self.soup(network, **overrides)
        path = soup.with_name("soup_reestimated.ckpt")
        if path.is_file() and path.stat().st_mtime >= soup.stat().st_mtime:
            return path
        module = self.datamodule
        loader: Any = module.train_dataloader()
        # Whole batches alone: every one counts the same in the mean.
        count = min(batches, len(loader.sampler) // module.batch_size) * module.batch_size
        chosen = module.rows["train"][loader.sampler.order(0)[:count]]
        segmenter = load_segmenter(soup)
        run = soup.parent.parent.name
        with self.making("batchnorm", f"BatchNorm statistics of the soup of {run}, from {count} training chips."):
            drawn = (batch for _, batch in chip_batches(module.store, chosen, module.batch_size))
            layers = reestimate_batchnorm(segmenter, drawn)
            save_checkpoint(path, segmenter, batchnorm={"layers": layers, "chips": count})
        return path

    def checkpoint(self, ckpt: str = SOUP) -> Path:
        """The file that a ``ckpt`` parameter means; the study's own soup is made where nothing else is meant.

        Args:
            ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path.
        """
        from cryosentinel.models.checkpoint import resolve_checkpoint

        runs = paths.runs()
        if ckpt == SOUP and not (self.by_hand and any(runs.glob(f"*/checkpoints/{SOUP}"))):
            return self.soup()
        return resolve_checkpoint(ckpt, runs)

    def diagnostics(self, checkpoint: Path, flips: int, bf16: bool = False) -> Path:
        """Where an evaluation is kept: the run's ``diagnostics`` for the soup of a run, else the study's own folder."""
        run = checkpoint.parent.parent
        ours = run == self.run or run.parent == self.run / "networks"
        if checkpoint.name == SOUP and flips == 4 and not bf16 and ours and not self.by_hand:
            return run / "diagnostics"
        name = f"{checkpoint.stem}_flips{flips}{'_bf16' if bf16 else ''}"
        return self.out / "diagnostics" / (name if run == self.run else f"{run.name}_{name}")

    def evaluate(
        self,
        ckpt: str | os.PathLike[str] = SOUP,
        flips: int = 4,
        splits: Sequence[str] = ("val", "test"),
        bf16: bool = False,
    ) -> Evaluation:
        """Scores of a checkpoint against the labels, and against the known truth where there is one.

        Args:
            ckpt: as for :meth:`checkpoint`.
            flips: test-time flips, 1 or 4.
            splits: which splits.
            bf16: run the network in bfloat16 where it may.
        """
        from cryosentinel.evaluation.predictors import model_predictor
        from cryosentinel.models.checkpoint import load_segmenter

        path = self.checkpoint(os.fspath(ckpt))
        predict = model_predictor(load_segmenter(path, self._model, self._statistics), flips=flips, bf16=bf16)
        return self._evaluate(predict, self.diagnostics(path, flips, bf16), sha256(path), splits)

    def baseline(self, name: str = "mndwi", splits: Sequence[str] = ("val", "test")) -> Evaluation:
        """Scores of a baseline, by the same code as the network's.

        Args:
            name: mndwi, ndwi, or pixel (gradient boosting on single pixels of all bands, fitted on the training split).
            splits: which splits.
        """
        from cryosentinel.evaluation.baselines import baseline

        predict = baseline(name, self.datamodule.store, self.rows("train")["train"])
        return self._evaluate(predict, self.out / "diagnostics" / name, f"baseline {name}", splits)

    def _evaluate(self, predict: Any, folder: Path, digest: str, splits: Sequence[str]) -> Evaluation:
        from cryosentinel.evaluation.evaluate import evaluate

        truth = self.truth
        references = {} if truth is None else {"truth": lambda chip: truth[chip.chip_id].lake}
        module = self.datamodule
        return evaluate(
            predict, module.store, self.rows(*splits), folder, references,
            digest=digest, block_size=module.block_size,
        )  # fmt: skip

    def audit(self, ckpt: str | os.PathLike[str] = SOUP, worst: int = 20, control: int = 20) -> Audit:
        """The label-noise audit of the test split, by the rule of :mod:`cryosentinel.evaluation.audit`.

        Args:
            ckpt: as for :meth:`checkpoint`.
            worst, control: chips shown: the largest disagreements, and a random draw of the rest.
        """
        from cryosentinel.evaluation.audit import AuditRule, audit

        found = self.evaluate(ckpt)
        rule = AuditRule(worst=worst, control=control)
        return audit(found.maps("test"), self.datamodule.store, found.table("test"), rule, progress=True)

    @property
    def simulation(self) -> SimulationConfig | None:
        """What the chips were simulated from; None for others."""
        from cryosentinel.simulate import PRESETS

        return PRESETS[self.preset] if self.simulated else None

    @staticmethod
    def real_reference() -> Path | None:
        """The folder of real reference data, ``$CRYOSENTINEL_REAL_DATA``, or None where there is none."""
        root = os.environ.get("CRYOSENTINEL_REAL_DATA")
        return Path(root) if root and Path(root).is_dir() else None

    def real_chips(self, folder: str | os.PathLike[str] = "") -> Path | None:
        """The folder of real chips laid out as TerraMesh, or None where there is none.

        Args:
            folder: given explicitly; else ``$CRYOSENTINEL_REAL_DATA/terramesh_chips``.

        Raises:
            InputError: a folder was given and is not there.
        """
        if folder:
            if not Path(folder).is_dir():
                raise InputError(f"There is no folder {folder} of real chips; leave it out to skip them.")
            return Path(folder)
        root = self.real_reference()
        return root / "terramesh_chips" if root is not None and (root / "terramesh_chips").is_dir() else None
