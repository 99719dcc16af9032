from __future__ import annotations

import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_factory import SLIM, batch, slim, toy, write_toy

from cryosentinel.errors import CheckpointError
from cryosentinel.models.checkpoint import (
    load_checkpoint,
    load_segmenter,
    resolve_checkpoint,
    sanitize_resume,
    save_checkpoint,
)
from cryosentinel.models.segmenter import build_segmenter
from cryosentinel.models.statedict import canonical_keys, segmenter_state
from cryosentinel.models.unpickle import read_archive
from cryosentinel.sensors import PUBLISHED_STATISTICS

# --- plain loading and saving -----------------------------------------------------------------------------------------


def test_saved_segmenter_comes_back_with_the_same_logits(tmp_path):
    save_checkpoint(tmp_path / "a.ckpt", slim(), epoch=7, hyper_parameters={"seed": 42})
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["epoch"] == 7
    model = load_segmenter(tmp_path / "a.ckpt")
    assert not model.training and model.config == SLIM and model.statistics.as_dict() == PUBLISHED_STATISTICS.as_dict()
    assert load_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]["seed"] == 42
    assert all(p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        assert torch.equal(model(batch(1)), slim()(batch(1)))


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path):
    save_checkpoint(tmp_path / "a.ckpt", slim())
    model = load_segmenter(tmp_path / "a.ckpt")
    os.truncate(tmp_path / "a.ckpt", 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), slim().parameters(), strict=True))


def test_saving_refuses_objects_and_leaves_the_old_file(tmp_path):
    path = write_toy(tmp_path / "a.ckpt", 0)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"entry extra\.where\[0\] is a pathlib"):
        save_checkpoint(path, toy(), extra={"where": [Path("x")]})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing.ckpt", "missing.safetensors"])
def test_missing_files_end_in_a_sentence(tmp_path, name):
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 3, 100, 700, 0.5, 0.99])
@pytest.mark.parametrize("reader", [load_checkpoint, read_archive])
def test_truncated_files_end_in_a_sentence(tmp_path, keep, reader):
    data = write_toy(tmp_path / "a.ckpt", 0).read_bytes()
    (tmp_path / "a.ckpt").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated"):
        reader(tmp_path / "a.ckpt")


def test_other_files_end_in_a_sentence(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"hello, world" * 50)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(tmp_path / "a.safetensors")
    torch.save([1, 2], tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path / "b.ckpt")
    torch.save({"a": 1}, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match="no 'state_dict'"):
        load_checkpoint(tmp_path / "c.ckpt")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.ckpt", slim())
    with pytest.raises(CheckpointError, match="refiner is True there, False asked"):
        load_segmenter(tmp_path / "a.ckpt", replace(SLIM, refiner=False))
    assert load_segmenter(tmp_path / "a.ckpt", replace(SLIM, drop_path=0.1)).config.drop_path == 0.1
    bare = dict(slim().state_dict())
    torch.save(bare, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="does not say what model it holds"):
        load_segmenter(tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="does not hold the statistics"):
        load_segmenter(tmp_path / "bare.ckpt", SLIM)
    small = replace(SLIM, backbone="terramind_v1_small")
    with pytest.raises(CheckpointError, match=r"do not fit this model: \d+ of another shape \(net\.decoder"):
        load_segmenter(tmp_path / "bare.ckpt", small, PUBLISHED_STATISTICS)
    with pytest.raises(CheckpointError, match=r"7 unexpected \(refiner\.gate, .* and 3 more\)"):
        load_segmenter(tmp_path / "bare.ckpt", replace(SLIM, refiner=False), PUBLISHED_STATISTICS)


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "model.", "model._orig_mod.", "_orig_mod.", "module.", "module.model._orig_mod."]
)
@pytest.mark.parametrize("own", [True, False])
def test_every_prefix_and_both_layouts_load(tmp_path, prefix, own):
    names = {k if own else k.removeprefix("net."): v for k, v in slim().state_dict().items()}
    state = {prefix + k: v for k, v in names.items()}
    if "model." in prefix:
        state["criterion.pos_weight"] = torch.ones(1)  # a loss's buffer in a Lightning module
    assert canonical_keys(state).keys() == slim().state_dict().keys()
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    model = load_segmenter(tmp_path / "a.ckpt", SLIM, PUBLISHED_STATISTICS)
    assert all(torch.equal(v, slim().state_dict()[k]) for k, v in model.state_dict().items())


def _two_sets(raw: dict, average: dict, lightning: bool) -> dict:
    if lightning:
        return {"state_dict": average, "current_model_state": raw, "averaging_state": {"n_averaged": torch.tensor(3)}}
    shadow = {k: v for k, v in average.items() if "num_batches" not in k}
    return {"state_dict": raw, "callbacks": {"EMA": {"decay": 0.999, "state": {"shadow": shadow}}}}


@pytest.mark.parametrize("lightning", [True, False])
def test_raw_and_averaged_weights_are_told_apart(lightning):
    raw = {f"model.{k}": v for k, v in toy(0).state_dict().items()}
    average = {f"model.{k}": v for k, v in toy(1).state_dict().items()}
    checkpoint = _two_sets(raw, average, lightning)
    for weights, expected in (("raw", toy(0)), ("ema", toy(1)), ("auto", toy(1))):
        state = segmenter_state(checkpoint, weights)
        assert state.keys() == expected.state_dict().keys()
        assert torch.equal(state["net.last.weight"], expected.net.last.weight)
    with pytest.raises(CheckpointError, match="no EMA weights"):
        segmenter_state({"state_dict": raw}, "ema")


def test_weights_to_start_from_may_be_a_whole_checkpoint_on_a_hub(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "stage.ckpt", slim())
    asked = []
    hub = types.ModuleType("cryosentinel.hub")
    hub.download_file = lambda uri: asked.append(uri) or tmp_path / "stage.ckpt"
    monkeypatch.setitem(sys.modules, "cryosentinel.hub", hub)
    model = build_segmenter(replace(SLIM, weights="hf://owner/repo/stage.ckpt"), PUBLISHED_STATISTICS)
    assert torch.equal(model.refiner.gate, slim().refiner.gate)
    assert torch.equal(model.net.encoder.encoder[3].mlp.fc1.weight, slim().net.encoder.encoder[3].mlp.fc1.weight)
    assert asked == ["hf://owner/repo/stage.ckpt"]
    assert resolve_checkpoint("hf://a/b/c.ckpt@v1") == tmp_path / "stage.ckpt" and asked[-1] == "hf://a/b/c.ckpt@v1"


# --- finding and resuming ---------------------------------------------------------------------------------------------


def test_bare_names_are_found_in_the_latest_run_that_holds_them(tmp_path):
    for age, (run, name) in enumerate(
        [("c", "soup.ckpt"), ("a", "soup.ckpt"), ("b", "last.ckpt"), ("d", "other.ckpt")]
    ):
        folder = tmp_path / "runs" / run / "checkpoints"
        folder.mkdir(parents=True)
        (folder / name).touch()
        os.utime(folder / name, (1000 + age, 1000 + age))
    runs = tmp_path / "runs"
    assert resolve_checkpoint("soup.ckpt", runs) == runs / "a/checkpoints/soup.ckpt"
    assert resolve_checkpoint("last.ckpt", runs) == runs / "b/checkpoints/last.ckpt"
    assert resolve_checkpoint(runs / "c/checkpoints/soup.ckpt", runs) == runs / "c/checkpoints/soup.ckpt"
    with pytest.raises(CheckpointError, match=r"holds a checkpoint best\.ckpt \(the runs there hold last\.ckpt, other"):
        resolve_checkpoint("best.ckpt", runs)
    with pytest.raises(CheckpointError, match="no finished runs"):
        resolve_checkpoint("best.ckpt", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint some/soup\.ckpt"):
        resolve_checkpoint("some/soup.ckpt", runs)


def test_resuming_drops_absolute_paths_of_checkpoint_callbacks_only():
    weights = {"w": torch.ones(2)}
    checkpoint = {
        "state_dict": weights,
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val/iou'}": {
                "best_model_score": torch.tensor(0.9),
                "best_model_path": "/home/someone/runs/a.ckpt",
                "best_k_models": {
                    "/home/someone/runs/a.ckpt": torch.tensor(0.9),
                    "C:\\runs\\b.ckpt": 0.8,
                    "c.ckpt": 0.7,
                },
                "kth_best_model_path": "C:\\runs\\b.ckpt",
                "dirpath": "/home/someone/runs",
                "last_model_path": "relative/last.ckpt",
            },
            "EMA": {"source": "/not/a/checkpoint/callback"},
        },
    }
    cleaned = sanitize_resume(checkpoint)
    assert cleaned["callbacks"] == {
        "ModelCheckpoint{'monitor': 'val/iou'}": {
            "best_model_score": torch.tensor(0.9),
            "best_model_path": "",
            "best_k_models": {"c.ckpt": 0.7},
            "kth_best_model_path": "",
            "last_model_path": "relative/last.ckpt",
        },
        "EMA": {"source": "/not/a/checkpoint/callback"},
    }
    assert cleaned["state_dict"] is weights
    assert checkpoint["callbacks"]["ModelCheckpoint{'monitor': 'val/iou'}"]["dirpath"]  # the original is untouched
    assert sanitize_resume({"state_dict": weights}) == {"state_dict": weights}
