"""Augmentations of whole training batches, on the batch's device, before normalisation.

Image, label and valid mask always move together. Everything random follows from (seed, epoch, the batch's rows), so a
resumed run repeats the batch it was stopped in, and processes that hold other rows draw other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

from cryosentinel.errors import ConfigError
from cryosentinel.sensors import DEM_RANGE, MODALITIES, PUBLISHED_STATISTICS, S2_RANGE

Batch = dict[str, torch.Tensor]
PIXELS = (*MODALITIES, "label", "valid")  # the entries of a batch that have pixels


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities and amounts; the defaults are the published finetune's (4b v2).

    The published description gives the numbers of the spectral jitter without their units; here Sentinel-2 takes a
    gain for each band within 1 +- ``jitter_s2``, Sentinel-1 and elevation an offset for each band within +- the amount
    times the published standard deviation (0.07 is 0.4 dB, 0.02 is 18 m).

    Attributes:
        crop: side of random crops, pixels; 0 keeps the chips whole.
        crops_per_chip: crops of each chip of a batch.
        crop_lake_p: of a crop that holds a given pixel of the label's, drawn at random, where the chip has any.
        flip_p: of a horizontal flip, and again of a vertical one.
        rotate_p: of a turn by 90 degrees (square chips only).
        jitter_p: of spectral jitter; pretraining 0.5.
        jitter_s2, jitter_s1, jitter_dem: its amounts; pretraining 0.05, 0.10, 0.02.
        scale_p: of zooming; pretraining 0.5.
        scale_min, scale_max: range of the zoom, above 1 enlarges; pretraining 0.75 to 1.25. What a zoom below 1 lays
            bare at the rim is invalid.
        copy_paste_p: of receiving the lakes of another chip of the batch; pretraining 0.3.
        copy_paste_min_pixels: valid lake pixels that a donor needs.
        mosaic_p: of becoming four parts of four chips of the batch; pretraining 0.15.
        mosaic_jitter: how far the parts' common corner lies from the centre at most, as a share of the side.
    """

    crop: int = 0
    crops_per_chip: int = 1
    crop_lake_p: float = 0.75
    flip_p: float = 0.5
    rotate_p: float = 0.0
    jitter_p: float = 0.4
    jitter_s2: float = 0.03
    jitter_s1: float = 0.07
    jitter_dem: float = 0.02
    scale_p: float = 0.4
    scale_min: float = 0.8
    scale_max: float = 1.2
    copy_paste_p: float = 0.2
    copy_paste_min_pixels: int = 32
    mosaic_p: float = 0.0
    mosaic_jitter: float = 0.2

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name.endswith("_p")):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a probability lies within 0..1.")
        for name in ("jitter_s2", "jitter_s1", "jitter_dem"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.crop < 0 or self.crops_per_chip < 1 or (self.crops_per_chip > 1 and not self.crop):
            raise ConfigError(
                f"crop is {self.crop} and crops_per_chip {self.crops_per_chip}; a crop has a side above 0, a chip "
                "at least one."
            )
        if not 0 < self.scale_min <= self.scale_max:
            raise ConfigError(f"The zoom's range {self.scale_min}..{self.scale_max} must be above 0 and in order.")
        if not 0 <= self.mosaic_jitter < 0.5 or self.copy_paste_min_pixels < 1:
            raise ConfigError("mosaic_jitter must be at least 0 and below 0.5, and copy_paste_min_pixels at least 1.")


class BatchAugment:
    """Augments batches of :class:`cryosentinel.data.dataset.ChipDataset`.

    Args:
        config: probabilities and amounts.
        seed: with the epoch and the batch's rows, of everything random.
    """

    def __init__(self, config: AugmentConfig, seed: int = 42) -> None:
        self.config, self.seed = config, seed

    def __call__(self, batch: Batch, epoch: int = 0) -> Batch:
        """An augmented copy.

        Returns:
            The batch, with ``flips`` int64 (B,) (bit 0: left and right changed places, bit 1: top and bottom) and
            ``reshaped`` bool (B,) (the label is not merely flipped), so that what was computed from a chip's label
            beforehand, such as a distance map, can be carried along or computed again.
        """
        rng = self._generator(batch, epoch)
        if self.config.crop:
            batch = self._crop(batch, rng)
        else:
            batch = {name: value.clone() if name in PIXELS else value for name, value in batch.items()}
        device = batch["label"].device
        reshaped = torch.full((len(batch["label"]),), bool(self.config.crop), device=device)
        batch["flips"] = self._flip(batch, rng)
        for step in (self._rotate, self._mosaic, self._copy_paste, self._scale):
            reshaped |= step(batch, rng).to(device)
        self._jitter(batch, rng)
        batch["reshaped"] = reshaped
        return batch

    def _generator(self, batch: Batch, epoch: int) -> torch.Generator:
        words = np.random.SeedSequence([self.seed, epoch, *batch["row"].tolist()]).generate_state(2)
        # On the CPU wherever the batch is: the same draws on every device.
        return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))

    def _chosen(self, batch: Batch, p: float, rng: torch.Generator) -> torch.Tensor:
        return torch.rand(len(batch["label"]), generator=rng) < p

    def _crop(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Crops of the chips, those of a chip one after the other.

        Raises:
            ConfigError: the chips are smaller.
        """
        c, side, label = self.config, self.config.crop, batch["label"]
        room = [n - side for n in label.shape[-2:]]
        if min(room) < 0:
            raise ConfigError(
                f"augment.crop is {side}, but the chips are {label.shape[-2]} x {label.shape[-1]} pixels."
            )
        cuts = []
        for k in range(len(label)):
            lake = torch.nonzero(label[k] > 0.5)
            for _ in range(c.crops_per_chip):
                corner = [int(torch.randint(n + 1, (), generator=rng)) for n in room]
                around, which = torch.rand(2, generator=rng).tolist()
                if len(lake) and around < c.crop_lake_p:
                    # A uniform draw among the crops that hold the pixel, as far as the chip's edge lets them.
                    pixel = lake[int(which * len(lake))].tolist()
                    shift = torch.randint(side, (2,), generator=rng).tolist()
                    corner = [min(max(p - s, 0), n) for p, s, n in zip(pixel, shift, room, strict=True)]
                cuts.append((k, *corner))
        return {
            name: torch.stack([value[k, ..., y : y + side, x : x + side] for k, y, x in cuts])
            if name in PIXELS
            else value[[k for k, _, _ in cuts]]
            for name, value in batch.items()
        }

    def _flip(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        flips = torch.zeros(len(batch["label"]), dtype=torch.int64)
        for bit, axis in ((1, -1), (2, -2)):
            chosen = self._chosen(batch, self.config.flip_p, rng)
            flips += bit * chosen
            _change(batch, chosen, lambda x, axis=axis: x.flip(axis))
        return flips.to(batch["label"].device)

    def _rotate(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        height, width = batch["label"].shape[-2:]
        chosen = self._chosen(batch, self.config.rotate_p if height == width else 0.0, rng)
        _change(batch, chosen, lambda x: x.rot90(1, (-2, -1)))
        return chosen

    def _mosaic(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        count, height, width = batch["label"].shape
        chosen = self._chosen(batch, self.config.mosaic_p, rng) & (count > 1)
        before = {name: batch[name].clone() for name in PIXELS} if chosen.any() else {}
        for k in torch.nonzero(chosen).flatten().tolist():
            shift = (torch.rand(2, generator=rng) * 2 - 1) * self.config.mosaic_jitter
            row, column = int(height * (0.5 + shift[0])), int(width * (0.5 + shift[1]))
            donors = torch.randint(count, (3,), generator=rng).tolist()
            # The chip keeps its first quarter; each part stays where it was in its own chip.
            parts = [
                (slice(None, row), slice(column, None)),
                (slice(row, None), slice(None, column)),
                (slice(row, None), slice(column, None)),
            ]
            for donor, (rows, columns) in zip(donors, parts, strict=True):
                for name in PIXELS:
                    batch[name][k, ..., rows, columns] = before[name][donor, ..., rows, columns]
        return chosen

    def _copy_paste(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        chosen = self._chosen(batch, self.config.copy_paste_p, rng)
        reshaped = torch.zeros_like(chosen)
        if not chosen.any():
            return reshaped
        lakes = (batch["label"] > 0.5) & batch["valid"]
        donors = torch.nonzero(lakes.flatten(1).sum(1).cpu() >= self.config.copy_paste_min_pixels).flatten()
        before = {name: batch[name].clone() for name in PIXELS}
        for k in torch.nonzero(chosen).flatten().tolist():
            others = donors[donors != k]
            if not len(others):
                continue
            donor = int(others[int(torch.randint(len(others), (1,), generator=rng))])
            lake = lakes[donor]
            # A lake from elsewhere comes at the elevation of the ground it is laid on, not as a tower or a pit.
            ground = before["DEM"][k, 0][lake].mean() - before["DEM"][donor, 0][lake].mean()
            for name in PIXELS:
                pasted = before[name][donor] + ground if name == "DEM" else before[name][donor]
                batch[name][k] = torch.where(lake, pasted, batch[name][k])
            reshaped[k] = True
        batch["DEM"].clamp_(*DEM_RANGE)
        return reshaped

    def _scale(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        chosen = self._chosen(batch, self.config.scale_p, rng)
        zoom = self.config.scale_min + torch.rand(len(chosen), generator=rng) * (
            self.config.scale_max - self.config.scale_min
        )
        # The window may lie anywhere where it does not leave the chip; a larger one is centred.
        offset = (torch.rand(len(chosen), 2, generator=rng) * 2 - 1) * (1 - 1 / zoom).clamp_min(0)[:, None]
        at = torch.nonzero(chosen).flatten()
        if not len(at):
            return chosen
        device = batch["label"].device
        theta = torch.zeros(len(at), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom[at]
        theta[:, :, 2] = offset[at]
        at, height_width = at.to(device), batch["label"].shape[-2:]
        grid = F.affine_grid(theta.to(device), [len(at), 1, *height_width], align_corners=False)
        for name in PIXELS:
            if name in MODALITIES:
                moved = F.grid_sample(batch[name][at], grid, "bilinear", "border", align_corners=False)
            elif name == "label":
                moved = F.grid_sample(batch[name][at, None], grid, "nearest", "zeros", align_corners=False)[:, 0]
            else:  # valid only where all four source pixels are
                share = F.grid_sample(batch[name][at, None].float(), grid, "bilinear", "zeros", align_corners=False)
                moved = share[:, 0] > 0.999
            batch[name][at] = moved
        return chosen

    def _jitter(self, batch: Batch, rng: torch.Generator) -> None:
        chosen = self._chosen(batch, self.config.jitter_p, rng).float()[:, None, None, None]
        device = batch["label"].device
        for modality, amount in (
            ("S2L2A", self.config.jitter_s2), ("S1GRD", self.config.jitter_s1), ("DEM", self.config.jitter_dem)
        ):  # fmt: skip
            draw = torch.rand(len(chosen), len(MODALITIES[modality]), 1, 1, generator=rng) * 2 - 1
            draw = draw * amount * chosen
            if modality == "S2L2A":
                batch[modality] = batch[modality].mul_((1 + draw).to(device)).clamp_(*S2_RANGE)
            else:
                std = torch.tensor(PUBLISHED_STATISTICS.stds[modality])[:, None, None]
                batch[modality].add_((draw * std).to(device))
        batch["DEM"].clamp_(*DEM_RANGE)


def _change(batch: Batch, chosen: torch.Tensor, change: object) -> None:
    """Apply a change to the pixels of the chosen chips."""
    at = torch.nonzero(chosen).flatten().to(batch["label"].device)
    if len(at):
        for name in PIXELS:
            batch[name][at] = change(batch[name][at])  # type: ignore[operator]
