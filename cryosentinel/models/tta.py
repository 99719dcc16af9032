"""Test-time augmentation: the mean of flipped or turned passes, in logit space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cryosentinel.errors import ConfigError
from cryosentinel.sensors import MODALITIES

#: A network, or whatever else maps a batch to logits (B, H, W).
Model = Callable[[Mapping[str, Any]], torch.Tensor]
#: A view of the images: quarter turns, then image axes to flip.
View = tuple[int, tuple[int, ...]]
#: In the order in which the passes are added: identity, horizontal, vertical, both.
FLIPS: tuple[View, ...] = ((0, ()), (0, (-1,)), (0, (-2,)), (0, (-2, -1)))
TURNS: tuple[View, ...] = ((0, ()), (1, ()), (2, ()), (3, ()))
#: Half the width of the band of probability around one half in which a pixel is undecided, and the share of a chip's
#: valid pixels from which it is flipped. The share was chosen on the validation chips of preset quick (32 with lake):
#: from 0.01 (1.1 passes a chip) on, IoU against the truth falls by 0.001 or more of what four flips give, at 0.005
#: (1.5 passes) by 0.0003, at 0.0025 the passes exceed two. The benchmark adaptive_tta_forwards measures other chips.
BAND, SHARE = 0.15, 0.005


def view_logits(model: Model, batch: Mapping[str, Any], views: Sequence[View]) -> Iterator[torch.Tensor]:
    """The logits of each view, turned back; a refiner inside the model sees the view.

    Args:
        model: maps a batch to logits (B, H, W), for example a :class:`~cryosentinel.models.segmenter.Segmenter`.
        batch: modality -> (B, bands, H, W), square where views are turned; other keys are passed on untouched.
        views: which.

    Yields:
        Logits, float32 (B, H, W).
    """
    for turns, axes in views:
        seen = {k: v.rot90(turns, (-2, -1)).flip(axes) if k in MODALITIES else v for k, v in batch.items()}
        yield model(seen if turns or axes else batch).float().flip(axes).rot90(-turns, (-2, -1))


def flip_logits(model: Model, batch: Mapping[str, Any], flips: int = 4, adaptive: bool = False) -> torch.Tensor:
    """Average the logits over flips of the images.

    Args:
        model, batch: as for :func:`view_logits`.
        flips: 1 (none), 2 (and left-right) or 4 (and up-down, and both: the published setting).
        adaptive: flip only the images whose first pass is undecided, see :func:`undecided`; the others keep it.
            Pixels that ``batch["valid"]`` (B, H, W) excludes do not count, where it is there.

    Returns:
        Logits, float32 (B, H, W).

    Raises:
        ConfigError: ``flips`` is none of 1, 2, 4.
    """
    if flips not in (1, 2, 4):
        raise ConfigError(f"flips is {flips}; it is 1 (no augmentation), 2 or 4.")
    (first,) = view_logits(model, batch, FLIPS[:1])
    chosen = undecided(first, batch.get("valid")) if adaptive else first.new_ones(len(first), dtype=torch.bool)
    if flips == 1 or not chosen.any():
        return first
    whole = bool(chosen.all())
    part = batch if whole else {k: v[chosen] if k in MODALITIES else v for k, v in batch.items()}
    total = first if whole else first[chosen]
    for logits in view_logits(model, part, FLIPS[1:flips]):
        total = total + logits
    return total / flips if whole else first.index_copy(0, chosen.nonzero()[:, 0], total / flips)


def undecided(logits: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Which images of a batch have at least :data:`SHARE` of their valid pixels within :data:`BAND` of one half.

    Args:
        logits: (B, H, W).
        valid: (B, H, W) bool, the pixels that count; None for all.

    Returns:
        (B,) bool.
    """
    near = (torch.sigmoid(logits) - 0.5).abs() < BAND
    counted = torch.ones_like(near) if valid is None else valid.to(near.device, torch.bool)
    share = (near & counted).flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1)
    return share >= SHARE  # without a valid pixel the share is not a number, and the image is decided
