"""Blocks of remote files that groups of chips side by side share: each is fetched once a process."""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Bytes on disk, in two halves of which the older one goes when the newer is full. Five squares of the default size
#: side by side, of one scene, so that the row of squares below finds the blocks that it shares with the one above.
CAPACITY = 2 * 2**30


@dataclass
class _Half:
    # A file without a name goes with the process, however it ends; unbuffered, so that a full disk shows at once.
    file: Any = field(default_factory=lambda: tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
    places: dict[tuple[str, int, int], int] = field(default_factory=dict)
    end: int = 0


class Blocks:
    """Decoded blocks in temporary files (of the folder that TMPDIR names); safe to use from several threads."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.halves: list[_Half] = []
        self.lock = threading.Lock()
        self.files: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def window(self, name: str, source: Any, rows: slice, cols: slice) -> np.ndarray:
        """Pixels of the first band of an open dataset.

        Args:
            name: of the file, the same whenever it is opened.
            source: rasterio dataset.
            rows, cols: which pixels, within the file.

        Returns:
            (rows, cols) in the file's own type.
        """
        high, wide = source.block_shapes[0]
        top, left = rows.start // high * high, cols.start // wide * wide
        shape = (
            min(-(-rows.stop // high) * high, source.height) - top,
            min(-(-cols.stop // wide) * wide, source.width) - left,
        )
        pixels = np.empty(shape, source.dtypes[0])

        def part(i: int, j: int, down: int = 1, right: int = 1) -> np.ndarray:
            y, x = i * high - top, j * wide - left
            return pixels[y : y + down * high, x : x + right * wide]

        with self.lock:
            lock = self.files[name]
        with lock:  # who wants the same file meanwhile finds it here afterwards
            places = [
                (i, j)
                for i in range(top // high, -(-rows.stop // high))
                for j in range(left // wide, -(-cols.stop // wide))
            ]
            missing = [place for place in places if not self._get(name, place, part(*place))]
            for i, j, down, right in rectangles(missing):
                found = part(i, j, down, right)
                y, x = i * high, j * wide
                source.read(1, out=found, window=((y, y + found.shape[0]), (x, x + found.shape[1])))
            for place in missing:
                self._put(name, place, part(*place))
        return pixels[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]

    def _get(self, name: str, place: tuple[int, int], into: np.ndarray) -> bool:
        with self.lock:
            for half in self.halves:
                if (name, *place) in half.places:
                    half.file.seek(half.places[name, *place])
                    into[:] = np.frombuffer(half.file.read(into.nbytes), into.dtype).reshape(into.shape)
                    return True
        return False

    def _put(self, name: str, place: tuple[int, int], block: np.ndarray) -> None:
        with self.lock:
            try:
                if not self.halves or self.halves[-1].end + block.nbytes > self.capacity // 2:
                    self.halves = [*self.halves[-1:], _Half()]
                half = self.halves[-1]
                half.file.seek(half.end)
                written = half.file.write(block.tobytes())
            except OSError:  # no room: the block is fetched again where it is wanted again
                return
            if written == block.nbytes:
                half.places[name, *place] = half.end
                half.end += written


def rectangles(places: Iterable[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Blocks, in rows from top to bottom, as few rectangles: (row, column, rows, columns) each."""
    found: list[tuple[int, int, int, int]] = []
    for i, j in places:
        if found and found[-1][0] == i and found[-1][2] == 1 and sum(found[-1][1::2]) == j:
            found[-1] = i, found[-1][1], 1, found[-1][3] + 1
        else:
            found.append((i, j, 1, 1))
    joined: dict[tuple[int, int, int], tuple[int, int]] = {}  # (end, column, columns) -> row, rows
    for i, j, _, right in found:
        above, rows = joined.pop((i, j, right), (i, 0))
        joined[i + 1, j, right] = above, rows + 1
    return [(i, j, down, right) for (_, j, right), (i, down) in joined.items()]


BLOCKS = Blocks()
