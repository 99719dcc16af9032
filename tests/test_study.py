"""The study: every notebook runs by papermill, by the command and by hand, and leaves what the book reads."""

import hashlib
import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TinyStudy

from cryosentinel import paths
from cryosentinel.errors import CheckpointError, ConfigError, InputError
from cryosentinel.evaluation.bootstrap import Estimate
from cryosentinel.files import read_json, write_json
from cryosentinel.models import segmenter
from cryosentinel.models.checkpoint import load_checkpoint
from cryosentinel.models.segmenter import SegmenterConfig
from cryosentinel.study import chapters as study_module
from cryosentinel.study import comparison
from cryosentinel.study.chapters import NOTEBOOKS, notebook_parameters, run_seeds, seed_summary
from cryosentinel.study.metrics_file import MetricsFile
from cryosentinel.study.study import Study

PAPERMILL = [sys.executable, "-m", "papermill"]


def digest_of(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_every_notebook_was_executed_into_the_book(tiny_study: TinyStudy) -> None:
    assert sorted(p.stem for p in tiny_study.chapters.glob("*.ipynb")) == sorted(NOTEBOOKS)
    for path in tiny_study.chapters.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        assert all(cell.execution_count for cell in code), path.name
        outputs = [output for cell in code for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], path.name
        # The parameter out is relative to the clone; nothing else may name the folder of the outputs.
        found = re.search(rf"{re.escape(str(ROOT))}|(?<!\.\.){re.escape(str(tiny_study.outputs))}", path.read_text())
        assert not found, f"{path.name} holds a path of this machine"


def test_the_metrics_file_holds_named_figures_with_their_kind(tiny_study: TinyStudy) -> None:
    metrics = json.loads((tiny_study.outputs / "study" / "metrics.json").read_text())
    for name in (
        "val_iou@0.50_tta", "test_iou@0.50_tta", "test_iou@0.50_tta_truth", "test_mean_chip_iou@0.50", "test_iou@0.50",
        "mndwi_test_iou@best_truth", "test_iou_soup_minus_mndwi_truth", "test_iou@0.50_label_corrected",
        "parameters_stem", "split_smallest_distance_m",
    ):  # fmt: skip
        assert name in metrics, name
    for name, entry in metrics.items():
        assert {"value", "low", "high", "n", "data", "source"} <= set(entry), name
        assert entry["data"] in ("simulated", "real"), name
        if entry["value"] is None or entry["low"] is None:
            assert entry["reason"], name
    assert 0 <= metrics["test_iou@0.50_tta"]["value"] <= 1
    assert 0 < metrics["parameters_stem"]["value"] < metrics["parameters_total"]["value"]
    # Chapter 6: v1's product starves its first trained block, v2's does not, and the short runs show it in the weights.
    rate, block, decoder = (
        [metrics[f"finetune_{version}_{what}"]["value"] for version in ("v1", "v2")]
        for what in ("lowest_learning_rate_share", "movement_first_trained_block", "movement_decoder")
    )
    assert rate[0] < 0.01 < rate[1] < 1 and 0 < block[0] < block[1] < decoder[1]


def test_stages_were_announced_and_timed(tiny_study: TinyStudy) -> None:
    times = json.loads((tiny_study.outputs / "study" / "timings.json").read_text())
    assert {"simulate", "fit", "soup", *(f"notebook_{name}" for name in NOTEBOOKS)} <= set(times)
    assert "missing" in tiny_study.log


def test_a_second_run_makes_nothing_again(tiny_study: TinyStudy) -> None:
    before = digest_of(tiny_study.outputs)
    result = tiny_study.command("study", "--preset", "tiny", "--chapters", str(tiny_study.chapters))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("unchanged, kept") == len(NOTEBOOKS)
    assert digest_of(tiny_study.outputs) == before


def test_the_run_folder_has_the_published_layout(tiny_study: TinyStudy) -> None:
    run = tiny_study.outputs / "runs" / "tiny"
    for name in (
        "checkpoints/soup.ckpt", "checkpoints/last.ckpt", "logs/metrics.csv", "logs/config.yaml",
        "diagnostics/per_chip_val.parquet", "diagnostics/per_chip_test.parquet",
        "diagnostics/per_region_breakdown.json", "diagnostics/threshold_sweep.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert list((run / "checkpoints").glob("step[0-9]*-iou0.[0-9]*.ckpt"))


def test_the_weights_in_the_box_find_lakes_of_another_world(tiny_study: TinyStudy, monkeypatch, capsys) -> None:
    from cryosentinel.data.dataset import ChipDataset
    from cryosentinel.evaluation.predictors import ModelPredictor
    from cryosentinel.mapping.product import default_weights
    from cryosentinel.models.checkpoint import load_segmenter

    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tiny_study.outputs))
    study = Study("tiny", out=tiny_study.outputs / "box")
    store = study.datamodule.store
    rows = [int(row) for row in study.datamodule.rows["test"][:8]]
    batch = ChipDataset(store, rows).__getitems__(range(len(rows)))
    lake = np.stack([study.truth[store.index.chip_id.iloc[row]].lake > 0 for row in rows])
    called = ModelPredictor(load_segmenter(default_weights()), 1)(batch) >= 0.5
    assert (called & lake).sum() / (called | lake).sum() > 0.6


def test_unknown_parameters_are_refused_by_the_command(tmp_path: Path) -> None:
    study = TinyStudy(tmp_path / "outputs", tmp_path / "chapters", "")
    result = study.command("study", "--preset", "tiny", "--parameters.thresold", "0.4")
    assert result.returncode == 2 and "thresold" in result.stderr and not study.chapters.exists()


def test_a_chapter_depends_on_its_parameters_and_sources(tmp_path: Path) -> None:
    notebook = tmp_path / "01_data.ipynb"
    notebook.write_text("{}")
    key = study_module.chapter_key(notebook, {"preset": "tiny"})
    assert key == study_module.chapter_key(notebook, {"preset": "tiny"})
    assert key != study_module.chapter_key(notebook, {"preset": "quick"})
    notebook.write_text("{} ")
    assert key != study_module.chapter_key(notebook, {"preset": "tiny"})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_are_typed_and_commented(name: str) -> None:
    parameters = notebook_parameters(name)
    assert {"preset", "out"} <= set(parameters)
    for parameter, about in parameters.items():
        assert about["inferred_type_name"] in ("str", "int", "float", "bool"), parameter
        assert len(about["help"]) > 10, parameter
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in notebook.cells if "outputs" in c)


def papermill_at_a_terminal(study: TinyStudy, words: list[str], stdout: object = None) -> tuple[int, str]:
    """Run papermill with a pseudo-terminal as input, and as output where none is given."""
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [*PAPERMILL, *words], cwd=ROOT, env=study.environment, stdin=inner, stdout=stdout or inner, stderr=inner
    )
    os.close(inner)
    shown = b""
    while True:
        try:
            chunk = os.read(outer, 65536)
        except OSError:  # the other end was closed: the process is done
            break
        if not chunk:
            break
        shown += chunk
    os.close(outer)
    return process.wait(timeout=600), shown.decode(errors="replace")


def test_papermill_by_hand_leaves_the_study_alone(tiny_study: TinyStudy, tmp_path: Path) -> None:
    before = digest_of(tiny_study.outputs / "study")
    out = tmp_path / "out.ipynb"
    words = ["notebooks/03_evaluate.ipynb", str(out), "-p", "ckpt", "soup.ckpt", "-p", "preset", "tiny"]
    status, shown = papermill_at_a_terminal(tiny_study, words)
    assert status == 0, shown[-3000:]
    assert digest_of(tiny_study.outputs / "study") == before
    (folder,) = (tiny_study.outputs / "runs").glob("03_evaluate_tiny_*")
    by_hand, study = (read_json(path / "metrics.json") for path in (folder, tiny_study.outputs / "study"))
    for name in ("test_iou@0.50_tta", "test_iou@0.50", "mlp_context_test_iou@best_truth"):
        assert by_hand[name] == study[name]
    assert "predict " not in out.read_text(), "weights, settings and chips are the study's: nothing is predicted again"


def test_chapter_3_needs_only_its_saved_tables(tiny_study: TinyStudy, tmp_path: Path) -> None:
    """No chips, no network, 2 GB of data: the same figures."""
    shutil.copytree(tiny_study.outputs / "study" / "tables", tmp_path / "tables")
    words = ["--log-level", "ERROR", "notebooks/03_evaluate.ipynb", str(tmp_path / "out.ipynb"), "-p", "saved"]
    outputs, space = tmp_path / "outputs", (2**31, 2**31)
    done = subprocess.run(
        [*PAPERMILL, *words, str(tmp_path / "tables"), "-p", "out", str(tmp_path / "again")], cwd=ROOT, text=True,
        env={**os.environ, "CRYOSENTINEL_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}, capture_output=True,
        stdin=subprocess.DEVNULL, check=False, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, space),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not outputs.exists(), "nothing was simulated, trained or predicted"
    again, study = (read_json(path / "metrics.json") for path in (tmp_path / "again", tiny_study.outputs / "study"))
    assert len(again) > 100 and all(study[name] == entry for name, entry in again.items())
    assert "20 are needed" in (tmp_path / "out.ipynb").read_text(), "the page says why there is no interval"


def test_papermill_at_a_terminal_wants_an_output_or_a_redirection(tiny_study: TinyStudy, tmp_path: Path) -> None:
    words = ["notebooks/01_data.ipynb", "-p", "preset", "tiny"]
    status, shown = papermill_at_a_terminal(tiny_study, words)
    assert status != 0 and "OUTPUT" in shown.upper()
    with open(tmp_path / "out.ipynb", "wb") as handle:
        status, shown = papermill_at_a_terminal(tiny_study, words, stdout=handle)
    assert status == 0, shown[-3000:]
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert [c for c in executed.cells if c.cell_type == "code"][-1].outputs


def test_a_checkpoint_is_a_path_a_bare_name_or_on_the_hub(
    tiny_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tiny_study.outputs))
    study = Study("tiny", out="", notebook="test")
    soup = tiny_study.outputs / "runs" / "tiny" / "checkpoints" / "soup.ckpt"
    assert study.checkpoint("soup.ckpt") == study.checkpoint(str(soup)) == soup
    assert study.checkpoint("last.ckpt").name == "last.ckpt"
    for missing, words in (("none.ckpt", "none.ckpt"), ("hf://owner/repo/soup.ckpt", "owner/repo")):
        with pytest.raises(Exception, match=words) as caught:
            study.checkpoint(missing)
        assert type(caught.value).__module__ == "cryosentinel.errors"


def test_the_truth_never_reaches_training(tiny_study: TinyStudy, tmp_path: Path) -> None:
    """Chips without their truth beside them train to the same soup, bit for bit."""
    import torch

    from cryosentinel.models.checkpoint import load_checkpoint

    shutil.copytree(tiny_study.outputs / "data" / "tiny", tmp_path / "chips")
    run = tmp_path / "run"
    fitted = tiny_study.command(
        "fit", "--config", "configs/tiny.yaml", "--data.root", str(tmp_path / "chips"), "--run_dir", str(run)
    )
    assert fitted.returncode == 0, fitted.stderr[-3000:]
    assert tiny_study.command("soup", str(run)).returncode == 0
    with_truth = load_checkpoint(tiny_study.outputs / "runs" / "tiny" / "checkpoints" / "soup.ckpt")["state_dict"]
    without = load_checkpoint(run / "checkpoints" / "soup.ckpt")["state_dict"]
    assert with_truth.keys() == without.keys()
    assert all(torch.equal(with_truth[name], without[name]) for name in with_truth)


def test_a_study_of_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path))
    with pytest.raises(ConfigError, match="huge"):
        Study("huge")
    with pytest.raises(InputError, match="nowhere"):
        Study("tiny", data=tmp_path / "nowhere")
    assert Study("tiny").out == tmp_path / "study" and list(tmp_path.iterdir()) == [], (
        "only what is written makes folders"
    )


def test_a_refused_checkpoint_leaves_no_folder_behind(
    tiny_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tiny_study.outputs))
    before = {path for path in tiny_study.outputs.rglob("*") if path.is_dir()}
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt"):
        Study("tiny", out="").evaluate(tmp_path / "other.ckpt")
    assert {path for path in tiny_study.outputs.rglob("*") if path.is_dir()} == before


def metrics_file(folder: Path, preset: str = "tiny") -> MetricsFile:
    return MetricsFile(folder, "simulated", preset, "here")


def test_figures_of_two_presets_never_stand_in_one_file(tmp_path: Path) -> None:
    first, other = metrics_file(tmp_path), metrics_file(tmp_path, "quick")
    first.add("x", 0.5, 3)
    first.write()
    first.note_time("fit", 1.0)
    first.begin()
    assert "x" in first.read()
    other.add("y", 0.5, 3)
    with pytest.raises(ConfigError, match="tiny"):
        other.write()
    with pytest.raises(ConfigError, match="tiny"), other.timed("fit", ""):
        pass
    other.begin()
    assert other.read() == {} == other.times()
    other.write()
    assert list(other.read()) == ["y"]


def test_a_figure_is_recorded_with_the_reference_that_it_was_scored_against(tmp_path: Path) -> None:
    metrics = metrics_file(tmp_path)
    score = Estimate(0.5, 0.4, 0.6, 12, 30, 25)
    metrics.add("iou", score, reference="truth")
    metrics.add("iou", Estimate(0.7, None, None, 12, 30, 3, "3 of 30"))
    metrics.add("recall/0 to 1 ha", 0.25, 8, reference="truth")
    metrics.of("run/soup.ckpt").add("never written", 1.0)
    metrics.add("real", None, 3, reason="no such lake", data="real")
    assert metrics.write()["n"].to_dict() == {"iou_truth": 12, "iou": 12, "recall_truth/0 to 1 ha": 8, "real": 3}
    found = metrics.read()
    assert (found["iou_truth"]["value"], found["iou_truth"]["low"]) == (0.5, 0.4)
    assert (found["iou"]["value"], found["iou"]["reason"]) == (0.7, "3 of 30")
    assert found["real"]["data"] == "real" and found["iou"]["source"] == "here"
    assert metrics.of("run/soup.ckpt").source == "here, run/soup.ckpt"


def test_two_processes_that_add_figures_lose_none(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cryosentinel.study.metrics_file import MetricsFile\n"
        "metrics = MetricsFile(Path(sys.argv[1]), 'simulated', 'tiny', 'here')\n"
        "for i in range(50):\n"
        "    name = f'{sys.argv[2]}{i}'\n"
        "    metrics.add(name, i), metrics.write(), metrics.note_time(name, 1)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [process.wait(120) for process in running] == [0, 0]
    names = {f"{name}{i}" for name in "ab" for i in range(50)}
    assert metrics_file(tmp_path).read().keys() == names == metrics_file(tmp_path).times().keys()


def test_a_wall_time_says_on_which_machine(tmp_path: Path) -> None:
    metrics = metrics_file(tmp_path)
    with metrics.timed("soup", "making it"):
        pass
    entry = metrics.times()["soup"]
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert f"{os.cpu_count()} cores" in entry["machine"] and ("not native" in entry["machine"]) != native


def test_every_network_of_the_comparison_can_be_built() -> None:
    for name, network in comparison.NETWORKS.items():
        assert network.name == name
        if not network.model:
            continue  # the study's own
        config = SegmenterConfig.from_dict(network.model)
        assert (config.architecture == "terramind") == (network.backbone_mult < 1), "the encoder's own rate"


def blocks_of(page: str) -> list[str]:
    """The Python of a page of the book, block by block."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "book" / page).read_text(encoding="utf-8"), re.M | re.DOTALL)


def test_the_page_on_a_network_of_your_own_compares_it_on_the_same_chips(
    tiny_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tiny_study.outputs))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segmenter, "_ADDED", {})
    monkeypatch.setattr(comparison, "NETWORKS", dict(comparison.NETWORKS))
    page: dict = {}
    for block in blocks_of("own_network.md"):
        exec(block, page)
    entries = page["entries"]
    run = tiny_study.outputs / "runs" / "tiny" / "networks" / "tiny_band_mixer"
    saved = yaml.safe_load((run / "logs" / "config.yaml").read_text())
    assert saved["model"]["architecture"] == "band_mixer" and saved["trainer"]["limit_train_batches"] == 3
    assert isinstance(page["network"].net, page["BandMixer"]) and (tmp_path / "comparison.png").stat().st_size > 10_000
    names = (*comparison.BASELINES, "band_mixer", "soup")
    for name in names:
        for tail in ("", "_truth"):
            assert 0 <= entries[f"compared_{name}_test_iou{tail}"]["value"] <= 1
        assert entries[f"compared_{name}_seconds_a_chip"]["value"] > 0
    for name in names[-2:]:
        averaged, anew = (entries[f"compared_{name}_val_iou_{which}"] for which in ("averaged", "reestimated"))
        assert averaged["n"] == anew["n"]
    own, other = (entries[f"compared_{name}_test_iou_truth"]["value"] for name in ("soup", "band_mixer"))
    gain = entries["compared_soup_minus_band_mixer_test_iou_truth"]["value"]
    assert gain == pytest.approx(own - other) and "compared_soup_minus_soup_test_iou" not in entries
    counts = [entries[f"compared_{name}_parameters"]["value"] for name in ("mndwi", "band_mixer")]
    assert counts == [None, sum(p.numel() for p in page["BandMixer"]().parameters())]
    assert entries["compared_oracle_test_iou_truth"]["value"] > 0.8
    titles = [comparison.names()[name] for name in names]
    assert list(comparison.table(entries).index) == titles and "two convolutions" in titles
    # Eight chips give no interval, so nobody can be called ahead.
    assert "Ahead of this study's network: none." in comparison.verdict(entries)
    left, right = comparison.plot(entries, "simulated").axes
    best = max(names, key=lambda name: entries[f"compared_{name}_test_iou_truth"]["value"])
    assert comparison.names()[best].startswith(left.get_yticklabels()[-1].get_text().replace("\n", " "))
    assert len(right.texts) == 10
    with pytest.raises(ConfigError, match="band_mixer already"):
        comparison.add(replace(page["mixer"], title="another"))


def test_the_verdict_follows_the_intervals() -> None:
    def entry(value: float, low: float | None = None, high: float | None = None) -> dict:
        return {"value": value, "low": low, "high": high}

    entries = {f"compared_{name}_test_iou": entry(0.5) for name in ("mndwi", "ndwi", "pixel", "soup")}
    entries["compared_soup_minus_mndwi_test_iou"] = entry(0.2, 0.1, 0.3)
    entries["compared_soup_minus_ndwi_test_iou"] = entry(0.2, -0.1, 0.3)
    entries["compared_soup_minus_pixel_test_iou"] = entry(-0.2, -0.3, -0.1)
    assert comparison.verdict(entries, "label").splitlines() == [
        "Ahead of this study's network: pixel classifier, gradient boosting, all bands.", "Behind it: MNDWI.",
        "Not told apart from it: NDWI.",
    ]  # fmt: skip


def test_the_soups_batchnorm_is_estimated_anew(
    tiny_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tiny_study.outputs))
    study, network = Study("tiny", out=tmp_path), comparison.NETWORKS["smp_unet"]  # the study's own has no BatchNorm
    soup, reestimated = (load_checkpoint(path) for path in (study.soup(network), study.reestimated_soup(network)))
    moved = {
        name for name, value in soup["state_dict"].items() if not torch.equal(value, reestimated["state_dict"][name])
    }
    assert moved and all("running_" in name or "num_batches" in name for name in moved)
    assert reestimated["batchnorm"]["layers"] > 0 and reestimated["batchnorm"]["chips"] % 4 == 0
    metrics = read_json(tiny_study.outputs / "study" / "metrics.json")
    assert "val_iou_batchnorm_reestimated_minus_averaged" in metrics


def test_seeds_are_runs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(preset, out=None, chapters=None, parameters=None, notebooks=NOTEBOOKS, force=False):  # type: ignore[no-untyped-def]
        seed = (parameters or {}).get("seed", 42)
        calls.append((seed, tuple(notebooks)))
        path = Path(out) / "metrics.json"
        write_json(
            path, {"iou": {"value": seed / 100, "data": "simulated"}, "chips": {"value": 3, "data": "simulated"}}
        )
        return path

    monkeypatch.setattr(study_module, "run_study", run)
    found = read_json(run_seeds([17, 42], "tiny", out=tmp_path))
    assert calls[1] == (42, NOTEBOOKS) and calls[0] == (17, NOTEBOOKS[1:]), "the chips do not depend on the seed"
    assert found["figures"] == {
        "iou": {"mean": pytest.approx(0.295), "spread": pytest.approx(0.125 * 2**0.5), "data": "simulated",
                "values": {"17": 0.17, "42": 0.42}}
    }, "what no seed moves is left out"  # fmt: skip
    for wrong in ([17], [17, 17], [0, 1]):
        with pytest.raises(ConfigError, match="two or more different ones"):
            run_seeds(wrong, "tiny", out=tmp_path)


def test_a_seed_has_a_run_folder_of_its_own_unless_it_is_the_configurations(tmp_path: Path) -> None:
    own, same = Study("tiny", out=tmp_path), Study("tiny", out=tmp_path, seed=42)
    assert own.folders.run.name == same.folders.run.name == "tiny"
    other = Study("tiny", out=tmp_path, seed=17)
    assert (other.folders.run.name, other.seed) == ("tiny_seed17", 17)
    assert other.folders.run.parent.parent.name == "tiny", "not beside it, where the latest run is looked for"


def test_a_refused_checkpoint_is_said_before_chips_are_made_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path / "outputs"))
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError):
        Study("tiny").evaluate(tmp_path / "other.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["other.ckpt"]


def test_a_bare_checkpoint_name_never_means_a_variant_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path))
    folders, changes = Study("tiny").folders, {"data.regions": ["pamir"]}
    runs = [folders.fit(), folders.fit(None, changes), folders.fit("stem", changes)]
    for run in runs:
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / paths.SOUP).touch()
    assert len(set(runs)) == 3
    assert paths.checkpoint(paths.SOUP, folders.run.parent) == runs[0] / "checkpoints" / paths.SOUP


def test_the_seed_and_the_overrides_reach_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryosentinel.training import fit as training

    calls = []
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(training, "fit", lambda config, keys, run: calls.append((config, keys)) or run)
    monkeypatch.setattr(Study, "chips", lambda self: self.root)
    study = Study("tiny", seed=17)
    assert study.fit() == tmp_path / "runs" / "tiny" / "seeds" / "tiny_seed17"
    changed = study.fit(trainer__max_epochs=1)
    assert study.folders.run in changed.parents, "a bare soup.ckpt is looked for beside it"
    network = comparison.NETWORKS["smp_unet"]
    other = study.fit(network)
    assert len({study.fit(), changed, other}) == 3 and other.name == "tiny_seed17_smp_unet"
    assert all(keys["seed"] == 17 and keys["data.root"] == str(tmp_path / "data" / "tiny") for _, keys in calls)
    assert [keys.get("trainer.max_epochs") for _, keys in calls[:3]] == [None, 1, None]
    assert (calls[2][0]["model"], calls[2][0]["optim"]["backbone_mult"]) == (dict(network.model), 1.0)
    assert calls[2][0]["optim"]["lr"] == calls[0][0]["optim"]["lr"]


def test_predictions_are_kept_apart_by_what_they_are_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path))
    quick, tiny = Study("quick", out=tmp_path).folders, Study("tiny", out=tmp_path / "other").folders
    base = {"digest": "a", "flips": 4}
    found = [tiny.predictions("soup", base), tiny.predictions("soup", {**base, "flips": 1}),
             tiny.predictions("soup", {**base, "digest": "b"}), quick.predictions("soup", base)]  # fmt: skip
    assert len(set(found)) == 4 and {path.parent for path in found} == {tmp_path / "evaluations"}
    assert tiny.predictions("soup", base) == Study("tiny", out="").folders.predictions("soup", base)


def test_a_figure_without_a_value_has_no_spread() -> None:
    def metrics(value: float | None) -> dict:
        return {"a": {"value": value, "data": "simulated"}}

    assert seed_summary({1: metrics(0.1), 2: metrics(None)}) == {}
    of = {seed: {"a": {"value": seed, "low": seed - 1, "high": seed + 1, "data": "simulated"}} for seed in (3, 5)}
    assert seed_summary(of)["a"]["low"] == {"3": 2, "5": 4} and seed_summary(of)["a"]["high"] == {"3": 4, "5": 6}
