"""A checkpoint's zip archive, opened with suspicion: checked against its table of contents, mapped, never unpacked."""

from __future__ import annotations

import mmap
import os
import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from cryosentinel.errors import CheckpointError

_PICKLE_LIMIT = 256 * 1024 * 1024  # bytes; the structure of a checkpoint takes a few hundred kB


class Archive:
    """The records of a torch zip file, mapped read-only.

    Attributes:
        path: the file.
        structure: the pickle that describes the checkpoint.
        spans: record name -> (offset in the file, bytes).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check an archive.

        Raises:
            CheckpointError: the file is missing, not a zip archive of torch's, truncated, or made to deceive
                (compressed or overlapping records).
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"There is no checkpoint {path}; check the path.")
        try:
            with open(self.path, "rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                with zipfile.ZipFile(handle) as archive:
                    records = archive.infolist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, struct.error):
            raise CheckpointError(
                f"{path} is not a checkpoint in torch's zip format, or is truncated; fetch or write it again."
            ) from None
        size = len(self._map)
        # torch stores its records as they are, so nothing can be larger inside than outside.
        stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records)
        if not stored or sum(r.file_size for r in records) > size or len({r.filename for r in records}) < len(records):
            raise CheckpointError(
                f"{path} holds compressed or overlapping records, which torch never writes; do not trust this file."
            )
        structures = [r.filename for r in records if r.filename.rpartition("/")[2] == "data.pkl"]
        if len(structures) != 1:
            raise CheckpointError(f"{path} is a zip archive but not a checkpoint; check the path.")
        root = structures[0].removesuffix("data.pkl")
        self.spans = {r.filename.removeprefix(root): self._span(r) for r in records if r.filename.startswith(root)}
        if self.spans["data.pkl"][1] > _PICKLE_LIMIT:
            raise CheckpointError(f"{path} describes its structure in more than 256 MiB; do not trust this file.")
        self.structure = self._bytes("data.pkl")
        if "byteorder" in self.spans and self._bytes("byteorder") != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine; save it again on a common one.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mapping cannot be written, which is the point
            self._base = torch.frombuffer(self._map, dtype=torch.uint8, count=1)

    def _span(self, record: zipfile.ZipInfo) -> tuple[int, int]:
        """Where a record's bytes start, by its local header, and how many there are."""
        start = record.header_offset
        header = self._map[start : start + 30]
        if len(header) == 30 and header[:4] == b"PK\x03\x04":
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            offset = start + 30 + name_length + extra_length
            if offset + record.file_size <= len(self._map):
                return offset, record.file_size
        raise CheckpointError(f"{self.path} is damaged at its record {record.filename!r}; fetch or write it again.")

    def _bytes(self, name: str) -> bytes:
        offset, size = self.spans[name]
        return self._map[offset : offset + size]

    def tensor(
        self, key: str, dtype: torch.dtype, start: int, shape: Sequence[int], stride: Sequence[int]
    ) -> torch.Tensor:
        """A read-only tensor over a record, without reading it.

        Args:
            key: the storage's name, for example "0".
            dtype: of the storage.
            start: first element.
            shape, stride: in elements.

        Raises:
            CheckpointError: there is no such record, or the tensor reaches outside it or repeats its elements.
        """
        numbers = [start, *shape, *stride]
        offset, size = self.spans.get(f"data/{key}", (0, -1))
        whole = all(type(n) is int and n >= 0 for n in numbers) and len(shape) == len(stride) and size >= 0
        count = 1
        for side in shape if whole else ():
            count *= side
        last = start + sum((n - 1) * s for n, s in zip(shape, stride, strict=False)) if whole and count else start
        # A broadcast of one stored number to a terabyte would be a bomb: weights never repeat.
        if not whole or (count and (last + 1) * dtype.itemsize > size) or count * dtype.itemsize > size:
            raise CheckpointError(
                f"{self.path} describes a tensor that its record {key!r} cannot hold; do not trust it."
            )
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flat = torch.frombuffer(
                self._map, dtype=dtype, count=last + 1 - start, offset=offset + start * dtype.itemsize
            )
        return flat.as_strided(tuple(shape), tuple(stride))

    def offset(self, tensor: torch.Tensor) -> int:
        """The position in the file of a tensor that :meth:`tensor` made."""
        return tensor.data_ptr() - self._base.data_ptr()

    def release(self, offset: int, size: int) -> None:
        """Give back the memory of bytes that were read; reading them again maps them again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, min(offset + size, len(self._map)) - start)
