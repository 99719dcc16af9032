"""The published stages as they stand in configs/, by the command line: 4a, its soup, 4b from it. Backbone, width of the
decoder, epochs and data are other than published: the chain is tested, and the published size on the meta device."""

from __future__ import annotations

import io
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from chip_factory import make_chip

from cryosentinel.cli import main
from cryosentinel.data.chips import write_shard
from cryosentinel.data.dataset import ChipDataset
from cryosentinel.data.split import assign_splits
from cryosentinel.data.store import ChipStore
from cryosentinel.models.checkpoint import load_checkpoint, load_segmenter
from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter, parameter_counts, without_weights
from cryosentinel.models.statedict import segmenter_state
from cryosentinel.models.tta import flip_logits
from cryosentinel.sensors import PUBLISHED_STATISTICS, REGIONS
from cryosentinel.training.config import flatten, parse
from cryosentinel.training.fit import build
from cryosentinel.training.task import SegmentationTask

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PRETRAIN, FINETUNE, FAILED = (
    f"terramind_v3_{name}" for name in ("pretrain_v2", "finetune_almaty_v2", "finetune_almaty_v1")
)
ALMATY = {"ile_alatau", "tien_shan_full", "zhetysu_alatau"}
#: What differs from the published stages beside data and epochs: the chain is tested, and not the size.
SMALL = {"model.backbone": "terramind_v1_tiny", "model.decoder_channels": 16, "model.head_channels": [16]}
SMALL |= {"trainer.precision": "32-true"}
SOUP = Path("elsewhere/runs") / PRETRAIN / "checkpoints" / "soup.ckpt"  # in $CRYOSENTINEL_OUTPUTS


def _centre(region: str, split: str, rng: np.random.Generator) -> dict[str, float]:
    """A place of a region that both stages' blocks give the same split."""
    west, south, east, north = REGIONS[region]
    lat, lon = rng.uniform(south, north, 4000), rng.uniform(west, east, 4000)
    fits = (assign_splits(lat, lon, 0.15) == split) & (assign_splits(lat, lon, 0.25) == split)
    at = int(np.flatnonzero(fits)[0])
    return {"lat": float(lat[at]), "lon": float(lon[at])}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training chips and two validation chips, one of each outside the Almaty corridor."""
    root, rng, number = tmp_path_factory.mktemp("stages") / "chips", np.random.default_rng(0), 0
    for region in ("ile_alatau", "tien_shan_full", "zhetysu_alatau", "karakoram"):
        some = []
        for split in ("train", "val") if region in ("tien_shan_full", "karakoram") else ("train",):
            some.append(make_chip(number, 128, region=region, **_centre(region, split, rng)))
            number += 1
        write_shard(root / region / "2021" / "shard_000.parquet", some)
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder in TerraMind's published layout: bare names, no constant buffers, parts that are not used here."""
    torch.manual_seed(5)
    own = build_segmenter(SegmenterConfig(), PUBLISHED_STATISTICS).net.encoder
    state = {name: value.detach().clone() for name, value in own.named_parameters()}
    path = tmp_path_factory.mktemp("encoder") / "TerraMind_v1_tiny.pt"
    torch.save({**state, "decoder_norm.weight": torch.ones(192)}, path)
    return path


class Seen:
    """What the training steps saw: the weights before the first one, and the regions of the chips."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}
        self.regions: set[str] = set()

    def look(self, task: SegmentationTask, batch: dict[str, torch.Tensor]) -> None:
        if not self.first:
            self.first = {name: value.clone() for name, value in task.model.state_dict().items()}
        index = task.trainer.datamodule.store.index  # type: ignore[attr-defined]
        self.regions |= set(index.region.iloc[batch["row"].tolist()])


@dataclass
class Command:
    """A command's exit status, what it said, and what its training steps saw."""

    status: int
    out: str
    err: str
    seen: Seen


def _watched(patch: pytest.MonkeyPatch, seen: Seen) -> None:
    for name in ("training_step", "validation_step"):
        step = getattr(SegmentationTask, name)

        def looking(self: SegmentationTask, batch: Any, number: int, step: Any = step) -> Any:
            seen.look(self, batch)
            return step(self, batch, number)

        patch.setattr(SegmentationTask, name, looking)


def _run(*words: str) -> Command:
    out, err, seen = io.StringIO(), io.StringIO(), Seen()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        _watched(patch, seen)
        status = main(words)
    return Command(status, out.getvalue(), err.getvalue(), seen)


def _fit(stage: str, chips: Path, **overrides: Any) -> Command:
    values = {**SMALL, "data.root": chips, **overrides}
    options = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return _run("fit", "--config", str(CONFIGS / f"{stage}.yaml"), *options)


@dataclass
class Stages:
    """The chain in one working folder, with the default run folders, in this order."""

    folder: Path
    too_early: Command  # 4b with nothing there
    pretraining: Command
    no_soup: Command  # 4b with 4a trained, its soup not made
    soup: Command
    finetuning: Command
    final_soup: Command

    def run(self, stage: str) -> Path:
        return self.folder / "elsewhere" / "runs" / stage

    def snapshots(self, stage: str) -> list[Path]:
        return sorted((self.run(stage) / "checkpoints").glob("step*-iou*.ckpt"))


def _refuse_network(*_: Any) -> None:
    pytest.fail("the network was touched")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, chips: Path, encoder: Path) -> Iterator[Stages]:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CRYOSENTINEL_OUTPUTS", str(folder / "elsewhere"))
        patch.setattr("cryosentinel.hub.download_file", _refuse_network)
        patch.setattr(socket.socket, "connect", _refuse_network)
        made = Stages(
            folder,
            _fit(FINETUNE, chips),
            _fit(PRETRAIN, chips, **{"model.weights": encoder, "trainer.max_epochs": 1}),
            _fit(FINETUNE, chips),
            _run("soup", f"elsewhere/runs/{PRETRAIN}"),
            _fit(FINETUNE, chips, **{"trainer.max_epochs": 3}),
            _run("soup", f"elsewhere/runs/{FINETUNE}"),
        )
    yield made
    shutil.rmtree(folder)  # hundreds of megabytes of checkpoints


def _check_saved(run: Path, **overrides: Any) -> None:
    """The saved configuration is the file's with the overrides, and adds defaults alone."""
    saved = flatten(yaml.safe_load((run / "logs" / "config.yaml").read_text()))
    given = flatten(yaml.safe_load((CONFIGS / f"{run.name}.yaml").read_text()))
    expected = {**given, **SMALL, **overrides}
    assert {key: saved[key] for key in expected} == expected
    assert not {"config", "run_dir", "resume"} & saved.keys()


def test_finetuning_before_pretraining_says_what_is_missing(stages):
    assert stages.pretraining.status == 0, stages.pretraining.err
    assert stages.too_early.status == stages.no_soup.status == 2
    for command in (stages.too_early, stages.no_soup):
        assert f"There is no file {stages.folder / SOUP}" in command.err and "cryosentinel soup" in command.err
    assert "once that run is trained" in stages.too_early.err and "once that run" not in stages.no_soup.err
    for command in (stages.too_early, stages.no_soup):
        assert len(command.err.splitlines()) == 1 and not command.out


def test_pretraining_starts_from_a_local_encoder(stages, chips, encoder):
    """``pretrained: true`` stands in the file; the local weights are taken instead, and no network is touched."""
    command, run = stages.pretraining, stages.run(PRETRAIN)
    assert command.status == 0, command.err
    own = torch.load(encoder, weights_only=True)
    first = {name.removeprefix("net.encoder."): value for name, value in command.seen.first.items()}
    assert own.keys() - first.keys() == {"decoder_norm.weight"}
    assert all(torch.equal(own[name], first[name]) for name in own.keys() & first.keys())
    assert command.seen.regions == {*ALMATY, "karakoram"}
    overrides = {"model.weights": str(encoder), "trainer.max_epochs": 1, "data.root": str(chips)}
    _check_saved(run, **overrides)
    assert len(stages.snapshots(PRETRAIN)) == 1
    assert "Chips: 4 (4 with a lake) to train on, 2 (2 with a lake) to validate on" in command.out
    assert "after epoch 1; there is no SWA phase (the warm-up" in command.out


def test_finetuning_starts_from_exactly_that_soup(stages, chips):
    assert stages.soup.status == 0 and stages.soup.out.splitlines()[-1] == str(SOUP)
    command, run = stages.finetuning, stages.run(FINETUNE)
    assert command.status == 0, command.err
    soup = segmenter_state(load_checkpoint(stages.folder / SOUP))
    assert soup.keys() == command.seen.first.keys()
    assert all(torch.equal(soup[name], command.seen.first[name]) for name in soup)
    assert command.seen.regions == ALMATY
    _check_saved(run, **{"trainer.max_epochs": 3, "data.root": str(chips)})
    assert [path.name[:10] for path in stages.snapshots(FINETUNE)] == ["step000002", "step000003"]
    told = "The run ends before the snapshots of epoch 12, 14, 17, 22, 30, so the last epochs take their place."
    assert told in command.out and "Warning" not in command.out


def test_soup_of_the_finetuning_opens_and_segments(stages, chips):
    assert stages.final_soup.status == 0
    model = load_segmenter(stages.run(FINETUNE) / "checkpoints" / "soup.ckpt")
    name = "net.encoder.encoder.11.mlp.fc1.weight"
    first, second = (load_checkpoint(path)["state_dict"][f"model.{name}"] for path in stages.snapshots(FINETUNE))
    assert not torch.equal(first, second)
    torch.testing.assert_close(model.state_dict()[name], (first + second) / 2)
    with torch.inference_mode():
        logits = flip_logits(model, ChipDataset(ChipStore(chips)).__getitems__([0]), flips=4)
    assert logits.shape == (1, 128, 128) and logits.isfinite().all()


@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE, FAILED])
def test_the_published_size_builds(stage):
    """The network of the file as it stands: TerraMind large and UperNet-256, on tensors without content."""
    run, _, _ = build(*parse(CONFIGS / f"{stage}.yaml"))
    with torch.device("meta"):
        counts = parameter_counts(build_segmenter(without_weights(run.model), PUBLISHED_STATISTICS))
    assert run.model.decoder == "UperNetDecoder" and counts["encoder"] == pytest.approx(305.9e6, rel=1e-3)


def test_failed_finetuning_starts_and_warns(stages, chips, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SegmentationTask, "training_step", stop)
    monkeypatch.chdir(stages.folder)
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(stages.folder / "elsewhere"))
    command = _fit(FAILED, chips)
    assert command.status == 130  # it came as far as its first step
    assert re.search(r"block 05 .* frozen\n", command.out)
    assert "Warning: 7 of 14 parts" in command.out
    assert "frozen_blocks, backbone_mult and layer_decay compound." in command.out
    _check_saved(stages.run(FAILED), **{"data.root": str(chips)})
