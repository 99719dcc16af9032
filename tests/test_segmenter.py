from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from model_factory import SLIM, batch, slim

from cryosentinel.errors import CheckpointError, ConfigError, InputError
from cryosentinel.indices import mndwi, ndwi
from cryosentinel.models import segmenter as segmenter_module
from cryosentinel.models.segmenter import (
    BACKBONES,
    TERRAMIND_STATISTICS,
    IndexRefiner,
    Segmenter,
    SegmenterConfig,
    add_architecture,
    build_segmenter,
    published_weights,
)
from cryosentinel.sensors import PUBLISHED_STATISTICS, Statistics


def test_logits_have_the_size_of_the_image_for_square_and_oblong_chips():
    for height, width in ((128, 128), (144, 208), (224, 224)):
        with torch.inference_mode():
            logits = slim()(batch(2, height, width))
        assert logits.shape == (2, height, width) and logits.dtype is torch.float32 and logits.isfinite().all()


def test_the_network_is_terratorchs_own_fed_with_standardised_bands():
    data = batch(2)
    with torch.inference_mode():
        inputs = {
            m: (data[m] - torch.tensor(PUBLISHED_STATISTICS.means[m]).view(1, -1, 1, 1))
            / torch.tensor(PUBLISHED_STATISTICS.stds[m]).view(1, -1, 1, 1)
            for m in SLIM.modalities
        }
        base = slim().net(inputs).output
        expected = slim().refiner(data["S2L2A"], base)
        assert torch.allclose(slim()(data), expected, atol=1e-5)
        assert not torch.allclose(base, expected, atol=1e-3)  # the refiner does something here


def test_refiner_matches_its_formula_and_starts_as_identity_with_gradients_at_once():
    torch.manual_seed(1)
    refiner, reflectance = IndexRefiner(4), torch.rand(2, 12, 16, 16) * 5000
    logits = torch.randn(2, 16, 16, requires_grad=True)
    assert torch.equal(refiner(reflectance, logits), logits)
    refiner(reflectance, logits).square().sum().backward()
    assert refiner.stack[-1].weight.grad.abs().sum() > 0  # a closed gate would have starved it
    torch.nn.init.normal_(refiner.stack[-1].weight)
    inputs = torch.stack([ndwi(reflectance), mndwi(reflectance), torch.tanh(logits / 4)], 1)
    expected = logits + refiner.gate * refiner.stack(inputs)[:, 0]
    assert torch.allclose(refiner(reflectance, logits), expected)


def test_a_training_step_reaches_every_weight():
    model = build_segmenter(SLIM, PUBLISHED_STATISTICS).train()
    torch.nn.init.normal_(model.refiner.stack[-1].weight, std=0.1)
    model(batch(2)).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_plain_attention_equals_terratorchs_kernel():
    attention = slim().net.encoder.encoder[0].attn
    library = type(attention).__mro__[1]
    assert library.__module__.startswith("terratorch")
    x = torch.randn(2, 588, 192)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = attention(x), library.forward(attention, x)
    with torch.inference_mode():
        exact = library.forward(attention, x)
        assert torch.equal(attention(x), exact)  # in float32 it is the library's own
    scale = exact.abs().max()
    assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max() + 0.004 * scale


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_every_size_builds_with_both_decoders_and_the_cards_necks(size: str):
    shapes = {"UperNetDecoder": 256, "UNetDecoder": (256, 128, 64, 32)}
    for decoder, channels in shapes.items():
        config = SegmenterConfig(backbone=f"terramind_v1_{size}", decoder=decoder, decoder_channels=channels)
        with torch.device("meta"):
            model = build_segmenter(config, PUBLISHED_STATISTICS)
        encoder = sum(p.numel() for p in model.net.encoder.parameters())
        assert encoder == pytest.approx(
            {"tiny": 6.07e6, "small": 22.8e6, "base": 87.9e6, "large": 305.9e6}[size], rel=2e-3
        )
        selected, reshape, pyramid = model.net.neck
        depth = 24 if size == "large" else 12
        assert list(selected.indices) == ([5, 11, 17, 23] if depth == 24 else [2, 5, 8, 11])
        assert reshape.remove_cls_token is False and type(pyramid).__name__ == "LearnedInterpolateToPyramidal"
        assert type(model.net.decoder).__name__ == decoder and model.depth == depth == len(model.net.encoder.encoder)
        widths = [m.out_channels for m in model.net.head.modules() if isinstance(m, torch.nn.Conv2d)]
        assert widths == [128, 64, 32, 1]


def test_upernet_runs_and_names_its_need_of_two_chips_in_training():
    model = build_segmenter(SegmenterConfig(decoder_channels=8, head_channels=(4,)), PUBLISHED_STATISTICS)
    assert model(batch(2)).shape == (2, 128, 128)
    with pytest.raises(InputError, match="at least 2 chips"):
        model(batch(1))
    assert model.eval()(batch(1)).shape == (1, 128, 128)


def test_blocks_of_parameters_by_name_also_when_compiled():
    names = [n for n, _ in slim().named_parameters()]
    blocks = [Segmenter.block_of(f"model._orig_mod.{n}") for n in names]
    assert {b for b in blocks if b is not None} == set(range(-1, 12))
    assert Segmenter.block_of("net.encoder.encoder.11.mlp.fc1.weight") == 11
    assert Segmenter.block_of("net.encoder.encoder_norm.weight") == -1
    assert Segmenter.block_of("net.decoder.decoder.blocks.0.conv1.0.weight") is None
    assert all(b is None for n, b in zip(names, blocks, strict=True) if not n.startswith("net.encoder"))


def test_a_modality_may_be_left_out_only_when_asked():
    data = batch(1)
    without_radar = {k: v for k, v in data.items() if k != "S1GRD"}
    with pytest.raises(InputError, match="no S1GRD"):
        slim()(without_radar)
    with torch.inference_mode():
        assert slim()(without_radar, modalities=("S2L2A", "DEM")).shape == (1, 128, 128)
        radar_only = slim()({"S1GRD": data["S1GRD"]}, modalities=["S1GRD"])
    assert radar_only.isfinite().all()
    with pytest.raises(InputError, match="give one or more of these, not LULC"):
        slim()(data, modalities=("LULC",))


def test_smp_unet_takes_any_modalities_and_the_same_batch():
    config = SegmenterConfig(architecture="smp_unet", modalities=("S1GRD",))
    model = build_segmenter(config, PUBLISHED_STATISTICS).eval()
    assert next(model.parameters()).shape[1] == 2 and model.depth == 0
    data = batch(1, 224)
    with torch.inference_mode():
        logits = model(data)
    assert logits.shape == (1, 224, 224)
    assert torch.equal(logits, model({**data, "S2L2A": data["S2L2A"] * 2}))  # reads only its own
    with pytest.raises(InputError, match="multiples of 32"):
        model(batch(1, 144))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone": "terramind_v9"}, "backbone 'terramind_v9' is unknown; known are terramind_v1_tiny"),
        ({"modalities": ["S2L2A", "LULC"]}, "modalities 'LULC' is unknown"),
        ({"modalities": []}, "give one or more"),
        ({"modalities": ["S1GRD"], "refiner": True}, "needs S2L2A"),
        ({"modalities": ["S1GRD"], "stem_channels": [8]}, "needs S2L2A"),
        ({"refiner": True, "stem_channels": [8]}, "set refiner to false"),
        ({"architecture": "unet"}, "give stem_channels"),
        ({"architecture": "pixel", "stem_channels": [0]}, "from 1 to 512"),
        ({"architecture": "unet", "stem_channels": [8], "unet_channels": [12]}, "multiples of 8"),
        ({"stem_channels": [8], "context_channels": 0}, "context_channels is 0"),
        ({"decoder": "FCN"}, "known are UperNetDecoder, UNetDecoder"),
        ({"decoder": "UNetDecoder", "decoder_channels": 256}, "list of four"),
        ({"decoder": "UperNetDecoder", "decoder_channels": [1, 2, 3, 4]}, "one number"),
        ({"drop_path": 1.5}, "drop_path is 1.5"),
        ({"colour": 1}, "has no colour"),
    ],
)
def test_configurations_that_cannot_be_built_end_in_a_sentence(change: dict, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        SegmenterConfig.from_dict(change)


def test_configuration_survives_json_lists():
    assert SegmenterConfig.from_dict(SLIM.as_dict()) == SLIM
    assert isinstance(SLIM.as_dict()["modalities"], list)


def test_statistics_must_cover_the_modalities():
    optical = Statistics({"S2L2A": (0.0,) * 12}, {"S2L2A": (1.0,) * 12})
    with pytest.raises(ConfigError, match="also takes S1GRD, DEM"):
        build_segmenter(SLIM, optical)
    with pytest.raises(ConfigError, match="give them, or set standardisation"):
        build_segmenter(SLIM, None)
    model = build_segmenter(replace(SLIM, standardisation="terramind"), None)
    assert model.statistics == TERRAMIND_STATISTICS


@pytest.mark.parametrize(
    ("key", "shape", "sentence"),
    [
        ("S2L2A", (1, 13, 128, 128), r"takes \(batch, 12, height, width\)"),
        ("DEM", (1, 1, 64, 128), "all modalities need the same"),
        ("S1GRD", (2, 2, 128, 128), "all modalities need the same"),
    ],
)
def test_batches_of_wrong_shape_end_in_a_sentence(key: str, shape: tuple, sentence: str):
    with pytest.raises(InputError, match=sentence):
        slim()({**batch(1), key: torch.zeros(shape)})


class _Mean(torch.nn.Module):
    """A network of somebody's own: a weighted mean of the normalised bands."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.arange(float(bands)))

    def forward(self, inputs):
        return torch.einsum("nchw,c->nhw", torch.cat(list(inputs.values()), dim=1), self.weights)


def test_a_network_of_ones_own_is_fed_like_the_packages(tmp_path, monkeypatch):
    from cryosentinel.models.checkpoint import load_segmenter, save_checkpoint

    monkeypatch.setattr(segmenter_module, "_ADDED", {})
    with pytest.raises(ConfigError, match="mean_of_bands"):
        SegmenterConfig(architecture="mean_of_bands")
    add_architecture("mean_of_bands", lambda config: _Mean(3 if "DEM" in config.modalities else 2), 8)
    config = SegmenterConfig(architecture="mean_of_bands", modalities=("S1GRD", "DEM"))
    made, data = build_segmenter(config, PUBLISHED_STATISTICS), batch(2, 136, 144)
    mean, std = (torch.tensor(v["S1GRD"] + v["DEM"]) for v in (PUBLISHED_STATISTICS.means, PUBLISHED_STATISTICS.stds))
    normalised = (torch.cat([data["S1GRD"], data["DEM"]], 1) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.allclose(made(data), normalised[:, 1] + 2 * normalised[:, 2], atol=1e-5)
    with pytest.raises(InputError, match="multiples of 8"):
        made(batch(1, 132, 132))
    with pytest.raises(InputError, match="of your own"):
        made(data, ["DEM"])
    save_checkpoint(tmp_path / "own.ckpt", made)
    assert torch.equal(load_segmenter(tmp_path / "own.ckpt")(data), made(data))
    with pytest.raises(ConfigError, match="leave stem_channels out"):
        SegmenterConfig(architecture="mean_of_bands", stem_channels=(8,))
    with pytest.raises(ConfigError, match="pixel"):
        add_architecture("pixel", lambda config: _Mean(3))
    segmenter_module._ADDED.clear()  # another program, which has not added the name
    with pytest.raises(CheckpointError, match="mean_of_bands"):
        load_segmenter(tmp_path / "own.ckpt")


@pytest.mark.parametrize("size", [100, 112, 528])
def test_sizes_that_do_not_fit_end_in_a_sentence(size: int):
    with pytest.raises(InputError, match="multiples of 16 from 128 to 512"):
        slim()(batch(1, size))


def test_terramind_weights_from_a_local_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = {k: v.clone() for k, v in slim().net.encoder.state_dict().items()}
    # As published: more modalities and a decoder beside the encoder, and without the constant buffers.
    published = {k: v for k, v in encoder.items() if not k.endswith((".norm1.bias", "pos_emb"))}
    extra = {"decoder_norm.weight": torch.ones(3), "encoder_embeddings.untok_sen1rtc@224.mod_emb": torch.ones(1)}
    torch.save({**published, **extra}, tmp_path / "TerraMind.pt")
    model = build_segmenter(replace(SLIM, weights=str(tmp_path / "TerraMind.pt")), PUBLISHED_STATISTICS)
    for name, value in model.net.encoder.state_dict().items():
        assert torch.equal(value, encoder[name]), name

    name = "encoder.3.mlp.fc1.weight"
    torch.save({k: v for k, v in published.items() if k != name}, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"1 missing .*encoder\.3\.mlp\.fc1\.weight"):
        build_segmenter(replace(SLIM, weights=str(tmp_path / "short.pt")), PUBLISHED_STATISTICS)
    torch.save({**published, name: torch.ones(5, 7)}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"another shape .*is \(5, 7\), here \(768, 192\)"):
        build_segmenter(replace(SLIM, weights=str(tmp_path / "odd.pt")), PUBLISHED_STATISTICS)


def test_published_weights_are_named_by_size():
    assert published_weights("terramind_v1_large") == (
        "hf://ibm-esa-geospatial/TerraMind-1.0-large/TerraMind_v1_large.pt"
    )
    from terratorch.models.backbones.terramind.model.terramind_register import pretrained_weights

    for backbone in BACKBONES:
        where = pretrained_weights[backbone]
        assert published_weights(backbone) == f"hf://{where['hf_hub_id']}/{where['hf_hub_filename']}"


def test_terramind_statistics_are_terratorchs():
    from terratorch.models.backbones.terramind.model import terramind_register as library

    for modality, key in (("S2L2A", "untok_sen2l2a@224"), ("S1GRD", "untok_sen1grd@224"), ("DEM", "untok_dem@224")):
        assert list(TERRAMIND_STATISTICS.means[modality]) == library.v1_pretraining_mean[key]
        assert list(TERRAMIND_STATISTICS.stds[modality]) == library.v1_pretraining_std[key]


def test_building_is_silent(capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_segmenter(
            replace(SLIM, decoder="UperNetDecoder", decoder_channels=8, decoder_scale_modules=True),
            PUBLISHED_STATISTICS,
        )
    assert capfd.readouterr() == ("", "") and not caught
