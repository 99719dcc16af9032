"""The rule of the label audit, and the three water maps of a chip that it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryosentinel.errors import ConfigError
from cryosentinel.evaluation.scores import INVALID, threshold_bin
from cryosentinel.indices import mndwi
from cryosentinel.sensors import REFLECTANCE_SCALE, S2_BANDS

if TYPE_CHECKING:
    from cryosentinel.data.chips import Chip


@dataclass(frozen=True)
class AuditRule:
    """The rule, fixed before a chip is looked at.

    Attributes:
        threshold: of the probability, a multiple of 1/200.
        mndwi_threshold: water where the index is at or above.
        bright_red: B04 reflectance (0..1) above which the ground is out of sight: cloud, snow or ice.
        tolerance_px: width of disagreement that the label's stated accuracy explains: 30 m and a touched pixel.
        min_px: smallest core area that a verdict needs.
        worst: candidates to show, the largest disagreements.
        control: chips drawn at random from the rest, to see what the ranking does not.
        seed: of the control draw.
    """

    threshold: float = 0.5
    mndwi_threshold: float = 0.3
    bright_red: float = 0.25
    tolerance_px: int = 4
    min_px: int = 50
    worst: int = 20
    control: int = 20
    seed: int = 42

    def __post_init__(self) -> None:
        if self.tolerance_px < 0 or self.min_px < 1 or self.worst < 0 or self.control < 0:
            raise ConfigError("An audit rule needs tolerance_px, worst and control at or above 0, and min_px above 0.")


@dataclass(frozen=True)
class AuditMasks:
    """The three masks of a chip, False where the chip has no valid data, and where the ground shows. (H, W) bool."""

    label: np.ndarray
    prediction: np.ndarray
    mndwi: np.ndarray
    visible: np.ndarray

    def directions(self) -> dict[str, np.ndarray]:
        """Pixels of each direction before the opening; unlabelled water is still among the undersized."""
        y, p, m = self.label, self.prediction, self.mndwi
        return {"undersized_px": ~y & p & m, "oversized_px": y & ~p & ~m & self.visible, "miss_px": y & ~p & m,
                "false_alarm_px": ~y & p & ~m}  # fmt: skip


def core(mask: np.ndarray, tolerance_px: int) -> np.ndarray:
    """The parts of a mask that are wider than a tolerance: opened with a square of ``tolerance_px`` + 1 pixels.

    The opening sees nothing beyond the chip's edge, so that a lake cut by it is judged by what is inside.
    """
    from scipy import ndimage

    if tolerance_px < 1 or not mask.any():
        return mask
    size = tolerance_px + 1
    # Rank filters with a flat window are separable and several times faster than binary_opening.
    eroded = ndimage.minimum_filter(mask.astype(np.uint8), size, mode="nearest")
    # An even window is not symmetric: the dilation mirrors it, or the opening would shift.
    origin = -1 if size % 2 == 0 else 0
    return ndimage.maximum_filter(eroded, size, mode="constant", origin=origin).astype(bool) & mask


def audit_masks(chip: Chip, bins: np.ndarray, rule: AuditRule) -> AuditMasks:
    """The masks of a chip.

    Args:
        chip: with raw values: the index is taken before any clipping.
        bins: (H, W) uint8, its stored probability map.
        rule: thresholds.
    """
    valid = bins != INVALID
    return AuditMasks(
        (chip.mask > 0) & valid,
        (bins >= threshold_bin(rule.threshold)) & valid,
        (mndwi(chip.s2) >= np.float32(rule.mndwi_threshold)) & valid,
        chip.s2[S2_BANDS.index("B04")] <= rule.bright_red * REFLECTANCE_SCALE,
    )


def cores_of(seen: AuditMasks, rule: AuditRule) -> dict[str, np.ndarray]:
    """The core pixels of each direction: column of the verdict table -> (H, W) bool."""
    from scipy import ndimage

    cores = {
        # A mask smaller than a verdict needs cannot carry one: no opening.
        name: core(mask, rule.tolerance_px) if mask.sum() >= rule.min_px else np.zeros_like(mask)
        for name, mask in seen.directions().items()
    }
    lacking = cores["undersized_px"]
    if lacking.any():
        # Within the tolerance of a labelled lake (8 neighbours): the band in between is the outline's stated accuracy.
        reach = 2 * rule.tolerance_px + 3
        near = ndimage.maximum_filter(seen.label.astype(np.uint8), reach, mode="constant").astype(bool)
        parts, _ = ndimage.label(lacking, structure=np.ones((3, 3)))
        cores["undersized_px"] = np.isin(parts, np.unique(parts[near & lacking])) & lacking
    cores["unlabelled_px"] = lacking & ~cores["undersized_px"]
    return cores
