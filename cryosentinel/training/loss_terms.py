"""The terms of the loss as pure functions, each with its gradient in closed form.

Every function takes logits whose invalid pixels were set to zero and a weight that is zero there, and returns the value
of the term together with its derivative, so that the whole loss is a handful of passes over the batch instead of an
autograd graph of some sixty. Conventions are those of segmentation_models_pytorch 0.6, to which the tests compare.

What is pooled over the batch (counts, sums, the OHEM threshold) goes through ``pool``, which adds up over the ranks of
a distributed run and is the identity otherwise: the loss of a batch does not depend on how it is spread over devices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Pool = Callable[[Tensor], Tensor]


def positive_weight(positives: Tensor, negatives: Tensor, low: float = 1.0, high: float = 100.0) -> Tensor:
    """Negatives over positives, within [``low``, ``high``]; ``high`` where there are no positives."""
    return (negatives / positives.clamp_min(1.0)).clamp(low, high)


def bce(logits: Tensor, softplus: Tensor, prob: Tensor, target: Tensor, pos_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy a pixel, with soft targets and the positives weighted.

    Args:
        logits: (B, H, W).
        softplus: log(1 + exp(logits)).
        prob: sigmoid(logits).
        target: (B, H, W) in [0, 1] (smoothed labels allowed).
        pos_weight: scalar.

    Returns:
        loss and its derivative, both (B, H, W): as ``F.binary_cross_entropy_with_logits(..., pos_weight=...)``.
    """
    weighted = target * pos_weight
    loss = torch.addcmul(softplus, weighted - target, softplus - logits)  # (1-t) sp + t (sp - z) + (pw-1) t (sp - z)
    loss.addcmul_(target, logits, value=-1.0)
    gradient = torch.addcmul(-weighted, weighted - target + 1.0, prob)
    return loss, gradient


def hardest(losses: Tensor, valid: Tensor, keep: float, minimum: int, gather: Pool) -> tuple[Tensor, Tensor]:
    """Online hard example mining without a sort: the weight of each pixel in the mean over the hardest ones.

    The threshold is found by selection (linear time). Pixels that tie with it share what is left, so the mean equals
    that of a full sort whatever the ties.

    Args:
        losses: (B, H, W), not negative.
        valid: bool (B, H, W).
        keep: share of the valid pixels that counts.
        minimum: at least so many count, or all if there are fewer.
        gather: collects a 1-D tensor from all ranks.

    Returns:
        weights (B, H, W) that are 1 for a kept pixel and 0 for others, and their sum over all ranks (a scalar).
    """
    pixels = gather(losses[valid])
    total = pixels.numel()
    count = min(total, max(minimum, round(keep * total)))
    if count == total:
        return valid.to(losses.dtype), losses.new_tensor(float(total))
    if pixels.is_cuda:
        threshold = pixels.kthvalue(total - count + 1).values
    else:
        values = pixels.numpy()
        threshold = losses.new_tensor(np.partition(values, total - count)[total - count].item())
    above = (pixels > threshold).sum()
    ties = (pixels == threshold).sum()
    share = (count - above) / ties
    weights = torch.where(losses > threshold, 1.0, torch.where(losses == threshold, share, 0.0).to(losses.dtype))
    return weights.mul_(valid), losses.new_tensor(float(count))


def focal(
    softplus: Tensor, logits: Tensor, prob: Tensor, label: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Focal loss a pixel (Lin et al. 2017, arXiv:1708.02002); hard labels in {0, 1}.

    Returns:
        loss and its derivative, both (B, H, W).
    """
    cross_entropy = torch.addcmul(softplus, label, logits, value=-1.0)  # -log p_t
    signed = prob - label  # 1 - p_t with the sign of the derivative of p_t turned round
    error = signed.abs()  # 1 - p_t
    scale = error.square() if gamma == 2 else error.pow(gamma)
    scale = scale.mul_(label * (2 * alpha - 1) + (1 - alpha))
    loss = scale * cross_entropy
    # d/dz = sign * alpha_t (1-p_t)^gamma (gamma p_t (-log p_t) + 1 - p_t), sign + for land and - for water
    gradient = (1 - error).mul_(cross_entropy).mul_(gamma).add_(error).mul_(scale).mul_(signed.sign_())
    return loss, gradient


def tversky(
    tp: Tensor, predicted: Tensor, positives: Tensor, alpha: float, beta: float, smooth: float
) -> tuple[Tensor, Tensor, Tensor]:
    """1 - (TP + s) / (TP + alpha FP + beta FN + s) from pooled sums; alpha = beta = 0.5 is Dice.

    Zero where there is no positive pixel (as in segmentation_models_pytorch): the score says nothing there.

    Args:
        tp: sum of probability over the water pixels.
        predicted: sum of probability.
        positives: number of water pixels.

    Returns:
        the loss and a, b such that its derivative by a pixel's probability is a + b * label.
    """
    below = tp + alpha * (predicted - tp) + beta * (positives - tp) + smooth
    above = tp + smooth
    present = (positives > 0).to(tp.dtype)
    loss = present * (1 - above / below)
    a = present * alpha * above / below.square()
    b = present * ((1 - alpha - beta) * above / below.square() - 1 / below)
    return loss, a, b


def generalised_dice(tp: Tensor, predicted: Tensor, positives: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Generalised Dice (Sudre et al. 2017, arXiv:1707.03237): water and land weighted by 1 / area squared.

    A class without a pixel takes the other's weight, else a weight of infinity would be all that counts.

    Args:
        tp: sum of probability over the water pixels.
        predicted: sum of probability.
        positives: number of water pixels.
        count: number of pixels.

    Returns:
        the loss and a, b such that its derivative by a pixel's probability is a + b * label.
    """
    land = count - positives
    w1 = torch.where(positives > 0, positives, land).clamp_min(1).pow(-2)
    w0 = torch.where(land > 0, land, positives).clamp_min(1).pow(-2)
    tn = land - (predicted - tp)
    above = w1 * tp + w0 * tn
    below = w1 * (predicted + positives) + w0 * (2 * count - predicted - positives)
    safe = torch.where(below > 0, below, torch.ones_like(below))
    loss = torch.where(below > 0, 1 - 2 * above / safe, torch.zeros_like(below))
    present = (count > 0).to(tp.dtype)
    # d above / dp = w1 y - w0 (1 - y); d below / dp = w1 - w0
    a = present * (2 * w0 / safe + 2 * above * (w1 - w0) / safe.square())
    b = present * (-2 * (w1 + w0) / safe)
    return loss, a, b


def lovasz_hinge(logits: Tensor, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Lovász hinge of each image (Berman et al. 2018, arXiv:1705.08790), over the pixels that carry error.

    The extension sorts the hinge errors of all pixels. A pixel whose error is not positive adds nothing and stands
    behind all that do, so that only the erring pixels need sorting; the number of water pixels is taken from all.

    Args:
        logits: (B, H, W).
        label: (B, H, W) in {0, 1}.
        valid: bool (B, H, W).

    Returns:
        loss (B,), zero for an image without valid pixels, and its derivative (B, H, W).
    """
    losses = logits.new_zeros(logits.shape[0])
    gradient = torch.zeros_like(logits)
    signs = 2 * label - 1
    errors = torch.addcmul(torch.ones_like(logits), logits, signs, value=-1.0)
    erring = (errors > 0) & valid
    positives = (label * valid).flatten(1).sum(1)
    for i in range(logits.shape[0]):
        where = erring[i].flatten().nonzero().squeeze(1)
        if where.numel() == 0:
            continue
        values, order = _sort_descending(errors[i].flatten()[where])
        where = where[order]
        water = label[i].flatten()[where]
        seen = water.cumsum(0)
        rank = torch.arange(1, len(where) + 1, device=water.device, dtype=water.dtype)
        jaccard = 1 - (positives[i] - seen) / (positives[i] + rank - seen)
        steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        losses[i] = torch.dot(values, steps)
        gradient[i].view(-1)[where] = -steps * signs[i].flatten()[where]
    return losses, gradient


def _sort_descending(values: Tensor) -> tuple[Tensor, Tensor]:
    """Positive values in falling order and their positions; ties in any order."""
    if values.is_cuda or values.dtype != torch.float32:
        return torch.sort(values, descending=True)
    # On a CPU, sorting one array of integers is several times faster than sorting with an index. The bits of a
    # positive float order as its value does: value above, position below, in one 64-bit word.
    bits = values.view(torch.int32).to(torch.int64)
    packed = ((~bits) << 32).bitwise_or_(torch.arange(len(values))).numpy()
    packed.sort()
    order = torch.from_numpy(packed & 0xFFFFFFFF)
    return values[order], order
