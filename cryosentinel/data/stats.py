"""Normalisation statistics, streamed: mean and standard deviation of every band over valid pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cryosentinel.data.pixels import clean
from cryosentinel.errors import InputError
from cryosentinel.sensors import MODALITIES, Statistics

if TYPE_CHECKING:
    from cryosentinel.data.store import ChipStore


class RunningStatistics:
    """Mean and standard deviation of the bands of any number of chips, in float64, one pass.

    Each chip's own mean and sum of squared deviations are merged pairwise (Chan, Golub and LeVeque 1983), which loses
    nothing where a naive sum of squares does.
    """

    def __init__(self) -> None:
        bands = sum(map(len, MODALITIES.values()))
        self.count = 0
        self.mean = np.zeros(bands)
        self.deviations = np.zeros(bands)

    def add(self, s2: np.ndarray, s1: np.ndarray, dem: np.ndarray, valid: np.ndarray) -> None:
        """Add the valid pixels of a chip, clipped as the network sees them.

        Args:
            s2, s1, dem: (12, H, W), (2, H, W), (1, H, W), unclipped.
            valid: (H, W) bool, from before clipping.
        """
        count = int(valid.sum())
        if not count:
            return
        bands = [band for array in clean(s2, s1, dem) for band in array]
        # Band by band: fifteen bands in float64 at once are larger than the processor's caches.
        values = (band.astype(np.float64)[valid] for band in bands)
        mean, deviations = np.array([(m := v.mean(), np.square(v - m).sum()) for v in values]).T
        self.merge(count, mean, deviations)

    def merge(self, count: int, mean: np.ndarray, deviations: np.ndarray) -> None:
        """Add ``count`` pixels of which mean and sum of squared deviations are known, (15,) each."""
        total = self.count + count
        step = mean - self.mean
        self.mean = self.mean + step * (count / total)
        self.deviations = self.deviations + deviations + step**2 * (self.count * count / total)
        self.count = total

    def result(self) -> Statistics:
        """The statistics so far; standard deviations of the population (divided by n), as NumPy's.

        Raises:
            InputError: no valid pixel was added, or a band is constant.
        """
        if not self.count:
            raise InputError("The chips hold no valid pixel, so there are no statistics to compute.")
        std = np.sqrt(self.deviations / self.count)
        means: dict[str, tuple[float, ...]] = {}
        stds: dict[str, tuple[float, ...]] = {}
        at = 0
        for modality, bands in MODALITIES.items():
            means[modality] = tuple(self.mean[at : at + len(bands)].tolist())
            stds[modality] = tuple(std[at : at + len(bands)].tolist())
            at += len(bands)
        return Statistics(means, stds)


def training_statistics(store: ChipStore, rows: Sequence[int] | np.ndarray, progress: bool = True) -> Statistics:
    """The statistics of some chips of a store (the training split's), with a progress bar.

    Raises:
        InputError: no chip holds a valid pixel.
    """
    from tqdm import tqdm

    running = RunningStatistics()
    for row in tqdm(np.asarray(rows).tolist(), desc="Statistics", unit="chip", disable=not progress):
        record = store.record(row)
        running.add(record["s2"], record["s1"], record["dem"], record["valid"])
    return running.result()
