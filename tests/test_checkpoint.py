from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hostile_checkpoints import REFUSED
from model_factory import SLIM, batch, slim, toy, write_toy

from cryosentinel.errors import CheckpointError, ConfigError
from cryosentinel.models import checkpoint, segmenter
from cryosentinel.models.archive import read_checkpoint
from cryosentinel.models.checkpoint import (
    load_checkpoint,
    load_segmenter,
    resolve_checkpoint,
    sanitize_resume,
    save_checkpoint,
)
from cryosentinel.models.convert import convert
from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter
from cryosentinel.models.soup import uniform_soup
from cryosentinel.models.statedict import canonical_keys, segmenter_state
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


def test_what_is_written_into_a_loaded_tensor_stays_out_of_the_file(tmp_path):
    path = write_toy(tmp_path / "a.ckpt", 0)
    before = path.read_bytes()
    load_checkpoint(path)["state_dict"]["model.net.last.weight"].zero_()
    assert path.read_bytes() == before


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
@pytest.mark.parametrize("reader", [load_checkpoint, read_checkpoint])
def test_truncated_files_end_in_a_sentence(tmp_path, keep, reader):
    data = write_toy(tmp_path / "a.ckpt", 0).read_bytes()
    (tmp_path / "a.ckpt").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated"):
        reader(tmp_path / "a.ckpt")


def test_other_files_end_in_a_sentence(tmp_path):
    for name in ("a.ckpt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"hello, world" * 50)
        with pytest.raises(CheckpointError, match=rf"{name} is not a checkpoint"):
            load_checkpoint(tmp_path / name)


def test_the_reader_reads_what_torch_reads(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    optimiser = torch.optim.AdamW(toy().parameters())
    checkpoint = {
        "state_dict": toy().state_dict(),
        "tensors": {"a": shared, "b": shared, "t": shared.t(), "view": shared[1:, 2:], "none": torch.zeros(0, 2),
                    "half": torch.ones(3).bfloat16(), "n": torch.tensor(5), "p": torch.nn.Parameter(torch.ones(2))},
        "optimizer_states": [optimiser.state_dict()],
        "values": [None, True, -3, 2.5, "text", b"bytes", (1, ("a",)), {"k": {1: (2,)}}, torch.float16],
    }  # fmt: skip
    for protocol in (2, 3, 4, 5):
        torch.save(checkpoint, tmp_path / "a.ckpt", pickle_protocol=protocol)
        ours, theirs = load_checkpoint(tmp_path / "a.ckpt"), torch.load(tmp_path / "a.ckpt", weights_only=False)
        for part in ("state_dict", "tensors"):
            assert ours[part].keys() == theirs[part].keys()
            for name, value in theirs[part].items():
                assert ours[part][name].dtype is value.dtype and torch.equal(ours[part][name], value.detach())
        assert ours["values"] == theirs["values"] and ours["optimizer_states"] == theirs["optimizer_states"]


@pytest.fixture
def in_time():
    """End a test that hangs, where the platform can."""
    if hasattr(signal, "setitimer"):

        def late(*_: object) -> None:
            pytest.fail("reading the file takes more than 30 s")  # an Exception would become a refusal

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 30)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    else:
        yield


DOORS = {
    "load": lambda path: load_segmenter(path, SLIM, PUBLISHED_STATISTICS),
    "soup": lambda path: uniform_soup([path, path], path.with_name("soup.ckpt")),
    "convert": lambda path: convert(path, path.with_name("out.safetensors")),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_are_refused_before_anything_is_built(tmp_path, monkeypatch, in_time, name, door):
    path = tmp_path / "bad.ckpt"
    REFUSED[name](path)
    path = path if path.exists() else path.with_suffix(".safetensors")
    monkeypatch.setattr(checkpoint, "build_segmenter", lambda *a: pytest.fail("a model was built"))
    with pytest.raises(CheckpointError, match="bad") as caught:
        DOORS[door](path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("seed", range(24))
def test_damaged_bytes_never_load_as_other_weights(tmp_path, seed):
    path = write_toy(tmp_path / "a.ckpt", 0)
    data, generator = bytearray(path.read_bytes()), torch.Generator().manual_seed(seed)
    start, length = (data.index(b"data.pkl"), 2500) if seed % 2 else (0, len(data))  # at the structure, or anywhere
    for _ in range(4):
        data[start + int(torch.randint(length, (1,), generator=generator))] ^= 1 << seed % 8
    path.write_bytes(data)
    for read in (lambda p: load_checkpoint(p)["state_dict"], lambda p: _converted(p)):
        try:
            state = read(path)
        except CheckpointError:
            continue
        for name, value in toy().state_dict().items():
            assert torch.equal(state[f"model.{name}"], value)


def _converted(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(convert(path, path.with_name("o.safetensors")))["state_dict"]


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
def test_raw_and_averaged_weights_are_told_apart(capsys, lightning):
    raw = {f"model.{k}": v for k, v in toy(0).state_dict().items()}
    average = {f"model.{k}": v for k, v in toy(1).state_dict().items()}
    checkpoint = _two_sets(raw, average, lightning)
    for weights, expected, word in (("raw", toy(0), "raw"), ("ema", toy(1), "EMA"), ("auto", toy(1), "EMA")):
        state = segmenter_state(checkpoint, weights, "a.ckpt", verbose=True)
        assert state.keys() == expected.state_dict().keys()
        assert torch.equal(state["net.last.weight"], expected.net.last.weight)
        said = capsys.readouterr().out
        assert said.startswith("a.ckpt: ") and word in said and f"{len(state)} tensors" in said
    with pytest.raises(CheckpointError, match="no EMA weights"):
        segmenter_state({"state_dict": raw}, "ema")


def _published(average: object) -> dict:
    return {"state_dict": toy(0).state_dict(), "callbacks": {"EMA": {"decay": 0.9, "shadow": average}}}


def test_an_average_in_a_list_is_taken_where_it_fits_one_by_one():
    parameters = [p.detach() for p in toy(1).parameters()]
    state = segmenter_state(
        {"state_dict": toy(0).state_dict(), "callbacks": {"EMA": {"shadow_params": parameters, "num_updates": 3}}}
    )
    assert all(torch.equal(state[name], p) for name, p in toy(1).named_parameters())
    assert torch.equal(state["net.head.1.running_mean"], toy(0).net.head[1].running_mean)
    for change in (parameters[:-1], [*parameters, torch.ones(1)], [p.flatten() for p in parameters]):
        with pytest.raises(CheckpointError, match="without names"):
            segmenter_state(_published(change))
        assert segmenter_state(_published(change), "raw").keys() == toy().state_dict().keys()


@pytest.mark.parametrize("form", [dict, lambda s: {"shadow_params": list(s.values()), "decay": 0.9}])
@pytest.mark.parametrize(
    "keep",
    [
        *(lambda average, key=key: {key: average} for key in ("ema", "ema_state_dict", "state_dict_ema", "model_ema")),
        *(lambda average, key=key: {"callbacks": {key: average}} for key in ("ModelEmaV2", "WeightAveraging")),
        lambda average: {"callbacks": {"EMA": {"states": [{"a": average}]}}},
        lambda average: {"callbacks": {"EMA": ({"decay": 0.9}, average)}},
    ],
)
def test_an_average_is_found_wherever_programs_keep_it(keep, form):
    average = form({name: p.detach() for name, p in toy(1).named_parameters()})
    state = segmenter_state({"state_dict": toy(0).state_dict(), **keep(average)})
    assert all(torch.equal(state[name], p) for name, p in toy(1).named_parameters())


def test_what_is_no_average_is_not_taken_for_one():
    for entry in ({"ema": True}, {"ema_decay": 0.9}, {"callbacks": {"EMA": {"decay": torch.tensor(0.9)}}}):
        assert torch.equal(segmenter_state({"state_dict": toy(0).state_dict(), **entry})["net.last.weight"],
                           toy(0).net.last.weight)  # fmt: skip


@pytest.mark.parametrize("weights", ["auto", "ema"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: {f"other.{k}": v for k, v in s.items()}, "other names"),
        (lambda s: {k: v for k, v in s.items() if "last" not in k}, "net.last.bias, net.last.weight"),
        (lambda s: {**s, "net.more.weight": torch.ones(2)}, "net.more.weight"),
        (lambda s: {"a": s, "b": dict(s)}, "2 sets"),
    ],
    ids=["no name fits", "some are missing", "one too many", "two averages"],
)
def test_an_average_that_does_not_cover_the_model_is_refused(weights, change, word):
    checkpoint = _published(change(toy(1).state_dict()))
    with pytest.raises(CheckpointError, match=re.escape(word)):
        segmenter_state(checkpoint, weights, "a.ckpt")
    assert torch.equal(segmenter_state(checkpoint, "raw")["net.last.weight"], toy(0).net.last.weight)


def test_an_average_inside_a_foreign_object_is_not_passed_over(tmp_path):
    torch.save(
        {"state_dict": toy(0).state_dict(), "callbacks": {"EMA": SimpleNamespace(shadow=toy(1).state_dict())}},
        tmp_path / "a.ckpt",
    )
    with pytest.raises(CheckpointError, match="SimpleNamespace"):
        convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    state = load_checkpoint(convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", "raw"))["state_dict"]
    assert torch.equal(state["model.net.last.weight"], toy(0).net.last.weight)


def test_entries_outside_the_model_are_counted(capsys):
    state = {f"model.{k}": v for k, v in toy().state_dict().items()}
    segmenter_state({"state_dict": {**state, "criterion.pos_weight": torch.ones(1)}}, source="a", verbose=True)
    assert "1 entries outside the model left out" in capsys.readouterr().out


def test_a_configuration_is_read_by_its_model_section_alone(tmp_path):
    write_config = (tmp_path / "run.yaml").write_text
    write_config("optim: {no: such key}\nmodel: {decoder: UNetDecoder, decoder_channels: [16, 8, 8, 8]}\n")
    config = SegmenterConfig.read(tmp_path / "run.yaml")
    assert config == SegmenterConfig(decoder="UNetDecoder", decoder_channels=(16, 8, 8, 8))
    assert SegmenterConfig.read("tiny").stem_channels == (16, 8)
    for text, word in (("model: {colour: red}", "colour"), ("run_name: a", "section model"), ("model: [", "YAML"),
                       ("- 1", "section model"), ("model: {refiner: 7}", "refiner")):  # fmt: skip
        write_config(text)
        with pytest.raises(ConfigError, match=word) as caught:
            SegmenterConfig.read(tmp_path / "run.yaml")
        assert "run.yaml" in str(caught.value)


def test_opening_a_segmenter_does_not_import_training():
    code = (
        "import sys\nfrom cryosentinel.models.segmenter import SegmenterConfig\n"
        "from cryosentinel.models import checkpoint, convert, soup\nSegmenterConfig.read('tiny')\n"
        "print([m for m in sys.modules if m.startswith(('cryosentinel.training', 'terratorch', 'timm', 'lightning'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_weights_to_start_from_are_read_before_the_model_is_built(monkeypatch, tmp_path):
    monkeypatch.setattr(segmenter, "build_terramind", lambda *a: pytest.fail("the model was built first"))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        build_segmenter(replace(SLIM, weights=str(tmp_path / "none.ckpt")), PUBLISHED_STATISTICS)


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
