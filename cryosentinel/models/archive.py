"""Checkpoint files read as data: one reader, with one set of limits, for loading, soups and conversion.

A torch checkpoint is a zip archive of a pickle that describes it and one record for each tensor storage. The reader
maps the file, checks the archive's table of contents and checksums, and reads the pickle with an unpickler that imports
nothing: the few functions that a checkpoint of weights needs are written here, and every other name in the pickle
becomes a :class:`Foreign`. Tensors are views of the mapped file: nothing is allocated on the word of a pickle.

Why not ``torch.load``: it does not verify checksums, hands archives of TorchScript to ``torch.jit.load``, lets a pickle
reach ``Tensor.set_``, and cannot read a pickle with foreign objects unless ``weights_only`` is off.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import pickle
import struct
import types
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cryosentinel.errors import CheckpointError

_PICKLE_LIMIT = 8 << 20  # bytes: the structure of a large model with its optimiser takes less than one MB
_DEPTH_LIMIT = 64  # containers within containers
_NODE_LIMIT = 1_000_000  # values, a shared one counted wherever it occurs
_REPETITION_LIMIT = 8  # bytes of all tensors together, in sizes of the file; tied weights repeat once or twice
_LONGEST = 4096  # bits of a whole number (Python refuses to print much longer ones), characters of a name
_KEY_COST = 256  # values that a tuple or long number counts for as a key: thousands can be forged to one hash
_CHUNK = 1 << 20

_LEGACY_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip


@dataclass
class CheckpointFile:
    """A checkpoint as it was read.

    Attributes:
        path: the file.
        entries: the checkpoint's dictionary, with a ``state_dict``; tensors are views of the mapped file.
        foreign: names of classes and functions that the file asks for and that were not loaded, sorted.
    """

    path: Path
    entries: dict[str, Any]
    foreign: list[str]
    _map: mmap.mmap | None = None

    def release(self) -> None:
        """Give back the memory of what was read; reading a tensor again maps it again."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``.ckpt``/``.pt`` (torch) or ``.safetensors`` file without running anything that it holds.

    Args:
        path: the file.

    Returns:
        The checkpoint, its tensors mapped: they are read when they are used. A bare state dict comes back as
        ``{"state_dict": ...}``; the JSON metadata of a safetensors file become the other entries.

    Raises:
        CheckpointError: the file is missing, damaged, deceptive or not a checkpoint, or holds objects beyond weights
            and plain values (the sentence names the safe conversion).
    """
    file = read_checkpoint(path)
    refuse_foreign(file)
    return file.entries


def refuse_foreign(file: CheckpointFile) -> None:
    """Refuse a file that holds more than weights and plain values.

    Raises:
        CheckpointError: it does; the sentence names the safe conversion.
    """
    if file.foreign:
        raise CheckpointError(
            f"{file.path} holds more than weights and plain values ({listed(file.foreign, 3)}), so loading it could "
            f"run code; convert it safely with `cryosentinel convert {file.path} {file.path.stem}.safetensors` and use "
            "the result."
        )


def read_checkpoint(path: str | os.PathLike[str]) -> CheckpointFile:
    """Read a checkpoint that may hold foreign objects; they stay :class:`Foreign`.

    Raises:
        CheckpointError: the file is missing, damaged, deceptive or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}; check the path.")
    try:
        file = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        file.entries = _checkpoint(file.entries)
    except CheckpointError:
        raise
    except _Refused as error:
        raise CheckpointError(
            f"{path} is damaged or made to deceive: {error}; fetch or write it again, and do not trust this one."
        ) from None
    except Exception:
        # Damaged or hostile bytes fail in as many ways as there are opcodes.
        raise CheckpointError(
            f"{path} is not a checkpoint of torch 1.6 or later or of safetensors, or is truncated or damaged; fetch "
            "or write it again."
        ) from None
    return file


def listed(names: Iterable[object], count: int = 4) -> str:
    """The first few names and how many more there are."""
    ordered = [name if len(name) <= 120 else f"{name[:117]}..." for name in sorted(map(str, names))]
    more = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return ", ".join(ordered[:count]) + more


class _Refused(pickle.UnpicklingError):
    """A file that no checkpoint would look like; the message says why, as a part of a sentence."""


def _checkpoint(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"it holds a {type(value).__name__} where a checkpoint holds a dictionary")
    if "state_dict" not in value and value and all(isinstance(entry, torch.Tensor) for entry in value.values()):
        value = {"state_dict": value}
    state = value.get("state_dict")
    if not isinstance(state, dict):
        raise _Refused("it has no 'state_dict' with a model's weights")
    if other := [key for key in state if not isinstance(key, str)]:
        raise _Refused(f"its weights have names that are not text ({type(other[0]).__name__})")
    return value


# --- torch's format ---------------------------------------------------------------------------------------------------


def _read_torch(path: Path) -> CheckpointFile:
    archive = _Archive(path)
    unpickler = _Unpickler(io.BytesIO(archive.read("data.pkl")))
    value = unpickler.load()
    return CheckpointFile(path, _Finish(archive).value(value), sorted(unpickler.foreign), archive.map)


class _Archive:
    """The records of a torch zip file, mapped; what is written into a tensor stays out of the file."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as handle:
            self.map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
            with zipfile.ZipFile(handle) as archive:
                records = archive.infolist()
            # torch stores its records as they are, so nothing can be larger inside than outside.
            stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records)
            names = {r.filename for r in records}
            if not stored or sum(r.file_size for r in records) > len(self.map) or len(names) < len(records):
                raise _Refused("it holds compressed or overlapping records, which torch never writes")
            roots = [name.removesuffix("data.pkl") for name in names if name.rpartition("/")[2] == "data.pkl"]
            if len(roots) != 1 or f"{roots[0]}constants.pkl" in names:
                raise _Refused("it is a zip archive, but not of a checkpoint")
            spans = {r.filename.removeprefix(roots[0]): self._span(r) for r in records}
            self._spans = spans
            if spans["data.pkl"][1] > _PICKLE_LIMIT:
                raise _Refused(f"it describes its structure in more than {_PICKLE_LIMIT >> 20} MiB")
            if "byteorder" in spans and self.read("byteorder") != b"little":
                raise CheckpointError(f"{path} was written on a big-endian machine; save it again on a common one.")
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and checksums let go of the interpreter lock
            sound = pool.map(lambda r: _sound(path, *spans[r.filename.removeprefix(roots[0])], r.CRC), records)
            if not all(sound):
                raise CheckpointError(f"{path} is damaged: its checksums do not hold; fetch or write it again.")

    def _span(self, record: zipfile.ZipInfo) -> tuple[int, int]:
        """Where a record's bytes start, by its local header, and how many there are."""
        start = record.header_offset
        header = self.map[start : start + 30]
        if len(header) == 30 and header[:4] == b"PK\x03\x04":
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            offset = start + 30 + name_length + extra_length
            if offset + record.file_size <= len(self.map):
                return offset, record.file_size
        raise _Refused("a record does not lie where its table of contents says")

    def read(self, name: str) -> bytes:
        offset, size = self._spans[name]
        return self.map[offset : offset + size]

    def tensor(self, stored: _Stored) -> torch.Tensor:
        """A view of a record, without reading it."""
        shape, stride, start, dtype = stored.shape, stored.stride, stored.start, stored.dtype
        offset, size = self._spans.get(f"data/{stored.key}", (0, -1))
        whole = all(type(n) is int and n >= 0 for n in (start, *shape, *stride)) and len(shape) == len(stride)
        count = math.prod(shape) if whole else 0
        last = start + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if whole and count else start
        # A broadcast of one stored number to a terabyte would be a bomb: weights never repeat.
        if not whole or size < 0 or (count and max(last + 1, count) * dtype.itemsize > size) or len(shape) > 64:
            raise _Refused("it describes a tensor that its record cannot hold")
        if not count:
            return torch.empty(shape, dtype=dtype)
        begin, length = offset + start * dtype.itemsize, last + 1 - start
        return torch.frombuffer(self.map, dtype=dtype, count=length, offset=begin).as_strided(shape, stride)


def _sound(path: Path, offset: int, size: int, checksum: int) -> bool:
    """Whether the bytes of a record have their checksum; 0 is what torch writes where checksums are switched off.

    The file is read and not its map, whose pages would count as this program's memory.
    """
    found = 0
    with open(path, "rb") as handle:
        handle.seek(offset)
        for start in range(0, size, _CHUNK) if checksum else ():
            found = zlib.crc32(handle.read(min(_CHUNK, size - start)), found)
    return found == checksum


class _Stored(NamedTuple):
    """A tensor as a pickle describes it; not yet checked."""

    key: str
    dtype: torch.dtype
    start: Any
    shape: tuple[Any, ...]
    stride: tuple[Any, ...]


class Foreign:
    """Stands for an object, class or function that is not loaded; what a pickle does to it is remembered, not done.

    Attributes:
        name: module and name of what it stands for.
        arguments: what it was called with; None where it was not called.
        content: what was set, appended or put into it, in order.
    """

    def __init__(self, name: str, arguments: tuple[Any, ...] | None = None) -> None:
        self.name, self.arguments = name, arguments
        self.content: list[Any] = []

    def append(self, item: Any) -> None:
        """Keep what a pickle appends to the object that this stands for."""
        self.content.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        """Keep what a pickle extends the object with."""
        self.content.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.content.append((key, value))

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _device(*parts: Any) -> str:
    if not all(type(part) in (str, int) for part in parts):
        raise _Refused("a device is no name")
    return ":".join(map(str, parts))


def _tensor(storage: Any, start: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    """Torch's ``_rebuild_tensor``, ``_v2`` (with gradient, hooks[, metadata]) and ``_v3`` (... dtype[, metadata])."""
    key, dtype = storage
    if len(rest) > 2 and isinstance(rest[2], torch.dtype):
        dtype = rest[2]
    if any(isinstance(part, dict) and part for part in rest[2:]):
        return Foreign("a tensor with a conjugate or negative bit")
    return _Stored(key, dtype, start, tuple(shape), tuple(stride))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    """How old pickle protocols write bytes."""
    return text.encode("latin1")


#: The functions that a checkpoint of weights and plain values asks for, as far as they are needed.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *factory: OrderedDict(),
    "builtins.set": lambda items=(): list(items),
    "builtins.frozenset": lambda items=(): list(items),
    "torch.Size": lambda items=(): tuple(items),
    "torch.device": _device,
    "_codecs.encode": _bytes,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Python's own unpickler, with every step that calls, imports or changes an object replaced.

    The unpickler in Python and not the one in C, because its steps can be replaced, and its memo is a dictionary, which
    a pickle cannot make huge. A pickle of a few hundred bytes can name one value a million times: whatever copies,
    hashes or joins a value is charged for its length.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.foreign: set[str] = set()
        self._left = _NODE_LIMIT

    def _charge(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _Refused("reading it would copy the same values without end")

    def find_class(self, module: str, name: str) -> Any:
        self._charge(len(module) + len(name))
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"  # protocol 2 has the old name
        if full in ("collections.OrderedDict", "collections.Counter"):
            return self._mapping
        if full in _FUNCTIONS:
            return _FUNCTIONS[full]
        if module in ("torch", "torch.storage") and name in _LEGACY_DTYPES:
            return _LEGACY_DTYPES[name]
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        self.foreign.add(full)
        return Foreign(full)

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype | Foreign]:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, (torch.dtype, Foreign)) or not isinstance(key, str):
            raise _Refused("it refers to something other than a record of numbers")
        return key, dtype

    def _mapping(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        items = pairs.items() if isinstance(pairs, dict) else pairs
        return OrderedDict((self._key(key), value) for key, value in items)

    def _key(self, key: Any) -> Any:
        """A dictionary's key, refused where its hash takes for ever; what can be forged to one hash is charged for."""
        if isinstance(key, tuple):
            self._charge(_KEY_COST + len(key))
            if any(isinstance(part, (tuple, list)) for part in key):
                raise _Refused("a key of a dictionary is a tuple of tuples")
        for part in key if isinstance(key, tuple) else (key,):
            if type(part) is int and part.bit_length() > 60:
                self._charge(_KEY_COST + part.bit_length())
        return key

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Foreign) and isinstance(arguments, tuple):
            self.append(Foreign(function.name, arguments))
        elif isinstance(function, (types.FunctionType, types.MethodType)):  # ours: there is no other on the stack
            self._charge(sum(len(part) for part in arguments if isinstance(part, (str, bytes, list, tuple, dict))))
            self.append(function(*arguments))
        else:
            raise _Refused("it calls what is no function")

    def _call_with_options(self) -> None:
        self.stack.pop()
        self._call()

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Foreign):
            target.append(state)
        elif type(target) is not OrderedDict:  # a state dict's has _metadata, which nothing here needs
            raise _Refused("it sets the state of something that has none")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _set_items(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (dict, Foreign)):
            raise _Refused("it puts an entry into something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._key(key)] = value

    def _make_dictionary(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    _steps = _PythonUnpickler.dispatch
    # Left out, so that they end the reading: old ways to call, extension codes, buffers reserved before they are read.
    dispatch = {code: step for code, step in _steps.items() if code not in b"io\x82\x83\x84P\x96\x97\x98"} | {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.NEWOBJ_EX[0]: _call_with_options,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dictionary,
        # Sets become lists: putting a value into a set hashes it.
        pickle.EMPTY_SET[0]: _steps[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: _steps[pickle.APPENDS[0]],
        pickle.FROZENSET[0]: _steps[pickle.LIST[0]],
    }


class _Finish:
    """Puts tensors in the place of their descriptions, and refuses trees that would exhaust whoever walks them."""

    def __init__(self, archive: _Archive | None = None) -> None:
        self._archive = archive
        self._bytes = 0
        self._known: dict[int, tuple[Any, Any, int] | None] = {}  # id -> result, original (kept alive), size

    def value(self, value: Any) -> Any:
        """The finished tree."""
        return self._finish(value, 0)[0]

    def _finish(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, _Stored):
            assert self._archive is not None
            tensor = self._archive.tensor(value)
            self._bytes += tensor.nbytes
            if self._bytes > _REPETITION_LIMIT * len(self._archive.map):
                raise _Refused("its tensors together are many times larger than the file")
            return tensor, 1
        if isinstance(value, str) and id(value) not in self._known:
            value.encode()  # a lone surrogate is no text, and would fail wherever it is printed
            self._known[id(value)] = value, value, 1
        if isinstance(value, int) and value.bit_length() > _LONGEST:
            raise _Refused(f"a whole number has more than {_LONGEST} bits")
        if not isinstance(value, (dict, list, tuple)):
            return value, 1
        if id(value) in self._known:
            known = self._known[id(value)]
            if known is None:
                raise _Refused("a container holds itself")
            return known[0], known[2]
        if depth > _DEPTH_LIMIT:
            raise _Refused(f"it nests deeper than {_DEPTH_LIMIT} levels")
        self._known[id(value)] = None
        size, result = 1, value
        if isinstance(value, dict):
            for key in value:
                if isinstance(key, str):
                    if len(key) > _LONGEST:
                        raise _Refused(f"a name has more than {_LONGEST:,} characters")
                    self._finish(key, depth)
                value[key], part = self._finish(value[key], depth + 1)
                size += part
        else:
            parts = [self._finish(entry, depth + 1) for entry in value]
            size += sum(part for _, part in parts)
            result = type(value)(entry for entry, _ in parts)
        if size > _NODE_LIMIT:
            raise _Refused(f"it holds more than {_NODE_LIMIT:,} values")
        self._known[id(value)] = result, value, size
        return result, size


# --- safetensors ------------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> CheckpointFile:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as handle:
        metadata = handle.metadata() or {}
        state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    entries: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            entries[key] = json.loads(text)
        except json.JSONDecodeError:  # metadata of other programs are plain strings
            entries[key] = text
        except RecursionError:
            raise _Refused(f"its metadata nest deeper than {_DEPTH_LIMIT} levels") from None
    return CheckpointFile(path, _Finish().value({**entries, "state_dict": state}), [])
