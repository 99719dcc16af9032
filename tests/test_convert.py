from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import pickle
import sys
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from model_factory import SLIM, slim, write_toy

from cryosentinel.errors import CheckpointError
from cryosentinel.models.checkpoint import convert, load_checkpoint, load_segmenter
from cryosentinel.models.unpickle import Foreign, read_archive
from cryosentinel.sensors import PUBLISHED_STATISTICS

MARK = "cryosentinel_was_run"


class TrainConfig:  # stands for a class that only the published repository has
    def __init__(self) -> None:
        self.learning_rate, self.folder = 6e-5, Path("/data/chips")


@pytest.fixture
def published(tmp_path) -> Path:
    """A stand-in of the published layout: compiled prefixes, EMA in callback state, foreign hyperparameters."""
    raw = OrderedDict((f"model._orig_mod.{k.removeprefix('net.')}", v) for k, v in slim().state_dict().items())
    shadow = {k: v + 0.5 if v.is_floating_point() else v for k, v in raw.items()}
    checkpoint = {
        "epoch": 29,
        "global_step": 16050,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": raw,
        "hyper_parameters": Namespace(cfg=TrainConfig(), backbone="terramind_v1_tiny", shape=(1, float("nan"))),
        "callbacks": {"EMA": {"ema": shadow, "decay": 0.999}, "Best": TrainConfig()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "kind": torch.optim.AdamW, "t": torch.float32}],
    }
    torch.save(checkpoint, tmp_path / "published.ckpt")
    return tmp_path / "published.ckpt"


def test_published_layout_is_refused_by_loading_and_read_after_conversion(published, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"more than weights .*`cryosentinel convert .*published\.safetensors`"):
        load_segmenter(published, SLIM, PUBLISHED_STATISTICS)
    monkeypatch.setattr(TrainConfig, "__new__", lambda *a: pytest.fail("a foreign class was made"), raising=False)
    for weights, shift in (("raw", 0.0), ("ema", 0.5), ("auto", 0.5)):
        out = convert(published, tmp_path / "out.safetensors", weights)
        model = load_segmenter(out, SLIM, PUBLISHED_STATISTICS)
        for name, value in slim().state_dict().items():
            moved = value + shift if value.is_floating_point() else value
            assert torch.equal(model.state_dict()[name], moved), name
    told = load_checkpoint(out)
    assert told["epoch"] == 29 and told["global_step"] == 16050
    assert told["hyper_parameters"]["backbone"] == "terramind_v1_tiny"
    assert told["hyper_parameters"]["shape"] == [1, "nan"]
    foreign = told["hyper_parameters"]["cfg"]
    assert foreign["class"].endswith("TrainConfig")
    assert foreign["content"] == [{"learning_rate": 6e-5, "folder": "/data/chips"}]
    assert told["converted"]["source"] == "published.ckpt" and "argparse.Namespace" in told["converted"]["foreign"]


def test_tied_weights_and_odd_tensors_convert(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    state = {
        "a": shared, "b": shared, "t": shared.t(), "half": torch.ones(3).bfloat16(), "n": torch.tensor(5),
        "none": torch.zeros(0, 2), "parameter": torch.nn.Parameter(torch.ones(2)), "view": shared[1:, 2:],
    }  # fmt: skip
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    result = load_checkpoint(convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors"))["state_dict"]
    assert result.keys() == {f"model.{k}" for k in state}
    for name, value in state.items():
        assert torch.equal(result[f"model.{name}"], value.detach()) and result[f"model.{name}"].dtype == value.dtype
    with pytest.raises(CheckpointError, match=r"is a \.safetensors file"):
        convert(tmp_path / "a.ckpt", tmp_path / "b.ckpt")


def _torch_zip(path: Path, structure: bytes, storages: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", structure)
        archive.writestr("archive/version", "3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def _harm() -> str:
    return f"setattr(__import__('builtins'), '{MARK}', True)"


class _Reduce:
    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


SHELL = f"touch {MARK}"


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _with(code: bytes, protocol: int = 2) -> bytes:
    """The pickle of {"state_dict": {}, "x": what the code leaves on the stack}."""
    return b"\x80" + bytes([protocol]) + b"}" + _text("state_dict") + b"}s" + _text("x") + code + b"s."


def _live() -> dict[str, bytes]:
    """Pickles that run a command in Python's own unpickler."""
    hidden = {"state_dict": {}, "x": {"deep": [_Reduce(os.system, SHELL), (_Reduce(eval, _harm()),)]}}
    return {
        "os.system": pickle.dumps({"state_dict": {}, "x": _Reduce(os.system, SHELL)}, 2),
        "eval": pickle.dumps({"state_dict": {}, "x": _Reduce(eval, _harm())}, 2),
        "exec": pickle.dumps({"state_dict": {}, "x": _Reduce(exec, _harm())}, 4),
        "nested": pickle.dumps(hidden, 2),
        "as a key": pickle.dumps({"state_dict": {}, _Reduce(eval, _harm()): 1}, 2),
        "by getattr": _with(
            b"cbuiltins\ngetattr\ncos\nsystem\n" + _text("__call__") + b"\x86R" + _text(SHELL) + b"\x85R"
        ),
        "by INST": _with(b"(" + _text(SHELL) + b"ios\nsystem\n"),
        "by OBJ": _with(b"(cos\nsystem\n" + _text(SHELL) + b"o"),
        "by STACK_GLOBAL": _with(_text("os") + _text("system") + b"\x93" + _text(SHELL) + b"\x85R", 4),
    }


def _crafted() -> dict[str, bytes]:
    """Pickles that aim at the restricted unpickler itself: to change what it calls, or to exhaust it."""
    system = b"cos\nsystem\n"
    return {
        "BUILD on a function": _with(
            b"ctorch._utils\n_rebuild_tensor_v2\nN}" + _text("_function") + system + b"s\x86b" + _text(SHELL) + b"\x85R"
        ),
        "BUILD on a class": _with(b"cfoo\nBar\nN}" + _text("__setstate__") + system + b"s\x86b" + _text(SHELL) + b"b"),
        "memo bomb": _with(b"}r\xff\xff\xff\x7f"),
        "bytes bomb": _with(b"\x96" + (1 << 62).to_bytes(8, "little") + b"ab", 5),
        "no end": _with(b"}")[:-1],
        "empty": b"",
    }


@pytest.mark.parametrize("name", sorted({**_live(), **_crafted()}))
def test_malicious_pickles_never_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(builtins, MARK, raising=False)
    path = _torch_zip(tmp_path / "bad.ckpt", {**_live(), **_crafted()}[name])
    if name != "memo bomb":  # torch's reader keeps its memo in a dictionary: the file is harmless to it
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    with pytest.raises(CheckpointError):  # read as data, there are no weights; or the pickle does not add up
        convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / MARK).exists() and not hasattr(builtins, MARK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ckpt"]


@pytest.mark.parametrize("name", sorted(_live()))
def test_the_malicious_pickles_are_live(tmp_path, monkeypatch, name):
    """What the reader withstands is real: Python's own unpickler runs it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, MARK, False, raising=False)
    with contextlib.suppress(Exception):
        pickle.loads(_live()[name])
    assert (tmp_path / MARK).exists() or getattr(builtins, MARK)


def test_placeholders_remember_and_do_nothing(tmp_path):
    state = (
        b"\x80\x02}X\x0a\x00\x00\x00state_dict}sX\x01\x00\x00\x00xcfoo.bar\nBaz\nK\x01\x85R}X\x01\x00\x00\x00aK\x02sbs."
    )
    checkpoint, foreign, _ = read_archive(_torch_zip(tmp_path / "a.ckpt", state))
    assert foreign == ["foo.bar.Baz"] and isinstance(checkpoint["x"], Foreign)
    assert checkpoint["x"].arguments == (1,) and checkpoint["x"].content == [{"a": 2}]
    assert "foo" not in sys.modules


def test_weights_beside_a_harmful_object_convert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(builtins, MARK, raising=False)
    torch.save({"state_dict": {"w": torch.ones(3)}, "hyper_parameters": {"x": _Reduce(eval, _harm())}}, "a.ckpt")
    told = load_checkpoint(convert("a.ckpt", "a.safetensors"))
    assert torch.equal(told["state_dict"]["model.w"], torch.ones(3)) and not hasattr(builtins, MARK)
    assert told["converted"]["foreign"] == ["builtins.eval"]
    assert told["hyper_parameters"]["x"]["class"] == "builtins.eval"


def _tensor_pickle(shape: tuple, stride: tuple, start: int = 0, key: str = "0") -> bytes:
    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, key, "cpu", 4) if isinstance(value, Storage) else None

    stream = io.BytesIO()
    call = _Reduce(torch._utils._rebuild_tensor_v2, Storage(), start, shape, stride, False, OrderedDict())
    Pickler(stream, 2).dump({"state_dict": {"w": call}})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "stride", "start", "key"),
    [((1 << 40,), (0,), 0, "0"), ((5,), (1,), 0, "0"), ((4,), (1,), 1, "0"), ((2, 2), (1 << 61, 1), 0, "0"),
     ((-1,), (1,), 0, "0"), ((4,), (-1,), 3, "0"), ((4,), (1,), -4, "0"), ((4,), (1,), 0, "7"),
     ((4,), (1,), 0, "../version"), ((2,), (1, 1), 0, "0"), ((2.0,), (1,), 0, "0")],
)  # fmt: skip
def test_tensors_that_reach_outside_their_record_are_refused(tmp_path, shape, stride, start, key):
    path = _torch_zip(tmp_path / "a.ckpt", _tensor_pickle(shape, stride, start, key), {"0": bytes(16)})
    with pytest.raises(CheckpointError, match=r"do not trust|damaged"):
        read_archive(path)


def test_a_sound_handmade_file_reads(tmp_path):
    numbers = torch.arange(4.0)
    path = _torch_zip(tmp_path / "a.ckpt", _tensor_pickle((2, 2), (2, 1)), {"0": numbers.numpy().tobytes()})
    assert torch.equal(read_archive(path)[0]["state_dict"]["w"], numbers.view(2, 2))


def test_zip_bombs_are_refused_without_unpacking(tmp_path):
    bomb = _torch_zip(tmp_path / "a.ckpt", _tensor_pickle((4,), (1,)), {"0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="compressed or overlapping"):
        convert(bomb, tmp_path / "a.safetensors")
    data = bytearray(_torch_zip(tmp_path / "b.ckpt", _tensor_pickle((4,), (1,)), {"0": bytes(64)}).read_bytes())
    # The table of contents claims a terabyte for the last record.
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = b"\xff\xff\xff\x7f" * 2
    (tmp_path / "b.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "b.ckpt", tmp_path / "b.safetensors")


def test_shared_structures_do_not_explode_in_metadata(tmp_path):
    value: list = [1]
    for _ in range(60):
        value = [value, value]
    loop: dict = {}
    loop["self"] = loop
    hyper = {"laughs": value, "loop": loop, "big": 1 << 60000}
    torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": hyper}, tmp_path / "a.ckpt")
    start = time.process_time()
    out = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    assert time.process_time() - start < 10 and out.stat().st_size < 5_000_000
    assert json.dumps(load_checkpoint(out)["hyper_parameters"]["big"]) == '"..."'


@pytest.mark.parametrize("seed", range(24))
def test_damaged_bytes_end_in_a_sentence_or_in_a_checkpoint(tmp_path, seed):
    data = bytearray(write_toy(tmp_path / "a.ckpt", 0).read_bytes())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(8):
        position = int(torch.randint(len(data), (1,), generator=generator))
        if seed % 2:  # aim at the structure, where damage is felt
            start = data.index(b"data.pkl")
            position = start + int(torch.randint(2500, (1,), generator=generator))
        data[position] = int(torch.randint(256, (1,), generator=generator))
    (tmp_path / "a.ckpt").write_bytes(data)
    for reader in (load_checkpoint, read_archive, lambda p: convert(p, tmp_path / "o.safetensors")):
        try:
            reader(tmp_path / "a.ckpt")
        except CheckpointError as error:
            assert str(error).endswith(".") or "`" in str(error)
