"""The six-term loss: BCE with hard example mining, focal, Dice, Tversky, boundary and Lovász hinge.

Only valid pixels count, in every term. The value is finite and differentiable on chips without water, of nothing but
water, and without a single valid pixel. Conventions are those of segmentation_models_pytorch 0.6, to which the tests
compare every term; its own losses know neither other ranks nor pixels that do not count in the sums they pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cryosentinel.errors import ConfigError
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
        ignore_rim: so many pixels inside a label's edge count in no term, see :func:`label_rim`. Outlines burnt
            all-touched call every pixel lake that a shore touches; without the rim the network decides there by what
            it sees.
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
    ignore_rim: int = 0

    def __post_init__(self) -> None:
        for name in TERMS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"The weight loss.{name} must be a number of at least 0, not {getattr(self, name)}.")
        if not 0 < self.ohem_keep <= 1:
            raise ConfigError(f"loss.ohem_keep is a share of the pixels and must be in (0, 1], not {self.ohem_keep}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"loss.label_smoothing must be in [0, 0.5), not {self.label_smoothing}.")
        if self.ignore_rim < 0:
            raise ConfigError(f"loss.ignore_rim is a number of pixels and must be at least 0, not {self.ignore_rim}.")
        if self.dice_form not in ("flat", "generalised") or self.boundary_unit not in ("pixel", "chip"):
            raise ConfigError('loss.dice_form is "flat" or "generalised", loss.boundary_unit is "pixel" or "chip".')


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _pooled(values: Tensor) -> Tensor:
    """Sum over all ranks; the gradient flows to this rank's part."""
    if _ranks() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return values + (total - values.detach())


def _gathered(values: Tensor) -> Tensor:
    """Concatenate 1-D tensors of any length from all ranks."""
    if _ranks() == 1:
        return values
    lengths = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(_ranks())]
    dist.all_gather(lengths, torch.tensor([len(values)], device=values.device))
    longest = max(int(n) for n in lengths)
    parts = [values.new_zeros(longest) for _ in lengths]
    dist.all_gather(parts, torch.cat([values, values.new_zeros(longest - len(values))]))
    return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])


def label_rim(label: Tensor, width: int) -> Tensor:
    """Lake pixels within ``width`` pixels of the label's edge (8 neighbours); the frame of the image is no edge.

    Args:
        label: (B, H, W) in {0, 1}.
        width: pixels; 0 for none.

    Returns:
        bool (B, H, W).
    """
    lake = label > 0.5
    if not width:
        return torch.zeros_like(lake)
    near_land = F.max_pool2d((~lake)[:, None].float(), 2 * width + 1, stride=1, padding=width)[:, 0] > 0
    return lake & near_land


def hardest(losses: Tensor, valid: Tensor, keep: float, minimum: int) -> Tensor:
    """Online hard example mining: the weight of each pixel in the mean over the hardest ones.

    Pixels that tie at the threshold share what is left, so the mean equals that of a full sort whatever the ties.

    Args:
        losses: (B, H, W).
        valid: bool (B, H, W).
        keep: share of the valid pixels, of all ranks, that counts.
        minimum: at least so many count, or all if there are fewer.

    Returns:
        weights (B, H, W) whose sum over all ranks is 1 (0 without a valid pixel).
    """
    pixels = _gathered(losses[valid])
    count = min(len(pixels), max(minimum, round(keep * len(pixels))))
    if count == len(pixels):
        return valid.to(losses.dtype) / max(1, count)
    threshold = pixels.topk(count, sorted=False).values.min()
    share = (count - (pixels > threshold).sum()) / (pixels == threshold).sum()
    weights = (losses > threshold) + (losses == threshold) * share.to(losses.dtype)
    return weights * valid / count


def tversky(tp: Tensor, predicted: Tensor, positives: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    """1 - (TP + s) / (TP + alpha FP + beta FN + s) from pooled sums; alpha = beta = 0.5 is Dice.

    Zero where there is no positive pixel (as in segmentation_models_pytorch): the score says nothing there.

    Args:
        tp: sum of probability over the water pixels.
        predicted: sum of probability.
        positives: number of water pixels.
        alpha: weight of false positives.
        beta: weight of false negatives.
        smooth: added above and below.
    """
    below = tp + alpha * (predicted - tp) + beta * (positives - tp) + smooth
    return (positives > 0) * (1 - (tp + smooth) / below)


def generalised_dice(tp: Tensor, predicted: Tensor, positives: Tensor, count: Tensor) -> Tensor:
    """Generalised Dice (Sudre et al. 2017, arXiv:1707.03237): water and land weighted by 1 / area squared.

    A class without a pixel takes the other's weight, else a weight of infinity would be all that counts.

    Args:
        tp: sum of probability over the water pixels.
        predicted: sum of probability.
        positives: number of water pixels.
        count: number of pixels; the loss is zero where there is none.
    """
    land = count - positives
    w1 = torch.where(positives > 0, positives, land).clamp_min(1).pow(-2)
    w0 = torch.where(land > 0, land, positives).clamp_min(1).pow(-2)
    tn = land - (predicted - tp)
    below = w1 * (predicted + positives) + w0 * (2 * count - predicted - positives)
    return (count > 0) * (1 - 2 * (w1 * tp + w0 * tn) / torch.where(count > 0, below, 1.0))


def lovasz_hinge(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Sum over the images of the Lovász hinge (Berman et al. 2018, arXiv:1705.08790); 0 without valid pixels.

    The extension sorts the hinge errors of all pixels. A pixel whose error is not positive adds nothing and stands
    behind all that do, so that only the erring pixels need sorting; the number of water pixels is taken from all.

    Args:
        logits: (B, H, W).
        label: (B, H, W) in {0, 1}, 0 where not valid.
        valid: bool (B, H, W).
    """
    errors = 1 - logits * (2 * label - 1)
    total = logits.new_zeros(())
    for error, water, counts in zip(errors, label, (errors > 0) & valid, strict=True):
        falling, order = error[counts].sort(descending=True)
        seen = water[counts][order].cumsum(0)
        rank = torch.arange(1, len(seen) + 1, device=seen.device, dtype=seen.dtype)
        positives = water.sum()
        jaccard = 1 - (positives - seen) / (positives + rank - seen)
        total = total + torch.dot(falling, jaccard.diff(prepend=jaccard.new_zeros(1)))
    return total


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
        valid = valid.bool() & ~label_rim(label, self.config.ignore_rim)
        with torch.autocast(logits.device.type, enabled=False):
            terms = self._terms(logits, label, valid, distance)
            total = sum((getattr(self.config, name) * value for name, value in terms.items()), logits.new_zeros(()))
            total = total.detach() + _ranks() * (total - total.detach()) if _ranks() > 1 else total
        return total, {name: value.detach() for name, value in terms.items()}

    def _terms(self, logits: Tensor, label: Tensor, valid: Tensor, distance: Tensor | None) -> dict[str, Tensor]:
        c = self.config
        z = logits if logits.dtype == torch.float64 else logits.float()
        z = torch.where(valid, z, 0.0)  # also takes NaN and infinity out of what does not count
        y = torch.where(valid, label.to(z.dtype), 0.0)
        p = torch.sigmoid(z) * valid
        count, positives, images = _pooled(torch.stack([valid.sum().to(z.dtype), y.sum(), z.new_tensor(float(len(z)))]))
        pixels = count.clamp_min(1)

        pos_weight = ((count - positives) / positives.clamp_min(1)).clamp(1, c.pos_weight_max)
        target = y * (1 - 2 * c.label_smoothing) + c.label_smoothing
        bce = F.binary_cross_entropy_with_logits(z, target, pos_weight=pos_weight, reduction="none")
        with torch.no_grad():
            kept = hardest(bce, valid, c.ohem_keep, c.ohem_min)
        # Focal loss (Lin et al. 2017, arXiv:1708.02002): alpha_t (1 - p_t)^gamma (-log p_t)
        cross_entropy = F.binary_cross_entropy_with_logits(z, y, reduction="none")
        focal = (y * (2 * c.focal_alpha - 1) + 1 - c.focal_alpha) * (p - y).abs() ** c.focal_gamma * cross_entropy
        scale = 1 if distance is None or c.boundary_unit == "pixel" else max(z.shape[-2:])
        sums = [
            torch.dot(bce.flatten(), kept.flatten()),
            torch.dot(focal.flatten(), valid.flatten().to(z.dtype)),
            z.new_zeros(()) if distance is None else torch.dot(p.flatten(), distance.flatten().to(z.dtype) / scale),
            lovasz_hinge(z, y, valid) if c.lovasz else z.new_zeros(()),
            p.sum(),
            torch.dot(p.flatten(), y.flatten()),
        ]
        bce_mean, focal_sum, boundary_sum, lovasz_sum, predicted, tp = _pooled(torch.stack(sums))
        if c.dice_form == "flat":
            dice = tversky(tp, predicted, positives, 0.5, 0.5, c.smooth)
        else:
            dice = generalised_dice(tp, predicted, positives, count)
        return {
            "bce": bce_mean,
            "focal": focal_sum / pixels,
            "dice": dice,
            "tversky": tversky(tp, predicted, positives, c.tversky_alpha, c.tversky_beta, c.smooth),
            "boundary": boundary_sum / pixels,
            "lovasz": lovasz_sum / images,
        }
