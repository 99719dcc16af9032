"""Chapter 6: the two published finetunes by their configurations, and both run here for a few steps."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryosentinel import paths
from cryosentinel.files import read_json, replacing, sha256
from cryosentinel.models.terramind import BACKBONES
from cryosentinel.study.stages import learning_rates
from cryosentinel.training.config import differences, flatten, parse
from cryosentinel.training.fit import build
from cryosentinel.training.optim import STARVED, OptimConfig, SWAConfig, at_depth, learning_rate, plot_profile
from cryosentinel.training.weight_change import beside_rates, movement, plot_movement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cryosentinel.study.study import Study

#: The first attempt, given up, and the one that became the published checkpoint: name -> configuration.
CONFIGS = {version: f"terramind_v3_finetune_almaty_{version}" for version in ("v1", "v2")}
#: The settings that multiply.
MULTIPLIERS = ("frozen_blocks", "backbone_mult", "layer_decay")
PUBLISHED_SCORES = {"v1": "finetune_v1_val_iou", "v2": "val_iou@0.50_tta"}


@dataclass
class FailedFinetune:
    """Both configurations, what they mean for each block, and what a few steps under each do to the weights.

    Attributes:
        study: its chips, network and soup, from which both short runs start.
        steps: optimiser steps of a short run, at most one epoch.
    """

    study: Study
    steps: int

    # --- as published ------------------------------------------------------------------------------------------

    @cached_property
    def _built(self) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
        return {version: build(*parse(paths.config(name))) for version, name in CONFIGS.items()}

    @cached_property
    def published(self) -> dict[str, Any]:
        """Version -> configuration of its run."""
        return {version: run for version, (run, _, _) in self._built.items()}

    @cached_property
    def depth(self) -> int:
        """Blocks of the published encoder."""
        (depth,) = {BACKBONES[run.model.backbone] for run in self.published.values()}
        return depth

    @cached_property
    def profiles(self) -> dict[str, pd.DataFrame]:
        """Version -> the learning rate of each part as a share of the decoder's."""
        return {version: learning_rates(name) for version, name in CONFIGS.items()}

    @cached_property
    def first_trained(self) -> dict[str, pd.Series]:
        """Version -> the row of its first block that learns."""
        return {v: p[~p.frozen & p.part.str.startswith("block")].iloc[0] for v, p in self.profiles.items()}

    def multipliers(self) -> pd.DataFrame:
        """Each setting, and the lowest share of the decoder's rate that it alone, and all together, leave a block."""
        rows: dict[str, dict[str, str]] = {}
        for name in MULTIPLIERS:
            for version, run in self.published.items():
                value = getattr(run.optim, name)
                alone = OptimConfig(**{"backbone_mult": 1.0, "layer_decay": 1.0, "frozen_blocks": 0, name: value})
                rows.setdefault(name, {}).update({version: f"{value:g}", _lowest(version): self._lowest_share(alone)})
        rows["all three"] = {_lowest(version): self._lowest_share(run.optim) for version, run in self.published.items()}
        return pd.DataFrame(rows).T.fillna("")

    def _lowest_share(self, config: OptimConfig) -> str:
        rates = [learning_rate(f"block {block:02d}", self.depth, config) for block in range(self.depth)]
        return f"{min(rate for rate in rates if rate > 0) / config.lr:.2%}"

    def plot_profiles(self) -> Axes:
        """Draw the rate of every part under both."""
        ax = _axes(3.4)
        for version, profile in self.profiles.items():
            plot_profile(profile, ax, label=f"finetune {version}")
        return ax

    def starved(self) -> str:
        """Where each version begins to learn, and how much of it is frozen or below the warning's line."""
        lines = []
        for version, profile in self.profiles.items():
            first, starved = self.first_trained[version], profile[profile.starved]
            share = starved.parameters.sum() / profile.parameters.sum()
            lines.append(
                f"{version}: {first.part} is the first that learns, at {first.share:.2%} of the decoder's rate "
                f"({first.lr:.1e}). Frozen or below {STARVED:.0%}: {len(starved)} of {len(profile)} parts, {share:.0%} "
                "of the parameters."
            )
        return "\n".join(lines)

    def differences(self) -> pd.DataFrame:
        """The settings in which the two published configurations differ."""
        flat = {version: flatten(plain) for version, (_, _, plain) in self._built.items()}
        keys = [key for key in differences(*(plain for _, _, plain in self._built.values())) if key != "run_name"]
        return pd.DataFrame({version: {key: f"{values.get(key)}" for key in keys} for version, values in flat.items()})

    @staticmethod
    def published_scores() -> str:
        """The published validation score of each version, with its source."""
        figures = read_json(paths.PUBLISHED)
        entries = {version: figures[name] for version, name in PUBLISHED_SCORES.items()}
        return "\n".join(
            f"published validation IoU of {v}: {entry['value']} ({entry['source']})" for v, entry in entries.items()
        )

    # --- here, for a few steps ---------------------------------------------------------------------------------

    @cached_property
    def _blocks(self) -> int:
        return BACKBONES[build(*parse(self.study.config_path))[0].model.backbone]

    @cached_property
    def carried_over(self) -> dict[str, OptimConfig]:
        """Version -> its settings for the study's encoder, each block at the rate of its relative depth."""
        return {
            version: replace(
                at_depth(run.optim, self.depth, self._blocks),
                warmup_epochs=run.optim.warmup_epochs / run.trainer.max_epochs,  # the same share of the run
                swa=SWAConfig(start=1.0),  # none: v1 stopped before its second phase
            )
            for version, run in self.published.items()
        }

    @cached_property
    def first_here(self) -> dict[str, str]:
        """Version -> the first block of the study's encoder that learns."""
        return {version: f"block {config.frozen_blocks:02d}" for version, config in self.carried_over.items()}

    def settings_here(self) -> pd.DataFrame:
        """The settings as carried over, beside what they came from."""
        columns = {}
        for version, config in self.carried_over.items():
            first, there = self.first_here[version], self.first_trained[version]
            share = learning_rate(first, self._blocks, config) / config.lr
            columns[version] = {
                "decoder's learning rate": f"{config.lr:g}",
                "backbone_mult": f"{config.backbone_mult:g}",
                "layer_decay": f"{config.layer_decay:.4g}",
                "frozen_blocks": f"{config.frozen_blocks}",
                "first that learns, of the decoder's rate": f"{first}, {share:.2%}",
                "as published": f"{there.part}, {there.share:.2%}",
            }
        return pd.DataFrame(columns)

    @cached_property
    def start(self) -> Path:
        """The study's soup under a name that tells its content: another soup makes other runs."""
        soup = self.study.soup()
        start = soup.with_name(f"start-{sha256(soup)[:8]}.ckpt")
        if not start.is_file():
            with replacing(start) as part:
                shutil.copyfile(soup, part)
        return start

    @cached_property
    def runs(self) -> dict[str, Path]:
        """Version -> run folder, both from the same weights on the same chips in the same order."""
        module = self.study.datamodule
        # A run validates once; its score is of no use here, so it stops at the first batch that holds a lake.
        water = module.store.index["water_frac"].to_numpy()[module.rows["val"]]
        return {
            version: self.study.fit(
                model__weights=str(self.start),
                optim=asdict(config),
                trainer__max_epochs=1,
                trainer__limit_train_batches=self.steps,
                trainer__limit_val_batches=int(np.argmax(water > 0)) // module.batch_size + 1,
                checkpoints={"snapshot_last": 1, "best": False},
            )
            for version, config in self.carried_over.items()
        }

    @cached_property
    def taken(self) -> dict[str, int]:
        """Version -> optimiser steps of its short run."""
        return {version: read_json(run / "logs" / "summary.json")["steps"] for version, run in self.runs.items()}

    @cached_property
    def moved(self) -> dict[str, pd.DataFrame]:
        """Version -> how far each part moved, see :func:`cryosentinel.training.weight_change.movement`."""
        return {version: movement(self.start, run / "checkpoints" / "last.ckpt") for version, run in self.runs.items()}

    def way(self, version: str, part: str) -> float:
        """How far a part moved, as a share of the length of its weights."""
        return float(self.moved[version].set_index("part").movement[part])

    def plot_moved(self) -> Axes:
        """Draw how far each part moved."""
        ax = _axes(3.6)
        plot_movement({f"finetune {version}": table for version, table in self.moved.items()}, ax)
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
        """The same in sentences."""
        lowest = self.first_here["v1"]
        still = ", ".join(f"{version} {int(table.still.sum())}" for version, table in self.moved.items())
        return (
            f"The decoder moved {self.way('v1', 'decoder') / self.way('v1', lowest):,.0f} times as far as {lowest} "
            f"under v1,\nand {self.way('v2', 'decoder') / self.way('v2', lowest):,.0f} times as far under v2.\n"
            f"{lowest} itself moved {self.way('v2', lowest) / self.way('v1', lowest):.1f} times as far under v2 as "
            f"under v1,\nthe decoder {self.way('v2', 'decoder') / self.way('v1', 'decoder'):.1f} times.\n"
            f"Parts of the encoder that stood still, bit for bit: {still}"
        )

    def record(self) -> pd.DataFrame:
        """Add this chapter's figures to the metrics file."""
        metrics = self.study.metrics.of(f"seed {self.study.seed}")
        for version, first in self.first_trained.items():
            name, reason = f"finetune_{version}", "a property of the configuration has no interval"
            metrics.add(f"{name}_lowest_learning_rate_share", first.share, reason=reason)
            seen, reason = self.taken[version] * self.study.datamodule.batch_size, "one short run has no interval"
            for part, called in ((self.first_here[version], "first_trained_block"), ("decoder", "decoder")):
                metrics.add(f"{name}_movement_{called}", self.way(version, part), seen, reason=reason)
        return metrics.write()


def _lowest(version: str) -> str:
    return f"{version} lowest share"


def _axes(height: float) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, height), layout="constrained")[1]
