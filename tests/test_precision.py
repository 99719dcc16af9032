"""One place decides in which number format a network computes, and says why."""

from __future__ import annotations

import pytest
import torch

from cryosentinel import precision
from cryosentinel.errors import ConfigError
from cryosentinel.evaluation.predictors import ModelPredictor
from cryosentinel.precision import choose, device_of, native_bfloat16


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request, monkeypatch):
    """A device with native bfloat16, and one without."""
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: request.param)
    monkeypatch.setattr(precision, "bfloat16_slowdown", lambda device: 37.0)
    return request.param


def test_auto_is_bfloat16_where_the_device_has_it(native):
    chosen = choose("auto", "cpu")
    assert chosen.name == ("bf16-mixed" if native else "32-true")
    assert "this CPU" in chosen.reason and ("no native" in chosen.reason) is not native
    assert str(chosen).startswith(f"Precision: {chosen.name} (auto")


def test_what_is_set_is_obeyed_with_a_warning_where_it_is_slow(native):
    assert choose("32-true", "cpu").reason == "as set"
    chosen = choose("bf16-mixed", "cpu", "as the run began")
    assert chosen.name == "bf16-mixed" and chosen.reason.startswith("as the run began")
    assert ("Warning" in chosen.reason and "37 times" in chosen.reason) is not native


def test_unknown_and_impossible_precisions_are_refused():
    with pytest.raises(ConfigError, match=r"bf17.*auto"):
        choose("bf17", "cpu")
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        choose("16-mixed", "cpu")


def test_torch_is_asked_and_not_a_name(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda answer=answer: answer, raising=False)
        assert native_bfloat16("cpu") is answer
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=answer: answer)
        assert native_bfloat16("cuda") is answer
    assert native_bfloat16("mps") is False, "torch does not say that it has"


def test_the_slowdown_is_measured():
    assert precision.bfloat16_slowdown("cpu") > 0


def test_the_accelerator_names_the_device(monkeypatch):
    assert device_of("cpu") == "cpu"
    for found, device in ((torch.device("cuda"), "cuda"), (None, "cpu")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available, found=found: found)
        assert device_of("auto") == device_of("gpu") == device


def test_autocast_follows_and_evaluation_follows(native):
    seen = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, batch):
            seen.append(self.layer(batch["S2L2A"]).dtype)
            return batch["S2L2A"]

    for wanted, dtype in (("32-true", torch.float32), ("auto", torch.bfloat16 if native else torch.float32)):
        predict = ModelPredictor(Net(), 1, wanted)
        assert predict({"S2L2A": torch.zeros(1, 4, 4)}).dtype.name == "float32"
        assert seen.pop() == dtype and predict.settings["precision"] == predict.precision.name
