"""AdamW with layer-wise learning-rate decay, its schedule, and the profile that shows both before a run starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cryosentinel.errors import ConfigError
from cryosentinel.models.segmenter import Segmenter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Below this share of the decoder's learning rate a block is called starved.
STARVED = 0.01


@dataclass
class SWAConfig:
    """The second phase of the schedule: a low, constant rate at which snapshots for the soup are taken.

    Attributes:
        start: the phase begins with epoch int(start x epochs), counted from 1, as in Lightning (0.4 of 30 epochs: with
            the twelfth), but never before the warm-up is over, so that the rate reaches its peak in a short run, too;
            a run that ends in its warm-up has no such phase. 1 for none.
        lr: learning rate that the phase settles at.
        anneal_epochs: epochs over which the rate goes there, along a half cosine.
        layerwise: keep each group's share of the decoder's rate. Off, every group goes to ``lr``, as torch's SWALR
            and Lightning's StochasticWeightAveraging do, and as the published runs did.
    """

    start: float = 0.4
    lr: float = 1e-5
    anneal_epochs: float = 3
    layerwise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or self.lr < 0 or self.anneal_epochs < 0:
            raise ConfigError(
                f"optim.swa needs start in [0, 1], lr and anneal_epochs of at least 0, not {self.start}, {self.lr} and "
                f"{self.anneal_epochs}."
            )


@dataclass
class OptimConfig:
    """Learning rates, decay and schedule. The defaults are those of the published finetuning (4b v2).

    Attributes:
        lr: learning rate of the decoder (necks, decoder, head, refiner).
        backbone_mult: the encoder's rate before layer-wise decay, as a share of ``lr``.
        layer_decay: block i of n learns at lr x backbone_mult x layer_decay ^ (n - i), the encoder's other parameters
            (embeddings, norms) at layer_decay ^ (n + 1).
        frozen_blocks: the first so many blocks, and the encoder's other parameters with them, do not learn.
        weight_decay: AdamW's.
        decay_norm_and_bias: whether weight decay also pulls on vectors and scalars (norms, biases, gates).
        betas: AdamW's.
        warmup_epochs: the rates rise linearly from zero over so many epochs.
        min_lr_share: where the cosine ends, as a share of each group's rate.
        swa: the second phase.
    """

    lr: float = 6e-5
    backbone_mult: float = 0.25
    layer_decay: float = 0.9
    frozen_blocks: int = 0
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 1.0
    min_lr_share: float = 0.0
    swa: SWAConfig = field(default_factory=SWAConfig)

    def __post_init__(self) -> None:
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        if not (self.lr > 0 and self.backbone_mult >= 0 and 0 < self.layer_decay <= 1):
            raise ConfigError(
                f"optim needs lr above 0, backbone_mult of at least 0 and layer_decay in (0, 1], not {self.lr}, "
                f"{self.backbone_mult} and {self.layer_decay}."
            )
        if self.frozen_blocks < 0 or self.warmup_epochs < 0 or not 0 <= self.min_lr_share <= 1:
            raise ConfigError("optim.frozen_blocks and warmup_epochs are at least 0, min_lr_share is in [0, 1].")


def part_of(name: str, depth: int) -> str:
    """The part of the network a parameter belongs to: "block 07", "encoder" (its other parameters) or "decoder".

    Args:
        name: parameter name.
        depth: number of blocks, to refuse a block that should not be there.
    """
    block = Segmenter.block_of(name)
    if block is None:
        return "decoder"
    if block >= depth:
        raise ConfigError(f"The parameter {name} is in block {block} of an encoder of {depth} blocks.")
    return "encoder" if block < 0 else f"block {block:02d}"


def learning_rate(part: str, depth: int, config: OptimConfig) -> float:
    """The rate of a part at the top of the schedule; 0 where it is frozen."""
    if part == "decoder":
        return config.lr
    block = -1 if part == "encoder" else int(part.split()[1])
    if block < config.frozen_blocks and config.frozen_blocks > 0:
        return 0.0
    return config.lr * config.backbone_mult * config.layer_decay ** (depth - block)


def freeze(model: nn.Module, depth: int, config: OptimConfig) -> None:
    """Take the parts with a learning rate of zero out of the gradient.

    Raises:
        ConfigError: more blocks are to be frozen than there are.
    """
    if config.frozen_blocks > depth:
        raise ConfigError(f"optim.frozen_blocks is {config.frozen_blocks}, but the encoder has {depth} blocks.")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and learning_rate(part_of(name, depth), depth, config) == 0:
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, depth: int, config: OptimConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups, one a part (two where norms and biases go without weight decay).

    Args:
        model: a segmenter.
        depth: number of encoder blocks.
        config: rates and decay.

    Returns:
        Groups with ``name``, ``lr``, ``weight_decay`` and ``params``, ordered from the input to the decoder.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name, depth)
        decays = config.decay_norm_and_bias or parameter.ndim > 1
        key = part if decays else f"{part}, no decay"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": learning_rate(part, depth, config),
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    order = {"encoder": 0, "block": 1, "decoder": 2}
    return [groups[key] for key in sorted(groups, key=lambda k: (order[k.split(",")[0].split()[0]], k))]


def build_optimizer(model: nn.Module, depth: int, config: OptimConfig) -> torch.optim.AdamW:
    """Freeze what is to be frozen and build AdamW over the rest.

    Raises:
        ConfigError: nothing is left to learn.
    """
    freeze(model, depth, config)
    groups = parameter_groups(model, depth, config)
    if not groups:
        raise ConfigError("No parameter is left to learn; lower optim.frozen_blocks or raise optim.backbone_mult.")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def rate_at(step: int, peak: float, config: OptimConfig, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of a group at an optimiser step.

    Linear warm-up, cosine over the whole length of the run, and, from the start of the SWA phase on, a half cosine
    from the rate reached there to the phase's own.

    Args:
        step: optimiser steps taken so far.
        peak: the group's rate at the top of the schedule.
        config: schedule.
        steps_per_epoch: optimiser steps an epoch.
        epochs: length of the run.
    """
    total = max(1, steps_per_epoch * epochs)
    warmup = config.warmup_epochs * steps_per_epoch
    swa_start = max(swa_first_epoch(config, epochs) * steps_per_epoch, math.ceil(warmup))
    settled = config.swa.lr * (peak / config.lr if config.swa.layerwise else 1.0)

    def first_phase(at: int) -> float:
        if at < warmup:
            return peak * (at + 1) / (warmup + 1)
        progress = min(1.0, (at - warmup) / max(1.0, total - warmup))
        floor = config.min_lr_share
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    if step < swa_start or swa_start >= total:
        return first_phase(step)
    length = config.swa.anneal_epochs * steps_per_epoch
    share = 1.0 if length == 0 else min(1.0, (step - swa_start) / length)
    eased = 0.5 * (1 - math.cos(math.pi * share))
    return settled * eased + first_phase(swa_start) * (1 - eased)


def swa_first_epoch(config: OptimConfig, epochs: int) -> int:
    """The first epoch of the SWA phase, counted from 0; ``epochs`` where there is none."""
    if config.swa.start >= 1:
        return epochs
    # The small number is for products such as 0.29 x 100, which fall just short of a whole one.
    first = int(config.swa.start * epochs + 1e-9) - 1
    return min(max(first, math.ceil(config.warmup_epochs)), epochs)


def plot_schedule(
    config: OptimConfig,
    steps_per_epoch: int,
    epochs: int,
    used: Mapping[int, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the decoder's learning rate over a run, the SWA phase shaded.

    Args:
        config: schedule.
        steps_per_epoch: optimiser steps an epoch.
        epochs: length of the run.
        used: step -> rate that the optimiser used in it, from the run's log: dots that should lie on the line.
        ax: where to draw; a new figure by default.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
    total = steps_per_epoch * epochs
    rates = [rate_at(step, config.lr, config, steps_per_epoch, epochs) for step in range(total)]
    ax.plot(range(1, total + 1), rates, label="schedule")
    if used:
        ax.plot(list(used), list(used.values()), "o", label="used in the last step of the epoch")
    if (first := swa_first_epoch(config, epochs)) < epochs:
        ax.axvspan(first * steps_per_epoch, total, alpha=0.15, label="SWA phase")
    ax.set(xlabel="optimiser step", ylabel="learning rate of the decoder", ylim=(0, None))
    ax.legend()
    return ax


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, steps_per_epoch: int, epochs: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule, to be stepped after every optimiser step."""

    def share(peak: float) -> Callable[[int], float]:
        return lambda step: rate_at(step, peak, config, steps_per_epoch, epochs) / peak

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [share(group["lr"]) for group in optimizer.param_groups])


def learning_rate_profile(model: nn.Module, config: OptimConfig) -> pd.DataFrame:
    """What each part of the network learns at, before the run starts.

    Three multipliers compound (frozen blocks, the encoder's share, the decay a block), and a configuration that looks
    harmless line by line can leave half of the encoder standing still.

    Args:
        model: a segmenter.
        config: learning rates.

    Returns:
        One row a part, from the input to the decoder: part, lr, share (of the decoder's), parameters, frozen, starved
        (learns, or is frozen, at less than 1 % of the decoder's rate).
    """
    import pandas as pd

    depth = int(model.depth)  # type: ignore[arg-type]
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name, depth)
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    parts = [p for p in ["encoder", *(f"block {i:02d}" for i in range(depth)), "decoder"] if p in sizes]
    rows = []
    for part in parts:
        lr = learning_rate(part, depth, config)
        share = lr / config.lr
        rows.append((part, lr, share, sizes[part], lr == 0, share < STARVED))
    return pd.DataFrame(rows, columns=["part", "lr", "share", "parameters", "frozen", "starved"])


def at_depth(config: OptimConfig, depth: int, other: int) -> OptimConfig:
    """The learning rates that give a shallower encoder the profile of a deeper one.

    Of every k = depth / other blocks one is left: a k-th of the blocks is frozen, and what k blocks decayed by, one
    does. Block j then learns at the share of block k j, exactly; the encoder's other parameters, which lie one step of
    decay before the first block, at a little less than theirs.

    Args:
        config: for the deeper encoder.
        depth: its number of blocks.
        other: number of blocks of the shallower one.

    Raises:
        ConfigError: the blocks, or the frozen ones, do not divide.
    """
    step, rest = divmod(depth, other)
    if rest or config.frozen_blocks % step:
        raise ConfigError(
            f"{depth} blocks, {config.frozen_blocks} of them frozen, have no counterpart in {other}; the depth and the "
            "frozen blocks must be divisible by the ratio of the depths."
        )
    return replace(config, layer_decay=config.layer_decay**step, frozen_blocks=config.frozen_blocks // step)


def describe_profile(profile: pd.DataFrame) -> str:
    """The profile as text, with a warning where a part learns at less than 1 % of the decoder's rate."""
    lines = [f"{'part':<10} {'parameters':>12} {'learning rate':>14} {'of decoder':>11}"]
    for row in profile.itertuples():
        mark = "  frozen" if row.frozen else "  starved" if row.starved else ""
        lines.append(f"{row.part:<10} {row.parameters:>12,} {row.lr:>14.3g} {row.share:>11.2%}{mark}")
    starved = profile[profile.starved]
    if len(starved):
        share = starved.parameters.sum() / profile.parameters.sum()
        lines.append(
            f"Warning: {len(starved)} of {len(profile)} parts, {share:.0%} of the parameters, are frozen or learn at "
            f"less than {STARVED:.0%} of the decoder's rate; frozen_blocks, backbone_mult and layer_decay compound."
        )
    return "\n".join(lines)


def plot_profile(profile: pd.DataFrame, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Draw the learning rate of every part as a share of the decoder's, on a logarithmic axis.

    Args:
        profile: from :func:`learning_rate_profile`.
        ax: where to draw; a new figure by default.
        label: name of the run, for the legend.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    learning = profile[~profile.frozen]
    ax.semilogy(learning.index, learning.share, marker="o", label=label)
    frozen = profile[profile.frozen]
    if len(frozen):
        ax.plot(frozen.index, [STARVED / 10] * len(frozen), "x", color=ax.lines[-1].get_color())
    ax.axhline(STARVED, color="grey", linestyle="--", linewidth=1)
    ax.set_xticks(range(len(profile)), [p.replace("block ", "") for p in profile.part], rotation=90)
    ax.set_xlabel("part, from the input to the decoder (numbers: encoder blocks; crosses: frozen)")
    ax.set_ylabel("learning rate / decoder's")
    if label:
        ax.legend()
    return ax
