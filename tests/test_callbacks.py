"""Averaged weights against a plain reference, and the snapshots' epochs."""

from __future__ import annotations

import pytest
import torch
from training_factory import SmallSegmenter, configuration, small_dataset, small_network  # noqa: F401

from cryosentinel.data.dataset import ChipDataModule
from cryosentinel.errors import ConfigError
from cryosentinel.models.checkpoint import load_checkpoint
from cryosentinel.sensors import Statistics
from cryosentinel.training.callbacks import EMA, CheckpointConfig, ema_decay, ema_warmup_steps
from cryosentinel.training.fit import fit
from cryosentinel.training.task import SegmentationTask


def test_decay_warms_up():
    assert [round(ema_decay(t, 0.999), 4) for t in (0, 1, 10, 10_000_000)] == [0.1, 0.1818, 0.55, 0.999]
    assert ema_decay(100, 0.5) == 0.5


def test_the_step_of_the_full_decay_is_known():
    for decay in (0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9995):
        step = ema_warmup_steps(decay)
        assert ema_decay(step - 1, decay) == decay and (step == 1 or ema_decay(step - 2, decay) < decay)
    assert ema_warmup_steps(0.999) == 8991


def test_snapshot_epochs():
    assert CheckpointConfig(snapshot_last=3).epochs(10, 4) == [8, 9, 10]
    assert CheckpointConfig(snapshot_last=3).epochs(4, 3) == [4]
    assert CheckpointConfig(snapshot_epochs=[30, 12, 14]).epochs(30, 12 - 1) == [12, 14, 30]
    assert CheckpointConfig(snapshot_epochs=[30, 12, 14]).epochs(20, 11) == [12, 14]
    assert CheckpointConfig(snapshot_epochs=[30, 12], snapshot_last=2).epochs(4, 1) == [3, 4]
    with pytest.raises(ConfigError, match=r"names 3, but the SWA phase of this run is epochs 5 to 10"):
        CheckpointConfig(snapshot_epochs=[3, 8]).epochs(10, 4)


@pytest.mark.usefixtures("small_network")
def test_average_equals_a_plain_loop(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    """What the snapshots hold is the exponential moving average of every step's weights and buffers, in float64."""
    history = []
    update = EMA.on_train_batch_end

    def watch(self, trainer, module, *rest):
        history.append({k: v.detach().double().clone() for k, v in module.state_dict().items()})
        update(self, trainer, module, *rest)

    monkeypatch.setattr(EMA, "on_train_batch_end", watch)
    run = fit(configuration(small_dataset, ema_decay=0.7), run_dir=tmp_path / "run")
    expected = history[0]
    for t, state in enumerate(history[1:], start=1):
        decay = min(0.7, (1 + t) / (10 + t))
        expected = {
            k: decay * expected[k] + (1 - decay) * v if not k.endswith("num_batches_tracked") else v
            for k, v in state.items()
        }
    snapshots = sorted(run.glob("checkpoints/step*.ckpt"))
    assert [s.name[:10] for s in snapshots] == ["step000012", "step000016"]
    found = load_checkpoint(snapshots[-1])
    assert found["epoch"] == 4 and found["weights"] == "ema"
    last = load_checkpoint(run / "checkpoints" / "last.ckpt")
    for name, value in expected.items():
        torch.testing.assert_close(found["state_dict"][name].double(), value, rtol=1e-5, atol=1e-7)
        assert torch.equal(last["current_model_state"][name].double(), history[-1][name])  # raw weights beside it
    # The average was what was validated: its score is in the file's name.
    assert snapshots[-1].name == f"step000016-iou{found['val_iou']:.3f}.ckpt"


@pytest.mark.usefixtures("small_network")
def test_validation_uses_the_average_and_scores_all_chips_at_once(tmp_path, small_dataset):  # noqa: F811
    """The score is the IoU summed over all batches with flips, of the averaged weights, by a plain loop."""
    run = fit(configuration(small_dataset, **{"data.batch_size": 2}), run_dir=tmp_path / "run")
    snapshot = load_checkpoint(max(run.glob("checkpoints/step*.ckpt")))
    model = SmallSegmenter(statistics=Statistics.from_dict(snapshot["hyper_parameters"]["statistics"])).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in snapshot["state_dict"].items()})
    data = ChipDataModule(small_dataset, batch_size=2, buffer=0.0)
    data.setup()
    counts = []
    with torch.no_grad():
        for batch in data.val_dataloader():
            flipped = {k: v.flip(-1) if v.ndim > 3 else v for k, v in batch.items()}
            water = ((model(batch) + model(flipped).flip(-1)) >= 0) & batch["valid"]
            label = (batch["label"] > 0.5) & batch["valid"]
            counts.append([int((water & label).sum()), int((water | label).sum())])
    intersection, union = map(sum, zip(*counts, strict=True))
    assert snapshot["val_iou"] == pytest.approx(intersection / union, abs=1e-6)
    mean_of_batches = sum(i / u for i, u in counts) / len(counts)
    assert len(counts) == 2 and abs(mean_of_batches - intersection / union) > 1e-4  # the test can tell them apart


@pytest.mark.usefixtures("small_network")
def test_the_best_epoch_is_kept(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    scores = iter([0.3, 0.7, 0.5, 0.7])
    score = SegmentationTask.on_validation_epoch_end

    def given(self):
        score(self)
        self.val_iou = next(scores)

    monkeypatch.setattr(SegmentationTask, "on_validation_epoch_end", given)
    run = fit(configuration(small_dataset), run_dir=tmp_path / "run")
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")
    assert (best["epoch"], best["val_iou"], best["weights"]) == (2, 0.7, "ema")
    assert {p.name for p in run.glob("checkpoints/step*")} == {"step000012-iou0.500.ckpt", "step000016-iou0.700.ckpt"}
