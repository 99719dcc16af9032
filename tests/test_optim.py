"""Learning rates by layer, the schedule against torch's SWALR, and the profile that warns."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from training_factory import SmallSegmenter

from cryosentinel.errors import ConfigError
from cryosentinel.training.callbacks import CheckpointConfig
from cryosentinel.training.optim import (
    OptimConfig,
    SWAConfig,
    at_depth,
    build_optimizer,
    build_schedule,
    describe_profile,
    learning_rate,
    learning_rate_profile,
    parameter_groups,
    plot_profile,
    plot_schedule,
    rate_at,
    swa_first_epoch,
)

V1 = OptimConfig(lr=5e-5, backbone_mult=0.05, layer_decay=0.85, frozen_blocks=6)
V2 = OptimConfig()


class Named(nn.Module):
    """A module with the names of TerraMind large, one number each."""

    depth = 24

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.encoder = nn.Module()
        self.net.encoder.encoder_embeddings = nn.Linear(1, 1)
        self.net.encoder.encoder = nn.ModuleList([nn.Linear(1, 1) for _ in range(24)])
        self.net.encoder.encoder_norm = nn.LayerNorm(1)
        self.net.decoder = nn.Linear(1, 1)
        self.refiner = nn.Linear(1, 1)


def rates(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    by_parameter = {id(p): g["lr"] for g in parameter_groups(model, 24, config) for p in g["params"]}
    return {n: by_parameter[id(p)] for n, p in model.named_parameters() if id(p) in by_parameter}


def test_each_block_learns_at_its_own_rate():
    found = rates(Named(), V2)
    assert found["net.decoder.weight"] == found["refiner.bias"] == 6e-5
    for block in range(24):
        expected = 6e-5 * 0.25 * 0.9 ** (24 - block)
        assert found[f"net.encoder.encoder.{block}.weight"] == pytest.approx(expected, rel=1e-12)
    for name in ("encoder_embeddings.weight", "encoder_norm.bias"):
        assert found[f"net.encoder.{name}"] == pytest.approx(6e-5 * 0.25 * 0.9**25, rel=1e-12)


def test_frozen_blocks_take_no_part():
    model = Named()
    optimizer = build_optimizer(model, 24, V1)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "net.encoder.encoder.5.weight" not in learning and "net.encoder.encoder.6.weight" in learning
    assert "net.encoder.encoder_embeddings.weight" not in learning
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(learning)
    with pytest.raises(ConfigError, match="frozen_blocks is 30"):
        build_optimizer(Named(), 24, OptimConfig(frozen_blocks=30))


def test_weight_decay_can_spare_norms_and_biases():
    spared = parameter_groups(Named(), 24, OptimConfig(decay_norm_and_bias=False))
    for group in spared:
        vector = all(p.ndim <= 1 for p in group["params"])
        assert group["weight_decay"] == (0.0 if vector else 1e-4)
    assert {g["weight_decay"] for g in parameter_groups(Named(), 24, V2)} == {1e-4}


def test_schedule_warms_up_falls_and_settles():
    config = OptimConfig(lr=1.0, warmup_epochs=2, swa=SWAConfig(start=0.5, lr=0.1, anneal_epochs=2))
    lr = [rate_at(step, 1.0, config, 10, 20) for step in range(200)]
    assert all(a < b for a, b in itertools.pairwise(lr[:21])) and max(lr) == lr[20] == 1.0
    assert all(a > b for a, b in itertools.pairwise(lr[20:110]))
    assert lr[110:] == pytest.approx([0.1] * 90)
    without = OptimConfig(lr=1.0, warmup_epochs=2, swa=SWAConfig(start=1.0))
    assert rate_at(199, 1.0, without, 10, 20) < 1e-3


@pytest.mark.parametrize("layerwise", [False, True])
def test_swa_phase_equals_torch(layerwise):
    """From the start of the phase on, every rate is the one of torch.optim.swa_utils.SWALR."""
    config = OptimConfig(lr=1.0, swa=SWAConfig(start=0.4, lr=0.05, anneal_epochs=3, layerwise=layerwise))
    model = SmallSegmenter()
    optimizer = build_optimizer(model, model.depth, config)
    ours = build_schedule(optimizer, config, steps_per_epoch=5, epochs=10)
    for _ in range(15):
        optimizer.step()
        ours.step()
    peer = torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(1))], "lr": g["lr"]} for g in optimizer.param_groups])
    peaks = [g["initial_lr"] for g in optimizer.param_groups]
    target = [0.05 * p if layerwise else 0.05 for p in peaks]
    swalr = torch.optim.swa_utils.SWALR(peer, swa_lr=target, anneal_epochs=15, anneal_strategy="cos")
    for _ in range(30):
        rates_now = [g["lr"] for g in optimizer.param_groups]
        assert rates_now == pytest.approx([g["lr"] for g in peer.param_groups], rel=1e-9)
        for o, s in ((optimizer, ours), (peer, swalr)):
            o.step()
            s.step()


def test_phase_begins_as_in_lightning():
    for start, epochs, first in ((0.4, 30, 11), (0.5, 30, 14), (0.75, 20, 14), (0.29, 100, 28), (1.0, 8, 8)):
        assert swa_first_epoch(OptimConfig(swa=SWAConfig(start=start)), epochs) == first


@pytest.mark.parametrize(
    ("epochs", "warmup", "start", "first"), [(3, 0.5, 0.5, 1), (2, 0, 0.0, 0), (5, 2, 0.0, 2), (2, 0.5, 0.9, 1)]
)
def test_a_short_run_reaches_its_peak_rate_before_the_phase(epochs, warmup, start, first):
    config = OptimConfig(lr=1e-3, warmup_epochs=warmup, swa=SWAConfig(start=start, lr=3e-4, anneal_epochs=1))
    assert swa_first_epoch(config, epochs) == first
    rates = [rate_at(step, config.lr, config, 57, epochs) for step in range(57 * epochs)]
    assert max(rates) == pytest.approx(1e-3, rel=1e-3)
    assert rates[-1] == pytest.approx(3e-4, rel=0.02)


@pytest.mark.parametrize("warmup", [2, 3])
def test_a_run_that_ends_in_its_warm_up_has_no_phase(warmup):
    config = OptimConfig(lr=1e-3, warmup_epochs=warmup, swa=SWAConfig(start=0.5, lr=3e-4))
    assert swa_first_epoch(config, 2) == 2
    rates = [rate_at(step, config.lr, config, 10, 2) for step in range(20)]
    assert rates == sorted(rates)
    assert [text.get_text() for text in plot_schedule(config, 10, 2).get_legend().get_texts()] == ["schedule"]


def test_without_the_phase_the_last_epochs_have_the_snapshots():
    assert CheckpointConfig(snapshot_last=2).epochs(5, swa_first_epoch(OptimConfig(swa=SWAConfig(start=1)), 5)) == [
        4,
        5,
    ]


def test_schedule_can_be_drawn_with_the_rates_that_were_used():
    ax = plot_schedule(V2, 10, 30, {300: 1e-5})
    curve, used = ax.lines
    assert max(curve.get_ydata()) == pytest.approx(6e-5, rel=1e-3) and used.get_xydata().tolist() == [[300, 1e-5]]


def test_profile_shows_how_the_failed_run_compounds():
    profile = learning_rate_profile(Named(), V1).set_index("part")
    assert profile.share["block 06"] == pytest.approx(0.05 * 0.85**18)  # 0.27 %
    assert profile.frozen[["encoder", *(f"block {i:02d}" for i in range(6))]].all()
    assert profile.starved.sum() == 16  # seven frozen, and blocks 6 to 14: 0.05 x 0.85^10 is below 1 %
    text = describe_profile(learning_rate_profile(Named(), V1))
    assert "Warning: 16 of 26 parts" in text and "0.27%" in text
    assert "Warning" not in describe_profile(learning_rate_profile(Named(), V2))


@pytest.mark.parametrize("config", [V1, V2])
def test_a_shallower_encoder_keeps_the_profile(config):
    small = at_depth(config, 24, 12)
    for block in range(12):
        expected = learning_rate(f"block {2 * block:02d}", 24, config)
        assert learning_rate(f"block {block:02d}", 12, small) == pytest.approx(expected, rel=1e-12)
    assert learning_rate("decoder", 12, small) == config.lr and at_depth(config, 24, 24) == config


def test_a_depth_without_counterpart_is_refused():
    with pytest.raises(ConfigError, match="24 blocks, 6 of them frozen, have no counterpart in 10"):
        at_depth(V1, 24, 10)
    with pytest.raises(ConfigError, match="no counterpart in 6"):
        at_depth(V1, 24, 6)  # a fourth of six blocks


def test_profile_can_be_drawn():
    ax = plot_profile(learning_rate_profile(Named(), V1), label="v1")
    assert ax.get_yscale() == "log" and len(ax.lines) == 3


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"layer_decay": 1.5}, {"frozen_blocks": -1}, {"min_lr_share": 2.0}, {"backbone_mult": -1.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        OptimConfig(**wrong)
    with pytest.raises(ConfigError):
        SWAConfig(start=1.2)


def test_the_optimiser_decays_weights_beside_the_gradient():
    """One step of AdamW by hand (Loshchilov and Hutter 2019, arXiv:1711.05101), with betas that are not the default."""
    config = OptimConfig(lr=0.1, weight_decay=0.5, betas=(0.5, 0.7))
    model = SmallSegmenter()
    optimizer = build_optimizer(model, model.depth, config)
    assert type(optimizer) is torch.optim.AdamW
    weight = model.net.decoder[2].weight
    before, expected = weight.detach().clone(), weight.detach().double()
    mean = square = torch.zeros_like(expected)
    for step, gradient in enumerate((1.0, -3.0), start=1):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        mean, square = 0.5 * mean + 0.5 * gradient, 0.7 * square + 0.3 * gradient**2
        expected = expected * (1 - 0.1 * 0.5)
        expected = expected - 0.1 * (mean / (1 - 0.5**step)) / ((square / (1 - 0.7**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected.float(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(before, weight)
