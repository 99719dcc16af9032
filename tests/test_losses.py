"""The loss against segmentation_models_pytorch and against plain float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from cryosentinel.errors import ConfigError
from cryosentinel.training.distance import DistanceCache, signed_distance
from cryosentinel.training.losses import TERMS, LossConfig, SixTermLoss, label_rim

SIZE = 48


def only(term: str, **constants: float) -> SixTermLoss:
    """The loss with one term of weight 1."""
    return SixTermLoss(LossConfig(**{t: float(t == term) for t in TERMS}, **constants))


def batch(seed: int = 0, valid_share: float = 0.9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four chips: small lake, large lake, no lake, all lake."""
    g = torch.Generator().manual_seed(seed)
    yy, xx = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    discs = [((yy - 20) ** 2 + (xx - 25) ** 2 < r * r).double() for r in (5, 15)]
    label = torch.stack([*discs, torch.zeros(SIZE, SIZE), torch.ones(SIZE, SIZE)])
    logits = torch.randn(4, SIZE, SIZE, generator=g, dtype=torch.float64) * 2 + (2 * label - 1)
    valid = torch.rand(4, SIZE, SIZE, generator=g) < valid_share
    return logits, label, valid


def value_and_gradient(function, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = logits.clone().requires_grad_()
    value = function(z)
    value.backward()
    return value.detach(), z.grad


def assert_same(loss: SixTermLoss, reference, logits, label, valid, tolerance: float = 1e-9) -> None:
    """Value and gradient of our loss and of a reference in autograd."""
    ours = value_and_gradient(lambda z: loss(z, label, valid)[0], logits)
    theirs = value_and_gradient(reference, logits)
    torch.testing.assert_close(ours[0], theirs[0].to(ours[0].dtype), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours[1], theirs[1], rtol=tolerance, atol=tolerance)


def smp_target(label: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return torch.where(valid, label, 255.0)


@pytest.mark.parametrize("valid_share", [1.0, 0.7])
def test_focal_dice_tversky_and_lovasz_equal_smp(valid_share):
    from segmentation_models_pytorch import losses as smp

    logits, label, valid = batch(valid_share=valid_share)
    peers = {
        "focal": smp.FocalLoss("binary", alpha=0.25, gamma=2.0, ignore_index=255),
        "dice": smp.DiceLoss("binary", smooth=1.0, ignore_index=255),
        "tversky": smp.TverskyLoss("binary", alpha=0.25, beta=0.75, smooth=1.0, ignore_index=255),
    }
    target = smp_target(label, valid)
    for term, peer in peers.items():
        assert_same(only(term), lambda z, p=peer: p(z[:, None], target[:, None]), logits, label, valid)
    # smp computes the Lovász weights in float32 whatever the input.
    lovasz = smp.LovaszLoss("binary", per_image=True, ignore_index=255)
    assert_same(only("lovasz"), lambda z: lovasz(z.float(), target.float()), logits, label, valid, 2e-6)


def test_bce_equals_smp_with_pos_weight_and_smoothing():
    from segmentation_models_pytorch import losses as smp

    logits, label, valid = batch()
    water = (label * valid).sum()
    pos_weight = ((valid.sum() - water) / water).clamp(1, 100)
    for smoothing in (0.0, 0.1):
        peer = smp.SoftBCEWithLogitsLoss(
            pos_weight=pos_weight, smooth_factor=smoothing or None, ignore_index=None, reduction="none"
        )
        loss = only("bce", ohem_keep=1.0, label_smoothing=smoothing)
        assert_same(loss, lambda z, p=peer: p(z, label)[valid].mean(), logits, label, valid)


@pytest.mark.parametrize(("keep", "minimum"), [(0.5, 100), (0.01, 500), (0.7, 2048), (0.5, 10**9)])
def test_ohem_keeps_the_hardest(keep, minimum):
    logits, label, valid = batch()
    water = (label * valid).sum()
    pos_weight = ((valid.sum() - water) / water).clamp(1, 100)

    def by_full_sort(z):
        losses = F.binary_cross_entropy_with_logits(z, label, pos_weight=pos_weight, reduction="none")[valid]
        count = min(len(losses), max(minimum, round(keep * len(losses))))
        return losses.sort(descending=True).values[:count].mean()

    assert_same(only("bce", ohem_keep=keep, ohem_min=minimum), by_full_sort, logits, label, valid)


def test_ohem_value_with_ties():
    logits = torch.zeros(1, 10, 10)
    label, valid = torch.zeros(1, 10, 10), torch.ones(1, 10, 10, dtype=torch.bool)
    loss = only("bce", ohem_keep=0.3, ohem_min=1)
    value, gradient = value_and_gradient(lambda z: loss(z, label, valid)[0], logits)
    assert value == pytest.approx(np.log(2))
    torch.testing.assert_close(gradient.sum(), torch.tensor(0.5))  # 30 pixels share 30 times 0.5 / 30


def test_generalised_dice_reference():
    logits, label, valid = batch()

    def reference(z):
        p, y = torch.sigmoid(z)[valid], label[valid]
        above = below = 0.0
        for prob, target in ((p, y), (1 - p, 1 - y)):
            weight = 1 / target.sum() ** 2
            above = above + weight * (prob * target).sum()
            below = below + weight * (prob + target).sum()
        return 1 - 2 * above / below

    assert_same(only("dice", dice_form="generalised"), reference, logits, label, valid)


@pytest.mark.parametrize("unit", ["pixel", "chip"])
def test_boundary_reference(unit):
    logits, label, valid = batch()
    maps = []
    for chip in label.numpy() > 0.5:
        if chip.all() or not chip.any():
            maps.append(np.zeros(chip.shape))
        else:
            maps.append(ndimage.distance_transform_edt(~chip) - (ndimage.distance_transform_edt(chip) - 1) * chip)
    distance = torch.from_numpy(np.stack(maps)) / (SIZE if unit == "chip" else 1)

    def reference(z):
        return (torch.sigmoid(z) * distance)[valid].mean()

    assert_same(only("boundary", boundary_unit=unit), reference, logits, label, valid, 1e-7)


def test_total_is_the_weighted_sum_and_terms_are_unweighted():
    logits, label, valid = batch()
    total, terms = SixTermLoss()(logits, label, valid)
    assert set(terms) == set(TERMS)
    expected = sum(w * terms[t] for t, w in zip(TERMS, (0.5, 1.0, 1.0, 0.5, 0.5, 0.3), strict=True))
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradient_by_finite_differences():
    logits, label, valid = batch()
    crop = (slice(None), slice(14, 22), slice(16, 24))
    z, y, v = logits[crop].clone().requires_grad_(), label[crop], valid[crop]
    loss = SixTermLoss(LossConfig(ohem_keep=1.0))
    assert torch.autograd.gradcheck(lambda x: loss(x, y, v)[0], z, eps=1e-6, atol=1e-6)


def test_float32_agrees_with_float64():
    logits, label, valid = batch()
    loss = SixTermLoss()
    exact = value_and_gradient(lambda z: loss(z, label, valid)[0], logits)
    single = value_and_gradient(lambda z: loss(z, label.float(), valid)[0], logits.float())
    torch.testing.assert_close(single[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single[1].double(), exact[1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dice_form", ["flat", "generalised"])
@pytest.mark.parametrize("label_value", [0.0, 1.0])
@pytest.mark.parametrize("valid_value", [True, False])
@pytest.mark.parametrize("size", [0.0, 1.0, 200.0])
def test_finite_on_empty_full_and_invalid(label_value, valid_value, size, dice_form):
    logits = size * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    label = torch.full((2, 16, 16), label_value)
    valid = torch.full((2, 16, 16), valid_value)
    loss = SixTermLoss(LossConfig(dice_form=dice_form))
    value, gradient = value_and_gradient(lambda z: loss(z, label, valid)[0], logits)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    if not valid_value:
        assert value == 0 and not gradient.any()
    elif size == 1.0:
        assert gradient.any()


def test_invalid_pixels_do_not_matter_even_if_not_a_number():
    logits, label, valid = batch(valid_share=0.8)
    loss = SixTermLoss()
    distance = torch.stack([torch.from_numpy(signed_distance(chip)) for chip in label.numpy()])
    first = value_and_gradient(lambda z: loss(z, label, valid, distance)[0], logits)
    spoiled, other = torch.where(valid, logits, torch.nan), torch.where(valid, label, 1 - label)
    second = value_and_gradient(lambda z: loss(z, other, valid, distance)[0], spoiled)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1][valid], second[1][valid]) and not second[1][~valid].any()


@pytest.mark.parametrize("width", [1, 2])
def test_pixels_of_a_labels_rim_do_not_matter(width):
    rng = np.random.default_rng(5)
    label = ndimage.binary_dilation(rng.random((2, 24, 24)) < 0.02, np.ones((1, 5, 5)))
    inner = np.stack([ndimage.binary_erosion(chip, np.ones((3, 3)), width, border_value=1) for chip in label])
    assert 0 < inner.sum() < label.sum()
    logits, y = torch.from_numpy(rng.normal(size=label.shape)), torch.from_numpy(label).double()
    valid = torch.from_numpy(rng.random(label.shape) < 0.9)
    assert torch.equal(label_rim(y, width), torch.from_numpy(label & ~inner)) and not label_rim(y, 0).any()
    distance = torch.from_numpy(np.stack([signed_distance(chip) for chip in label]))
    total, terms = SixTermLoss(LossConfig(ignore_rim=width))(logits, y, valid, distance)
    expected, of_each = SixTermLoss()(logits, y, valid & ~torch.from_numpy(label & ~inner), distance)
    assert total == expected and terms == of_each
    assert total != SixTermLoss()(logits, y, valid, distance)[0]


def test_order_better_predictions_cost_less():
    _, label, valid = batch()
    sign = 2 * label - 1
    noisy = sign + 1.5 * torch.randn(label.shape, generator=torch.Generator().manual_seed(2))
    ranked = [6 * sign, noisy, -6 * sign]
    for term in TERMS:
        values = [only(term)(z, label, valid)[0].item() for z in ranked]
        assert values[0] < values[1] < values[2], term


def test_tversky_punishes_misses_more_than_false_alarms():
    label = torch.zeros(1, 20, 20)
    label[:, 5:15, 5:15] = 1
    valid = torch.ones_like(label, dtype=torch.bool)
    missed, added = label.clone(), label.clone()
    missed[:, 5:10, 5:15] = 0
    added[:, 15:20, 5:15] = 1
    loss = only("tversky")
    cost = [loss(20 * (2 * pred - 1), label, valid)[0].item() for pred in (missed, added)]
    assert cost[0] > cost[1]


def test_half_precision_logits_get_half_precision_gradients():
    logits, label, valid = batch()
    z = logits.to(torch.bfloat16).requires_grad_()
    SixTermLoss()(z, label, valid)[0].backward()
    assert z.grad.dtype == torch.bfloat16 and torch.isfinite(z.grad).all()


def test_distance_cache_follows_flips_and_notices_changes():
    _, label, _ = batch()
    rows = torch.tensor([7, 3, 11, 12])
    cache = DistanceCache()
    cache.remember(rows, label)
    for turned in (label, label.flip(-1), label.flip(-2), label.flip(-1, -2), label.transpose(-1, -2)):
        expected = np.stack([signed_distance(chip) for chip in turned.numpy()])
        np.testing.assert_array_equal(cache.lookup(rows, turned).numpy(), expected)
    assert cache.misses == 0 and cache.hits == 10  # two chips of four have a shoreline
    pasted = label.clone()
    pasted[0, :4, :4] = 1
    np.testing.assert_array_equal(cache.lookup(rows, pasted)[0].numpy(), signed_distance(pasted[0].numpy()))
    assert cache.misses == 1
    cache.lookup(rows, label)
    assert cache.misses == 1  # the chip's own label is still the one that is kept


def test_distance_cache_is_bounded():
    _, label, _ = batch()
    one = SIZE * SIZE * 5 / 1e6
    cache = DistanceCache(megabytes=3.5 * one)
    for row in range(10):
        cache.remember(torch.tensor([row]), label[:1])
    assert cache._bytes <= cache.capacity
    cache.lookup(torch.tensor([0]), label[:1])
    assert cache.misses == 1


def test_settings_out_of_range_are_refused():
    for wrong in (
        {"ohem_keep": 0.0},
        {"ignore_rim": -1},
        {"label_smoothing": 0.7},
        {"dice_form": "round"},
        {"bce": -1.0},
    ):
        with pytest.raises(ConfigError, match="loss"):
            LossConfig(**wrong)


@pytest.mark.parametrize(("water", "expected"), [(1, 100.0), (64, 63.0), (4095, 1.0)])
def test_the_weight_of_water_stays_within_its_bounds(water, expected):
    """Negatives over positives: 4095, 63 and 0.0002."""
    label = (torch.arange(4096) < water).float().view(1, 64, 64)
    logits, valid = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.ones(1, 64, 64).bool()
    value = only("bce", ohem_keep=1.0)(logits, label, valid)[0]
    peer = F.binary_cross_entropy_with_logits(logits, label, pos_weight=torch.tensor(expected))
    assert value.item() == pytest.approx(peer.item(), rel=1e-5)


def test_mining_counts_the_pixels_of_the_default_share():
    """Of 10,000 valid pixels the hardest 5,000, by default."""
    label, valid = torch.zeros(1, 100, 100), torch.ones(1, 100, 100, dtype=torch.bool)
    logits = torch.randn(1, 100, 100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    only("bce")(logits, label, valid)[0].backward()
    assert int((logits.grad != 0).sum()) == 5000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("ohem_min", [1, 10**9])
def test_a_gpu_computes_the_same_loss(ohem_min):
    logits, label, valid = batch()
    loss = SixTermLoss(LossConfig(ohem_min=ohem_min))
    here = value_and_gradient(lambda z: loss(z, label, valid)[0], logits)
    there = value_and_gradient(lambda z: loss(z, label.cuda(), valid.cuda())[0], logits.cuda())
    for ours, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-9, atol=1e-12)
