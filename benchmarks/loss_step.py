"""Forward and backward of the whole loss against the plain composition of its terms.

The plain composition is what one writes first: focal, Dice, Tversky and Lovász from segmentation_models_pytorch (a full
sort of every image), a full sort for hard example mining, and a distance transform of every label in every step. Ours
shares probabilities and sums among the terms, selects instead of sorting where it can, and keeps distance maps. Both
sides compute the same number, which is checked. The distance maps of ours come from the cache, as in training: the
labels were seen before, and the batch is a flip of them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

IDS: tuple[str, ...] = ("loss_step",)
BATCH, SIZE = 8, 224


def batch(sharpness: float) -> tuple[Any, Any, Any]:
    """Chips with a lake of some hectares each, 2 % of the pixels invalid.

    Args:
        sharpness: how far the network has learnt: mean logit on the right side of zero, beside a noise of 1.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    yy, xx = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    lakes = [((yy - 80 - 8 * i) ** 2 + (xx - 60 - 12 * i) ** 2 < (6 + 4 * i) ** 2).float() for i in range(BATCH)]
    label = torch.stack(lakes)
    noise = torch.randn(BATCH, SIZE, SIZE, generator=generator)
    valid = torch.rand(BATCH, SIZE, SIZE, generator=generator) > 0.02
    return sharpness * (2 * label - 1) + noise, label, valid


def plain_loss() -> Any:
    """The plain composition as a function of logits, label and valid."""
    import segmentation_models_pytorch as smp
    import torch
    import torch.nn.functional as F
    from scipy.ndimage import distance_transform_edt

    focal = smp.losses.FocalLoss("binary", alpha=0.25, gamma=2.0, ignore_index=255)
    dice = smp.losses.DiceLoss("binary", smooth=1.0, ignore_index=255)
    tversky = smp.losses.TverskyLoss("binary", alpha=0.25, beta=0.75, smooth=1.0, ignore_index=255)
    lovasz = smp.losses.LovaszLoss("binary", per_image=True, ignore_index=255)

    def loss(logits: Any, label: Any, valid: Any) -> Any:
        target = torch.where(valid, label, 255.0)
        water = (label * valid).sum()
        pos_weight = ((valid.sum() - water) / water.clamp_min(1)).clamp(1, 100)
        bce = F.binary_cross_entropy_with_logits(logits, label, pos_weight=pos_weight, reduction="none")[valid]
        kept = max(4096, round(0.5 * len(bce)))
        maps = []
        for chip in label.numpy() > 0.5:
            inside, outside = distance_transform_edt(chip), distance_transform_edt(~chip)
            maps.append(np.where(chip, 1 - inside, outside).astype(np.float32))
        boundary = (torch.sigmoid(logits) * torch.from_numpy(np.stack(maps)))[valid].mean()
        return (
            0.5 * bce.sort(descending=True).values[:kept].mean()
            + focal(logits[:, None], target[:, None])
            + dice(logits[:, None], target[:, None])
            + 0.5 * tversky(logits[:, None], target[:, None])
            + 0.5 * boundary
            + 0.3 * lovasz(logits, target)
        )

    return loss


def run(quick: bool) -> list[dict[str, Any]]:
    """Time both sides in turns, on batches from the beginning, the middle and the end of a training."""
    import torch

    from cryosentinel.training.distance import DistanceCache
    from cryosentinel.training.losses import SixTermLoss

    plain, ours, cache = plain_loss(), SixTermLoss(), DistanceCache()
    rows = torch.arange(BATCH)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for sharpness in (0.5, 2.0, 5.0):
        logits, label, valid = (part.flip(-1) for part in batch(sharpness))
        cache.remember(rows, label.flip(-1))

        def our_step(z: Any, label: Any = label, valid: Any = valid) -> Any:
            return ours(z, label, valid, cache.lookup(rows, label))[0]

        def their_step(z: Any, label: Any = label, valid: Any = valid) -> Any:
            return plain(z, label, valid)

        best = {"ours": np.inf, "peer": np.inf}
        found: dict[str, tuple[Any, Any]] = {}
        for _ in range(4 if quick else 12):
            for name, step in (("ours", our_step), ("peer", their_step)):
                z = logits.clone().requires_grad_()
                start = time.perf_counter()
                value = step(z)
                value.backward()
                best[name] = min(best[name], time.perf_counter() - start)
                found[name] = (value.detach(), z.grad)
        torch.testing.assert_close(found["ours"][0], found["peer"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["ours"][1], found["peer"][1], rtol=1e-2, atol=1e-6)
        for name in times:
            times[name].append(1000 * best[name])
    ours_ms, peer_ms = (float(np.mean(times[name])) for name in ("ours", "peer"))
    early = ", ".join(f"{p / o:.1f}x" for o, p in zip(times["ours"], times["peer"], strict=True))
    return [
        {
            "id": "loss_step",
            "what": f"forward and backward of the whole loss, batch {BATCH}, {SIZE} px, mean over an untrained, a half "
            f"trained and a trained network ({early})",
            "ours": round(ours_ms, 1),
            "peer": round(peer_ms, 1),
            "peer_name": "segmentation_models_pytorch terms, full sorts, distance transform in each step",
            "unit": "ms",
            "ratio": round(peer_ms / ours_ms, 2),
            "goal": 2,
        }
    ]
