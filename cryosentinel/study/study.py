"""A study: which chips, which run on them, and where its figures go."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cryosentinel import paths
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.files import replacing
from cryosentinel.study import stages
from cryosentinel.study.folders import Folders
from cryosentinel.study.metrics_file import MetricsFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cryosentinel.data.dataset import ChipDataModule
    from cryosentinel.simulate import SimulationConfig
    from cryosentinel.simulate.truth import TruthStore

PRESET_NAMES = ("tiny", "quick", "standard")


class Study:
    """A preset of the embedded benchmark or a folder of published chips, a run on it, and its figures.

    The stages (:mod:`cryosentinel.study.stages`) are its methods: each makes what is missing and takes what is there.

    Args:
        preset: tiny, quick or standard: the size of the simulated benchmark and the configuration of the run.
        out: folder of metrics.json, timings.json and figures. None for the study's own, ``outputs/study``; an empty
            string for a new folder under ``outputs/runs``, as notebooks use that are run by hand.
        data: folder of shards in the published format to use instead of the simulated ones.
        notebook: who asks; named as the source of figures, and in the new folder.
        seed: of the run (initial weights, order, augmentation); 0 for the configuration's own. The chips stay the same.
        model, statistics: for checkpoints that do not describe themselves, see
            :func:`cryosentinel.models.checkpoint.load_segmenter`.

    Attributes:
        folders: where chips, run and figures lie.
        metrics: the file that figures are added to.
        config_path: the run's configuration, ``configs/<preset>.yaml``.
        split_config: the configuration whose section ``data`` chooses and splits the chips: the run's, until a
            checkpoint from elsewhere is scored on chips that were not simulated.
        own_seed: the seed that the configuration names.
        segmenters: the network that was scored last, so that it is not opened for each of its settings.

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
        self.preset, self.simulated = preset, not data
        self.model, self.statistics = model, statistics
        self.segmenters: dict[str, Any] = {}
        self.config_path = paths.config(preset)
        self.split_config = self.config_path
        self.own_seed = int(yaml.safe_load(self.config_path.read_text(encoding="utf-8"))["seed"])
        self.seed = seed or self.own_seed
        self.folders = Folders.of(preset, data, out, notebook, None if self.seed == self.own_seed else self.seed)
        self.metrics = MetricsFile(self.out, self.kind, preset, f"notebooks/{notebook}.ipynb, preset {preset}")

    def __str__(self) -> str:
        root, out = paths.display_path(self.root), paths.display_path(self.out)
        chips = f"simulated chips, preset {self.preset}" if self.simulated else f"chips of {root}"
        return f"Study on {chips}; its files go to {out}"

    @property
    def kind(self) -> str:
        """The word that goes with every figure: simulated or real."""
        return "simulated" if self.simulated else "real"

    @property
    def root(self) -> Path:
        """The folder of the chips."""
        return self.folders.chips

    @property
    def out(self) -> Path:
        """The folder of the figures."""
        return self.folders.out

    def save(self, figure: Figure, name: str) -> None:
        """Write a figure into the study's folder."""
        with replacing(self.out / name) as part:
            figure.savefig(part, dpi=110)

    @property
    def simulation(self) -> SimulationConfig | None:
        """What the chips were simulated from; None for others."""
        from cryosentinel.simulate import PRESETS

        return PRESETS[self.preset] if self.simulated else None

    @cached_property
    def datamodule(self) -> ChipDataModule:
        """The chips, chosen and split as ``split_config`` says, set up."""
        from cryosentinel.training.config import parse
        from cryosentinel.training.fit import build

        values: dict[str, Any] = {"data.root": str(self.chips()), "seed": self.seed}
        module = build(*parse(self.split_config, values))[1]
        module.setup()
        return module

    @cached_property
    def truth(self) -> TruthStore | None:
        """The known truth of simulated chips; None for others."""
        if not self.simulated:
            return None
        from cryosentinel.simulate import TruthStore

        return TruthStore(self.chips())

    chips = stages.chips
    fit = stages.fit
    soup = stages.soup
    reestimated_soup = stages.reestimated_soup
    checkpoint = stages.checkpoint
    evaluate = stages.evaluate
    evaluate_predictor = stages.evaluate_predictor
    baseline = stages.baseline
    audit = stages.audit
