"""The six-term loss: BCE with hard example mining, focal, Dice, Tversky, boundary and Lovász hinge.

Only valid pixels count, in every term. The value is finite and differentiable on chips without water, of nothing but
water, and without a single valid pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cryosentinel.errors import ConfigError
from cryosentinel.training import loss_terms
from cryosentinel.training.distance import signed_distance

TERMS = ("bce", "focal", "dice", "tversky", "boundary", "lovasz")


@dataclass
class LossConfig:
    """Weights and constants of the loss. The defaults are those of the published finetuning (4b v2).

    Attributes:
        bce: weight of the binary cross-entropy.
        focal: weight of the focal loss.
        dice: weight of the Dice loss.
        tversky: weight of the Tversky loss.
        boundary: weight of the boundary loss.
        lovasz: weight of the Lovász hinge.
        focal_alpha: weight of water against land in the focal loss.
        focal_gamma: how far easy pixels are discounted.
        dice_form: "flat" pools water over the batch; "generalised" weights both classes by 1 / area squared.
        tversky_alpha: weight of false positives.
        tversky_beta: weight of false negatives.
        smooth: added above and below in Dice and Tversky, in pixels.
        pos_weight_max: largest weight of a water pixel in the cross-entropy (the smallest is 1).
        ohem_keep: share of the valid pixels, the hardest, that the cross-entropy keeps.
        ohem_min: at least so many pixels a batch are kept.
        label_smoothing: s in label (1 - s) + (1 - label) s, in the cross-entropy alone.
        boundary_unit: "pixel": distances in pixels; "chip": as a share of the chip's side, which keeps the term
            within about one.
    """

    bce: float = 0.5
    focal: float = 1.0
    dice: float = 1.0
    tversky: float = 0.5
    boundary: float = 0.5
    lovasz: float = 0.3
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    dice_form: Literal["flat", "generalised"] = "flat"
    tversky_alpha: float = 0.25
    tversky_beta: float = 0.75
    smooth: float = 1.0
    pos_weight_max: float = 100.0
    ohem_keep: float = 0.5
    ohem_min: int = 4096
    label_smoothing: float = 0.0
    boundary_unit: Literal["pixel", "chip"] = "pixel"

    def __post_init__(self) -> None:
        for name in TERMS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"The weight loss.{name} must be a number of at least 0, not {getattr(self, name)}.")
        if not 0 < self.ohem_keep <= 1:
            raise ConfigError(f"loss.ohem_keep is a share of the pixels and must be in (0, 1], not {self.ohem_keep}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"loss.label_smoothing must be in [0, 0.5), not {self.label_smoothing}.")
        if self.dice_form not in ("flat", "generalised") or self.boundary_unit not in ("pixel", "chip"):
            raise ConfigError('loss.dice_form is "flat" or "generalised", loss.boundary_unit is "pixel" or "chip".')


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _sum_over_ranks(values: Tensor) -> Tensor:
    if _ranks() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def _gather_over_ranks(values: Tensor) -> Tensor:
    """Concatenate 1-D tensors of any length from all ranks."""
    if _ranks() == 1:
        return values
    lengths = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(_ranks())]
    dist.all_gather(lengths, torch.tensor([len(values)], device=values.device))
    longest = max(int(n) for n in lengths)
    parts = [values.new_zeros(longest) for _ in lengths]
    dist.all_gather(parts, torch.cat([values, values.new_zeros(longest - len(values))]))
    return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])


class _GivenGradient(torch.autograd.Function):
    """A scalar whose derivative by the logits is already known."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0]).to(ctx.dtype), None, None


class SixTermLoss(nn.Module):
    """The weighted sum of the six terms.

    In a distributed run every quantity that is pooled over the batch (pos_weight, the OHEM threshold, Dice, Tversky,
    the means) is pooled over all ranks, and the gradient is scaled so that averaging it over the ranks, as Lightning's
    strategies do, gives the gradient of the loss of the whole batch.
    """

    def __init__(self, config: LossConfig | None = None) -> None:
        super().__init__()
        self.config = config or LossConfig()

    def forward(
        self, logits: Tensor, label: Tensor, valid: Tensor, distance: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch.

        Args:
            logits: (B, H, W), any floating type.
            label: (B, H, W) in {0, 1}.
            valid: bool (B, H, W).
            distance: (B, H, W) signed distance maps in pixels, see :func:`.distance.signed_distance`; computed here
                when left out and the boundary term has a weight.

        Returns:
            the total (a scalar to call ``backward`` on) and the value of each term, unweighted and detached.
        """
        if distance is None and self.config.boundary:
            maps = [torch.from_numpy(signed_distance(chip)) for chip in label.detach().cpu().numpy()]
            distance = torch.stack(maps).to(logits.device)
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            total, terms, gradient = self._evaluate(logits.detach(), label, valid, distance)
        return _GivenGradient.apply(logits, total, gradient), terms

    def _evaluate(
        self, raw: Tensor, label: Tensor, valid: Tensor, distance: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        c = self.config
        z = raw if raw.dtype == torch.float64 else raw.float()
        valid = valid.bool()
        mask = valid.to(z.dtype)
        z = torch.where(valid, z, 0.0)  # also takes NaN and infinity out of what does not count
        y = torch.where(valid, label.to(z.dtype), 0.0)
        # log(1 + exp(z)); this form is vectorised on CPUs, log1p is not. Off by rounding alone (6e-8 in float32).
        softplus = torch.relu(z).sub_(torch.sigmoid(z.abs()).log_())
        p = torch.sigmoid(z).mul_(mask)

        images = float(len(z))
        scale = c.boundary_unit == "chip" and distance is not None
        d = None if distance is None else distance.to(z.dtype) / (max(z.shape[-2:]) if scale else 1)
        lovasz, lovasz_gradient = loss_terms.lovasz_hinge(z, y, valid) if c.lovasz else (z.new_zeros(1), None)
        focal, focal_gradient = loss_terms.focal(softplus, z, p, y, c.focal_alpha, c.focal_gamma)
        sums = _sum_over_ranks(
            torch.stack(
                [
                    mask.sum(),
                    y.sum(),
                    p.sum(),
                    torch.dot(p.flatten(), y.flatten()),
                    torch.dot(focal.flatten(), mask.flatten()),
                    z.new_zeros(()) if d is None else torch.dot(p.flatten(), d.flatten()),
                    lovasz.sum(),
                    z.new_tensor(images),
                ]
            )
        )
        count, positives, predicted, tp, focal_sum, boundary_sum, lovasz_sum, all_images = sums
        pixels = count.clamp_min(1.0)

        pos_weight = loss_terms.positive_weight(positives, count - positives, 1.0, c.pos_weight_max)
        target = y * (1 - 2 * c.label_smoothing) + c.label_smoothing if c.label_smoothing else y
        bce, bce_gradient = loss_terms.bce(z, softplus, p, target, pos_weight)
        kept, kept_count = loss_terms.hardest(bce, valid, c.ohem_keep, c.ohem_min, _gather_over_ranks)
        kept_count = kept_count.clamp_min(1.0)
        bce_sum = _sum_over_ranks(torch.dot(bce.flatten(), kept.flatten()))

        if c.dice_form == "flat":
            dice, dice_a, dice_b = loss_terms.tversky(tp, predicted, positives, 0.5, 0.5, c.smooth)
        else:
            dice, dice_a, dice_b = loss_terms.generalised_dice(tp, predicted, positives, count)
        tversky, tversky_a, tversky_b = loss_terms.tversky(
            tp, predicted, positives, c.tversky_alpha, c.tversky_beta, c.smooth
        )
        terms = {
            "bce": bce_sum / kept_count,
            "focal": focal_sum / pixels,
            "dice": dice,
            "tversky": tversky,
            "boundary": boundary_sum / pixels,
            "lovasz": lovasz_sum / all_images,
        }
        # Dice, Tversky and boundary act through the probability, and all three are linear in the label.
        by_probability = y * (c.dice * dice_b + c.tversky * tversky_b) + (c.dice * dice_a + c.tversky * tversky_a)
        if d is not None:
            by_probability.addcmul_(d, c.boundary / pixels)
        gradient = by_probability.mul_(p).mul_(1 - p)
        gradient.addcmul_(bce_gradient.mul_(kept), c.bce / kept_count)
        gradient.addcmul_(focal_gradient.mul_(mask), c.focal / pixels)
        if lovasz_gradient is not None:
            gradient.addcmul_(lovasz_gradient, c.lovasz / all_images)
        total = sum((getattr(c, name) * terms[name] for name in TERMS), start=z.new_zeros(()))
        return total, terms, gradient.mul_(_ranks())
