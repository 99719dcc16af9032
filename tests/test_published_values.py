"""Every value of the published recipe as the three configurations give it to the code, to be read beside the recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from cryosentinel.training.config import parse
from cryosentinel.training.fit import build

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALMATY = ["ile_alatau", "tien_shan_full", "zhetysu_alatau"]

#: What the three stages share.
SHARED = {
    "seed": 42,
    "data": {"batch_size": 8, "buffer": 0.02, "sanity": 0.3},
    "model": {
        "backbone": "terramind_v1_large", "modalities": ("S2L2A", "S1GRD", "DEM"), "merge_method": "mean",
        "decoder": "UperNetDecoder", "decoder_channels": 256, "decoder_scale_modules": True,
        "head_channels": (128, 64, 32),
    },
    "loss": {
        "bce": 0.5, "focal": 1.0, "dice": 1.0, "tversky": 0.5, "boundary": 0.5, "lovasz": 0.3, "focal_alpha": 0.25,
        "focal_gamma": 2.0, "smooth": 1.0, "pos_weight_max": 100.0, "boundary_unit": "pixel",
    },
    "optim": {"weight_decay": 1e-4, "betas": (0.9, 0.999), "decay_norm_and_bias": True, "min_lr_share": 0.0},
    "trainer": {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "accumulate_grad_batches": 1},
}  # fmt: skip
STAGES = {
    "terramind_v3_pretrain_v2": {
        "data": {"regions": None, "block_size": 0.25, "positive_ratio": 3.0, "positive_threshold": 0.002},
        "augment": {
            "jitter_p": 0.5, "jitter_s2": 0.05, "jitter_s1": 0.10, "jitter_dem": 0.02, "scale_p": 0.5,
            "scale_min": 0.75, "scale_max": 1.25, "copy_paste_p": 0.3, "copy_paste_min_pixels": 32, "mosaic_p": 0.15,
            "mosaic_jitter": 0.2,
        },
        "loss": {
            "tversky_alpha": 0.3, "tversky_beta": 0.7, "ohem_keep": 0.5, "ohem_min": 4096, "label_smoothing": 0.0,
            "dice_form": "flat",
        },
        "optim": {"lr": 4e-5, "backbone_mult": 0.2, "layer_decay": 0.85, "frozen_blocks": 0},
        "swa": {"start": 0.5, "lr": 1e-5, "anneal_epochs": 5, "layerwise": False},
        "ema_decay": 0.9995, "validation": {"flips": 4, "patience": 12}, "trainer": {"max_epochs": 30},
    },
    "terramind_v3_finetune_almaty_v1": {
        "data": {"regions": ALMATY, "block_size": 0.25},
        "augment": {},
        "loss": {
            "tversky_alpha": 0.25, "tversky_beta": 0.75, "ohem_keep": 0.7, "ohem_min": 2048, "label_smoothing": 0.1,
            "dice_form": "generalised",
        },
        "optim": {"lr": 5e-5, "backbone_mult": 0.05, "layer_decay": 0.85, "frozen_blocks": 6},
        "swa": {"start": 0.75}, "validation": {"flips": 1, "patience": 6}, "trainer": {"max_epochs": 20},
    },
    "terramind_v3_finetune_almaty_v2": {
        "data": {"regions": ALMATY, "block_size": 0.15, "positive_ratio": 3.0, "positive_threshold": 0.002},
        "augment": {
            "jitter_p": 0.4, "jitter_s2": 0.03, "jitter_s1": 0.07, "jitter_dem": 0.02, "scale_p": 0.4,
            "scale_min": 0.8, "scale_max": 1.2, "copy_paste_p": 0.2, "copy_paste_min_pixels": 32, "mosaic_p": 0.0,
        },
        "loss": {
            "tversky_alpha": 0.25, "tversky_beta": 0.75, "ohem_keep": 0.5, "ohem_min": 4096, "label_smoothing": 0.0,
            "dice_form": "flat",
        },
        "optim": {"lr": 6e-5, "backbone_mult": 0.25, "layer_decay": 0.9, "frozen_blocks": 0},
        "swa": {"start": 0.4, "lr": 1e-5, "anneal_epochs": 3, "layerwise": False},
        "ema_decay": 0.999, "validation": {"flips": 4, "patience": 15}, "trainer": {"max_epochs": 30},
        "checkpoints": {"snapshot_epochs": [12, 14, 17, 22, 30]},
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_published_values(stage):
    run, data, plain = build(*parse(CONFIGS / f"{stage}.yaml"))
    given = asdict(run)
    found = {**given, "data": plain["data"], "augment": plain["data"]["augment"], "swa": given["optim"]["swa"]}
    for expected in (SHARED, STAGES[stage]):
        for section, values in expected.items():
            if isinstance(values, dict):
                assert {key: found[section][key] for key in values} == values, section
            else:
                assert found[section] == values, section
    # The defaults are those of the published finetuning: what a file leaves out is not anybody's taste.
    assert data.batch_size == 8


def test_the_defaults_are_the_published_finetuning():
    from cryosentinel.training.config import RunConfig

    default, published = asdict(RunConfig("x")), STAGES["terramind_v3_finetune_almaty_v2"]
    for section in ("loss", "optim"):
        values = {**SHARED[section], **published[section]}
        assert {key: default[section][key] for key in values} == values
    assert default["optim"]["swa"] == published["swa"] and default["ema_decay"] == published["ema_decay"]
