"""The run folder, configurations that cannot be used, runs that are finished or of another kind, and NaN."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from training_factory import configuration, small_dataset, small_network  # noqa: F401

from cryosentinel.errors import CheckpointError, ConfigError, InputError
from cryosentinel.models.checkpoint import load_checkpoint
from cryosentinel.training.config import parse
from cryosentinel.training.fit import build, fit, main
from cryosentinel.training.logs import average_of, plot_rates
from cryosentinel.training.task import SegmentationTask

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("small_network")


def test_run_folder(tmp_path, small_dataset, capsys):  # noqa: F811
    run = fit(configuration(small_dataset), {"trainer.max_epochs": 3}, tmp_path / "run")
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    snapshots = {n for n in names if n.startswith("checkpoints/step")}
    assert len(snapshots) == 2 and names - snapshots == {
        "checkpoints/last.ckpt", "checkpoints/best.ckpt", "logs/metrics.csv", "logs/config.yaml", "logs/summary.json",
        "logs/data.json", "logs/learning_rates.png",
    }  # fmt: skip
    rows = list(csv.DictReader((run / "logs" / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows] == [4, 8, 12] and [int(r["epoch"]) for r in rows] == [1, 2, 3]
    for row in rows:
        terms = [float(row[f"loss_{t}"]) for t in ("bce", "focal", "dice", "tversky", "boundary", "lovasz")]
        total = sum(w * t for w, t in zip((0.5, 1, 1, 0.5, 0.5, 0.3), terms, strict=True))
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
        assert 0 <= float(row["val_iou"]) <= 1
    saved = yaml.safe_load((run / "logs" / "config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 3 and saved["loss"]["tversky_beta"] == 0.75 and "seed" not in saved["data"]
    summary = json.loads((run / "logs" / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == 12 and len(summary["snapshots"]) == 2
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best["val_iou"] == max(float(r["val_iou"]) for r in rows)
    assert set(best["hyper_parameters"]) == {"segmenter", "statistics", "seed"}
    assert all(k.startswith("model.") for k in best["state_dict"])
    told = capsys.readouterr().out
    assert "of decoder" in told  # the profile
    assert "reaches 0.999 at step 8,991; this run takes 12 and ends at 0.571." in told and average_of(run) in told


def test_saved_configuration_gives_the_same_run(tmp_path, small_dataset):  # noqa: F811
    first = fit(configuration(small_dataset), {"trainer.max_epochs": 1, "optim.swa.start": 0.0}, tmp_path / "a")
    again = fit(first / "logs" / "config.yaml", run_dir=tmp_path / "b")
    one, two = (load_checkpoint(r / "checkpoints" / "best.ckpt")["state_dict"] for r in (first, again))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_the_run_says_its_precision_and_keeps_it_when_it_goes_on(tmp_path, small_dataset, monkeypatch, capsys):  # noqa: F811
    """It began where bfloat16 is native, and goes on where it is not."""
    config = configuration(small_dataset, **{"trainer.precision": "auto", "trainer.max_epochs": 1})
    saved = tmp_path / "run" / "logs" / "config.yaml"
    with monkeypatch.context() as patch:
        patch.setattr("cryosentinel.precision.native_bfloat16", lambda device: True)
        patch.setattr("cryosentinel.training.fit.write_summary", lambda *_: None)  # as if killed before its end
        fit(config, run_dir=tmp_path / "run")
    assert "Precision: bf16-mixed (auto" in capsys.readouterr().out
    assert yaml.safe_load(saved.read_text())["trainer"]["precision"] == "bf16-mixed"
    monkeypatch.setattr("cryosentinel.precision.native_bfloat16", lambda device: False)
    monkeypatch.setattr("cryosentinel.precision.bfloat16_slowdown", lambda device: 31.0)
    fit(config, run_dir=tmp_path / "run")
    assert "Precision: bf16-mixed (as the run began. Warning:" in capsys.readouterr().out
    assert saved.read_text().startswith("# Precision: bf16-mixed (as the run began")
    fit(config, run_dir=tmp_path / "run", resume="never")
    assert yaml.safe_load(saved.read_text())["trainer"]["precision"] == "32-true"
    with pytest.raises(ConfigError, match=r"trainer\.precision"):
        fit(config, {"trainer.precision": "bf16-mixed"}, tmp_path / "run")


def test_finished_run_returns_at_once(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    config = configuration(small_dataset, **{"trainer.max_epochs": 1})
    run = fit(config, run_dir=tmp_path / "run")
    monkeypatch.setattr("cryosentinel.training.fit._trainer", None)  # would fail if it trained
    assert fit(config, run_dir=run) == run
    with pytest.raises(ConfigError, match=r"run of another configuration \(it differs in optim.lr\)"):
        fit(config, {"optim.lr": 1.0}, run)


def test_other_data_in_the_folder_are_noticed(tmp_path, small_dataset):  # noqa: F811
    config = configuration(small_dataset, **{"trainer.max_epochs": 1})
    run = fit(config, run_dir=tmp_path / "run")
    (run / "logs" / "data.json").write_text('{"data": "0000"}')
    with pytest.raises(ConfigError, match="on other data"):
        fit(config, run_dir=run)
    fit(config, run_dir=run, resume="never")  # begins anew


def test_early_stopping(tmp_path, small_dataset):  # noqa: F811
    changes = {"validation.patience": 1, "trainer.max_epochs": 30, "optim.swa.start": 0.9, "optim.lr": 1e-9}
    config = configuration(small_dataset, **changes)
    run = fit(config, run_dir=tmp_path / "run")
    summary = json.loads((run / "logs" / "summary.json").read_text())
    assert summary["stopped_early"] and summary["steps"] < 120
    # The phase of the snapshots was never reached: the last average stands in.
    assert len(summary["snapshots"]) == 1 and (run / "checkpoints" / summary["snapshots"][0]).is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optim.lr_typo": 1.0}, "lr_typo"),
        ({"optimiser.lr": 1.0}, "optimiser"),
        ({"trainer.max_epochs": "many"}, "max_epochs"),
        ({"model.backbone": "terramind_v9"}, "terramind_v9"),
        ({"loss.ohem_keep": 0.0}, "ohem_keep"),
        ({"data.augment.flip": 1.0}, "flip"),
        ({"data.seed": 3}, "seed"),
        ({"validation.flips": 3}, "flips"),
    ],
)
def test_unusable_configurations_are_refused_in_a_sentence(tmp_path, small_dataset, change, words):  # noqa: F811
    with pytest.raises(ConfigError) as error:
        fit(configuration(small_dataset), change, tmp_path / "run")
    assert words in str(error.value) and "\n" not in str(error.value) and str(error.value).endswith(".")
    assert not (tmp_path / "run").exists()


def test_missing_file_and_missing_configuration(tmp_path):
    with pytest.raises(ConfigError, match="There is no configuration file"):
        main(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="needs a configuration"):
        main([])


def test_command_line(tmp_path, small_dataset, capsys):  # noqa: F811
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(configuration(small_dataset)))
    words = ["--config", str(path), "--run_dir", str(tmp_path / "r"), "--trainer.max_epochs", "1"]
    assert main([*words, "--optim.lr=0.002"]) == tmp_path / "r"
    saved = yaml.safe_load((tmp_path / "r" / "logs" / "config.yaml").read_text())
    assert (
        saved["optim"]["lr"] == 0.002 and saved["optim"]["warmup_epochs"] == 1 and saved["trainer"]["max_epochs"] == 1
    )
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--optim.layer_decay" in capsys.readouterr().out


def test_nan_stops_and_names_the_chip(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    from cryosentinel.data.dataset import ChipDataset

    read = ChipDataset.__getitems__

    def spoiled(self, indices):
        batch = read(self, indices)
        batch["S2L2A"][batch["row"] == 4] = float("nan")
        return batch

    monkeypatch.setattr(ChipDataset, "__getitems__", spoiled)
    config = configuration(small_dataset, **{"data.augment": None, "trainer.limit_train_batches": None})
    _, data, _ = build(*parse(config))
    data.setup()
    assert 4 in data.rows["train"]
    name = data.store.index.chip_id[4]
    with pytest.raises(InputError, match=f"chip {name} hold values that are not finite"):
        fit(config, run_dir=tmp_path / "run")


def test_empty_split_is_refused(tmp_path, small_dataset):  # noqa: F811
    with pytest.raises(InputError, match=r"split of .* is empty"):
        fit(configuration(small_dataset, **{"data.block_size": 60.0}), run_dir=tmp_path / "run")


def test_weights_alone_cannot_be_resumed(tmp_path, small_dataset):  # noqa: F811
    config = configuration(small_dataset, **{"trainer.max_epochs": 1})
    run = fit(config, run_dir=tmp_path / "run")
    with pytest.raises(CheckpointError, match="weights alone"):
        fit(config, run_dir=tmp_path / "other", resume=run / "checkpoints" / "best.ckpt")


RUNS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "run_name:" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_configuration_that_comes_along_can_be_read(path):
    run, data, _ = build(*parse(path))
    assert run.run_name == path.stem and data.seed == run.seed
    from cryosentinel.training.optim import swa_first_epoch

    epochs = run.trainer.max_epochs
    assert run.checkpoints.epochs(epochs, swa_first_epoch(run.optim, epochs))


def test_the_network_sees_the_training_statistics_and_augmented_chips(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    from cryosentinel.data.dataset import ChipDataset

    seen: dict[str, list[bool]] = {"training_step": [], "validation_step": []}
    for hook, same in seen.items():
        original = getattr(SegmentationTask, hook)

        def watching(self, batch, number, step=original, same=same):
            stored = ChipDataset(self.trainer.datamodule.store).__getitems__(batch["row"].tolist())
            same += [torch.equal(mine, theirs) for mine, theirs in zip(batch["S2L2A"], stored["S2L2A"], strict=True)]
            return step(self, batch, number)

        monkeypatch.setattr(SegmentationTask, hook, watching)
    config = configuration(small_dataset, **{"trainer.max_epochs": 1})
    run = fit(config, run_dir=tmp_path / "run")
    assert not all(seen["training_step"]) and all(seen["validation_step"])
    _, data, _ = build(*parse(config))
    data.setup()
    chips = torch.stack([torch.from_numpy(data.store[row].s2.astype("float64")) for row in data.rows["train"]])
    valid = torch.stack([torch.from_numpy(data.store[row].valid) for row in data.rows["train"]])
    expected = [float(band[valid].mean()) for band in chips.transpose(0, 1)]
    found = load_checkpoint(run / "checkpoints" / "best.ckpt")["hyper_parameters"]["statistics"]["S2L2A"]["means"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_gradients_are_clipped_and_accumulation_stretches_the_schedule(tmp_path, small_dataset, monkeypatch):  # noqa: F811
    norms = []
    step = torch.optim.AdamW.step

    def watching(self, closure=None):
        loss = closure()  # forward, backward and clip
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, lambda: loss)

    monkeypatch.setattr(torch.optim.AdamW, "step", watching)
    changes = {"trainer.gradient_clip_val": 1e-3, "trainer.accumulate_grad_batches": 2}
    run = fit(configuration(small_dataset), changes, tmp_path / "run")
    assert len(norms) == 8 and norms == pytest.approx([1e-3] * 8, rel=1e-3)
    curve, used = plot_rates(run).lines  # two steps an epoch, and the SWA phase's rate at the end
    assert used.get_xdata().tolist() == [2, 4, 6, 8] and used.get_ydata()[-1] == pytest.approx(1e-3)
    assert used.get_ydata().tolist() == pytest.approx([curve.get_ydata()[at - 1] for at in (2, 4, 6, 8)])


def test_golden_figures_of_a_small_run(tmp_path, small_dataset):  # noqa: F811
    """What this run gave when pinned; whoever changes loss, schedule, data or augmentation on purpose pins it anew."""
    run = fit(configuration(small_dataset), run_dir=tmp_path / "run")
    last = list(csv.DictReader((run / "logs" / "metrics.csv").open()))[-1]
    pinned = {
        "loss_bce": 0.9925, "loss_focal": 0.05841, "loss_dice": 0.4694, "loss_tversky": 0.3842, "loss_boundary": 1.683,
        "loss_lovasz": 1.544, "loss": 2.521, "lr": 0.001,
    }  # fmt: skip
    assert {name: float(last[name]) for name in pinned} == pytest.approx(pinned, rel=5e-3)
    assert float(last["val_iou"]) == pytest.approx(0.712, abs=0.02)
