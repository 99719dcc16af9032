"""The order of a training epoch: a fixed share of lake chips, the same for any number of processes, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, DistributedSampler

from cryosentinel.errors import ConfigError, InputError


class BalancedSampler(DistributedSampler):
    """Positions of a dataset with ``ratio`` lake chips to one chip without, shuffled anew each epoch.

    An epoch has as many draws as the dataset has chips. Draws are stratified rather than random: each lake chip is
    drawn as often as any other (give or take one), and so is each background chip, and the ratio is exact to one chip.
    The whole order follows from (seed, epoch); a process of several takes every ``num_replicas``-th position of it, so
    that the batches of a step together are those that one process with a larger batch would take.

    It derives from torch's DistributedSampler so that Lightning leaves it in place under DDP and calls
    :meth:`set_epoch`.

    Args:
        positive: (n,) bool, which of the dataset's chips show a lake.
        ratio: lake chips to one chip without; None takes every chip once.
        seed: of all epochs.
        num_replicas, rank: processes, and which one this is.

    Raises:
        InputError: there is no chip, or a ratio is asked for and no chip shows a lake.
        ConfigError: the ratio is not above 0.
    """

    def __init__(
        self, positive: np.ndarray, ratio: float | None = 3.0, seed: int = 42, num_replicas: int = 1, rank: int = 0
    ) -> None:
        positive = np.asarray(positive, dtype=bool)
        super().__init__(positive, num_replicas=num_replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        if not len(positive):
            raise InputError("There is no chip to draw from; the training split is empty.")
        if ratio is not None and not ratio > 0:
            raise ConfigError(f"The ratio of lake chips to chips without is {ratio}; it must be above 0, or none.")
        self.ratio = ratio
        self.positives, self.negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
        if ratio is not None and not len(self.positives):
            raise InputError("No training chip shows a lake, so none can be drawn; turn the ratio off or add data.")
        self.num_samples = -(-len(positive) // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas
        self._start = 0

    def order(self, epoch: int) -> np.ndarray:
        """The draws of an epoch over all processes: (n,) int64 positions of the dataset."""
        rng = np.random.default_rng([self.seed, epoch])
        count = len(self.positives) + len(self.negatives)
        if self.ratio is None:
            return rng.permutation(count)
        lakes = round(count * self.ratio / (1 + self.ratio)) if len(self.negatives) else count
        drawn = [self._draws(self.positives, lakes, epoch), self._draws(self.negatives, count - lakes, epoch)]
        return rng.permutation(np.concatenate(drawn))

    def _draws(self, group: np.ndarray, count: int, epoch: int) -> np.ndarray:
        """The next ``count`` of an endless row of shuffles, so that over epochs too each chip is drawn as often."""
        if not count:
            return group[:0]
        first, last = epoch * count // len(group), ((epoch + 1) * count - 1) // len(group)
        rounds = [
            np.random.default_rng([self.seed, len(group), k, 1]).permutation(group) for k in range(first, last + 1)
        ]
        offset = epoch * count - first * len(group)
        return np.concatenate(rounds)[offset : offset + count]

    def __iter__(self) -> Iterator[int]:
        order = self.order(self.epoch)
        # The last positions are filled with the first ones so that every process takes the same number of steps.
        order = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        start, self._start = self._start, 0
        return iter(order[start:].tolist())

    def __len__(self) -> int:
        """Draws of this process in a whole epoch."""
        return self.num_samples

    def skip(self, draws: int) -> None:
        """Start the next pass after the first ``draws`` draws of this process (once)."""
        self._start = draws


class ResumableLoader(DataLoader):
    """A DataLoader that knows how many batches of the epoch were taken, and goes on from there.

    Lightning stores :meth:`state_dict` in its checkpoints and hands it back before the first batch of a resumed run.
    """

    _taken = 0
    _resume_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator does all that is asked of it
        sampler = self.sampler
        self._taken, self._resume_at = self._resume_at, 0
        if isinstance(sampler, BalancedSampler):
            sampler.skip(self._taken * (self.batch_size or 1))
        batches = super().__iter__()
        return self._counted(batches)

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the batches taken of it; a finished epoch is the next one with none taken."""
        epoch = getattr(self.sampler, "epoch", 0)
        if self._taken >= len(self):
            return {"epoch": epoch + 1, "batches": 0}
        return {"epoch": epoch, "batches": self._taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass start after the batches that were taken."""
        self._resume_at = int(state["batches"])
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(int(state["epoch"]))
