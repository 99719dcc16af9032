"""From a batch of chips to probabilities: what an evaluation streams its chips through."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
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


def left_beside(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of what :class:`ModelPredictor` leaves in its ``views`` under such settings: nothing of a single view."""
    averages = (settings["flips"] > 1 or "turns" in settings) and "adaptive" not in settings
    return ("first", "spread") if averages else ()


class ModelPredictor:
    """A segmenter with flip averaging in logit space.

    Args:
        segmenter: a :class:`cryosentinel.models.segmenter.Segmenter`; put into evaluation mode.
        flips: 1 (none), 2 or 4 (both axes).
        precision: see :func:`cryosentinel.precision.choose`; the sigmoid is always float32.
        turns: average four quarter turns in the place of flips.
        adaptive: flip only the chips whose first pass is undecided, see :func:`cryosentinel.models.tta.undecided`.
        without: modalities that are missing: every pixel has the mean of the segmenter's statistics instead.

    Attributes:
        beside: names of what each call leaves in ``views``: nothing where there is one view.
        views: of the last batch, (B, H, W) float32 each: "first" is the probability without averaging, "spread" twice
            the standard deviation of the views' probabilities, which lies in 0..1.
    """

    views: dict[str, np.ndarray]

    def __init__(
        self,
        segmenter: torch.nn.Module,
        flips: int = 4,
        precision: str = "auto",
        turns: bool = False,
        without: Sequence[str] = (),
        adaptive: bool = False,
    ) -> None:
        self._segmenter: Any = segmenter.eval()
        self._device = next(segmenter.parameters()).device
        self.precision = choose(precision, self._device.type)
        self.settings: dict[str, Any] = {"flips": flips, "precision": self.precision.name}
        self.settings |= ({"turns": True} if turns else {}) | ({"without": list(without)} if without else {})
        self.settings |= {"adaptive": True} if adaptive else {}
        self.beside = left_beside(self.settings)

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """See :class:`Predictor`."""
        import torch

        from cryosentinel.models.tta import FLIPS, TURNS, flip_logits, view_logits

        views = TURNS if "turns" in self.settings else FLIPS[: self.settings["flips"]]
        moved = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        for name in self.settings.get("without", ()):
            means = torch.tensor(self._segmenter.statistics.means[name], device=self._device)
            moved[name] = means[None, :, None, None].expand_as(moved[name]).float()
        with torch.inference_mode(), self.precision.autocast(self._device.type):
            if "adaptive" in self.settings:
                return torch.sigmoid(flip_logits(self._segmenter, moved, len(views), adaptive=True)).cpu().numpy()
            logits = torch.stack(list(view_logits(self._segmenter, moved, views)))
        if self.beside:
            each = torch.sigmoid(logits)
            spread = (2 * each.std(0, correction=0)).clamp(0, 1)
            self.views = {"first": each[0].cpu().numpy(), "spread": spread.cpu().numpy()}
        # Added one after the other, as everywhere else: a mean over the stack may differ in the last bit.
        return torch.sigmoid(functools.reduce(torch.add, logits) / len(views)).cpu().numpy()
