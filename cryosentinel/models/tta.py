"""Test-time augmentation: the mean of flipped passes, in logit space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cryosentinel.errors import ConfigError
from cryosentinel.sensors import MODALITIES

#: Image axes to flip, in the order in which the passes are added: identity, horizontal, vertical, both.
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


def flip_logits(model: nn.Module, batch: Mapping[str, Any], flips: int = 4) -> torch.Tensor:
    """Average the logits over flips of the images; a refiner inside the model sees each flip.

    Args:
        model: maps a batch to logits (B, H, W), for example a :class:`~cryosentinel.models.segmenter.Segmenter`.
        batch: modality -> (B, bands, H, W); other keys are passed on untouched.
        flips: 1 (none), 2 (and left-right) or 4 (and up-down, and both: the published setting).

    Returns:
        Logits, float32 (B, H, W).

    Raises:
        ConfigError: ``flips`` is none of 1, 2, 4.
    """
    if flips not in (1, 2, 4):
        raise ConfigError(f"flips is {flips}; it is 1 (no augmentation), 2 or 4.")
    total: torch.Tensor | None = None
    for axes in FLIPS[:flips]:
        logits = model(_flipped(batch, axes)).float()
        logits = logits.flip(axes) if axes else logits
        total = logits if total is None else total + logits
    assert total is not None
    return total / flips


def _flipped(batch: Mapping[str, Any], axes: tuple[int, ...]) -> dict[str, Any]:
    return {k: v.flip(axes) if axes and k in MODALITIES else v for k, v in batch.items()}
