"""What a user gets wrong in training, by the command line: one sentence on standard error, status 2, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from chip_factory import write_dataset
from model_factory import slim
from training_factory import configuration, small_dataset, small_network  # noqa: F401

from cryosentinel.cli import main
from cryosentinel.models.checkpoint import load_checkpoint, save_checkpoint, write_checkpoint
from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter
from cryosentinel.sensors import PUBLISHED_STATISTICS
from cryosentinel.training.fit import fit
from cryosentinel.training.task import SegmentationTask

TINY = str(Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml")
MARK = "a_pickle_ran"


class Harm:
    """What a pickle does when it is loaded without care."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {MARK}",)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path / "outputs"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run a command that must be refused; returns its sentence."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        lines = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
        said = [line for line in lines if line.startswith("cryosentinel: error: ")]
        assert said == lines[-1:] and "Traceback" not in "".join(lines)
        return said[0].removeprefix("cryosentinel: error: ")

    return run


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad") / "chips"
    write_dataset(root, shards=2, chips=9, size=128)
    return root


@pytest.fixture
def copy(chips: Path, tmp_path: Path) -> Path:
    shutil.copytree(chips, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "copy"


def _fit(chips: Path, *options: object) -> list[object]:
    return ["fit", "--config", TINY, "--data.root", chips, "--data.buffer", 0, *options]


TERRAMIND = ("--model.architecture", "terramind", "--model.stem_channels", "[]", "--pixel_warmup.steps", 0)


# --- configuration and options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.backbone", "terramind_v9"], ["'terramind_v9'", "terramind_v1_tiny"]),
        (["--optim.lrr", "1"], ["--optim.lrr"]),
        (["--optim.back", "1"], ["--optim.back"]),  # not taken for --optim.backbone_mult
        (["quick.yaml"], ["'quick.yaml'", "--config"]),
        (["--optim.lr", "fast"], ["optim.lr", "float", "fast"]),
        (["--trainer.precision", "bf16"], ["trainer.precision", "'32-true'", "bf16"]),
        (["--data.regions", "pamir"], ["data.regions", "pamir"]),
        (["--data.regions", "[nowhere]"], ["no region nowhere", "ile_alatau, tien_shan_full"]),
        (["--data.augment.flip_p", "2"], ["flip_p is 2.0"]),
        (["--data.augment.flip", "1"], ["data.augment", "'flip'"]),
        (["--config", "second.yaml"], ["second.yaml"]),
        (["--config"], ["--config"]),
        (["--optim.frozen_blocks", "13"], ["optim.frozen_blocks is 13", "0 blocks"]),
        (["--model.pretrained", "true"], ["no published weights", "unet"]),
        (["--trainer.accelerator", "tpux"], ["trainer", "'tpux'"]),
        (["--trainer.strategy", "ddpp"], ["trainer", "'ddpp'"]),
        (["--resume", "none.ckpt"], ["none.ckpt"]),
        (["--model.weights", "none.ckpt"], ["none.ckpt", "--model.weights"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_cannot_be_used(chips, refused, options, words):
    said = refused(*_fit(chips, *options))
    assert all(word in said for word in words), said
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"run_name: [unclosed\n", "did not find expected"),
        (b"- a\n- b\n", "config"),
        (b"", "config"),
        (bytes(range(128, 256)), "utf-8"),
        (b"run_name: a\ndata: {root: ROOT, speed: 3}\n", "speed"),
        (b"run_name: a\ndata: {root: ROOT}\nmodel: {backbone: terramind_v9}\n", "'terramind_v9'"),
    ],
)
def test_files_that_cannot_be_used(chips, refused, content, words):
    Path("a.yaml").write_bytes(content.replace(b"ROOT", str(chips).encode()))
    said = refused("fit", "--config", "a.yaml", "--trainer.max_epochs", 1)
    assert words in said and ("a.yaml" in said or "terramind_v1_tiny" in said)


def test_what_a_configuration_lacks_is_named(refused):
    said = refused("fit", "--trainer.max_epochs", 2)
    assert "run_name" in said and "data.root" in said


def test_conveniences_of_the_parser(capsys):
    """As in LightningCLI: print_config, several files, parts of a section; options count wherever they stand."""
    Path("b.yaml").write_text("trainer: {max_epochs: 7}\ndata: {augment: {jitter_p: 0.9}}\n")
    words = ["--trainer.precision", "bf16-mixed", "--config", TINY, "--data.augment.flip_p=0.25", "--config", "b.yaml"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert stop.value.code == 0 and printed["run_name"] == "tiny"
    assert printed["trainer"]["precision"] == "bf16-mixed" and printed["trainer"]["max_epochs"] == 7
    augment = printed["data"]["augment"]
    assert (augment["flip_p"], augment["jitter_p"], augment["scale_p"]) == (0.25, 0.9, 0.0)


# --- data -------------------------------------------------------------------------------------------------------------


def test_chips_of_eleven_bands(copy, refused):
    path = copy / "tien_shan_full" / "2021" / "shard_000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["s2_shape"], row["s2_bytes"] = [11, 128, 128], row["s2_bytes"][: 11 * 128 * 128 * 2]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    said = refused(*_fit(copy))
    assert str(path) in said and "[11, 128, 128]" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["S2L2A"]["means"].pop(), "11 means for S2L2A"),
        (lambda s: s["DEM"].update(stds=[0.0]), "stds of DEM"),
        (lambda s: s.update(LULC={"means": [1], "stds": [1]}), "'LULC'"),
        (lambda s: s.pop("S1GRD"), "S1GRD"),
    ],
)
def test_statistics_of_other_modalities(copy, refused, change, words):
    statistics = json.loads(json.dumps(PUBLISHED_STATISTICS.as_dict()))
    change(statistics)
    (copy / "dataset_stats_v3.json").write_text(json.dumps(statistics))
    said = refused(*_fit(copy))
    assert words in said and ("dataset_stats_v3.json" in said or "cover" in said)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.block_size", "60"], ["train split", "0 train, 18 val, 0 test", "block_size"]),
        (
            ["--data.sanity", "1.0"],
            ["12 fail the sanity filter", "sanity null"],
        ),
        (["--data.buffer", "0.0749"], ["train split", "18 lie in the buffer"]),
    ],
)
def test_empty_splits_say_where_the_chips_went(chips, refused, options, words):
    said = refused(*_fit(chips, *options))
    assert all(word in said for word in words), said


def test_a_region_without_validation_chips(tmp_path, refused):
    place = {"lat": 43.22, "lon": 77.07}  # a training block
    write_dataset(tmp_path / "data", shards=2, chips=2, size=128, **place)
    said = refused(*_fit(tmp_path / "data", "--data.regions", "[ile_alatau]"))
    assert "val split" in said and "2 train, 0 val" in said and "block_size" in said


def test_validation_chips_without_a_lake_are_refused_before_training(copy, refused):
    for path in copy.glob("*/*/*.parquet"):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            if row["water_frac"] > 0 and row["chip_id"] not in _training_ids(copy):
                row["mask_bytes"], row["water_frac"] = bytes(128 * 128), 0.0
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    said = refused(*_fit(copy))
    assert str(copy) in said and "validation chips" in said and "lake" in said


def _training_ids(root: Path) -> set[str]:
    from cryosentinel.data.dataset import ChipDataModule

    module = ChipDataModule(root, buffer=0.0)
    module.setup()
    return set(module.store.index.chip_id.iloc[module.rows["train"]])


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Path]:
    """Checkpoints that do not belong: of another architecture, harmful, an encoder with odd weights."""
    paths = {name: tmp_path / f"{name}.ckpt" for name in ("unet", "harm", "encoder")}
    config = SegmenterConfig(architecture="smp_unet", encoder_name="resnet18")
    save_checkpoint(paths["unet"], build_segmenter(config, PUBLISHED_STATISTICS))
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {"x": Harm()}}, paths["harm"])
    state = dict(slim().net.encoder.named_parameters())
    del state["encoder.3.mlp.fc1.weight"]
    torch.save({**state, "encoder.4.mlp.fc1.weight": torch.ones(5, 7)}, paths["encoder"])
    return paths


def test_weights_to_start_from_that_do_not_fit(chips, refused, checkpoints):
    said = refused(*_fit(chips, *TERRAMIND, "--model.weights", checkpoints["unet"]))
    assert "unet.ckpt" in said and "missing (net.decoder." in said and "unexpected (net." in said
    said = refused(*_fit(chips, *TERRAMIND, "--model.weights", checkpoints["encoder"]))
    assert (
        "1 missing (encoder.3.mlp.fc1.weight)" in said and "encoder.4.mlp.fc1.weight is (5, 7), here (768, 192)" in said
    )


def test_a_hub_that_cannot_be_reached_leaves_the_local_file(chips, refused, monkeypatch):
    from cryosentinel.errors import HubError

    def unreachable(address: str) -> None:
        raise HubError(f"{address} is not in the local cache and the hub cannot be reached; try again.")

    monkeypatch.setattr("cryosentinel.hub.download_file", unreachable)
    said = refused(*_fit(chips, *TERRAMIND, "--model.pretrained", "true"))
    assert "TerraMind_v1_tiny.pt" in said and "model.weights" in said


def test_a_harmful_file_never_runs(chips, refused, checkpoints):
    harm = checkpoints["harm"]
    run = Path("run/checkpoints")
    run.mkdir(parents=True)
    shutil.copy(harm, run / "step000001-iou0.500.ckpt")
    for words in (
        _fit(chips, "--model.weights", harm),
        _fit(chips, "--resume", harm),
        ["soup", "run"],
        ["evaluate", "--ckpt", harm, "--data", chips],
        ["audit", "--ckpt", harm, "--data", chips],
    ):
        said = refused(*words)
        assert "cryosentinel convert" in said, words
    assert main(["convert", str(harm), "out.safetensors"]) == 0  # reads it as data
    assert load_checkpoint("out.safetensors")["state_dict"].keys() == {"model.w"}
    assert not Path(MARK).exists() and not list(run.glob("soup*"))
    torch.load(harm, weights_only=False)
    assert Path(MARK).exists()  # what all of these withstood is real


@pytest.mark.usefixtures("small_network")
class TestResuming:
    @pytest.fixture
    def run(self, tmp_path, small_dataset):  # noqa: F811
        return fit(configuration(small_dataset, **{"trainer.max_epochs": 1}), run_dir=tmp_path / "run")

    @pytest.fixture
    def words(self, small_dataset):  # noqa: F811
        Path("c.yaml").write_text(yaml.safe_dump(configuration(small_dataset, **{"trainer.max_epochs": 1})))
        return ["fit", "--config", "c.yaml", "--run_dir", "new"]

    def test_from_another_model(self, run, words, refused):
        last = run / "checkpoints" / "last.ckpt"
        said = refused(*words, "--resume", last, "--model.decoder_channels", 64)
        assert "decoder_channels is 256 there, 64 asked" in said
        assert not Path("new").exists()

    def test_from_another_configuration(self, run, words, refused):
        last = run / "checkpoints" / "last.ckpt"
        said = refused(*words, "--resume", last, "--optim.lr", 0.5)
        assert "optim.lr" in said and "config.yaml" in said
        (run / "logs" / "config.yaml").unlink()  # a checkpoint that was copied alone
        said = refused(*words, "--resume", last, "--optim.frozen_blocks", 2)
        assert "5 groups of parameters there, 2 here" in said
        assert not Path("new").exists()

    def test_from_weights_alone(self, run, words, refused):
        said = refused(*words, "--resume", run / "checkpoints" / "best.ckpt")
        assert "weights alone" in said and "best.ckpt" in said and not Path("new").exists()

    def test_an_earlier_run_stays_where_the_new_one_is_refused(self, run, words, refused):
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        options = ["--run_dir", run, "--resume", "never"]
        refused(*words, *options, "--model.weights", "none.ckpt")
        refused(*words, *options, "--data.block_size", 60)
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    def test_the_weights_that_a_run_started_from_may_be_gone(self, tmp_path, words, monkeypatch):
        Path("start.ckpt").write_bytes(b"")
        asked = []
        built = SegmentationTask.configure_model

        def watched(self):
            asked.append(self.start_weights)
            built(self)

        monkeypatch.setattr(SegmentationTask, "configure_model", watched)
        options = [*words, "--model.weights", "start.ckpt", "--trainer.max_epochs", "2"]
        with pytest.MonkeyPatch.context() as patch:

            def stop(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(SegmentationTask, "on_train_epoch_end", stop)
            assert main(options) == 130
        Path("start.ckpt").unlink()
        assert main(options) == 0
        assert asked[0] is True and asked[-1] is False
        assert load_checkpoint("new/checkpoints/last.ckpt")["hyper_parameters"]["segmenter"]["weights"] == "start.ckpt"

    def test_absolute_paths_of_callbacks_do_not_travel(self, tmp_path, small_dataset):  # noqa: F811
        config = configuration(small_dataset, **{"trainer.max_epochs": 2})
        with pytest.MonkeyPatch.context() as patch:
            end = SegmentationTask.on_train_epoch_end

            def stop(self):
                if self.current_epoch == 1:
                    raise KeyboardInterrupt
                end(self)

            patch.setattr(SegmentationTask, "on_train_epoch_end", stop)
            with pytest.raises(KeyboardInterrupt):
                fit(config, run_dir=tmp_path / "old")
        checkpoint = load_checkpoint(tmp_path / "old" / "checkpoints" / "last.ckpt")
        state = {"best_model_path": str(tmp_path / "old" / "a.ckpt"), "best_model_score": 0.5}
        foreign = {**checkpoint, "callbacks": {**checkpoint["callbacks"], "ModelCheckpoint{}": state}}
        write_checkpoint(tmp_path / "old" / "checkpoints" / "foreign.ckpt", foreign)
        taken = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SegmentationTask, "on_train_start", lambda self: taken.update(load_checkpoint(last)))
            last = tmp_path / "new" / "checkpoints" / "last.ckpt"
            fit(config, run_dir=tmp_path / "new", resume=tmp_path / "old" / "checkpoints" / "foreign.ckpt")
        assert taken["callbacks"]["ModelCheckpoint{}"] == {"best_model_path": "", "best_model_score": 0.5}
        assert taken["callbacks"].keys() == foreign["callbacks"].keys()

    def test_a_folder_that_cannot_be_written(self, words, refused):
        Path("file").write_text("")
        said = refused(*words[:-1], "file/run")
        assert "Not a directory" in said and "file/run" in said


def test_evaluating_another_architecture(chips, refused, checkpoints):
    said = refused("evaluate", "--ckpt", checkpoints["unet"], "--data", chips, "--model", TINY)
    assert "architecture is 'smp_unet' there, 'unet' asked" in said
    torch.save(dict(slim().state_dict()), "bare.ckpt")
    said = refused("evaluate", "--ckpt", "bare.ckpt", "--data", chips)
    assert "bare.ckpt" in said and "--model" in said
    said = refused("evaluate", "--ckpt", "bare.ckpt", "--data", chips, "--model", TINY)
    assert "bare.ckpt" in said and "--statistics" in said


def test_a_soup_without_snapshots(refused):
    assert "nowhere" in refused("soup", "nowhere")
