"""Batches of chips for training and evaluation: the torch Dataset and the Lightning DataModule over a chip store."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from cryosentinel.data.augment import AugmentConfig, BatchAugment
from cryosentinel.data.sampler import BalancedSampler, ResumableLoader
from cryosentinel.data.split import (
    BUFFER_DEGREES,
    FINETUNE_BLOCK_SIZE,
    RULES,
    SPLITS,
    SplitCheck,
    assign_splits,
    check_split,
    exclude_stage,
)
from cryosentinel.data.stats import training_statistics
from cryosentinel.data.store import ChipStore
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.paths import STATISTICS_FILE
from cryosentinel.sensors import DEM_RANGE, S1_FILL_DB, S2_RANGE, Statistics

__all__ = ["ChipDataModule", "ChipDataset", "ChipStore"]

Batch = dict[str, torch.Tensor]
POSITIVE_THRESHOLD = 0.002  # share of lake pixels above which a chip counts as positive


class ChipDataset(Dataset):
    """Some chips of a store as batches in physical units, clipped and filled, not normalised.

    A batch is fetched at once (``__getitems__``), straight from the memory map into the batch's float32 tensors.

    Args:
        store: the chips.
        rows: (n,) positions in ``store.index``; None for all.
    """

    def __init__(self, store: ChipStore, rows: Sequence[int] | np.ndarray | None = None) -> None:
        self.store = store
        self.rows = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(self.rows) and not (self.rows.min() >= 0 and self.rows.max() < len(store)):
            raise InputError(f"A row outside the store's {len(store)} chips was asked for.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of some of this dataset's chips.

        Returns:
            S2L2A float32 (B, 12, H, W) in 0..16,000; S1GRD float32 (B, 2, H, W) dB; DEM float32 (B, 1, H, W) m; label
            float32 (B, H, W) of 0 and 1; valid bool (B, H, W), from before clipping; row int64 (B,) in store.index.
        """
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        count, size = len(rows), self.store.chip_size
        s2, s1 = torch.empty(count, 12, *size), torch.empty(count, 2, *size)
        dem, label = torch.empty(count, 1, *size), torch.empty(count, *size)
        valid = torch.empty(count, *size, dtype=torch.bool)
        arrays = {name: t.numpy() for name, t in (("s2", s2), ("s1", s1), ("dem", dem), ("mask", label))}
        arrays["valid"] = valid.numpy()
        for k, row in enumerate(rows.tolist()):
            record = self.store.record(row)
            for name, array in arrays.items():
                array[k] = record[name]  # one pass: from the map, to float32, into the batch
        s2.clamp_(max=S2_RANGE[1])  # unsigned on disk: never below 0
        s1.nan_to_num_(nan=S1_FILL_DB, posinf=S1_FILL_DB, neginf=S1_FILL_DB)
        dem.clamp_(*DEM_RANGE)
        return {"S2L2A": s2, "S1GRD": s1, "DEM": dem, "label": label, "valid": valid, "row": torch.from_numpy(rows)}

    def __getitem__(self, index: int) -> Batch:
        """One chip, as a batch without its first axis."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def as_fetched(batch: Batch) -> Batch:
    """The collate function of loaders over :class:`ChipDataset`: its batches come collated."""
    return batch


class ChipDataModule(lightning.LightningDataModule):
    """Loaders over a dataset's training, validation and test chips.

    Args:
        root: folder of the dataset.
        batch_size: chips a batch (of each process).
        workers: loader processes; 0 reads in the main one, which the memory map mostly makes enough.
        block_size: side of a block of the split, degrees, see :func:`cryosentinel.data.split.assign_splits`.
        buffer: degrees; chips whose centre lies nearer to an edge are dropped.
        buffer_rule: "edge" drops at every block edge, "foreign" only at edges to another split.
        sanity: MNDWI threshold of the sanity filter (the published code's is 0.3), or None not to filter.
        positive_ratio: lake chips to one without in a training epoch, or None to take each chip once.
        positive_threshold: share of lake pixels above which a chip is a lake chip.
        augment: augmentations of the training batches, or None.
        regions: use only these; None for all.
        years: use only these; None for all.
        seed: of the epochs' orders and the augmentations.
        cache_dir: of the converted shards, see :class:`ChipStore`.
        protect_block_size: keep out every chip that lies in, or near, a validation or test block of a later stage with
            this block size (0.15 in the pretraining protects the finetune's), see
            :func:`cryosentinel.data.split.exclude_stage`. None keeps all, as published.
        drop_duplicates: leave out chips that stand on the place and year of an earlier chip.

    Attributes (after ``setup``):
        store: the :class:`ChipStore`.
        splits: (n,) of "train", "val", "test", "buffer", or "" for a chip that is filtered out or has no centre.
        rows: split -> (n,) positions in ``store.index``.
        statistics: of ``<root>/dataset_stats_v3.json``, or else computed over the training split.

    Raises:
        ConfigError: an option is out of range.
        InputError: the dataset cannot be used; a loader is asked for whose split is empty.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        batch_size: int = 8,
        workers: int = 0,
        block_size: float = FINETUNE_BLOCK_SIZE,
        buffer: float = BUFFER_DEGREES,
        buffer_rule: str = "edge",
        sanity: float | None = None,
        positive_ratio: float | None = 3.0,
        positive_threshold: float = POSITIVE_THRESHOLD,
        augment: AugmentConfig | None = None,
        regions: Sequence[str] | None = None,
        years: Sequence[int] | None = None,
        seed: int = 42,
        cache_dir: str | os.PathLike[str] | None = None,
        protect_block_size: float | None = None,
        drop_duplicates: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ConfigError(f"batch_size is {batch_size} and workers {workers}; they must be at least 1 and 0.")
        if buffer_rule not in RULES:
            raise ConfigError(f"There is no buffer_rule {buffer_rule!r}; choose one of {', '.join(RULES)}.")
        if sanity is not None and not -1 <= sanity <= 1:
            raise ConfigError(f"sanity is {sanity}; it is a threshold of MNDWI, which lies within -1..1, or none.")
        self.root, self.cache_dir = root, cache_dir
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.block_size, self.buffer, self.buffer_rule = block_size, buffer, buffer_rule
        self.sanity, self.regions, self.years = sanity, regions, years
        self.positive_ratio, self.positive_threshold = positive_ratio, positive_threshold
        self.protect_block_size, self.drop_duplicates = protect_block_size, drop_duplicates
        self.augment = BatchAugment(augment, seed) if augment is not None else None
        self.store: ChipStore
        self.splits: np.ndarray
        self.rows: dict[str, np.ndarray] = {}
        self._statistics: Statistics | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the store and split it. Safe to call again."""
        if self.rows:
            return
        self.store = ChipStore(self.root, self.cache_dir, self.regions, self.years)
        self.splits = self._split(self.store.index)
        self.rows = {name: np.flatnonzero(self.splits == name) for name in SPLITS}

    def _split(self, index: pd.DataFrame) -> np.ndarray:
        lat, lon = index["lat"].to_numpy(), index["lon"].to_numpy()
        splits = np.full(len(index), "", dtype="<U6")
        usable = np.flatnonzero(np.isfinite(lat) & np.isfinite(lon))
        splits[usable] = assign_splits(
            lat[usable], lon[usable], self.block_size, self.buffer, rule=self.buffer_rule
        )  # fmt: skip
        if self.protect_block_size is not None:
            splits[usable[exclude_stage(lat[usable], lon[usable], self.protect_block_size, self.buffer)]] = ""
        if self.sanity is not None:
            splits[self.store.sanity(self.sanity) != ""] = ""
        duplicates = self.store.duplicates()
        repeated = duplicates.loc[duplicates["kind"] == "place", "position"].to_numpy(dtype=np.int64)
        if self.drop_duplicates:
            splits[repeated] = ""
        elif len(repeated):
            warnings.warn(
                f"{len(repeated)} of {len(index)} chips of {self.root} stand on the place and year of another "
                "(region boxes overlap); they count twice unless drop_duplicates is set.",
                stacklevel=3,
            )
        return splits

    @property
    def statistics(self) -> Statistics:
        """Of the dataset's own file, or computed once over the training split and kept in the cache."""
        if self._statistics is None:
            self.setup()
            path = self.store.root / STATISTICS_FILE
            self._statistics = Statistics.read(path) if path.is_file() else self._training_statistics()
        return self._statistics

    def _training_statistics(self) -> Statistics:
        rows = self._rows("train")
        # The entries' folders are named by their shards' digests, so changed data have another key.
        key = "|".join(sorted({path.parent.name for path in self.store.paths})).encode() + rows.tobytes()
        path = self.store.cache_dir / f"statistics-{hashlib.sha256(key).hexdigest()[:16]}.json"
        if not path.is_file():
            training_statistics(self.store, rows).write(path)
        return Statistics.read(path)

    def check_split(self) -> SplitCheck:
        """Measure this split: overlapping chips and distances across splits, see :mod:`.split_check`."""
        self.setup()
        index = self.store.index
        used = self.splits != ""
        return check_split(index["lat"].to_numpy()[used], index["lon"].to_numpy()[used], self.splits[used])

    def _rows(self, split: str) -> np.ndarray:
        self.setup()
        rows = self.rows[split]
        if not len(rows):
            raise InputError(f"The {split} split of {self.root} is empty ({self._account()}.")
        return rows

    def _account(self) -> str:
        """Where the chips went, and what would bring more of them back."""
        counts = ", ".join(f"{len(at)} {name}" for name, at in self.rows.items())
        near, filtered = int((self.splits == "buffer").sum()), 0
        if self.sanity is not None:
            filtered = int((self.store.sanity(self.sanity) != "").sum())
        other = len(self.store) - sum(map(len, self.rows.values())) - near - filtered
        lost = [
            f"{count} {why}"
            for count, why in (
                (filtered, f"fail the sanity filter at {self.sanity}"),
                (near, "lie in the buffer"),
                (other, "have no place, repeat one or are protected"),
            )
            if count
        ]
        asked = [name for name in ("regions", "years") if getattr(self, name) is not None]
        whole = f"{len(self.store)} chips{' of these ' + ' and '.join(asked) if asked else ''} give {counts}"
        advice = ["more data", *(f"more {name}" for name in asked), "another block_size"]
        advice += ["a smaller buffer"] * bool(near) + ["sanity null"] * bool(filtered)
        return f"{whole}{'; ' if lost else ''}{', '.join(lost)}); use {', '.join(advice[:-1])} or {advice[-1]}"

    def train_dataloader(self) -> DataLoader:
        """Batches of the training split, in the balanced order of the epoch."""
        rows = self._rows("train")
        share = self.store.index["water_frac"].to_numpy()[rows]
        if self.positive_ratio is not None and not (share > self.positive_threshold).any():
            raise InputError(
                f"None of the training chips of {self.root} is more than {self.positive_threshold:.1%} lake "
                f"({self._account()}, or positive_ratio null."
            )
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        sampler = BalancedSampler(share > self.positive_threshold, self.positive_ratio, self.seed, world, rank)
        return ResumableLoader(
            ChipDataset(self.store, rows), sampler=sampler, drop_last=False, **self._loader_options()
        )

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation split, in the order of the index."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split, in the order of the index."""
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches of the test split, in the order of the index."""
        return self.loader("test")

    def loader(self, split: str) -> DataLoader:
        """Every chip of a split once, in the order of the index, not augmented."""
        rows = self._rows(split)
        return DataLoader(ChipDataset(self.store, rows), **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.workers,
            "collate_fn": as_fetched,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.workers > 0,
        }

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches where they are (on the accelerator if there is one)."""
        trainer = self.trainer
        if self.augment is None or trainer is None or not trainer.training:
            return batch
        return self.augment(batch, trainer.current_epoch)
