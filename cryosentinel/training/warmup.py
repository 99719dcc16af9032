"""Warm-up of the stem on single pixels: what a spectrum says is learned in seconds, before context is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from cryosentinel.data.dataset import ChipDataset
from cryosentinel.data.pixels import draw_classes
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.models.segmenter import Segmenter
from cryosentinel.training.config import PixelWarmupConfig
from cryosentinel.training.losses import label_rim

if TYPE_CHECKING:
    from cryosentinel.data.store import ChipStore


def draw_pixels(
    model: Segmenter, store: ChipStore, rows: Sequence[int], per_chip: int, seed: int, ignore_rim: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of valid training pixels, up to ``per_chip`` lake and as many others from each chip.

    Args:
        model: whose stem.
        store, rows: the training chips.
        per_chip: pixels of a class.
        seed: of the draw.
        ignore_rim: pixels inside a label's edge that are not drawn, as in the loss.

    Returns:
        features (n, F), lake (n,) of 0 and 1, weight (n,) with mean 1: how many pixels of its chip each one stands for.

    Raises:
        InputError: the chips show no lake pixel.
    """
    chips, rng = ChipDataset(store, np.asarray(rows)), np.random.default_rng(seed)
    features, lake, weight = [], [], []
    for k in range(len(rows)):
        batch = chips.__getitems__([k])
        drawn = batch["valid"] & ~label_rim(batch["label"], ignore_rim)
        valid, label = drawn.flatten().numpy(), batch["label"].flatten().numpy() > 0.5
        at, stands_for = draw_classes(label, valid, per_chip, rng)
        lake.append(label[at])
        weight.append(stands_for)
        pixels = model.features(batch)[0].flatten(1)
        features.append(pixels[:, torch.from_numpy(at)].T)
    y, w = torch.from_numpy(np.concatenate(lake)).float(), torch.from_numpy(np.concatenate(weight)).float()
    if not y.any():
        raise InputError("The training chips show no valid lake pixel to warm the stem up on; use more chips.")
    return torch.cat(features), y, w / w.mean()


def warm_up(
    model: Segmenter, store: ChipStore, rows: Sequence[int], config: PixelWarmupConfig, seed: int, ignore_rim: int = 0
) -> tuple[float, float]:
    """Train the stem's own logits on single pixels by weighted cross-entropy.

    Args:
        model: whose stem is trained; everything else stays as it is.
        store, rows: the training chips.
        config: steps, pixels and rate.
        seed: of the draws.
        ignore_rim: see :func:`draw_pixels`.

    Returns:
        the loss over all drawn pixels before and after.

    Raises:
        ConfigError: the model has no stem.
        InputError: the chips show no lake.
    """
    stem = model.stem
    if stem is None:
        raise ConfigError("pixel_warmup trains a stem, and this model has none; set model.stem_channels or steps: 0.")
    with torch.no_grad():
        features, lake, weight = draw_pixels(model, store, rows, config.per_chip, seed, ignore_rim)

    def loss(at: torch.Tensor | slice) -> torch.Tensor:
        image = features[at].T[None, :, None, :].contiguous(memory_format=torch.channels_last)
        return F.binary_cross_entropy_with_logits(stem(image).flatten(), lake[at], weight[at])

    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([*stem.layers.parameters(), *stem.head.parameters()], config.lr)
    with torch.no_grad():
        before = float(loss(slice(None)))
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        optimizer.zero_grad()
        loss(torch.randint(len(lake), (config.pixels,), generator=draw)).backward()
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        return before, float(loss(slice(None)))
