"""Predicted probabilities kept as the bins of the score histograms: one byte a pixel, and no threshold moves.

A stored value k says k/200 <= p < (k + 1)/200, so that ``map >= 200 * threshold`` is exactly ``p >= threshold`` at
every multiple of 1/200; 255 marks a pixel without valid data. Tables against another reference, or a corrected mask,
are counted from these maps without a model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.evaluation.scores import BINS, INVALID, threshold_bin
from cryosentinel.files import read_json, replacing, write_json


@dataclass(frozen=True)
class ProbabilityMaps:
    """The stored predictions of one split.

    Attributes:
        bins: (N, H, W) uint8, memory-mapped.
        rows: (N,) positions in the store's index.
        key: digest of what the predictions were made from.
    """

    bins: np.ndarray
    rows: tuple[int, ...]
    key: str

    def __len__(self) -> int:
        return len(self.rows)

    def water(self, i: int, threshold: float = 0.5) -> np.ndarray:
        """(H, W) bool: predicted water of the i-th chip of the split; False where there is no valid data."""
        values = np.asarray(self.bins[i])
        return (values >= threshold_bin(threshold)) & (values != INVALID)

    def probability(self, i: int) -> np.ndarray:
        """(H, W) float32: the middle of each pixel's bin, within 0.0025 of the prediction; NaN where invalid."""
        values = np.asarray(self.bins[i])
        return np.where(values == INVALID, np.nan, (values.astype(np.float32) + 0.5) / BINS).astype(np.float32)

    def take(self, rows: Sequence[int]) -> ProbabilityMaps:
        """The maps of some of the store's rows, in that order.

        Raises:
            InputError: one of them is not here.
        """
        where = {row: i for i, row in enumerate(self.rows)}
        if lacking := [row for row in rows if row not in where]:
            raise InputError(
                f"{len(lacking)} of the chips asked for were not predicted (row {lacking[0]} of the index)."
            )
        return ProbabilityMaps(self.bins[[where[row] for row in rows]], tuple(rows), self.key)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], split: str) -> ProbabilityMaps:
        """Open the maps that an evaluation wrote.

        Raises:
            InputError: there are none, or they are damaged.
        """
        folder = Path(folder)
        about = read_json(folder / f"probability_{split}.json")
        path = folder / f"probability_{split}.npy"
        try:
            rows, key = tuple(int(r) for r in about["rows"]), str(about["key"])
            bins = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            raise InputError(f"The probability maps {path} are missing or damaged; run the evaluation again.") from None
        if bins.dtype != np.uint8 or bins.ndim != 3 or len(bins) != len(rows):
            raise InputError(f"The probability maps {path} do not fit their description; run the evaluation again.")
        return cls(bins, rows, key)


class MapWriter:
    """Appends maps to a .npy file that a killed run can go on with: the file's length says how many are whole.

    Plain appending rather than a memory map: a full disk then raises an error instead of killing the process.

    Args:
        folder: where ``probability_<split>.npy`` and ``.json`` go.
        split: name of the split.
        rows: positions in the store's index, in the order of the maps.
        key: digest of what the predictions are made from; only a part with the same key is gone on with.
    """

    def __init__(self, folder: Path, split: str, rows: Sequence[int], key: str) -> None:
        self._final, self._about = folder / f"probability_{split}.npy", folder / f"probability_{split}.json"
        self._part = folder / f".probability_{split}.{key[:16]}.part.npy"
        self._rows, self._key = [int(r) for r in rows], key
        self._shape: tuple[int, int] | None = None
        self.done = self._resume()

    def _resume(self) -> int:
        for stale in self._part.parent.glob(f".{self._final.stem}.*.part.npy"):
            if stale != self._part:
                stale.unlink()
        try:
            with open(self._part, "rb") as handle:
                np.lib.format.read_magic(handle)
                shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
                start = handle.tell()
        except (OSError, ValueError):
            self._part.unlink(missing_ok=True)
            return 0
        if len(shape) != 3 or shape[0] != len(self._rows) or dtype != np.uint8:
            self._part.unlink()
            return 0
        self._shape = (int(shape[1]), int(shape[2]))
        size = self._shape[0] * self._shape[1]
        whole = min((self._part.stat().st_size - start) // size, len(self._rows))
        os.truncate(self._part, start + whole * size)
        self._start = start
        return int(whole)

    def rewind(self, done: int) -> None:
        """Keep the first ``done`` maps only."""
        if self._shape is not None and done < self.done:
            os.truncate(self._part, self._start + done * self._shape[0] * self._shape[1])
        self.done = done

    def append(self, bins: np.ndarray) -> None:
        """Add the next maps.

        Args:
            bins: (B, H, W) uint8.

        Raises:
            InputError: the chips of a split differ in size.
        """
        if self._shape is None:
            self._shape = bins.shape[1:]
            self._part.parent.mkdir(parents=True, exist_ok=True)
            header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (len(self._rows), *self._shape)}
            with open(self._part, "wb") as handle:
                np.lib.format.write_array_header_1_0(handle, header)
                self._start = handle.tell()
        if bins.shape[1:] != self._shape:
            raise InputError(
                f"Chips of one split must have one size; here are {self._shape} and {bins.shape[1:]}; "
                "evaluate them as separate datasets."
            )
        with open(self._part, "ab") as handle:
            handle.write(np.ascontiguousarray(bins).data)
        self.done += len(bins)

    def finish(self) -> None:
        """Put the maps in place, then their description: without it they do not count."""
        assert self.done == len(self._rows)
        with open(self._part, "rb") as handle:
            os.fsync(handle.fileno())
        self._about.unlink(missing_ok=True)
        os.replace(self._part, self._final)
        write_json(self._about, _about(self._key, self._rows))


def take_maps(source: Path, name: str, source_key: str, folder: Path, split: str, key: str) -> None:
    """Take maps that another evaluation left for those of a split, where they have the key and the split has none."""
    if has_maps(folder, split, key) or not has_maps(source, name, source_key):
        return
    rows = ProbabilityMaps.open(source, name).rows
    with replacing(folder / f"probability_{split}.npy") as part:
        try:
            os.link(source / f"probability_{name}.npy", part)
        except OSError:  # a file system without links
            shutil.copyfile(source / f"probability_{name}.npy", part)
    write_json(folder / f"probability_{split}.json", _about(key, rows))


def _about(key: str, rows: Sequence[int]) -> dict[str, Any]:
    return {"key": key, "rows": list(rows), "bins": BINS, "invalid": INVALID}


def has_maps(folder: Path, split: str, key: str) -> bool:
    """Whether whole maps with this key are there."""
    try:
        about = json.loads((folder / f"probability_{split}.json").read_text(encoding="utf-8"))
        return about["key"] == key and ProbabilityMaps.open(folder, split).key == key
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return False
