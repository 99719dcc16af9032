"""A pickle read as data: tensors and plain containers come alive, everything else becomes an inert placeholder.

Nothing that the file names is imported, and nothing of it is called: the few callables that a checkpoint of weights
needs are written here, and every other name stands for a :class:`Foreign`, which remembers what it was given.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections import OrderedDict
from typing import Any

import torch

from cryosentinel.errors import CheckpointError
from cryosentinel.models.archive import Archive

_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip


class Foreign:
    """Stands for an object of a class that is not loaded. Every operation a pickle knows is accepted and has no effect
    beyond being remembered.

    Attributes:
        name: module and name of what it stands for.
        arguments: what it was to be called with.
        content: what was to be set, appended or put into it, in order.
    """

    name = "?"

    def __new__(cls, *arguments: Any, **options: Any) -> Foreign:
        self = object.__new__(cls)
        self.arguments = arguments
        self.content = []
        return self

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.content: list[Any]

    def __call__(self, *arguments: Any, **options: Any) -> Foreign:
        return type(self)(*arguments)

    def __setstate__(self, state: Any) -> None:
        self.content.append(state)

    append = add = __setstate__

    def extend(self, items: Any) -> None:
        self.content.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.content.append((key, value))

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Call:
    """A callable that a pickle may use but not change."""

    __slots__ = ("_function",)
    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: Archive) -> None:
        super().__init__(io.BytesIO(archive.structure))
        self._archive = archive
        self.foreign: dict[str, type[Foreign]] = {}
        rebuild = _Call(self._tensor)
        parameter = _Call(lambda data, *rest: data)
        self._known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "collections.defaultdict": _Call(lambda *factory: {}),
            "builtins.set": set,
            "builtins.frozenset": frozenset,
            "torch.Size": tuple,
            "_codecs.encode": _Call(_latin1),
            "torch._utils._rebuild_tensor": rebuild,
            "torch._utils._rebuild_tensor_v2": rebuild,
            "torch._utils._rebuild_parameter": parameter,
            "torch._utils._rebuild_parameter_with_state": parameter,
        }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"  # protocol 2 has the old name
        if full in self._known:
            return self._known[full]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if full not in self.foreign:
            self.foreign[full] = type("Foreign", (Foreign,), {"name": full})
        return self.foreign[full]

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise pickle.UnpicklingError("unknown persistent id")
        return str(pid[2]), pid[1]

    def _tensor(self, storage: Any, start: Any, shape: Any, stride: Any, *rest: Any) -> torch.Tensor:
        key, dtype = storage
        return self._archive.tensor(key, dtype, start, shape, stride)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes that are not text")
    return text.encode("latin1")


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str], Archive]:
    """Read a torch checkpoint without loading a class or calling a function that it names.

    Args:
        path: a file in torch's zip format.

    Returns:
        The checkpoint, its tensors mapped read-only and foreign objects as :class:`Foreign`; the names of the foreign
        classes, sorted; and the archive behind the tensors.

    Raises:
        CheckpointError: the file is missing, damaged, deceptive or not a dictionary.
    """
    archive = Archive(path)
    try:
        _check_opcodes(archive.structure)
        unpickler = _Unpickler(archive)
        value = unpickler.load()
    except CheckpointError:
        raise
    except Exception:
        # Damaged or hostile pickles fail in as many ways as there are opcodes.
        raise CheckpointError(
            f"{path} is not a checkpoint whose structure can be read, or is damaged; fetch or write it again."
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no dictionary, which a checkpoint is; check the path.")
    if "state_dict" not in value and value and all(isinstance(v, torch.Tensor) for v in value.values()):
        value = {"state_dict": value}
    if not isinstance(value.get("state_dict"), dict):
        raise CheckpointError(f"{path} has no 'state_dict': it is not a model's checkpoint.")
    return value, sorted(unpickler.foreign), archive


def _check_opcodes(data: bytes) -> None:
    """Refuse a pickle that reserves memory it does not fill: memo slots beyond its own length."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(data):
            raise pickle.UnpicklingError("a memo slot beyond the pickle's length")
