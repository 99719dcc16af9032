"""Chapter 6: the two published finetunes by their configurations, and both run here for a few steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from cryosentinel import paths
from cryosentinel.files import read_json
from cryosentinel.models.checkpoint import save_checkpoint
from cryosentinel.models.segmenter import BACKBONES, SegmenterConfig, build_segmenter
from cryosentinel.study.comparison import NETWORKS
from cryosentinel.study.stages import learning_rates
from cryosentinel.training.config import RunConfig, differences, flatten, parse
from cryosentinel.training.fit import build
from cryosentinel.training.optim import STARVED, OptimConfig, SWAConfig, at_depth, learning_rate, plot_profile
from cryosentinel.training.weight_change import beside_rates, movement, plot_movement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cryosentinel.study.study import Study

#: The first attempt, which was given up, and the one that became the published checkpoint.
VERSIONS = ("v1", "v2")
PUBLISHED_SCORES = {"v1": "finetune_v1_val_iou", "v2": "val_iou@0.50_tta"}
_NOTHING = {"frozen_blocks": 0, "backbone_mult": 1.0, "layer_decay": 1.0}  # the settings that multiply, without effect


@dataclass
class FailedFinetune:
    """What both configurations mean for each block, and what a few steps under each do to the weights.

    Attributes:
        study: its chips, on which both short runs train TerraMind tiny from the same random weights.
        steps: optimiser steps of a short run, at most one epoch.
    """

    study: Study
    steps: int

    def __post_init__(self) -> None:
        files = {version: paths.config(f"terramind_v3_finetune_almaty_{version}") for version in VERSIONS}
        built = {version: build(*parse(file)) for version, file in files.items()}
        self.published: dict[str, RunConfig] = {version: run for version, (run, _, _) in built.items()}
        self._plain = {version: plain for version, (_, _, plain) in built.items()}
        (self.depth,) = {BACKBONES[run.model.backbone] for run in self.published.values()}
        self.profiles = {version: learning_rates(file) for version, file in files.items()}
        #: The row of the first block that learns.
        self.first = {v: p[~p.frozen & p.part.str.startswith("block")].iloc[0] for v, p in self.profiles.items()}

    # --- as published ------------------------------------------------------------------------------------------

    def multipliers(self) -> pd.DataFrame:
        """Each setting, and the lowest share of the decoder's rate that it alone, and all together, leave a block."""
        rows: dict[str, dict[str, str]] = {name: {} for name in (*_NOTHING, "all three")}
        for version, run in self.published.items():
            for name in _NOTHING:
                value = getattr(run.optim, name)
                lowest = self._lowest_share(OptimConfig(**{**_NOTHING, name: value}))
                rows[name] |= {version: f"{value:g}", f"{version} lowest share": lowest}
            rows["all three"][f"{version} lowest share"] = self._lowest_share(run.optim)
        return pd.DataFrame(rows).T.fillna("")

    def _lowest_share(self, config: OptimConfig) -> str:
        rates = [learning_rate(f"block {block:02d}", self.depth, config) for block in range(self.depth)]
        return f"{min(rate for rate in rates if rate > 0) / config.lr:.2%}"

    def plot_profiles(self) -> Axes:
        """Draw the rate of every part under both."""
        ax = _axes()
        for version, profile in self.profiles.items():
            plot_profile(profile, ax, label=f"finetune {version}")
        return ax

    def starved(self) -> str:
        """Where each version begins to learn, and how much of it is frozen or below the warning's line."""
        lines = []
        for version, profile in self.profiles.items():
            first, starved = self.first[version], profile[profile.starved]
            lines.append(
                f"{version}: {first.part} is the first that learns, at {first.share:.2%} of the decoder's rate "
                f"({first.lr:.1e}). Frozen or below {STARVED:.0%}: {len(starved)} of {len(profile)} parts, "
                f"{starved.parameters.sum() / profile.parameters.sum():.0%} of the parameters."
            )
        return "\n".join(lines)

    def differences(self) -> pd.DataFrame:
        """The settings in which the two published configurations differ."""
        flat = {version: flatten(plain) for version, plain in self._plain.items()}
        keys = [key for key in differences(*self._plain.values()) if key != "run_name"]
        return pd.DataFrame({version: {key: f"{values.get(key)}" for key in keys} for version, values in flat.items()})

    def published_scores(self) -> str:
        """The published validation score of each version, with its source."""
        figures = read_json(paths.PUBLISHED)
        found = {version: figures[name] for version, name in PUBLISHED_SCORES.items()}
        return "\n".join(f"published validation IoU of {v}: {e['value']} ({e['source']})" for v, e in found.items())

    # --- here, for a few steps ---------------------------------------------------------------------------------

    @cached_property
    def carried_over(self) -> dict[str, OptimConfig]:
        """The settings for the study's encoder, each block at the rate of its relative depth."""
        self._blocks = BACKBONES[self._network.backbone]
        return {
            version: replace(
                at_depth(run.optim, self.depth, self._blocks),
                warmup_epochs=run.optim.warmup_epochs / run.trainer.max_epochs,  # the same share of the run
                swa=SWAConfig(start=1.0),  # none: v1 stopped before its second phase
            )
            for version, run in self.published.items()
        }

    def first_here(self, version: str) -> str:
        """The first block of the study's encoder that learns."""
        return f"block {self.carried_over[version].frozen_blocks:02d}"

    def settings_here(self) -> pd.DataFrame:
        """The settings as carried over, beside what they came from."""
        columns = {}
        for version, config in self.carried_over.items():
            here, there = self.first_here(version), self.first[version]
            columns[version] = {
                "decoder's learning rate": f"{config.lr:g}",
                **{name: f"{getattr(config, name):.4g}" for name in _NOTHING},
                "first that learns, of the decoder's rate": f"{here}, "
                f"{learning_rate(here, self._blocks, config) / config.lr:.2%}",
                "as published": f"{there.part}, {there.share:.2%}",
            }
        return pd.DataFrame(columns)

    @property
    def _network(self) -> SegmenterConfig:
        return SegmenterConfig.from_dict(NETWORKS["terramind"].model)

    @cached_property
    def _start(self) -> Path:
        """The random weights that both runs start from, under a name that tells their seed."""
        path = self.study.folders.run.parent / f"terramind-seed{self.study.seed}.ckpt"
        if not path.is_file():
            torch.manual_seed(self.study.seed)
            save_checkpoint(path, build_segmenter(self._network, self.study.datamodule.statistics))
        return path

    @cached_property
    def runs(self) -> dict[str, Path]:
        """The run folders, both from the same weights on the same chips in the same order."""
        module = self.study.datamodule
        # A run validates once; its score is of no use here, so it stops at the first batch that holds a lake.
        water = module.store.index["water_frac"].to_numpy()[module.rows["val"]]
        return {
            version: self.study.fit(
                NETWORKS["terramind"],
                model__weights=str(self._start),
                optim=asdict(config),
                trainer__max_epochs=1,
                trainer__limit_train_batches=self.steps,
                trainer__limit_val_batches=int((water > 0).argmax()) // module.batch_size + 1,
                checkpoints={"snapshot_last": 1, "best": False},
            )
            for version, config in self.carried_over.items()
        }

    @cached_property
    def taken(self) -> dict[str, int]:
        """Optimiser steps of the short runs."""
        return {version: read_json(run / "logs" / "summary.json")["steps"] for version, run in self.runs.items()}

    @cached_property
    def moved(self) -> dict[str, pd.DataFrame]:
        """How far each part moved, see :func:`cryosentinel.training.weight_change.movement`."""
        return {version: movement(self._start, run / "checkpoints" / "last.ckpt") for version, run in self.runs.items()}

    def way(self, version: str, part: str) -> float:
        """How far a part moved, as a share of the length of its weights."""
        return float(self.moved[version].set_index("part").movement[part])

    def plot_moved(self) -> Axes:
        """Draw how far each part moved."""
        ax = plot_movement({f"finetune {version}": table for version, table in self.moved.items()}, _axes())
        ax.set_title(f"Movement in {max(self.taken.values())} steps ({self.study.kind} chips)", fontsize=10)
        return ax

    def moved_beside_rates(self) -> pd.DataFrame:
        """Learning rate, movement, and movement over the sum of the rates, part by part."""
        columns = {}
        for version, config in self.carried_over.items():
            table = beside_rates(self.moved[version], config, self.taken[version]).set_index("part")
            columns[f"{version} rate"] = table["share"].map("{:.2%}".format).mask(table["share"] == 0, "frozen")
            columns[f"{version} moved"] = table["movement"].map("{:.1e}".format).mask(table["still"], "exactly 0")
            columns[f"{version} of its rates"] = table["of_rates"].map("{:.2f}".format).mask(table["still"], "")
        return pd.DataFrame(columns)

    def summary(self) -> str:
        """Decoder and first trained block of v1, under both, in sentences."""
        lowest = self.first_here("v1")
        block, decoder = ({v: self.way(v, part) for v in VERSIONS} for part in (lowest, "decoder"))
        still = ", ".join(f"{version} {int(table.still.sum())}" for version, table in self.moved.items())
        return (
            f"The decoder moved {decoder['v1'] / block['v1']:,.0f} times as far as {lowest} under v1,\n"
            f"and {decoder['v2'] / block['v2']:,.0f} times as far under v2.\n"
            f"{lowest} itself moved {block['v2'] / block['v1']:.1f} times as far under v2 as under v1,\n"
            f"the decoder {decoder['v2'] / decoder['v1']:.1f} times.\n"
            f"Parts of the encoder that stood still, bit for bit: {still}"
        )

    def record(self) -> pd.DataFrame:
        """Write this chapter's figures to the metrics file."""
        metrics = self.study.metrics.of(f"seed {self.study.seed}")
        reason = "a property of the configuration has no interval"
        parts = self.profiles["v2"].set_index("part").parameters
        metrics.add("published_parameters_encoder", float(parts.drop("decoder").sum()), reason=reason)
        for version, first in self.first.items():
            reason = "a property of the configuration has no interval"
            metrics.add(f"finetune_{version}_lowest_learning_rate_share", first.share, reason=reason)
            seen, reason = self.taken[version] * self.study.datamodule.batch_size, "one short run has no interval"
            for part, called in ((self.first_here(version), "first_trained_block"), ("decoder", "decoder")):
                name = f"finetune_{version}_movement_{called}"
                metrics.add(name, self.way(version, part), seen, reason=reason)
        return metrics.write()


def _axes() -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 3.5), layout="constrained")[1]
