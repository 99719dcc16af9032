"""Two processes against one, the network's names, and what the task's own hooks do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from training_factory import SmallSegmenter, configuration, small_dataset  # noqa: F401

from cryosentinel.models.checkpoint import load_checkpoint
from cryosentinel.models.segmenter import SegmenterConfig
from cryosentinel.training.fit import fit
from cryosentinel.training.logs import plot_rates
from cryosentinel.training.losses import LossConfig, SixTermLoss
from cryosentinel.training.optim import OptimConfig, SWAConfig, build_optimizer, learning_rate, rate_at
from cryosentinel.training.task import SegmentationTask, step_seed


class Frozen(SmallSegmenter):
    """Without dropout and with frozen batch statistics: the same function however the batch is spread."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.net.decoder[1] = nn.Identity()
        self.net.decoder[0].eval()  # Lightning leaves modes as they are


def _half_of_the_loss(rank: int, meeting: Path, shared: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    part = slice(0, 1) if rank == 0 else slice(1, 4)  # unequal shares
    z = shared["logits"][part].clone().requires_grad_()
    total, terms = SixTermLoss(shared["config"])(z, shared["label"][part], shared["valid"][part])
    total.backward()
    shared["results"][rank] = (total.item(), {k: v.item() for k, v in terms.items()}, z.grad / 2)  # as DDP averages
    dist.destroy_process_group()


@pytest.mark.parametrize("dice_form", ["flat", "generalised"])
def test_loss_of_two_ranks_is_the_loss_of_the_batch(dice_form, tmp_path):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 40, 40, generator=generator, dtype=torch.float64)
    label = torch.zeros(4, 40, 40)
    label[1, 5:20, 5:20] = label[2, 10:14, 3:30] = 1
    valid = torch.rand(4, 40, 40, generator=generator) < 0.9
    config = LossConfig(dice_form=dice_form, ohem_min=100)
    z = logits.clone().requires_grad_()
    whole, terms = SixTermLoss(config)(z, label, valid)
    whole.backward()
    meeting, context = tmp_path / "meeting", multiprocessing.get_context("fork")
    results = context.Manager().dict()
    shared = {"logits": logits, "label": label, "valid": valid, "config": config, "results": results}
    processes = [context.Process(target=_half_of_the_loss, args=(rank, meeting, shared)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    for rank in range(2):
        assert results[rank][0] == pytest.approx(whole.item(), rel=1e-12)
        assert results[rank][1] == pytest.approx({k: v.item() for k, v in terms.items()}, rel=1e-12)
    gradient = torch.cat([results[0][2], results[1][2]])
    torch.testing.assert_close(gradient, z.grad, rtol=1e-10, atol=1e-14)


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
def test_two_processes_train_as_one(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cryosentinel.training.task.build_segmenter", Frozen)
    torch.set_num_threads(1)
    # In double precision, because Adam's first steps have the size of the learning rate whatever the gradient's: where
    # it is next to nothing, rounding in single precision decides their direction.
    config = configuration(small_dataset, **{"data.augment": None, "trainer.max_epochs": 2})
    one = fit(config, {"data.batch_size": 4, "trainer.limit_train_batches": 3}, tmp_path / "one")
    changes = {"data.batch_size": 2, "trainer.limit_train_batches": 3, "trainer.strategy": "ddp_fork"}
    two = fit(config, {**changes, "trainer.devices": 2}, tmp_path / "two")
    first, second = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, two))
    assert first["global_step"] == second["global_step"] == 6
    for key in ("state_dict", "current_model_state"):  # the average and the raw weights
        for name, value in first[key].items():
            torch.testing.assert_close(second[key][name], value, rtol=1e-7, atol=1e-9)
    rows = [(run / "logs" / "metrics.csv").read_text().splitlines() for run in (one, two)]
    for mine, theirs in zip(rows[0][1:], rows[1][1:], strict=True):
        assert [float(x) for x in mine.split(",")] == pytest.approx([float(x) for x in theirs.split(",")], rel=1e-7)


def test_every_step_has_its_own_seed():
    seeds = {step_seed(s, e, b, r) for s in (17, 42) for e in range(5) for b in range(50) for r in range(2)}
    assert len(seeds) == 1000 and step_seed(42, 1, 2, 0) == step_seed(42, 1, 2, 0)


def test_names_survive_compilation(monkeypatch):
    monkeypatch.setattr("cryosentinel.training.task.build_segmenter", SmallSegmenter)
    names = []
    for compiled in (False, True):
        task = SegmentationTask(SegmenterConfig().as_dict(), compile_model=compiled)
        task.configure_model()
        names.append(list(task.state_dict()))
    assert names[0] == names[1] and all(n.startswith("model.net.") for n in names[0])


def test_blocks_are_frozen_before_a_strategy_looks(monkeypatch):
    monkeypatch.setattr("cryosentinel.training.task.build_segmenter", SmallSegmenter)
    task = SegmentationTask(SegmenterConfig().as_dict(), optim=OptimConfig(frozen_blocks=2))
    task.configure_model()
    frozen = {n for n, p in task.named_parameters() if not p.requires_grad}
    assert "model.net.encoder.encoder.1.weight" in frozen and "model.net.encoder.encoder.2.weight" not in frozen


def test_layerwise_rates_survive_compilation(monkeypatch):
    """The compiled task's optimiser holds each parameter at the rate that it has in the plain one."""
    monkeypatch.setattr("cryosentinel.training.task.build_segmenter", SmallSegmenter)
    rates = []
    for compiled in (False, True):
        task = SegmentationTask(SegmenterConfig().as_dict(), optim=OptimConfig(frozen_blocks=1), compile_model=compiled)
        task.configure_model()
        assert (task.model._compiled_call_impl is not None) is compiled
        optimizer = build_optimizer(task.model, task.depth, task.optim)
        by_parameter = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        rates.append({name: by_parameter.get(id(p)) for name, p in task.named_parameters()})
    assert rates[0] == rates[1]
    found = [rates[1][f"model.net.encoder.encoder.{block}.weight"] for block in range(3)]
    assert found[0] is None and found[1:] == pytest.approx([6e-5 * 0.25 * 0.9**2, 6e-5 * 0.25 * 0.9])
    assert rates[1]["model.net.decoder.2.weight"] == 6e-5


def test_a_run_follows_the_schedule_into_the_swa_phase(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    """Every group's rate at every step of a real run; the phase's own rate is reached, and the log says so."""
    monkeypatch.setattr("cryosentinel.training.task.build_segmenter", SmallSegmenter)
    used: list[dict[str, float]] = []

    def watch(self, *_):
        used.append({group["name"]: group["lr"] for group in self.trainer.optimizers[0].param_groups})

    monkeypatch.setattr(SegmentationTask, "on_before_optimizer_step", watch)
    run = fit(configuration(small_dataset), run_dir=tmp_path / "run")
    config = OptimConfig(lr=1e-2, warmup_epochs=1, swa=SWAConfig(start=0.5, lr=1e-3, anneal_epochs=1))
    assert len(used) == 16 and len(used[0]) == 5
    for step, rates in enumerate(used):
        peaks = {part: learning_rate(part, 3, config) for part in rates}
        assert rates == pytest.approx({part: rate_at(step, peak, config, 4, 4) for part, peak in peaks.items()})
    assert used[4] != pytest.approx(used[8])
    assert list(used[-1].values()) == pytest.approx([1e-3] * 5)  # every group, as torch's SWALR
    curve, dots = plot_rates(run).lines
    np.testing.assert_allclose(curve.get_ydata(), [rates["decoder"] for rates in used])
    np.testing.assert_allclose(dots.get_xydata(), [(step, used[step - 1]["decoder"]) for step in (4, 8, 12, 16)])


@pytest.fixture
def small_task() -> SegmentationTask:
    """A task with a small network, outside of any trainer, on the terms that look at labels pixel by pixel."""
    torch.manual_seed(0)
    loss = LossConfig(boundary=0.0, ohem_min=64)
    optim = OptimConfig(lr=3e-2, backbone_mult=1.0, layer_decay=1.0, weight_decay=0.0)
    task = SegmentationTask(SegmenterConfig().as_dict(), None, loss, optim, val_flips=1, model=SmallSegmenter())
    task._trainer = SimpleNamespace(world_size=1, global_rank=0)
    task.log = lambda *_, **__: None
    return task


def chips_with_lakes() -> dict[str, torch.Tensor]:
    """Two chips of 32 px whose lakes are dark in the infrared, a tenth of the pixels invalid."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(2, 32, 32)
    label[0, 8:20, 5:25] = label[1, 20:30, 2:12] = 1
    s2 = torch.rand(2, 12, 32, 32, generator=generator) * 500 + 1500
    s2[:, 10] -= 1200 * label
    return {
        "S2L2A": s2, "S1GRD": torch.full((2, 2, 32, 32), -12.0), "DEM": torch.full((2, 1, 32, 32), 4000.0),
        "label": label, "valid": torch.rand(2, 32, 32, generator=generator) < 0.9, "row": torch.arange(2),
    }  # fmt: skip


def test_invalid_pixels_count_neither_in_training_nor_in_validation(small_task):
    batch = chips_with_lakes()
    wrong = {**batch, "label": torch.where(batch["valid"], batch["label"], 1 - batch["label"])}
    small_task.eval()  # no dropout
    assert small_task.training_step(batch, 0) == small_task.training_step(wrong, 0)
    for some in (batch, wrong):
        small_task.on_validation_epoch_start()
        small_task.validation_step(some, 0)
        if some is batch:
            counts = small_task._confusion.tolist()
    assert counts == small_task._confusion.tolist()
    everywhere = {**wrong, "valid": torch.ones_like(batch["valid"])}
    assert small_task.training_step(batch, 0) != small_task.training_step(everywhere, 0)


def test_one_batch_can_be_overfitted(small_task):
    """A loop that cannot learn two chips by heart is broken somewhere: loss, gradient, optimiser or frozen weights."""
    batch = chips_with_lakes()
    optimizer = build_optimizer(small_task.model, 3, small_task.optim)
    small_task.model.net.decoder[1].p = 0.0
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = small_task.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    small_task.on_validation_epoch_start()
    small_task.validation_step(batch, 0)
    intersection, union = small_task._confusion.tolist()
    assert losses[-1] < 0.2 * losses[0] and intersection / union > 0.95
