"""How far the parts of a network moved between two checkpoints, against distances worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_factory import SmallSegmenter, configuration, small_dataset, small_network  # noqa: F401

from cryosentinel.errors import CheckpointError
from cryosentinel.models.checkpoint import load_checkpoint, write_checkpoint
from cryosentinel.models.segmenter import SegmenterConfig
from cryosentinel.training.optim import OptimConfig, SWAConfig, build_schedule
from cryosentinel.training.weight_change import beside_rates, movement, part_movement, plot_movement

EMBEDDING, BLOCK_0, BLOCK_1 = "net.encoder.embed.weight", "net.encoder.encoder.0.weight", "net.encoder.encoder.1.weight"
HEAD, GATE = "net.head.weight", "refiner.gate"


def before() -> dict[str, torch.Tensor]:
    return {
        EMBEDDING: torch.tensor([2.0]),
        BLOCK_0: torch.tensor([3.0, 4.0]),
        BLOCK_1: torch.tensor([[0.0, 6.0], [8.0, 0.0]]),
        HEAD: torch.tensor([1.0, 2.0]),
        GATE: torch.tensor(2.0),
    }


def after() -> dict[str, torch.Tensor]:
    """Block 0 does not move; block 1 by (0, 3, 0, 4); head and gate, the decoder together, by (2, 0) and 1."""
    return {
        **{name: value.clone() for name, value in before().items()},
        EMBEDDING: torch.tensor([1.5]),
        BLOCK_1: torch.tensor([[0.0, 9.0], [8.0, 4.0]]),
        HEAD: torch.tensor([3.0, 2.0]),
        GATE: torch.tensor(3.0),
    }


def test_distances_are_those_worked_out_by_hand():
    found = part_movement(before(), after(), before()).set_index("part")
    assert list(found.index) == ["encoder", "block 00", "block 01", "decoder"]
    assert found.parameters.to_dict() == {"encoder": 1, "block 00": 2, "block 01": 4, "decoder": 3}
    assert found.norm.tolist() == pytest.approx([2, 5, 10, 3])
    assert found.distance.tolist() == pytest.approx([0.5, 0, 5, 5**0.5])
    assert found.movement.tolist() == pytest.approx([0.25, 0, 0.5, 5**0.5 / 3])
    assert found.still.tolist() == [False, True, False, False]


def test_a_frozen_block_is_exactly_zero_and_the_smallest_step_is_not():
    moved = before()
    moved[BLOCK_0] = torch.nextafter(moved[BLOCK_0], torch.full((2,), 10.0))
    found = part_movement(before(), moved, before()).set_index("part")
    assert not found.still["block 00"] and 0 < found.movement["block 00"] < 1e-6
    assert found.still[["encoder", "block 01", "decoder"]].all() and found.distance["block 01"] == 0


def test_weights_that_leave_zero_have_no_relative_distance():
    start = {**before(), BLOCK_0: torch.zeros(2), BLOCK_1: torch.zeros(2, 2)}
    end = {**start, BLOCK_0: torch.ones(2)}
    found = part_movement(start, end, start).set_index("part")
    assert found.movement["block 00"] == float("inf") and found.movement["block 01"] == 0


def test_buffers_do_not_count():
    """Position embeddings, many and fixed, would hide how far the embeddings moved."""
    start = {**before(), "net.encoder.embed.pos_emb": torch.full((100,), 9.0)}
    end = {**after(), "net.encoder.embed.pos_emb": torch.full((100,), 9.0)}
    assert part_movement(start, end, before()).equals(part_movement(before(), after(), before()))


def test_low_precision_is_compared_without_loss():
    start, end = {HEAD: torch.full((10_000,), 0.1)}, {HEAD: torch.full((10_000,), 0.1) + 1e-8}
    exact = (end[HEAD].double() - start[HEAD].double()).norm()
    assert part_movement(start, end, [HEAD]).distance[0] == pytest.approx(float(exact), rel=1e-12)
    assert part_movement({HEAD: torch.ones(2).bfloat16()}, {HEAD: torch.ones(2) * 2}, [HEAD]).movement[0] == 1


def test_states_of_two_networks_are_refused():
    lacking = {name: value for name, value in after().items() if name != GATE}
    with pytest.raises(CheckpointError, match=r"^b\.ckpt lacks 1 of the weights .* with a\.ckpt \(refiner\.gate\); "):
        part_movement(before(), lacking, before(), names=("a.ckpt", "b.ckpt"))
    with pytest.raises(CheckpointError, match=r"^b\.ckpt lacks"):
        part_movement(lacking, before(), before(), names=("b.ckpt", "a.ckpt"))
    reshaped = {**after(), BLOCK_0: torch.ones(5)}
    with pytest.raises(CheckpointError, match=r"a\.ckpt has .*encoder\.0\.weight as \(2,\), b\.ckpt as \(5,\)"):
        part_movement(before(), reshaped, before(), names=("a.ckpt", "b.ckpt"))


@pytest.fixture
def small_skeleton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryosentinel.training.weight_change.build_segmenter", SmallSegmenter)


def write(path: Path, state: dict[str, torch.Tensor], **entries: object) -> Path:
    hyper = {"segmenter": SegmenterConfig().as_dict()}
    named = {f"model.{name}": value for name, value in state.items()}
    write_checkpoint(path, {"hyper_parameters": hyper, "state_dict": named, **entries})
    return path


def test_a_run_counts_with_its_raw_weights(small_skeleton: None, tmp_path: Path):
    """Beside an average that stood still, the raw weights say how far the run went; its buffers say nothing."""
    state = SmallSegmenter().state_dict()
    raw = {f"model.{k}": v * 1.5 if k.endswith("weight") else v + 1 for k, v in state.items()}
    start = write(tmp_path / "soup.ckpt", state)
    found = movement(start, write(tmp_path / "last.ckpt", state, current_model_state=raw))
    assert list(found.part) == ["encoder", "block 00", "block 01", "block 02", "decoder"]
    assert not found.still.any()
    weights = [f"net.encoder.encoder.0.{kind}" for kind in ("weight", "bias")]
    norm = sum(state[name].double().square().sum() for name in weights) ** 0.5
    moved = (0.25 * state[weights[0]].double().square().sum() + state[weights[1]].numel()) ** 0.5
    assert found.movement[1] == pytest.approx(float(moved / norm), rel=1e-5)
    counted = sum(p.numel() for p in SmallSegmenter().parameters())
    assert found.parameters.sum() == counted
    assert movement(start, start).still.all()


def test_checkpoints_that_cannot_be_compared_end_in_a_sentence(small_skeleton: None, tmp_path: Path):
    start = write(tmp_path / "soup.ckpt", SmallSegmenter().state_dict())
    bare = tmp_path / "bare.ckpt"
    write_checkpoint(bare, {"state_dict": load_checkpoint(start)["state_dict"]})
    assert movement(bare, start).still.all()
    with pytest.raises(CheckpointError, match=r"bare\.ckpt does not say what network it holds"):
        movement(start, bare)
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*gone\.ckpt"):
        movement(start, tmp_path / "gone.ckpt")
    other = write(tmp_path / "other.ckpt", {"net.decoder.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"other\.ckpt lacks 12 of the weights"):
        movement(start, other)


@pytest.mark.usefixtures("small_network", "small_skeleton")
def test_a_run_leaves_frozen_blocks_where_they_were(small_dataset: Path, tmp_path: Path):  # noqa: F811
    from cryosentinel.training.fit import fit

    torch.manual_seed(42)  # the run draws its initial weights from its seed
    start = write(tmp_path / "start.ckpt", SmallSegmenter().state_dict())
    changes = {"optim.frozen_blocks": 2, "trainer.max_epochs": 1, "trainer.limit_train_batches": 2}
    run = fit({**configuration(small_dataset, **changes), "seed": 42}, run_dir=tmp_path / "run")
    found = movement(start, run / "checkpoints" / "last.ckpt")
    assert list(found.part[found.still]) == ["encoder", "block 00", "block 01"]
    assert found.movement[~found.still].between(1e-6, 1).all()


def test_movement_beside_its_rates():
    config = OptimConfig(
        lr=0.5, backbone_mult=0.5, layer_decay=0.5, frozen_blocks=1, warmup_epochs=0, swa=SWAConfig(start=1)
    )
    found = beside_rates(part_movement(before(), after(), before()), config, steps=2).set_index("part")
    assert found.share.to_dict() == {"encoder": 0, "block 00": 0, "block 01": 0.25, "decoder": 1}
    # Two steps of a cosine: at its top, and half-way down. Block 1 changed by 5 over 4 weights, the decoder over 3.
    assert found.of_rates["block 01"] == pytest.approx((5 / 4**0.5) / (0.125 * 1.5))
    assert found.of_rates["decoder"] == pytest.approx((5 / 3) ** 0.5 / (0.5 * 1.5))
    assert found.of_rates[["encoder", "block 00"]].isna().all()


def test_adamw_moves_every_weight_by_about_its_rate():
    """What the column claims, on AdamW itself: gradients of one sign, whatever their size, give 1."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(1000))
    start = {HEAD: weight.detach().clone()}
    config = OptimConfig(lr=1e-3, warmup_epochs=3, weight_decay=0, swa=SWAConfig(start=1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": config.lr}], weight_decay=0)
    schedule = build_schedule(optimizer, config, steps_per_epoch=10, epochs=4)
    for _ in range(40):
        weight.grad = torch.linspace(1e-3, 1e3, 1000)
        optimizer.step()
        schedule.step()
    found = beside_rates(part_movement(start, {HEAD: weight.detach()}, [HEAD]), config, steps=10, epochs=4)
    assert found.of_rates[0] == pytest.approx(1, rel=1e-3)


def test_movement_can_be_drawn():
    found = part_movement(before(), after(), before())
    ax = plot_movement({"v1": found, "v2": found[["part", "movement", "still"]]})
    assert ax.get_yscale() == "log" and len(ax.lines) == 4
    crosses = ax.lines[1]
    assert list(crosses.get_xdata()) == [1] and crosses.get_marker() == "x"
    assert crosses.get_ydata()[0] < found.movement[~found.still].min()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["encoder", "00", "01", "decoder"]
    everything_still = part_movement(before(), before(), before())
    assert len(plot_movement({"v1": everything_still}).lines) == 2
