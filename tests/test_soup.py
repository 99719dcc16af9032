from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from model_factory import ToyNet, batch, toy, write_toy

from cryosentinel.errors import CheckpointError, InputError
from cryosentinel.files import sha256
from cryosentinel.models.checkpoint import load_checkpoint, save_checkpoint
from cryosentinel.models.convert import convert
from cryosentinel.models.segmenter import Segmenter, SegmenterConfig
from cryosentinel.models.soup import greedy_soup, reestimate_batchnorm, uniform_soup
from cryosentinel.sensors import PUBLISHED_STATISTICS


@pytest.fixture
def three(tmp_path) -> list[Path]:
    paths = []
    for seed in range(3):
        model = toy(seed)
        batchnorm = model.net.head[1]
        batchnorm.running_mean.normal_()
        batchnorm.running_var.uniform_(1, 2)
        batchnorm.num_batches_tracked.fill_(10 + seed)
        save_checkpoint(tmp_path / f"m{seed}.ckpt", model, epoch=12 + seed, global_step=100 * seed)
        paths.append(tmp_path / f"m{seed}.ckpt")
    return paths


def _states(paths: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True)["state_dict"] for path in paths]


def test_uniform_soup_is_the_mean_of_all_weights(three, tmp_path):
    soup = load_checkpoint(uniform_soup(three, tmp_path / "soup.ckpt", epoch=3))
    states = _states(three)
    assert soup["state_dict"].keys() == states[0].keys()
    for name, value in soup["state_dict"].items():
        if name.endswith("num_batches_tracked"):
            assert value.item() == 12 and value.dtype is torch.int64  # the largest, as documented
            continue
        exact = torch.stack([s[name].double() for s in states]).mean(0)
        assert torch.allclose(value.double(), exact, rtol=3e-7, atol=1e-7), name
    assert not torch.equal(soup["state_dict"]["model.net.last.weight"], states[0]["model.net.last.weight"])
    assert soup["hyper_parameters"] == load_checkpoint(three[0])["hyper_parameters"] and soup["epoch"] == 3


def test_metadata_says_what_went_in(three, tmp_path):
    told = load_checkpoint(uniform_soup(three, tmp_path / "soup.ckpt"))["soup"]
    assert told["rule"] == "uniform"
    assert told["members"] == [
        {"name": f"m{i}.ckpt", "epoch": 12 + i, "global_step": 100 * i, "sha256": sha256(three[i])} for i in range(3)
    ]


def test_the_file_is_a_sound_archive_that_plain_torch_reads(three, tmp_path):
    out = uniform_soup(three, tmp_path / "soup.ckpt")
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None  # every checksum holds
    whole, mapped = torch.load(out, weights_only=True), torch.load(out, weights_only=True, mmap=True)
    assert all(torch.equal(v, mapped["state_dict"][k]) for k, v in whole["state_dict"].items())


def test_every_type_and_shape_is_averaged_in_its_type(tmp_path):
    states = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        states.append({
            "odd": torch.randn(5, 11, generator=generator),
            "half": torch.randn(30, generator=generator).half(),
            "brain": torch.randn(9, 9, generator=generator).bfloat16(),
            "double": torch.randn(20, generator=generator).double() * 1e200,
            "turned": torch.randn(4, 6, generator=generator).t(),
            "empty": torch.zeros(0, 3),
            "scalar": torch.randn((), generator=generator),
            "index": torch.arange(6),
            "flag": torch.tensor([True, False]),
        })  # fmt: skip
        torch.save({"state_dict": states[-1]}, tmp_path / f"{seed}.ckpt")
    soup = load_checkpoint(uniform_soup([tmp_path / f"{i}.ckpt" for i in range(3)], tmp_path / "s.ckpt"))
    assert soup["state_dict"].keys() == {f"model.{name}" for name in states[0]}
    for name, first in states[0].items():
        value, exact = soup["state_dict"][f"model.{name}"], torch.stack([s[name].double() for s in states]).mean(0)
        assert value.dtype is first.dtype and torch.equal(value, exact.to(first.dtype))


@pytest.mark.parametrize("count", range(1, 10))
def test_a_soup_of_equal_members_equals_them(tmp_path, count):
    generator = torch.Generator().manual_seed(0)
    state = {f"{d}".removeprefix("torch."): torch.randn(1000, generator=generator).to(d)
             for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}  # fmt: skip
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    path = tmp_path / "a.ckpt"
    soups = [uniform_soup([path] * count, tmp_path / "u.ckpt"), greedy_soup([path] * count, len, tmp_path / "g.ckpt")]
    for soup in map(load_checkpoint, soups):
        assert all(torch.equal(soup["state_dict"][f"model.{name}"], value) for name, value in state.items())


def test_of_a_member_with_two_sets_the_average_goes_in(three, tmp_path):
    raw = {f"model.{k}": v for k, v in toy(5).state_dict().items()}
    torch.save({**torch.load(three[0], weights_only=True), "current_model_state": raw}, tmp_path / "last.ckpt")
    shadow = torch.load(three[1], weights_only=True)
    torch.save({**shadow, "state_dict": raw, "callbacks": {"EMA": shadow["state_dict"]}}, tmp_path / "published.ckpt")
    uniform_soup([tmp_path / "last.ckpt", tmp_path / "published.ckpt"], tmp_path / "a.ckpt")
    uniform_soup(three[:2], tmp_path / "b.ckpt")
    a, b = (load_checkpoint(tmp_path / f"{name}.ckpt")["state_dict"] for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_out_may_be_one_of_the_members_and_one_member_is_itself(three):
    before = _states(three)[0]
    uniform_soup(three[:1], three[0], digests=False)
    assert all(torch.equal(v, before[k]) for k, v in _states(three)[0].items())


def test_converted_files_mix_with_others(three, tmp_path):
    converted = convert(three[1], tmp_path / "m1.safetensors")
    mixed = load_checkpoint(uniform_soup([three[0], converted, three[2]], tmp_path / "mixed.ckpt"))
    plain = load_checkpoint(uniform_soup(three, tmp_path / "plain.ckpt"))
    assert all(torch.equal(v, plain["state_dict"][k]) for k, v in mixed["state_dict"].items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["state_dict"].pop("model.net.last.bias"), r"m1\.ckpt .*1 missing \(net\.last\.bias\)"),
        (
            lambda c: c["state_dict"].update({"model.net.last.bias": torch.ones(2)}),
            r"m1\.ckpt .*another shape.*net\.last\.bias is \(2,\)",
        ),
        (lambda c: c["state_dict"].update({"model.net.last.bias": torch.ones(1).half()}), r"torch\.float16"),
        (lambda c: c["hyper_parameters"]["segmenter"].update(backbone="terramind_v1_large"), "different segmenter"),
        (lambda c: c["hyper_parameters"]["statistics"]["DEM"].update(means=[1.0]), "different statistics"),
        (lambda c: c["state_dict"].update({"model.net.last.bias": 3}), r"net\.last\.bias as int"),
        (lambda c: c.update(x=Path("a")), "holds more than weights"),
    ],
)
def test_members_of_another_model_are_refused_by_name(three, tmp_path, change, sentence):
    checkpoint = torch.load(three[1], weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, three[1])
    with pytest.raises(CheckpointError, match=sentence):
        uniform_soup(three, tmp_path / "soup.ckpt")
    assert not (tmp_path / "soup.ckpt").exists()


def test_start_weights_and_drop_path_do_not_make_another_model(three, tmp_path):
    checkpoint = torch.load(three[1], weights_only=True)
    checkpoint["hyper_parameters"]["segmenter"].update(weights="/elsewhere/start.ckpt", drop_path=0.1)
    torch.save(checkpoint, three[1])
    assert uniform_soup(three, tmp_path / "soup.ckpt").exists()


def test_whole_number_buffers_that_differ_are_refused_and_nothing_is_left(tmp_path):
    for i in range(2):
        torch.save({"state_dict": {"a": torch.ones(2), "index": torch.tensor([i])}}, tmp_path / f"{i}.ckpt")
    with pytest.raises(CheckpointError, match=r"1\.ckpt differs in index"):
        uniform_soup([tmp_path / "0.ckpt", tmp_path / "1.ckpt"], tmp_path / "soup.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.ckpt", "1.ckpt"]
    with pytest.raises(CheckpointError, match="at least one"):
        uniform_soup([], tmp_path / "soup.ckpt")


def test_greedy_soup_keeps_what_helps(tmp_path):
    values = [1.0, 5.0, 2.0, -8.0]  # the target is 1.5: 1 is best alone, with 2 better, with 5 or -8 worse
    for i, value in enumerate(values):
        state = {"model.net.w": torch.full((3,), value), "model.net.n": torch.tensor(i)}
        torch.save({"state_dict": state}, tmp_path / f"{i}.ckpt")

    def score(state: dict[str, torch.Tensor]) -> float:
        return -abs(state["net.w"].mean().item() - 1.5)

    paths = [tmp_path / f"{i}.ckpt" for i in range(4)]
    with pytest.raises(CheckpointError, match=r"differs in net\.n"):
        greedy_soup(paths, score, tmp_path / "soup.ckpt")
    for path in paths:
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["state_dict"]["model.net.n"]
        torch.save(checkpoint, path)
    result = load_checkpoint(greedy_soup(paths, score, tmp_path / "soup.ckpt"))
    soup = result["soup"]
    assert torch.equal(result["state_dict"]["model.net.w"], torch.full((3,), 1.5))
    assert soup["rule"] == "greedy" and soup["score"] == 0.0
    assert [(t["name"], t["kept"]) for t in soup["tried"]] == [
        ("0.ckpt", True), ("2.ckpt", True), ("1.ckpt", False), ("3.ckpt", False)
    ]  # fmt: skip
    assert [m["name"] for m in soup["members"]] == ["0.ckpt", "2.ckpt"]
    with pytest.raises(CheckpointError, match="is nan"):
        greedy_soup(paths, lambda state: float("nan"), tmp_path / "soup.ckpt")


def test_greedy_soup_is_never_worse_than_its_best_member(three, tmp_path):
    target = torch.randn(1, 4, 1, 1)
    score = lambda state: -(state["net.last.weight"] - target).square().sum().item()  # noqa: E731
    greedy_soup(three, score, tmp_path / "soup.ckpt")
    told = load_checkpoint(tmp_path / "soup.ckpt")
    assert told["soup"]["score"] >= max(t["score"] for t in told["soup"]["tried"])


def test_batchnorm_is_reestimated_as_torch_does_it():
    data = [batch(2, seed=s) for s in range(3)]
    ours, theirs = toy().eval(), toy()
    ours.net.head[1].running_mean.fill_(9)
    assert reestimate_batchnorm(ours, data) == 1
    torch.optim.swa_utils.update_bn(data, theirs)  # the library's way, with the whole model in training mode
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(ours.net.head[1], name), getattr(theirs.net.head[1], name), rtol=1e-5), name
    assert not ours.training and ours.net.head[1].momentum == 0.1 and not ours.net.head[1].training
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_batchnorm_reestimation_keeps_stochastic_layers_still():
    class Dropping(ToyNet):
        def forward(self, inputs):
            assert not self.training
            return super().forward(inputs)

    model = Segmenter(SegmenterConfig(), PUBLISHED_STATISTICS, Dropping())
    reestimate_batchnorm(model.train(), [batch(2)])
    assert model.training and model.net.training
    with pytest.raises(InputError, match="at least 2 chips"):
        reestimate_batchnorm(model, [batch(1)])
    assert model.training and model.net.head[1].momentum == 0.1
    model.net.head = torch.nn.Conv2d(15, 4, 1)
    assert reestimate_batchnorm(model, []) == 0


@pytest.mark.parametrize("batches", [[], [batch(2), batch(1)]], ids=["no batch", "a bad batch after a good one"])
def test_batchnorm_keeps_its_statistics_where_it_cannot_be_reestimated(batches):
    model = toy()
    model.net.head[1].running_mean.fill_(9)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match="batch"):
        reestimate_batchnorm(model, batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_holds_one_model(tmp_path):
    """Three members of 128 MB: the soup needs the mean, and not the members."""
    import subprocess
    import sys

    code = """
import re, sys
from cryosentinel.models.soup import uniform_soup

def peak():  # of this program, where ru_maxrss may be the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

uniform_soup(sys.argv[1:2], sys.argv[1] + ".warm", digests=False)
before = peak()
uniform_soup(sys.argv[2:], sys.argv[2] + ".soup")
print(peak() - before)
"""
    write_toy(tmp_path / "small.ckpt", 0)
    state = {f"w{i}": torch.zeros(1 << 19) for i in range(64)}
    for i in range(3):
        torch.save({"state_dict": state}, tmp_path / f"{i}.ckpt")
    arguments = [tmp_path / "small.ckpt", *(tmp_path / f"{i}.ckpt" for i in range(3))]
    run = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True)
    assert int(run.stdout.split()[-1]) * 1024 < 1.3 * sum(value.nbytes for value in state.values())
