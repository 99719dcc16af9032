"""Checkpoint files that are damaged, ill-typed or made to do harm, written byte by byte where torch would not."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_factory import toy
from safetensors.torch import save_file

MARK = "cryosentinel_was_run"
_SHELL = f"touch {MARK}"
_HARM = f"setattr(__import__('builtins'), '{MARK}', True)"


class Reduce:
    """What a pickle makes by calling a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


class _Storage:
    """Stands for a storage, which torch writes as a persistent id."""


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, _Storage) else None


def torch_zip(path: Path, structure: bytes, data: bytes = bytes(16), compression: int = 0, **more: bytes) -> Path:
    """Write a file in torch's zip format with one storage."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", structure)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", data)
        for name, content in more.items():
            archive.writestr(f"archive/{name.replace('_', '.')}", content)
    return path


def tensor_pickle(shape: tuple, stride: tuple, start: Any = 0, key: str = "0") -> bytes:
    """The pickle of {"state_dict": {"w": a tensor of these sizes}}."""
    stream = io.BytesIO()
    call = Reduce(torch._utils._rebuild_tensor_v2, _Storage(), start, shape, stride, False, OrderedDict())
    _Pickler(stream, 2).dump({"state_dict": {"w": call}})
    return stream.getvalue().replace(b"X\x01\x00\x00\x000", _text(key)) if key != "0" else stream.getvalue()


def _text(value: str) -> bytes:
    data = value.encode(errors="surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def spelled(code: bytes, protocol: int = 2) -> bytes:
    """The pickle of {"state_dict": {}, "x": what the code leaves on the stack}."""
    return b"\x80" + bytes([protocol]) + b"}" + _text("state_dict") + b"}s" + _text("x") + code + b"s."


def live() -> dict[str, bytes]:
    """Pickles that run a command, or torch's code, in Python's own unpickler."""
    hidden = {"state_dict": {}, "x": {"deep": [Reduce(os.system, _SHELL), (Reduce(eval, _HARM),)]}}
    return {
        "os.system": pickle.dumps({"state_dict": {}, "x": Reduce(os.system, _SHELL)}, 2),
        "eval": pickle.dumps({"state_dict": {}, "x": Reduce(eval, _HARM)}, 2),
        "exec": pickle.dumps({"state_dict": {}, "x": Reduce(exec, _HARM)}, 4),
        "a function of torch": pickle.dumps({"state_dict": {}, "x": Reduce(torch.save, [], MARK)}, 2),
        "nested": pickle.dumps(hidden, 2),
        "as a key": pickle.dumps({"state_dict": {}, Reduce(eval, _HARM): 1}, 2),
        "by getattr": spelled(
            b"cbuiltins\ngetattr\ncos\nsystem\n" + _text("__call__") + b"\x86R" + _text(_SHELL) + b"\x85R"
        ),
        "by INST": spelled(b"(" + _text(_SHELL) + b"ios\nsystem\n"),
        "by OBJ": spelled(b"(cos\nsystem\n" + _text(_SHELL) + b"o"),
        "by STACK_GLOBAL": spelled(_text("os") + _text("system") + b"\x93" + _text(_SHELL) + b"\x85R", 4),
        "by NEWOBJ_EX": spelled(b"cbuiltins\neval\n" + _text(_HARM) + b"\x85R", 4),
    }


def was_run(folder: Path) -> bool:
    """Whether one of the live pickles did what it was made for."""
    return (folder / MARK).exists() or bool(getattr(builtins, MARK, False))


def _nested(levels: int) -> bytes:
    """A tuple of one tuple twice, and so on: its hash takes 2^levels steps."""
    return b")" + b"2\x86" * levels


def _shared_by_hand(levels: int) -> bytes:
    """A list of one list twice, and so on, the last in the memo: a few bytes that are 2^levels values."""
    code = b"]q\x00K\x01a"
    for level in range(levels):
        code += b"0]q" + bytes([level + 1]) + b"(h" + bytes([level]) + b"h" + bytes([level]) + b"e"
    return code


def _again(first: bytes, then: bytes, times: int) -> bytes:
    """What the first code leaves is kept as number 0, and the other code is run many times, within one list."""
    return first + b"q\x000(" + then * times + b"l"


def _long(value: bytes, count: int = 1_000_000) -> bytes:
    return b"(" + value * count


def _forged_keys(count: int) -> bytes:
    """Numbers that all hash to 0."""
    return b"}(" + b"".join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] + b"N" for k in range(9, count)) + b"u"


def _saved(**entries: Any) -> Callable[[Path], object]:
    """A file as torch writes it, the toy's weights with other entries."""

    def write(path: Path) -> None:
        torch.save({"state_dict": {f"model.{k}": v for k, v in toy().state_dict().items()}, **entries}, path)

    return write


def _weight(make: Callable[[torch.Tensor], Any]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        state = {f"model.{k}": v for k, v in toy().state_dict().items()}
        state["model.net.last.weight"] = make(state["model.net.last.weight"])
        torch.save({"state_dict": state}, path)

    return write


def _spelled(structure: bytes, **options: Any) -> Callable[[Path], object]:
    return lambda path: torch_zip(path, structure, **options)


def _described(**segmenter: Any) -> Callable[[Path], object]:
    return _saved(hyper_parameters={"segmenter": segmenter})


def _metadata(text: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        save_file({"model.net.last.weight": torch.ones(2)}, path.with_suffix(".safetensors"), {"x": text})

    return write


def _deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def _shared(levels: int) -> list:
    value: list = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def _loop() -> dict:
    value: dict = {}
    value["itself"] = value
    return value


def _damaged(path: Path) -> None:
    torch.save({"state_dict": {"model.net.last.weight": torch.ones(1000)}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x00\x00\x80\x3f" * 100) + 40] ^= 1
    path.write_bytes(data)


def _deep_by_hand(levels: int) -> bytes:
    return spelled(b"]" * levels + b"a" * (levels - 1))


def _script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


class _Subclass(torch.Tensor):
    pass


_SET_ = b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + (
    _text("cpu") + b"K\x04tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)  # fmt: skip

_THIRTY_KB = torch.ones(7500)

#: Refused by every door: name -> what writes the file.
REFUSED: dict[str, Callable[[Path], object]] = {
    "BUILD on a tensor": _spelled(spelled(_SET_ + b"(N" + b"K\x00" + b"\x8a\x06" + bytes(5) + b"\x04\x85K\x01\x85tb")),
    "BUILD on a function": _spelled(spelled(b"ctorch._utils\n_rebuild_tensor_v2\nN}\x86b)R")),
    "APPEND to a tensor": _spelled(spelled(_SET_ + b"K\x01a")),
    "repeated element": _spelled(tensor_pickle((1 << 40,), (0,))),
    "repeated tensors": lambda path: torch.save({"state_dict": dict.fromkeys(map(str, range(5000)), _THIRTY_KB)}, path),
    "device of shared lists": _spelled(spelled(_shared_by_hand(34) + b"0ctorch\ndevice\nh\x22\x85R")),
    "record of shared lists": _spelled(
        spelled(
            _shared_by_hand(34) + b"0(" + _text("storage") + b"ctorch\nFloatStorage\nh\x22" + _text("cpu") + b"K\x01tQ"
        )
    ),
    "text that occurs everywhere": _spelled(spelled(_again(_text("a" * (4 << 20)), b"h\x00", 1_000_000))),
    "name that occurs everywhere": _spelled(spelled(_again(_text("a" * (4 << 20)), b"h\x00h\x00\x930", 500_000), 4)),
    "sets of one list": _spelled(
        spelled(_again(_long(b"N") + b"l\x85", b"cbuiltins\nset\nh\x00R0", 20_000))
    ),
    "dictionaries of one list": _spelled(
        spelled(_again(_long(b"NN\x86", 300_000) + b"l\x85", b"ccollections\nOrderedDict\nh\x00R", 20_000))
    ),
    "long tuple as every key": _spelled(spelled(_long(b"N") + b"tq\x000}(" + b"h\x00N" * 700_000 + b"u")),
    "numbers forged to one hash": _spelled(spelled(_forged_keys(200_000))),
    "deflated pickle": _spelled(b"N" * 50_000_000, compression=zipfile.ZIP_DEFLATED),
    "deflated weights": _spelled(tensor_pickle((4,), (1,)), data=bytes(50_000_000), compression=zipfile.ZIP_DEFLATED),
    "long pickle": _spelled(spelled(b"N0" * 5_000_000 + b"N")),
    "tuples as a key": _spelled(spelled(b"}" + _nested(40) + b"K\x01s")),
    "tuples as a key of an OrderedDict": _spelled(
        spelled(b"ccollections\nOrderedDict\n](" + b"]" + _nested(40) + b"aK\x01a" + b"e\x85R")
    ),
    "tuples in a set": _spelled(spelled(b"cbuiltins\nset\n](" + _nested(40) + b"e\x85R")),
    "tuples in a set of protocol 4": _spelled(spelled(b"\x8f(" + _nested(40) + b"\x90", 4)),
    "tuples in a frozenset of protocol 4": _spelled(spelled(b"(" + _nested(40) + b"\x91", 4)),
    "integer keys": lambda path: torch.save({"state_dict": {0: torch.ones(2), 1: torch.ones(2)}}, path),
    "bytes keys": lambda path: torch.save({"state_dict": {b"a": torch.ones(2)}}, path),
    "surrogate in a key": lambda path: torch.save({"state_dict": {"a\ud800": torch.ones(2)}}, path),
    "surrogate in an entry": _saved(hyper_parameters={"name": "\udfff"}),
    "names that become one": lambda path: torch.save(
        {"state_dict": {"model.net.a": torch.ones(2), "model._orig_mod.net.a": torch.zeros(2)}}, path
    ),
    "model that is a number": _saved(hyper_parameters={"segmenter": 5}),
    "backbone that is a list": _described(backbone=["terramind_v1_tiny"]),
    "backbone of another library": _described(backbone="hf-hub:owner/model"),
    "wide decoder": _described(decoder_channels=10**9),
    "long head": _described(head_channels=[64] * 1000),
    "refiner that is a word": _described(refiner="yes"),
    "nested modalities": _described(modalities=[["S2L2A"]]),
    "rate that is a list": _described(drop_path=[0.1]),
    "encoder on a hub": _described(architecture="smp_unet", encoder_name="tu-hf-hub:owner/model"),
    "encoder of timm": _described(architecture="smp_unet", encoder_name="tu-resnet18"),
    "unknown key": _described(colour="red"),
    "statistics that are a list": _saved(hyper_parameters={"statistics": [1, 2]}),
    "statistics that are text": _saved(hyper_parameters={"statistics": {"DEM": {"means": "a", "stds": "b"}}}),
    "statistics beyond floats": _saved(hyper_parameters={"statistics": {"DEM": {"means": [10**400], "stds": [1]}}}),
    "endless number": _saved(hyper_parameters={"seed": 1 << 60_000}),
    "brackets in metadata": _metadata("[" * 100_000),
    "nested metadata": _metadata("[" * 500 + "]" * 500),
    "digits in metadata": _metadata("9" * 10_000),
    "surrogate in metadata": _metadata(json.dumps({"name": "\ud800"})),
    "integer weights": _weight(lambda w: w.long()),
    "bool weights": _weight(lambda w: w > 0),
    "complex weights": _weight(lambda w: w.to(torch.complex64)),
    "meta weights": _weight(lambda w: w.to("meta")),
    "quantised weights": _weight(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
    "sparse weights": _weight(lambda w: w.to_sparse()),
    "NumPy weights": _weight(lambda w: w.numpy()),
    "weights of a subclass": _weight(lambda w: w.as_subclass(_Subclass)),
    "numbers as weights": _weight(lambda w: 3.0),
    "raw weights that are a number": _saved(current_model_state=5),
    "raw weights of another model": _saved(current_model_state={"model.net.w": torch.ones(2)}),
    "deep nesting": _spelled(_deep_by_hand(100_000)),
    "deep weights": _spelled(b"\x80\x02}" + _text("state_dict") + b"]" * 5000 + b"a" * 4999 + b"s."),
    "sharing without end": _saved(hyper_parameters={"laughs": _shared(60)}),
    "container of itself": _saved(hyper_parameters=_loop()),
    "damaged weights": _damaged,
    "TorchScript": _script,
    "format of old": lambda path: torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False),
    "no dictionary": lambda path: torch.save([1, 2], path),
    "no weights": lambda path: torch.save({"a": 1}, path),
    "empty weights": lambda path: torch.save({"state_dict": {}}, path),
    "weights in a list": lambda path: torch.save({"state_dict": [torch.ones(2)]}, path),
    "memo beyond the file": _spelled(spelled(b"}r\xff\xff\xff\x7f")),
    "bytes beyond the file": _spelled(spelled(b"\x96" + (1 << 62).to_bytes(8, "little") + b"ab", 5)),
    "no end": _spelled(spelled(b"}")[:-1]),
    "empty pickle": _spelled(b""),
    "empty file": lambda path: path.write_bytes(b""),
    "big-endian": _spelled(tensor_pickle((4,), (1,)), byteorder=b"big"),
}  # fmt: skip
