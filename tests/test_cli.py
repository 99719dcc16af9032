"""The command line: quick help, typed options, one sentence for bad input at once, and every command's own work."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from chip_factory import make_chip, write_dataset
from rasterio.transform import from_origin
from training_factory import configuration, small_dataset, small_network  # noqa: F401

from cryosentinel import cli, commands
from cryosentinel.cli import main
from cryosentinel.data.chips import write_shard
from cryosentinel.data.geotiff import Raster, write_geotiff
from cryosentinel.data.split import assign_splits
from cryosentinel.evaluation.scores import read_scores
from cryosentinel.study.study import Study

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "pandas", "rasterio", "geopandas", "lightning")


def light(*words: str, cwd: Path | None = None) -> str:
    """What a command that must be refused says; nothing heavy may be imported before."""
    code = (
        "import sys; from cryosentinel.cli import main; status = main(sys.argv[1:]);"
        f"print(status, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.stdout == "2 []\n", (words, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("cryosentinel: error: ")
    return lines[0]


# --- help and options -------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cryosentinel.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for name in cli.COMMANDS:
        assert f"\n    {name} " in done.stdout


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_tensors_get_huge_pages_unless_the_user_says_otherwise(given: str | None, kept: str) -> None:
    name = "THP_MEM_ALLOC_ENABLE"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: given} if given else {})
    # As C sees it, which torch asks: a change of a copy in Python would not reach it.
    code = (
        "import ctypes, cryosentinel\nget = ctypes.CDLL(None).getenv\nget.restype = ctypes.c_char_p\n"
        f"print(get(b'{name}'))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"b'{kept}'"


@pytest.mark.parametrize("name", [n for n in cli.COMMANDS if n != "fit"])
def test_every_command_documents_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = getattr(commands, name)
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and f"usage: cryosentinel {name}" in shown
    documented = function.__doc__.partition("Args:")[2]
    for option in cli.signature(function).parameters:
        assert f"--{option}" in shown and f"        {option}: " in documented


def test_a_word_alone_prints_help_or_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "simulate" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "cryosentinel 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["maps"], ["maps", "predict"]),
        (["simulate", "x", "--presett", "quick"], ["--presett"]),
        (["simulate", "x", "--pre", "tiny"], ["--pre"]),  # not taken for --preset
        (["stack", "--s2", "a.tif"], ["s1", "dem", "out"]),
        (["stack", "a", "b", "c", "d", "e"], ["'e'"]),
        (["simulate", "x", "--workers"], ["--workers"]),
        (["simulate", "x", "--workers", "many"], ["workers", "many"]),
        (["split", "x", "--rule", "corner"], ["rule", "corner", "foreign"]),
        (["ingest", "pamir", "twenty", "http://a"], ["year", "twenty"]),
        (["study", "--seeds", "1,two"], ["1,two"]),
    ],
)
def test_options_that_cannot_be_used(words: list[str], named: list[str]) -> None:
    said = light(*words, cwd=ROOT)
    assert all(word in said for word in named), said


@pytest.mark.parametrize(
    "words",
    [
        ["study", "--config", "MISSING"],
        ["simulate", "x", "--config", "MISSING"],
        ["soup", "MISSING"],
        ["evaluate", "--ckpt", "MISSING"],
        ["evaluate", "--data", "MISSING"],
        ["evaluate", "--model", "MISSING"],
        ["audit", "--ckpt", "MISSING"],
        ["audit", "--statistics", "MISSING"],
        ["audit", "--data", "MISSING"],
        ["predict", "MISSING"],
        ["predict", "--ckpt", "MISSING", __file__],
        ["predict", __file__, "--ckpt", "hf://MISSING"],
        ["map", "MISSING"],
        ["map", __file__, "--gate", "--gate_rules", "MISSING"],
        ["audit", "--answers", "MISSING"],
        ["card", "MISSING"],
        ["card", ".", "--study", "MISSING"],
        ["map", __file__, "--glaciers", "MISSING"],
        ["change", "MISSING", "--out", "x"],
        ["score", "MISSING"],
        ["stack", __file__, "MISSING", __file__, "x.tif"],
        ["split", "MISSING"],
        ["ingest", "pamir", "2021", "http://a", "--inventory", "MISSING", "--out", "x"],
        ["convert", "MISSING", "x.safetensors"],
        ["download", "x", "--config", "MISSING"],
        ["fit", "--config", "MISSING"],
        ["fit", "--config", "tiny", "--data.root", "MISSING"],
        ["fit", "--config", "tiny", "--data.root", "chips", "--resume", "MISSING"],
        ["fit", "--config", "tiny", "--data.root", "chips", "--model.weights", "MISSING"],
    ],
    ids=" ".join,
)
def test_what_does_not_exist_is_named_before_anything_heavy_is_imported(words: list[str], tmp_path: Path) -> None:
    write_dataset(tmp_path / "chips", shards=1, chips=1, size=8)
    assert "MISSING" in light(*words, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["chips"], "nothing was begun"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([__file__, "--gate_rules", __file__], "--gate"),
        (["--data", "chips", "--region", "pamir", "--year", "2021", "--s2_offset", "1000"], "--s2_offset"),
        (["--service", "cdse", "--region", "pamir", "--year", "2021", "--s1_linear"], "--s1_linear"),
    ],
)
def test_an_option_of_map_that_would_do_nothing_is_refused(words: list[str], named: str) -> None:
    assert named in light("map", *words)


@pytest.mark.parametrize("command", ["predict", "map"])
def test_a_threshold_is_refused_before_torch_is_imported(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("cryosentinel.commands._check_device", lambda _: pytest.fail("torch is imported"))
    assert main([command, __file__, "--threshold", "0.503"]) == 2
    assert "0.503" in capsys.readouterr().err


def test_predict_refuses_scenes_of_one_name_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scene.tif").touch()
    assert "named scene" in light("predict", "a/scene.tif", "b/scene.tif", cwd=tmp_path)


def test_options_of_a_file_are_overridden_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr("cryosentinel.simulate.simulate", lambda root, config, workers: asked.append((root, workers)))
    file = tmp_path / "simulate.yaml"
    file.write_text("root: from_file\nworkers: 3\n")
    assert main(["simulate", "--workers", "5", "--config", str(file)]) == 0
    assert main(["simulate", "named", "--config", str(file)]) == 0
    assert asked == [(Path("from_file"), 5), (Path("named"), 3)]
    file.write_text("root: from_file\npresets: quick\n")
    assert main(["simulate", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert "presets" in said and str(file) in said and len(asked) == 2


def test_simulated_chips_of_chosen_regions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr("cryosentinel.simulate.simulate", lambda root, config, workers: asked.append(config))
    assert main(["simulate", "x", "--chips", "240", "--regions", "[ile_alatau,zhetysu_alatau]", "--seed", "9"]) == 0
    assert asked[0].regions == ("ile_alatau", "zhetysu_alatau") and abs(asked[0].expected_chips - 240) < 40
    assert asked[0].seed == 9
    assert main(["simulate", "x", "--preset", "reservoirs"]) == 0 and asked[1].around == "reservoirs"
    assert main(["simulate", "x", "--regions", "[atlantis]"]) == 2
    assert "atlantis" in capsys.readouterr().err


def test_a_flag_may_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("cryosentinel.study.chapters.run_study", lambda *_, **options: asked.append(options["force"]))
    monkeypatch.chdir(ROOT)
    for words in ([], ["--force"], ["--force", "true"], ["--force=false"], ["--force", "--preset", "tiny"]):
        assert main(["study", *words]) == 0
    assert asked == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ingest r 2023 s --inventory a b --out x", {"inventory": [Path("a"), Path("b")], "out": Path("x")}),
        ("ingest r 2023 s --inventory a --check --inventory=b", {"inventory": [Path("a"), Path("b")], "check": True}),
        ("download chips --years 2022 2023 --regions pamir", {"years": [2022, 2023], "regions": ["pamir"]}),
        ("map --data c --region r --year 2023 --n-chips 30", {"n_chips": 30, "scheduler": None}),
        ("map a.tif --scheduler", {"scenes": ["a.tif"], "scheduler": "local"}),
        ("map --scheduler --flips 2 --scenes a.tif b.tif", {"scenes": ["a.tif", "b.tif"], "scheduler": "local"}),
        ("map a.tif --scheduler tcp://h-1:8786", {"scheduler": "tcp://h-1:8786"}),
    ],
)
def test_lists_take_several_words_and_names_may_have_dashes(words: str, expected: dict) -> None:
    name, *rest = words.split()
    values = cli.call_of(name, rest)[1]
    assert {option: values[option] for option in expected} == expected


def test_every_command_of_book_and_readme_is_one() -> None:
    """Parsed, not run: an option that a page names and that no longer exists is found here."""
    from cryosentinel.training.config import parse

    seen = set()
    for page in [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]:
        for block in re.findall(r"```[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if line.startswith("cryosentinel ") else []
                if words:
                    parse({}, words[2:]) if words[1] == "fit" else cli.call_of(words[1], words[2:])
                    seen.add(words[1])
    assert {"ingest", "map", "fit", "evaluate", "change", "convert"} <= seen


def test_a_full_disk_is_one_sentence_and_a_bug_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cryosentinel.simulate.simulate", fail)
    error: BaseException = OSError(errno.ENOSPC, "No space left on device", "chips/x")
    assert main(["simulate", "x"]) == 2
    assert "No space left" in (said := capsys.readouterr().err) and "chips/x" in said
    error = KeyboardInterrupt()
    assert main(["simulate", "x"]) == 130
    error = OSError(errno.EBADF, "a bug")
    with pytest.raises(OSError, match="a bug"):
        main(["simulate", "x"])


# --- each command at its work -----------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; outputs go to another one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path / "outputs"))
    return folder


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights, as a checkpoint."""
    import torch

    from cryosentinel.models.checkpoint import save_checkpoint
    from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter
    from cryosentinel.sensors import PUBLISHED_STATISTICS

    torch.manual_seed(3)
    config = SegmenterConfig(architecture="smp_unet", encoder_name="resnet18")
    path = tmp_path_factory.mktemp("unet") / "run" / "checkpoints" / "unet.ckpt"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, build_segmenter(config, PUBLISHED_STATISTICS))
    return path


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "chips"
    write_dataset(root, shards=2, chips=12, size=64)
    return root


def test_stack_takes_its_inputs_by_name_and_by_position(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chip = make_chip(3, 64)
    for name, array in (("s2", chip.s2), ("raw", chip.s2 + 1000), ("s1", chip.s1), ("dem", chip.dem)):
        profile = {"driver": "GTiff", "dtype": array.dtype, "count": len(array), "height": 64, "width": 64}
        with rasterio.open(
            f"{name}.tif", "w", **profile, crs="EPSG:32643", transform=from_origin(5e5, 4.7e6, 10, 10)
        ) as sink:
            sink.write(array)
    assert main(["stack", "s2.tif", "s1.tif", "dem.tif", "a.tif"]) == 0
    assert main(["stack", "--out", "b.tif", "--dem", "dem.tif", "--s1", "s1.tif", "--s2", "s2.tif"]) == 0
    assert main(["stack", "--s2_offset", "1000", "--s2", "raw.tif", "s1.tif", "dem.tif", "c.tif"]) == 0
    assert capsys.readouterr().out.split() == ["a.tif", "b.tif", "c.tif"]
    expected = np.concatenate([chip.s2, chip.s1, chip.dem]).astype(np.float32)
    for name in ("a.tif", "b.tif", "c.tif"):
        with rasterio.open(name) as source:
            np.testing.assert_array_equal(source.read(), expected)
    assert main(["stack", "raw.tif", "s1.tif", "dem.tif", "d.tif"]) == 2
    assert "--s2_offset" in capsys.readouterr().err and not Path("d.tif").exists()


@pytest.mark.parametrize(
    ("options", "block_size", "buffer", "rule"),
    [
        ([], 0.15, 0.02, "edge"),
        (["--block_size", "0.3"], 0.3, 0.02, "edge"),
        (["--buffer", "0.05"], 0.15, 0.05, "edge"),
        (["--rule", "foreign"], 0.15, 0.02, "foreign"),
    ],
)
def test_split_writes_the_split_that_was_asked_for(here, chips, capsys, options, block_size, buffer, rule) -> None:
    from cryosentinel.data.store import ChipStore

    assert main(["split", str(chips), "--out", "split.csv", *options]) == 0
    found = pd.read_csv("split.csv")
    index = ChipStore(chips).index
    lat, lon = index["lat"].to_numpy(), index["lon"].to_numpy()
    assert found["chip_id"].tolist() == index["chip_id"].tolist()
    assert found["split"].tolist() == list(assign_splits(lat, lon, block_size, buffer, rule=rule))
    assert (found["split"] != assign_splits(lat, lon, 0.15, 0.02)).any() == bool(options), "the options change it"
    assert "split.csv" in capsys.readouterr().out


def test_split_counts_what_an_earlier_stage_has_seen(here, chips, capsys) -> None:
    assert main(["split", str(chips), "--earlier_block_size", "0.25"]) == 0
    shown = capsys.readouterr().out
    assert "val: " in shown and "test: " in shown and "earlier stage" in shown


def read(path: Path | str) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(1)


def test_predict_maps_scenes_with_the_options_it_is_given(here, unet, capsys) -> None:
    for seed in (1, 2):
        chip = make_chip(seed, 340)
        cut = Raster(
            chip.s2[:, :224], chip.s1[:, :224], chip.dem[:, :224], "EPSG:32643", from_origin(5e5, 4.7e6, 10, 10)
        )
        write_geotiff(f"scene{seed}.tif", cut)
    quick = ["--flips", "1", "--ckpt", str(unet), "--precision", "32-true"]
    assert main(["predict", "scene1.tif", "scene2.tif", *quick]) == 0
    outputs = here.parent / "outputs" / "predictions"
    shown = capsys.readouterr().out
    for seed in (1, 2):
        probability, water = read(outputs / f"scene{seed}_probability.tif"), read(outputs / f"scene{seed}_water.tif")
        assert np.array_equal(water == 1, (probability >= 100) & (probability != 255))
        assert f"scene{seed}.tif" in shown
    first = read(outputs / "scene1_probability.tif")
    assert len(np.unique(first)) > 3
    assert main(["predict", "scene1.tif", "--flips", "1", "--out", "box"]) == 0  # the weights in the box
    assert "glacial_lakes_simulated" in capsys.readouterr().out
    assert not np.array_equal(read("box/scene1_probability.tif"), first)
    level = int(np.median(first)) + 1
    threshold = str(level / 200)
    assert main(["predict", *quick, "--threshold", threshold, "--out", "maps", "scene1.tif"]) == 0  # named before it
    np.testing.assert_array_equal(read("maps/scene1_probability.tif"), first)
    water = read("maps/scene1_water.tif") == 1
    np.testing.assert_array_equal(water, (first >= level) & (first != 255))
    assert 0 < water.mean() < 1 and (water != (first >= 100)).any(), "the threshold decides"
    for option in (["--flips", "2"], ["--overlap", "0"]):
        assert main(["predict", "--scenes", "scene1.tif", *quick, *option, "--out", "other"]) == 0
        assert (read("other/scene1_probability.tif") != first).any(), option
    with rasterio.open("scene1.tif") as source:
        bands, profile = source.read(), source.profile
    bands[:12] += 1000
    bands[12:14] = 10 ** (bands[12:14] / 10)
    with rasterio.open("raw.tif", "w", **profile) as sink:
        sink.write(bands)
    assert main(["predict", "raw.tif", *quick, "--s2_offset", "1000", "--s1_linear"]) == 0
    again = read(outputs / "raw_probability.tif").astype(int)
    assert np.abs(again - first).max() <= 1, "the same scene in other units"


@pytest.fixture(scope="module")
def split_chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four chips with a lake in the middle of blocks of each split."""
    lat, lon = (each.ravel() for each in np.meshgrid(np.arange(42.075, 45, 0.15), np.arange(75.075, 79, 0.15)))
    splits = assign_splits(lat, lon, 0.15, 0.02)
    where = [i for split in ("train", "val", "test") for i in np.flatnonzero(splits == split)[:4]]
    some = [make_chip(k, 128, lat=float(lat[i]), lon=float(lon[i])) for k, i in enumerate(where)]
    root = tmp_path_factory.mktemp("split") / "chips"
    write_shard(root / "ile_alatau" / "2021" / "shard_000.parquet", some)
    return root


def write_stage(run: Path, **data: object) -> Path:
    """The configuration in a run's folder, which says how its stage split the chips."""
    path = run / "logs" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"run_name": run.name, "data": {"root": "chips", "buffer": 0.02, **data}}))
    return path


def test_chips_are_split_as_the_checkpoints_own_stage_did(here, unet, split_chips, monkeypatch) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(here / "outputs"))
    run = here / "stage"
    stage = write_stage(run, regions=["ile_alatau"], block_size=0.25, sanity=0.3)
    (run / "checkpoints").mkdir()
    shutil.copy(unet, run / "checkpoints" / "unet.ckpt")
    study = Study("tiny", data=split_chips)
    assert study.checkpoint(str(run / "checkpoints" / "unet.ckpt")).name == "unet.ckpt"
    module = study.datamodule
    assert (study.split_config, module.block_size, module.sanity, module.regions) == (stage, 0.25, 0.3, ["ile_alatau"])
    given = Study("tiny", data=split_chips, model="configs/terramind_v3_finetune_almaty_v2.yaml")
    given.checkpoint(str(unet))
    assert given.split_config.name == "terramind_v3_finetune_almaty_v2.yaml"


@pytest.mark.parametrize("device", ["gpu", "meta:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(here, unet, capsys, device) -> None:
    write_geotiff("scene.tif", make_chip(1, 224))
    assert main(["predict", "scene.tif", "--ckpt", str(unet), "--device", device]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cryosentinel: error: ") and device in said and said.count("\n") == 1


def test_evaluate_and_audit_write_what_they_print(here, unet, split_chips, capsys) -> None:
    run = here / "runs" / "elsewhere"
    (run / "checkpoints").mkdir(parents=True)
    ckpt = shutil.copy(unet, run / "checkpoints" / "unet.ckpt")
    words = ["--ckpt", str(ckpt), "--data", str(split_chips)]
    before = sorted(here.parent.rglob("*"))
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "unet.ckpt" in said and "--model" in said and sorted(here.parent.rglob("*")) == before
    write_stage(run, regions=["ile_alatau"], block_size=0.15)
    assert (
        main(["evaluate", *words, "--flips", "2", "--adaptive_flips", "--precision", "32-true", "--out", "scores"]) == 0
    )
    shown = capsys.readouterr().out
    metrics = json.loads(Path("scores/metrics.json").read_text())
    assert metrics and all(entry["data"] == "real" for entry in metrics.values())
    name, entry = next((n, e) for n, e in metrics.items() if "test_iou@0.50" in n)
    assert 0 <= entry["value"] <= 1 and name in shown
    tables = list((here.parent / "outputs" / "evaluations").rglob("*test*.parquet"))
    assert len(pd.read_parquet(tables[0])) > 0 and read_scores(tables[0]).attrs["adaptive"] is True

    assert main(["audit", *words, "--worst", "2", "--control", "1", "--out", "audit"]) == 0
    shown = capsys.readouterr().out
    verdicts = pd.read_csv("audit/verdicts.csv")
    shown_chips = verdicts["sample"].value_counts()
    assert len(verdicts) == 4 and shown_chips.to_dict() == {"candidate": 2, "control": 1}
    assert "test IoU" in shown and "verdicts.csv" in shown and "not filtered by MNDWI" in shown
    assert not any(here.glob("outputs*")), "outputs go where the variable says"


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_outputs_go_where_the_variable_says(here, unet, small_dataset, capsys) -> None:  # noqa: F811
    """A run, its soup and what is found by a bare name, all below a folder that is not the working one."""
    outputs = here.parent / "outputs"
    (outputs / "data").mkdir(parents=True)
    (outputs / "data" / "small").symlink_to(small_dataset)
    Path("run.yaml").write_text(yaml.safe_dump(configuration(Path("outputs/data/small"), **{"trainer.max_epochs": 2})))
    assert main(["fit", "--config", "run.yaml"]) == 0
    run = outputs / "runs" / "small"
    assert capsys.readouterr().out.split()[-1] == str(run) and (run / "checkpoints" / "best.ckpt").is_file()
    assert main(["soup", str(run)]) == 0 and (run / "checkpoints" / "soup.ckpt").is_file()
    assert main(["convert", "soup.ckpt", "weights.safetensors"]) == 0
    target = outputs / "runs" / "other" / "checkpoints" / "unet.ckpt"
    target.parent.mkdir(parents=True)
    target.write_bytes(unet.read_bytes())
    write_geotiff("scene.tif", make_chip(1, 224))
    assert main(["predict", "scene.tif", "--ckpt", "unet.ckpt", "--flips", "1"]) == 0
    assert (outputs / "predictions" / "scene_water.tif").is_file()
    assert sorted(path.name for path in here.iterdir()) == ["run.yaml", "scene.tif", "weights.safetensors"]
