"""Augmentations: image, label and valid mask move together, and everything random follows from the seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryosentinel.data.augment import AugmentConfig, BatchAugment
from cryosentinel.errors import ConfigError
from cryosentinel.sensors import PUBLISHED_STATISTICS

NONE = AugmentConfig(flip_p=0, jitter_p=0, scale_p=0, copy_paste_p=0, mosaic_p=0)
SHAPES = {"S2L2A": 12, "S1GRD": 2, "DEM": 1}


def make_batch(count: int = 8, size: int = 32) -> dict[str, torch.Tensor]:
    """Every image band repeats the label's pattern, so that what moves apart shows."""
    rng = torch.Generator().manual_seed(0)
    label = (torch.rand(count, size, size, generator=rng) < 0.3).float()
    valid = torch.rand(count, size, size, generator=rng) < 0.9
    chip = torch.arange(count).float()[:, None, None]
    pattern = {"S2L2A": 1000 + 2000 * label + chip, "S1GRD": -10 - 8 * label - chip, "DEM": 4000 + 100 * label + chip}
    batch = {name: pattern[name][:, None].repeat(1, bands, 1, 1) for name, bands in SHAPES.items()}
    return {**batch, "label": label, "valid": valid, "row": torch.arange(count) + 40}


def patterns_agree(batch: dict[str, torch.Tensor]) -> bool:
    lake = batch["label"] > 0.5
    return bool(
        ((batch["S2L2A"] > 2000) == lake[:, None]).all()
        and ((batch["S1GRD"] < -17.5) == lake[:, None]).all()
        and ((batch["DEM"] > 4050) == lake[:, None]).all()
    )


def test_nothing_asked_changes_nothing():
    batch = make_batch()
    out = BatchAugment(NONE)(batch)
    assert all(torch.equal(out[name], batch[name]) for name in batch)
    assert not out["flips"].any() and not out["reshaped"].any()


def test_everything_follows_from_seed_epoch_and_rows_and_the_input_stays():
    batch, config = make_batch(), AugmentConfig(rotate_p=0.5, mosaic_p=0.15)
    before = {name: value.clone() for name, value in batch.items()}
    first = BatchAugment(config, seed=1)(batch, epoch=3)
    assert all(torch.equal(batch[name], before[name]) for name in batch)
    torch.rand(5)  # the global generator has no say
    again = BatchAugment(config, seed=1)(batch, epoch=3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    others = [BatchAugment(config, 2)(batch, 3), BatchAugment(config, 1)(batch, 4)]
    others.append(BatchAugment(config, 1)({**batch, "row": batch["row"] + 1}, 3))
    for other in others:
        assert not torch.equal(first["S2L2A"], other["S2L2A"])


def test_crops_are_windows_of_their_chips_and_mostly_show_a_lake():
    batch = make_batch(16)
    batch["label"][:8] = 0
    batch["label"][8:] = 0
    batch["label"][8:, 3, 29] = 1  # one pixel, in a corner
    batch["DEM"] = torch.arange(1024.0).reshape(1, 1, 32, 32).repeat(16, 1, 1, 1)
    batch["S2L2A"] = torch.arange(16.0)[:, None, None, None].repeat(1, 12, 32, 32)
    out = BatchAugment(replace(NONE, crop=8, crops_per_chip=20, crop_lake_p=0.9))(batch)
    assert out["label"].shape == (320, 8, 8) and out["reshaped"].all()
    assert torch.equal(out["row"], batch["row"].repeat_interleave(20))
    corners = set()
    for k in range(320):
        chip = k // 20
        y, x = divmod(int(out["DEM"][k, 0, 0, 0]), 32)
        corners.add((y, x))
        for name in (*SHAPES, "label", "valid"):
            assert torch.equal(out[name][k], batch[name][chip, ..., y : y + 8, x : x + 8])
    assert len(corners) > 100
    shown = (out["label"] > 0).flatten(1).any(1)
    assert not shown[:160].any() and 0.85 < shown[160:].float().mean() < 1


def test_a_crop_larger_than_the_chip_is_refused():
    with pytest.raises(ConfigError, match="crop is 64, but the chips are 32 x 32"):
        BatchAugment(replace(NONE, crop=64))(make_batch())
    with pytest.raises(ConfigError, match="crops_per_chip 2"):
        AugmentConfig(crops_per_chip=2)


def test_flips_move_all_alike_and_say_which():
    batch = make_batch(64)
    out = BatchAugment(replace(NONE, flip_p=0.5))(batch)
    assert set(out["flips"].tolist()) == {0, 1, 2, 3} and not out["reshaped"].any()
    for name in (*SHAPES, "label", "valid"):
        for k, flips in enumerate(out["flips"].tolist()):
            axes = [axis for bit, axis in ((1, -1), (2, -2)) if flips & bit]
            assert torch.equal(out[name][k], batch[name][k].flip(axes))


def test_turns_keep_the_pattern():
    batch = make_batch()
    out = BatchAugment(replace(NONE, rotate_p=1.0))(batch)
    assert torch.equal(out["valid"], batch["valid"].rot90(1, (-2, -1))) and patterns_agree(out)
    assert out["reshaped"].all()
    oblong = {n: v[..., :16] if v.dim() > 1 else v for n, v in batch.items()}
    assert torch.equal(BatchAugment(replace(NONE, rotate_p=1.0))(oblong)["label"], oblong["label"])


def test_jitter_stays_within_its_amounts_and_touches_no_label():
    batch = make_batch(32)
    batch["S2L2A"][0, 0, 0, 0] = 16_000
    config = replace(NONE, jitter_p=0.5, jitter_s2=0.05, jitter_s1=0.1, jitter_dem=0.02)
    out = BatchAugment(config)(batch)
    gain = out["S2L2A"] / batch["S2L2A"]
    assert gain.min() >= 0.95 - 1e-5 and gain.max() <= 1.05 + 1e-5 and out["S2L2A"].max() <= 16_000
    gains = gain[1:].flatten(2)  # one a band and chip
    assert (gains - gains[..., :1]).abs().max() < 1e-4 and (gains[..., 0] - 1).abs().max() > 0.025
    assert (gains[..., 0].amax(1) - gains[..., 0].amin(1)).max() > 0.01  # bands differ
    untouched = (out["DEM"] == batch["DEM"]).all(-1).all(-1).all(-1)
    assert 4 < untouched.sum() < 28
    for modality, amount in (("S1GRD", 0.1), ("DEM", 0.02)):
        shift = out[modality] - batch[modality]
        limit = amount * torch.tensor(PUBLISHED_STATISTICS.stds[modality])[:, None, None]
        assert (shift.abs() <= limit + 1e-3).all() and shift[~untouched].abs().max() > 0.5 * limit.max()
        spread = shift.amax((-2, -1)) - shift.amin((-2, -1))
        assert spread.max() < 1e-2  # one offset a band, no noise
    assert torch.equal(out["label"], batch["label"]) and torch.equal(out["valid"], batch["valid"])


def test_zoom_moves_label_and_image_together_and_bares_an_invalid_rim():
    size = 64
    batch = make_batch(1, size)
    block = torch.zeros(size, size)
    block[24:40, 24:40] = 1
    batch["label"][0], batch["valid"][0] = block, True
    batch["S2L2A"][0] = 1000 + 2000 * block
    out = BatchAugment(replace(NONE, scale_p=1.0, scale_min=0.5, scale_max=0.5))(batch)
    assert out["label"].sum() == pytest.approx(16 * 16 / 4, rel=0.15) and set(out["label"].unique().tolist()) == {0, 1}
    assert out["valid"].sum() == pytest.approx(size * size / 4, rel=0.15)
    assert not out["valid"][0, :14].any() and out["valid"][0, 20:44, 20:44].all()
    assert ((out["S2L2A"][0, 0] > 2000) == (out["label"][0] > 0.5)).all() and out["reshaped"].all()
    large = BatchAugment(replace(NONE, scale_p=1.0, scale_min=2.0, scale_max=2.0))(batch)
    assert large["valid"].float().mean() > 0.97  # nothing bared
    assert torch.isfinite(large["S2L2A"]).all()
    differ = (large["S2L2A"][0, 0] > 2000) != (large["label"][0] > 0.5)
    assert differ.float().mean() < 0.02  # the blurred shoreline only


def test_an_invalid_pixel_spreads_and_never_vanishes_under_zoom():
    batch = make_batch(1, 32)
    batch["valid"][:] = True
    batch["valid"][0, 16, 16] = False
    batch["S2L2A"][0, :, 16, 16] = 16_000  # what a fill may hold
    batch["S2L2A"][0][batch["S2L2A"][0] < 16_000] = 1000
    for epoch in range(10):
        out = BatchAugment(replace(NONE, scale_p=1.0, scale_min=0.8, scale_max=1.2))(batch, epoch)
        assert (out["S2L2A"][0, 0][out["valid"][0]] - 1000).abs().max() < 20


def test_pasted_lakes_come_with_all_modalities_at_the_ground_they_lie_on():
    batch = make_batch(2, 16)
    batch["label"][:] = 0
    batch["label"][1, 4:12, 4:12] = 1
    batch["valid"][:] = True
    batch["valid"][1, 4] = False  # the donor's invalid row is not pasted
    batch["valid"][0, 6, 6] = False  # what is pasted over becomes valid
    batch["DEM"][0], batch["DEM"][1] = 3000.0, 5000.0
    out = BatchAugment(replace(NONE, copy_paste_p=1.0))(batch)
    pasted = torch.zeros(16, 16, dtype=torch.bool)
    pasted[5:12, 4:12] = True
    assert torch.equal(out["label"][0] > 0.5, pasted) and out["reshaped"].tolist() == [True, False]
    for name in ("S2L2A", "S1GRD"):
        assert torch.equal(out[name][0], torch.where(pasted, batch[name][1], batch[name][0]))
    assert torch.equal(out["DEM"][0], torch.full_like(out["DEM"][0], 3000.0))
    assert out["valid"][0].all()
    assert torch.equal(out["S2L2A"][1], batch["S2L2A"][1])  # no donor for the only lake
    few = BatchAugment(replace(NONE, copy_paste_p=1.0, copy_paste_min_pixels=57))(batch)  # it has 56
    assert not few["reshaped"].any() and torch.equal(few["label"], batch["label"])


def test_a_mosaic_is_made_of_whole_parts_of_chips():
    batch = make_batch(8)
    out = BatchAugment(replace(NONE, mosaic_p=1.0))(batch)
    assert patterns_agree(out) and out["reshaped"].all()
    source = (out["S2L2A"][:, 0] - 1000 - 2000 * out["label"]).round().long()  # which chip a pixel came from
    assert (source[:, 0, 0] == torch.arange(8)).all()
    for k in range(8):
        assert torch.equal(source[k, :9, :9], torch.full((9, 9), k))
        parts = {int(source[k, r, c]) for r in (0, -1) for c in (0, -1)}
        assert set(source[k].unique().tolist()) == parts
    rows, columns = torch.arange(32)[:, None].expand(32, 32), torch.arange(32)[None].expand(32, 32)
    assert torch.equal(out["valid"], batch["valid"][source, rows, columns])
    alone = BatchAugment(replace(NONE, mosaic_p=1.0))(make_batch(1))
    assert not alone["reshaped"].any()


def test_settings_out_of_range_are_refused():
    for options, says in (
        ({"flip_p": 1.5}, "flip_p is 1.5"),
        ({"jitter_s2": -0.1}, "jitter_s2 is -0.1"),
        ({"scale_min": 1.3}, "1.3..1.2"),
        ({"mosaic_jitter": 0.5}, "mosaic_jitter"),
        ({"copy_paste_min_pixels": 0}, "copy_paste_min_pixels"),
    ):
        with pytest.raises(ConfigError, match=says):
            AugmentConfig(**options)
