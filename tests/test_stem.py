"""The all-band stem: what it is given, that context starts as nothing, and its warm-up on single pixels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chip_factory import write_dataset
from model_factory import batch
from training_factory import configuration, small_dataset  # noqa: F401

from cryosentinel.data.store import ChipStore
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.indices import mndwi, ndwi, slope
from cryosentinel.models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from cryosentinel.models.stem import feature_count
from cryosentinel.sensors import MODALITIES, PUBLISHED_STATISTICS
from cryosentinel.training.config import PixelWarmupConfig, parse
from cryosentinel.training.fit import build, prepare_task
from cryosentinel.training.losses import label_rim
from cryosentinel.training.warmup import draw_pixels, warm_up


def make(architecture: str = "unet", **changes: object) -> Segmenter:
    torch.manual_seed(0)
    config = {"architecture": architecture, "stem_channels": [16, 8], "unet_channels": [8, 16], "context_channels": 4}
    return build_segmenter(SegmenterConfig.from_dict({**config, **changes}), PUBLISHED_STATISTICS).eval()


def test_features_are_the_bands_their_logs_the_indices_and_the_slope():
    data = batch(2)
    found = make().features(data)
    assert found.shape == (2, feature_count(tuple(MODALITIES)), 128, 128) and found.shape[1] == 15 + 12 + 3
    for plane, (band, name) in enumerate((b, m) for m in MODALITIES for b in range(len(MODALITIES[m]))):
        mean, std = PUBLISHED_STATISTICS.means[name][band], PUBLISHED_STATISTICS.stds[name][band]
        assert torch.allclose(found[:, plane], (data[name][:, band] - mean) / std, atol=1e-5)
    logs = (np.log(data["S2L2A"].numpy() + 100) - 7.3) / 0.8
    assert np.allclose(found[:, 15:27], logs, atol=1e-4)
    assert torch.equal(found[:, 27], ndwi(data["S2L2A"])) and torch.equal(found[:, 28], mndwi(data["S2L2A"]))
    inside = (slice(1, -1), slice(1, -1))
    degrees = slope(data["DEM"][0, 0].numpy())[inside]
    assert np.allclose(np.rad2deg((found[0, 29].numpy()[inside] + 0.8) / 2), degrees, atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "channels"), [("unet", 4), ("unet", 1), ("smp_unet", 4), ("smp_unet", 1), ("terramind", 4)]
)
def test_context_starts_as_nothing_and_learns_at_once(architecture, channels):
    slim = {"decoder": "UNetDecoder", "decoder_channels": [16, 8, 8, 8], "head_channels": []}
    model, data = make(architecture, encoder_name="resnet18", context_channels=channels, **slim), batch(1)
    alone = model.stem(model.features(data))
    assert torch.allclose(model(data), alone, atol=1e-5)
    model(data).square().mean().backward()
    assert model.stem.fusion[-1].weight.grad.abs().sum() > 0
    torch.nn.init.normal_(model.stem.fusion[-1].weight)
    model.zero_grad()
    assert not torch.allclose(model(data), alone, atol=1e-3)
    model(data).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.net.parameters() if p.requires_grad)


def test_the_stem_alone_looks_at_single_pixels_and_the_unet_around_them():
    data = batch(1)
    torch.manual_seed(1)
    changed = {name: value.clone() for name, value in data.items()}
    changed["S1GRD"][..., 64, 64] += 10  # no slope hangs on it
    for architecture, alone in (("pixel", True), ("unet", False)):
        model = make(architecture)
        if not alone:
            torch.nn.init.normal_(model.stem.fusion[-1].weight)
        moved = (model(data) - model(changed)).abs() > 1e-6
        assert moved[0, 64, 64] and (int(moved.sum()) == 1) == alone


@pytest.mark.parametrize("name", ["S1GRD", "DEM"])
def test_a_withheld_modality_stands_at_its_mean(name):
    model, data = make(), batch(1)
    torch.nn.init.normal_(model.stem.fusion[-1].weight)
    used = [modality for modality in MODALITIES if modality != name]
    mean = torch.tensor(PUBLISHED_STATISTICS.means[name])[None, :, None, None].expand(1, -1, 128, 128)
    assert torch.allclose(model(data, used), model({**data, name: mean}), atol=1e-5)
    assert not torch.allclose(model(data, used), model(data), atol=1e-2)


def test_sides_follow_the_depth_of_the_unet():
    assert make("pixel").config.size_multiple == 4 and make().config.size_multiple == 8
    assert make()(batch(1, 136)).shape == (1, 136, 136)
    with pytest.raises(InputError, match="multiples of 8"):
        make()(batch(1, 132))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("stem") / "chips"
    write_dataset(root, 1, 6)
    return ChipStore(root, root.with_name("cache"))


def test_pixels_stand_for_their_class(store):
    model = make()
    with torch.no_grad():
        features, lake, weight = draw_pixels(model, store, range(6), 50, seed=3)
    assert features.shape[1] == 30 and float(weight.double().mean()) == pytest.approx(1)
    masks, valid = (np.stack([getattr(store[k], name) for k in range(6)]) for name in ("mask", "valid"))
    share = (masks > 0)[valid > 0].mean()
    assert float((weight * lake).sum() / weight.sum()) == pytest.approx(share, rel=1e-4)
    assert lake.mean() > share  # lake pixels were drawn more often, and weigh less


def test_warm_up_draws_no_pixel_of_a_labels_rim(store):
    with torch.no_grad():
        drawn = [draw_pixels(make(), store, range(6), 10**6, 3, ignore_rim=width)[1] for width in (0, 1)]
    lakes = [torch.from_numpy(store[k].mask > 0).reshape(1, *store[k].mask.shape[-2:]) for k in range(6)]
    valid = [torch.from_numpy(store[k].valid).reshape(lakes[k].shape) for k in range(6)]
    rims = sum(int((label_rim(lake.float(), 1) & seen).sum()) for lake, seen in zip(lakes, valid, strict=True))
    assert rims and drawn[0].sum() - drawn[1].sum() == rims and len(drawn[0]) - len(drawn[1]) == rims


def test_warm_up_teaches_the_stem_alone_and_follows_from_its_seed(store):
    config = PixelWarmupConfig(steps=60, pixels=256, per_chip=50, lr=1e-2)
    runs = []
    for seed in (1, 1, 2):
        model = make()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        first, last = warm_up(model, store, range(6), config, seed)
        assert last < 0.8 * first
        after = model.state_dict()
        learned = {name for name in after if not torch.equal(after[name], before[name])}
        assert learned == {name for name in after if name.startswith(("stem.layers", "stem.head"))}
        runs.append(after["stem.head.weight"])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_what_cannot_be_warmed_up_is_said(store):
    with pytest.raises(ConfigError, match="has none"):
        warm_up(make("smp_unet", stem_channels=[], encoder_name="resnet18"), store, [0], PixelWarmupConfig(1), 1)
    with pytest.raises(ConfigError, match="lr above 0"):
        PixelWarmupConfig(lr=0)


class _Context(torch.nn.Module):
    """Stands for TerraMind: an encoder with the names of the published one, and no more."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.encoder_embeddings = torch.nn.ModuleDict({"first": torch.nn.Conv2d(15, 4, 1)})

    def forward(self, inputs):
        return self.encoder.encoder_embeddings["first"](torch.cat(list(inputs.values()), 1))


@pytest.mark.parametrize("kind", ["none", "encoder", "whole"])
def test_a_stem_that_no_file_brings_is_warmed_up(kind, tmp_path, small_dataset, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr("cryosentinel.models.segmenter.build_terramind", _Context)
    network = {"architecture": "terramind", "stem_channels": [8], "context_channels": 4}
    states = {"encoder": lambda model: model.net.encoder.state_dict(), "whole": lambda model: model.state_dict()}
    if kind != "none":
        given = build_segmenter(SegmenterConfig.from_dict(network), PUBLISHED_STATISTICS)
        torch.save({"state_dict": states[kind](given)}, tmp_path / "start.pt")
        network["weights"] = str(tmp_path / "start.pt")
    config = configuration(small_dataset, model=network) | {"pixel_warmup": {"steps": 2, "pixels": 64}}
    run, data, _ = build(*parse(config))
    model = prepare_task(run, data, SimpleNamespace(world_size=1, global_rank=0)).model
    assert ("warmed up" in capsys.readouterr().out) == (kind != "whole")
    if kind == "whole":
        assert torch.equal(model.stem.head.weight, given.stem.head.weight)
