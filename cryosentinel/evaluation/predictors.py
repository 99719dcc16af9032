"""From a batch of chips to probabilities: what an evaluation streams its chips through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cryosentinel.precision import choose

if TYPE_CHECKING:
    import torch


class Predictor(Protocol):
    """Anything that turns a batch into probabilities.

    An attribute ``settings`` (plain values that change the prediction: flips, precision, ...) enters the digest by
    which an evaluation knows whether its outputs are already there; a predictor without one has no settings.
    """

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """(B, H, W) float32, 0..1, for a batch in physical units."""
        ...


class ModelPredictor:
    """A segmenter with flip averaging in logit space.

    Args:
        segmenter: a :class:`cryosentinel.models.segmenter.Segmenter`; put into evaluation mode.
        flips: 1 (none) or 4 (both axes).
        precision: see :func:`cryosentinel.precision.choose`; the sigmoid is always float32.
    """

    def __init__(self, segmenter: torch.nn.Module, flips: int = 4, precision: str = "auto") -> None:
        self._segmenter = segmenter.eval()
        self._device = next(segmenter.parameters()).device
        self.precision = choose(precision, self._device.type)
        self.settings: dict[str, Any] = {"flips": flips, "precision": self.precision.name}

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """See :class:`Predictor`."""
        import torch

        from cryosentinel.models.tta import flip_logits

        moved = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        with torch.inference_mode(), self.precision.autocast(self._device.type):
            logits = flip_logits(self._segmenter, moved, flips=self.settings["flips"])
        return torch.sigmoid(logits.float()).cpu().numpy()


def model_predictor(segmenter: torch.nn.Module, flips: int = 4, precision: str = "auto") -> ModelPredictor:
    """See :class:`ModelPredictor`."""
    return ModelPredictor(segmenter, flips, precision)
