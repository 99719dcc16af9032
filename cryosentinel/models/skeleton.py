"""A torch checkpoint written piece by piece: first its structure with holes for the tensors, then their bytes."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from cryosentinel.errors import CheckpointError
from cryosentinel.models.archive import Archive
from cryosentinel.models.unpickle import read_archive

_DESCRIPTOR = b"PK\x07\x08"
_CENTRAL = b"PK\x01\x02"
_PENDING = 8  # blocks that wait to be written


class Skeleton:
    """Writes a ``.ckpt`` whose tensors arrive in blocks, in memory that does not grow with the model.

    Bytes of one tensor arrive in order. On leaving the ``with`` block the checksums are put in, so that the file is a
    sound zip archive for every reader.
    """

    def __init__(self, path: Path, like: Mapping[str, torch.Tensor], entries: Mapping[str, Any]) -> None:
        """Write the structure.

        Args:
            path: the file.
            like: name -> a tensor of the wanted shape and type; only these two are looked at.
            entries: the other entries of the checkpoint, small.
        """
        self._path = path
        # Fresh memory that nobody writes to takes address space, not memory.
        holes = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in like.items()}
        with torch.serialization.skip_data():
            torch.save({**entries, "state_dict": holes}, path)
        checkpoint, _, archive = read_archive(path)
        self._offsets = {name: archive.offset(tensor) for name, tensor in checkpoint["state_dict"].items()}
        self._checksums = dict.fromkeys(like, 0)

    def __enter__(self) -> Skeleton:
        self._file = os.open(self._path, os.O_RDWR)
        # One writer keeps the order of blocks; checksums and writing let go of the interpreter lock.
        self._writer = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        return self

    def write(self, name: str, position: int, block: torch.Tensor) -> None:
        """Write a block of a tensor.

        Args:
            name: of the tensor.
            position: of the block's first byte in the tensor; blocks come in order.
            block: of the tensor's type; it must not change afterwards.

        Raises:
            OSError: an earlier block could not be written.
        """
        if block.numel():
            self._pending.append(self._writer.submit(self._put, name, position, block))
        while len(self._pending) > _PENDING:
            self._pending.popleft().result()

    def _put(self, name: str, position: int, block: torch.Tensor) -> None:
        data = memoryview(block.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        self._checksums[name] = zlib.crc32(data, self._checksums[name])
        offset = self._offsets[name] + position
        while data:
            written = os.pwrite(self._file, data, offset)
            offset, data = offset + written, data[written:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
            self._writer.shutdown(cancel_futures=True)
            if kind is None:
                self._seal()
        finally:
            self._writer.shutdown(cancel_futures=True)
            os.close(self._file)

    def _seal(self) -> None:
        """Put every record's checksum where a zip archive has it: after the record, and in the central directory."""
        archive = Archive(self._path)
        position_of = {offset: name for name, offset in self._offsets.items()}
        with zipfile.ZipFile(self._path) as table:
            entry, records = table.start_dir, table.infolist()
        root = records[0].filename.partition("/")[0] + "/"
        for record in records:
            offset, size = archive.spans[record.filename.removeprefix(root)]
            header = os.pread(self._file, 46, entry)
            if header[:4] != _CENTRAL:
                raise CheckpointError(f"{self._path} could not be completed; write it again.")
            if size and (name := position_of.get(offset)) is not None:
                checksum = struct.pack("<I", self._checksums[name])
                os.pwrite(self._file, checksum, entry + 16)
                if os.pread(self._file, 4, offset + size) == _DESCRIPTOR:
                    os.pwrite(self._file, checksum, offset + size + 4)
            entry += 46 + sum(struct.unpack("<HHH", header[28:34]))
