from __future__ import annotations

import pytest
import torch
from model_factory import batch, slim, toy

from cryosentinel.errors import ConfigError
from cryosentinel.models.tta import FLIPS, TURNS, flip_logits, undecided, view_logits


def test_mean_of_four_flips_in_logit_space_refiner_inside():
    data = batch(2)
    with torch.inference_mode():
        by_hand = []
        for axes in ([], [3], [2], [2, 3]):
            logits = slim()({k: v.flip(axes) for k, v in data.items()})
            by_hand.append(logits.flip([a - 1 for a in axes]))
        result = flip_logits(slim(), data)
    assert torch.allclose(result, torch.stack(by_hand).mean(0), atol=1e-5)
    assert not torch.allclose(result, by_hand[0], atol=1e-2)


def test_result_is_equivariant_and_one_flip_is_the_plain_pass():
    model, data = toy().eval(), batch(1)
    flipped = {k: v.flip(-1) for k, v in data.items()}
    with torch.inference_mode():
        assert torch.equal(flip_logits(model, data, flips=1), model(data))
        for flips in (2, 4):
            assert torch.allclose(
                flip_logits(model, data, flips).flip(-1), flip_logits(model, flipped, flips), atol=1e-5
            )


def test_other_entries_of_the_batch_pass_untouched():
    label = torch.rand(1, 128, 128)
    seen = []

    def model(data):
        seen.append(data["label"])
        return data["DEM"][:, 0]

    data = {**batch(1), "label": label, "row": torch.tensor([3])}
    assert torch.allclose(flip_logits(model, data), data["DEM"][:, 0], atol=1e-2)
    assert len(seen) == 4 and all(s is label for s in seen)


def test_adaptive_flips_are_for_undecided_images_alone():
    # Logits of +-6 are decided; in the second image a sixteenth of the pixels is not.
    sure = torch.full((3, 100, 100), 6.0)
    sure[1, :25, :25] = 0.1
    sure[2] *= -1
    assert undecided(sure).tolist() == [False, True, False]
    passes = []

    def model(data):
        passes.append(len(data["DEM"]))
        side = torch.linspace(-0.2, 0.2, 100)  # a bias that flips cancel
        return data["DEM"][:, 0] + side

    data = {"DEM": sure[:, None], "row": torch.arange(3)}
    adaptive, plain = flip_logits(model, data, adaptive=True), flip_logits(model, data)
    assert passes == [3, 1, 1, 1, 3, 3, 3, 3]
    assert torch.allclose(adaptive[1], plain[1]) and torch.allclose(plain, sure, atol=1e-6)
    assert torch.equal(adaptive[::2], model(data)[::2])
    passes.clear()
    assert torch.equal(flip_logits(model, {"DEM": sure[:1, None]}, adaptive=True), model({"DEM": sure[:1, None]}))
    assert passes == [1, 1]


def test_pixels_without_data_do_not_ask_for_flips():
    logits = torch.full((3, 10, 10), 6.0)
    logits[:, :, :5] = 0.1
    valid = torch.ones(3, 10, 10, dtype=torch.bool)
    valid[1, :, :5], valid[2] = False, False
    assert undecided(logits, valid).tolist() == [True, False, False]
    passes = []
    data = {"DEM": logits[1:2, None], "valid": valid[1:2]}
    flip_logits(lambda data: passes.append(1) or data["DEM"][:, 0], data, adaptive=True)
    assert passes == [1]


def test_three_flips_end_in_a_sentence():
    with pytest.raises(ConfigError, match="flips is 3"):
        flip_logits(toy(), batch(1), 3)


@pytest.mark.parametrize("views", [FLIPS, TURNS])
def test_every_view_is_turned_back(views):
    data = {**batch(1), "row": torch.tensor([3])}
    seen = list(view_logits(lambda given: given["DEM"][:, 0], data, views))
    assert len(seen) == 4 and all(torch.equal(one, data["DEM"][:, 0]) for one in seen)
    ramp = torch.arange(128.0).expand(1, 128, 128)  # a network that answers with the column in its own view
    columns = torch.stack(list(view_logits(lambda given: ramp, data, views)))
    expected = [ramp, ramp.flip(-1), ramp, ramp.flip(-1)] if views is FLIPS else [
        ramp.rot90(-k, (-2, -1)) for k in range(4)
    ]  # fmt: skip
    assert torch.equal(columns, torch.stack(expected))
