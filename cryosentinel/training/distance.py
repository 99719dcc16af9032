"""Signed distance maps of the labels, for the boundary term, computed once a chip and carried through flips.

An exact Euclidean distance transform of eight chips costs more than the whole of the remaining loss, yet the label of a
chip is the same in every epoch but for a flip. So the map of a chip's own label is kept, and a label that comes back as
one of the eight symmetries of the square gets the same symmetry of the map: exact, because the distance transform
commutes with them. A label that was rescaled, pasted into or mosaicked matches none of the eight and is computed anew.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor


def signed_distance(label: np.ndarray) -> np.ndarray:
    """The signed Euclidean distance to the shoreline, in pixels (Kervadec et al. 2019, arXiv:1812.07032).

    Args:
        label: (H, W), water where above one half.

    Returns:
        float32 (H, W): outside, the distance to the nearest water pixel (1 at the shore); inside, one less than the
        distance to the nearest land pixel, negated (0 at the shore). All zero where a chip is all or no water, since
        it has no shoreline.
    """
    from scipy.ndimage import distance_transform_edt

    water = np.asarray(label) > 0.5
    if water.all() or not water.any():
        return np.zeros(water.shape, np.float32)
    outside = distance_transform_edt(~water)
    inside = distance_transform_edt(water)
    return np.where(water, 1.0 - inside, outside).astype(np.float32)


def _symmetries(array: np.ndarray) -> list[np.ndarray]:
    """Views of a (H, W) array: the four flips first (they are the common ones), then their transposes."""
    flips = [array, array[:, ::-1], array[::-1], array[::-1, ::-1]]
    return flips + [view.T for view in flips]


class DistanceCache:
    """Signed distance maps by chip, within a bound on memory (the chip used longest ago is dropped first).

    Args:
        megabytes: bound on what is kept. A chip of 224 x 224 with a shoreline takes 0.25 MB; one without takes nothing.
    """

    def __init__(self, megabytes: float = 512.0) -> None:
        self.capacity = int(megabytes * 1e6)
        self._kept: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._bytes = 0
        self.hits = self.misses = 0

    def remember(self, rows: Tensor, labels: Tensor) -> None:
        """Keep the maps of chips as the store holds them, before any augmentation.

        Args:
            rows: (B,) row of each chip in the store's index.
            labels: (B, H, W) in {0, 1}.
        """
        for row, label in zip(rows.tolist(), labels.cpu().numpy(), strict=True):
            if row not in self._kept:
                water = label > 0.5
                if water.any() and not water.all():
                    self._keep(row, water, signed_distance(water))

    def lookup(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The maps of a batch as the loss sees it, after augmentation.

        Args:
            rows: (B,) row of each chip in the store's index.
            labels: (B, H, W) in {0, 1}.

        Returns:
            float32 (B, H, W) on the labels' device.
        """
        waters = labels.cpu().numpy() > 0.5
        maps = np.zeros(waters.shape, np.float32)
        for i, (row, water) in enumerate(zip(rows.tolist(), waters, strict=True)):
            if water.any() and not water.all():
                maps[i] = self._map_of(row, water)
        return torch.from_numpy(maps).to(labels.device)

    def _map_of(self, row: int, water: np.ndarray) -> np.ndarray:
        kept = self._kept.get(row)
        if kept is not None:
            self._kept.move_to_end(row)
            for known, distance in zip(_symmetries(kept[0]), _symmetries(kept[1]), strict=True):
                if known.shape == water.shape and np.array_equal(known, water):
                    self.hits += 1
                    return distance
        self.misses += 1
        distance = signed_distance(water)
        if kept is None:
            self._keep(row, water, distance)
        return distance

    def _keep(self, row: int, water: np.ndarray, distance: np.ndarray) -> None:
        self._kept[row] = (water.copy(), distance)
        self._bytes += water.nbytes + distance.nbytes
        while self._bytes > self.capacity:
            _, (old_water, old_distance) = self._kept.popitem(last=False)
            self._bytes -= old_water.nbytes + old_distance.nbytes
