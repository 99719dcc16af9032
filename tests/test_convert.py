from __future__ import annotations

import builtins
import contextlib
import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
import torch
from hostile_checkpoints import MARK, REFUSED, Reduce, live, spelled, tensor_pickle, torch_zip, was_run
from model_factory import SLIM, slim

from cryosentinel.errors import CheckpointError
from cryosentinel.models.archive import Foreign, read_checkpoint
from cryosentinel.models.checkpoint import load_checkpoint, load_segmenter
from cryosentinel.models.convert import convert
from cryosentinel.sensors import PUBLISHED_STATISTICS


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


@pytest.mark.parametrize("name", sorted(live()))
def test_malicious_pickles_never_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(builtins, MARK, raising=False)
    path = torch_zip(tmp_path / "bad.ckpt", live()[name])
    for read in (load_checkpoint, lambda path: convert(path, tmp_path / "out.safetensors")):
        with pytest.raises(CheckpointError):  # read as data, there are no weights
            read(path)
    assert not was_run(tmp_path) and [p.name for p in tmp_path.iterdir()] == ["bad.ckpt"]


@pytest.mark.parametrize("name", sorted(live()))
def test_the_malicious_pickles_are_live(tmp_path, monkeypatch, name):
    """What the reader withstands is real: Python's own unpickler runs it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, MARK, False, raising=False)
    with contextlib.suppress(Exception):
        pickle.loads(live()[name])
    assert was_run(tmp_path)


def test_placeholders_remember_and_do_nothing(tmp_path):
    code = b"cfoo.bar\nBaz\nK\x01\x85R}X\x01\x00\x00\x00aK\x02sb"
    file = read_checkpoint(torch_zip(tmp_path / "a.ckpt", spelled(code)))
    made = file.entries["x"]
    assert file.foreign == ["foo.bar.Baz"] and isinstance(made, Foreign)
    assert made.arguments == (1,) and made.content == [{"a": 2}] and "foo" not in sys.modules


def test_weights_beside_a_harmful_object_convert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(builtins, MARK, raising=False)
    harm = Reduce(eval, f"setattr(__import__('builtins'), '{MARK}', True)")
    torch.save({"state_dict": {"w": torch.ones(3)}, "hyper_parameters": {"x": harm}}, "a.ckpt")
    told = load_checkpoint(convert("a.ckpt", "a.safetensors"))
    assert torch.equal(told["state_dict"]["model.w"], torch.ones(3)) and not was_run(tmp_path)
    assert told["converted"]["foreign"] == ["builtins.eval"]
    assert told["hyper_parameters"]["x"]["class"] == "builtins.eval"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.bfloat16])
def test_weights_of_every_floating_type_are_taken(tmp_path, capsys, dtype):
    weights = torch.arange(-4.0, 4.0).to(dtype)
    steps = torch.arange(3).to(torch.uint16)
    torch.save({"state_dict": {"a.weight": weights, "steps": steps}}, tmp_path / "a.ckpt")
    state = load_checkpoint(convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors"))["state_dict"]
    assert state["model.a.weight"].dtype is dtype and torch.equal(state["model.a.weight"].float(), weights.float())
    assert state["model.steps"].dtype is torch.uint16 and state["model.steps"].tolist() == [0, 1, 2]
    assert "2 tensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sparse weights", "sparse"), ("quantised weights", "qtensor"), ("meta weights", "meta"),
     ("NumPy weights", "numpy"), ("weights of a subclass", "_rebuild_from_type"), ("integer weights", "int64"),
     ("numbers as weights", "float"), ("complex weights", "complex64")],
)  # fmt: skip
def test_weights_that_cannot_be_taken_are_named(tmp_path, name, kind):
    REFUSED[name](tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=rf"net\.last\.weight as .*{kind}"):
        convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("shape", "stride", "start", "key"),
    [((5,), (1,), 0, "0"), ((4,), (1,), 1, "0"), ((2, 2), (1 << 61, 1), 0, "0"), ((1 << 62, 4), (0, 1), 0, "0"),
     ((-1,), (1,), 0, "0"), ((4,), (-1,), 3, "0"), ((4,), (1,), -4, "0"), ((4,), (1,), 0, "7"),
     ((4,), (1,), 0, "../version"), ((2,), (1, 1), 0, "0"), ((2.0,), (1,), 0, "0")],
)  # fmt: skip
def test_tensors_that_reach_outside_their_record_are_refused(tmp_path, shape, stride, start, key):
    path = torch_zip(tmp_path / "a.ckpt", tensor_pickle(shape, stride, start, key))
    with pytest.raises(CheckpointError, match="record cannot hold"):
        read_checkpoint(path)


def test_a_sound_handmade_file_reads(tmp_path):
    numbers = torch.arange(4.0)
    path = torch_zip(tmp_path / "a.ckpt", tensor_pickle((2, 2), (2, 1)), numbers.numpy().tobytes())
    assert torch.equal(read_checkpoint(path).entries["state_dict"]["w"], numbers.view(2, 2))


def test_a_table_of_contents_that_claims_a_terabyte_is_refused(tmp_path):
    data = bytearray(torch_zip(tmp_path / "b.ckpt", tensor_pickle((4,), (1,)), bytes(64)).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = b"\xff\xff\xff\x7f" * 2
    (tmp_path / "b.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "b.ckpt", tmp_path / "b.safetensors")


def test_foreign_objects_do_not_explode_in_metadata(tmp_path):
    """Of foreign objects, sharing and circles are written out as far as is sensible."""

    value: object = SimpleNamespace(leaf=1)
    for _ in range(60):
        value = SimpleNamespace(a=value, b=value)
    loop = SimpleNamespace(big=1 << 70)
    loop.itself = loop
    text = "a" * (1 << 16)
    hyper = {"loop": loop, "paths": [PurePosixPath(*[text] * 500)], "texts": [text] * 2000, "laughs": value}
    torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": hyper}, tmp_path / "a.ckpt")
    out = convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    assert out.stat().st_size < 20_000_000
    told = load_checkpoint(out)["hyper_parameters"]["loop"]
    assert told["content"][0]["big"] == "..." and told["content"][0]["itself"]["class"] == "types.SimpleNamespace"
