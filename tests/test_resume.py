"""A run that is stopped anywhere goes on to the same bits as one that was not."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_factory import configuration, small_dataset, small_network  # noqa: F401

from cryosentinel.errors import CheckpointError
from cryosentinel.models.checkpoint import load_checkpoint
from cryosentinel.training.callbacks import RunFiles
from cryosentinel.training.fit import fit
from cryosentinel.training.resume import state_to_resume
from cryosentinel.training.task import SegmentationTask

pytestmark = pytest.mark.usefixtures("small_network", "no_drawing")
BATCHES, EPOCHS = 4, 4


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryosentinel.training.fit._describe", lambda *_: None)


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it, and files stay as they are."""


def assert_equal(one: Any, two: Any, where: str = "") -> None:
    """Equal to the last bit, through all containers."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            if key != "seconds":
                assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    else:
        assert one == two, where


def assert_same_run(one: Path, two: Path) -> None:
    names = [sorted(p.name for p in (run / "checkpoints").iterdir() if ".part" not in p.name) for run in (one, two)]
    assert names[0] == names[1]
    for name in names[0]:
        first, second = (load_checkpoint(run / "checkpoints" / name) for run in (one, two))
        if name == "last.ckpt":  # Lightning counts restarts and half-done validation batches in its progress
            first.pop("loops"), second.pop("loops")
        assert_equal(first, second, name)
    tables = [list(csv.DictReader((run / "logs" / "metrics.csv").open())) for run in (one, two)]
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_dataset):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        from training_factory import SmallSegmenter

        patch.setattr("cryosentinel.training.task.build_segmenter", SmallSegmenter)
        return fit(configuration(small_dataset), run_dir=tmp_path_factory.mktemp("whole") / "run")


def stop_at(patch: pytest.MonkeyPatch, hook: str, epoch: int, batch: int | None = None) -> None:
    """Kill the run when the task's hook is called at a place."""
    original = getattr(SegmentationTask, hook)

    def stopping(self, *args):
        here = self.trainer.fit_loop.epoch_loop.batch_idx if batch is not None else None
        if (self.current_epoch, here) == (epoch, batch):
            raise Killed
        return original(self, *args)

    patch.setattr(SegmentationTask, hook, stopping)


def interrupt(config: dict, run: Path, *places: tuple) -> None:
    """Kill the run at each place in turn, going on in between."""
    for place in places:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, *place)
            with pytest.raises(Killed):
                fit(config, run_dir=run)


@pytest.mark.parametrize(
    ("place", "every"),
    [
        (("training_step", 0, 2), 0),  # nothing was saved yet
        (("training_step", 0, 2), 1),
        (("training_step", 1, 0), 1),
        (("training_step", 2, 3), 0),
        (("training_step", 2, 3), 2),
        (("validation_step", 1, 3), 1),
        (("on_train_epoch_end", 2), 1),
    ],
    ids=str,
)
def test_goes_on_bit_for_bit(tmp_path, small_dataset, whole, place, every):  # noqa: F811
    config = configuration(small_dataset, **{"checkpoints.every_n_steps": every})
    interrupt(config, tmp_path / "run", place)
    assert_same_run(whole, fit(config, run_dir=tmp_path / "run"))


def test_killed_again_and_again(tmp_path, small_dataset, whole):  # noqa: F811
    config = configuration(small_dataset)
    places = [("training_step", 0, 1), ("training_step", 0, 3), ("validation_step", 0, 3), ("training_step", 1, 2)]
    interrupt(config, tmp_path / "run", *places, ("on_train_epoch_end", 3))
    assert_same_run(whole, fit(config, run_dir=tmp_path / "run"))


def test_killed_while_a_checkpoint_is_written(tmp_path, small_dataset, whole):  # noqa: F811
    config = configuration(small_dataset)
    save = RunFiles._write_last

    def half(self, trainer):
        if trainer.global_step == 7:
            (self.folder / ".last.part.ckpt").write_bytes(b"half a checkpoint")
            raise Killed
        save(self, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFiles, "_write_last", half)
        with pytest.raises(Killed):
            fit(config, run_dir=tmp_path / "run")
    assert_same_run(whole, fit(config, run_dir=tmp_path / "run"))


def test_killed_between_the_log_and_the_checkpoint(tmp_path, small_dataset, whole):  # noqa: F811
    config = configuration(small_dataset)
    with pytest.MonkeyPatch.context() as patch:
        save = RunFiles._write_last

        def refuse(self, trainer):
            if self.epochs_done == 2:
                raise Killed
            save(self, trainer)

        patch.setattr(RunFiles, "_write_last", refuse)
        with pytest.raises(Killed):
            fit(config, run_dir=tmp_path / "run")
    assert len((tmp_path / "run" / "logs" / "metrics.csv").read_text().splitlines()) == 3
    assert_same_run(whole, fit(config, run_dir=tmp_path / "run"))


def test_goes_on_in_another_folder(tmp_path, small_dataset, whole):  # noqa: F811
    """The run folder and the data move; the old places are gone."""
    config = configuration(small_dataset)
    interrupt(config, tmp_path / "old", ("training_step", 2, 1))
    shutil.copytree(small_dataset, tmp_path / "data")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = {**config, "data": {**config["data"], "root": str(tmp_path / "data")}}
    assert_same_run(whole, fit(moved, run_dir=tmp_path / "new"))


def test_goes_on_from_a_named_checkpoint(tmp_path, small_dataset, whole):  # noqa: F811
    config = configuration(small_dataset)
    interrupt(config, tmp_path / "old", ("training_step", 3, 1))
    run = fit(config, run_dir=tmp_path / "new", resume=tmp_path / "old" / "checkpoints" / "last.ckpt")
    assert_same_run(whole, run)


@pytest.mark.parametrize(
    "change",
    [
        {"global_step": None}, {"global_step": "a"}, {"optimizer_states": 5}, {"optimizer_states": []}, {"loops": 5},
        {"hyper_parameters": 5}, {"callbacks": 5}, {"callbacks": {"RunFiles": 5}},
        {"callbacks": {"RunFiles": {"seconds": "a"}}}, {"callbacks": {"RunFiles": {"snapshots": ["../../a.ckpt"]}}},
    ],
    ids=str,
)  # fmt: skip
def test_an_ill_typed_state_is_refused_in_a_sentence(tmp_path, change):
    sound = {"state_dict": {"model.net.w": torch.ones(2)}, "loops": {}, "global_step": 3,
             "optimizer_states": [{"param_groups": [{"name": "decoder", "params": [0]}]}]}  # fmt: skip
    state = tmp_path / "a.ckpt"
    torch.save(sound, state)
    assert state_to_resume(tmp_path, str(state), {"run_name": "x", "model": {}}) is not None
    torch.save({**sound, **change}, state)
    with pytest.raises(CheckpointError, match="holds the state of a run in a form"):
        state_to_resume(tmp_path, str(state), {"run_name": "x", "model": {}})


def test_stopped_early_then_killed_before_saying_so(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    changes = {"validation.patience": 1, "trainer.max_epochs": 30, "optim.lr": 1e-9}
    config = configuration(small_dataset, **changes)
    with monkeypatch.context() as patch:
        patch.setattr("cryosentinel.training.fit.write_summary", lambda *a: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            fit(config, run_dir=tmp_path / "run")
    steps = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    run = fit(config, run_dir=tmp_path / "run")
    assert (run / "logs" / "summary.json").is_file()
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps < 120


def test_seeds_differ(tmp_path, small_dataset, whole):  # noqa: F811
    other = fit(configuration(small_dataset), {"seed": 17}, tmp_path / "run")
    states = [load_checkpoint(r / "checkpoints" / "last.ckpt")["state_dict"] for r in (whole, other)]
    assert not torch.equal(*(s["model.net.encoder.embedding.weight"] for s in states))
