"""The benchmark harness: what it refuses, what it keeps, that it measures in turns; the steps of the large model."""

from __future__ import annotations

import json
import subprocess
import time
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import harness, large_step
from benchmarks.harness import BenchmarkError, catalogue, check, interleaved, line, machine, merge, run
from benchmarks.published_model import CONFIG, Training, published_run
from cryosentinel.precision import choose

ROW = {"id": "a", "what": "w", "ours": 1.0, "peer": 3.0, "peer_name": "p", "unit": "s", "ratio": 3.0, "goal": "2 times"}


def test_every_file_of_the_folder_is_found_without_importing_it(tmp_path):
    (tmp_path / "one.py").write_text('raise SystemExit\nIDS: tuple[str, ...] = ("a", "b")\n')
    (tmp_path / "two.py").write_text('IDS = ("c",)\nx = 1\n')
    (tmp_path / "none.py").write_text("x: int\n")
    assert catalogue(tmp_path) == {"a": "one", "b": "one", "c": "two"}
    (tmp_path / "three.py").write_text('IDS = ("c",)\n')
    with pytest.raises(BenchmarkError, match="measure c"):
        catalogue(tmp_path)


def test_the_committed_catalogue_holds_the_harness_s_own_benchmarks():
    known = catalogue()
    assert known["study_minutes"] == "study_minutes" and known["overlap_proof"] == "overlap_proof"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"goal": ...}, "lacks"),
        ({"more": 1}, "unknown"),
        ({"id": "z"}, "not among"),
        ({"ours": None}, "ours"),
        ({"ours": float("nan")}, "ours"),
        ({"peer": "3"}, "peer"),
        ({"peer": None}, "ratio without a peer"),
    ],
)
def test_a_row_that_says_too_little_is_refused(change, sentence):
    row = {key: value for key, value in {**ROW, **change}.items() if value is not ...}
    with pytest.raises(BenchmarkError, match=sentence):
        check(row, ("a",))


def test_rows_replace_rows_of_the_same_id_and_leave_the_others():
    old = [{**ROW, "id": "b"}, {**ROW, "id": "a", "ours": 9.0}]
    merged = merge(old, [ROW])
    assert [row["id"] for row in merged] == ["a", "b"] and merged[0]["ours"] == 1.0
    assert old[1]["ours"] == 9.0, "what was passed in is left alone"


def test_results_are_merged_into_the_file_and_quick_ones_are_not(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**ROW, "id": "old"}]))
    monkeypatch.setattr(harness, "catalogue", lambda: {"a": "file"})
    monkeypatch.setattr(harness, "run_file", lambda name, quick: [{**ROW, "machine": machine(), "date": "2026-01-01"}])
    run("a", quick=True, results=results)
    assert [row["id"] for row in json.loads(results.read_text())] == ["old"]
    run("a", results=results)
    rows = {row["id"]: row for row in json.loads(results.read_text())}
    assert set(rows) == {"a", "old"} and rows["a"]["date"] == "2026-01-01"
    assert "3 times better" in capsys.readouterr().out
    with pytest.raises(BenchmarkError, match="no benchmark 'z'; known are a"):
        run("z", results=results)


def test_the_machine_is_described_without_its_name():
    import platform

    found = machine()
    assert {"cpu", "cores", "memory_gib", "python", "torch"} <= set(found)
    assert found["cores"] >= 1 and found["memory_gib"] > 0.1 and found["bf16"] in ("native", "not native")
    assert platform.node() not in json.dumps(found) or platform.node() == ""


def test_tasks_run_in_turns_and_are_timed():
    order: list[str] = []

    def task(name, seconds):
        order.append(name)
        time.sleep(seconds)

    seconds = interleaved({"ours": lambda: task("ours", 0.0), "peer": lambda: task("peer", 0.02)}, rounds=3)
    assert order == ["ours", "peer"] * 3
    assert [len(each) for each in seconds.values()] == [3, 3] and min(seconds["peer"]) >= 0.02


def test_a_row_without_a_peer_reads_well():
    assert line({**ROW, "peer": None, "ratio": None, "goal": None}) == "a: 1 s"


def test_committed_results_are_well_formed():
    if not harness.RESULTS.is_file():
        pytest.skip("no benchmark has been run yet")
    known = catalogue()
    for row in json.loads(harness.RESULTS.read_text(encoding="utf-8")):
        assert row["id"] in known, f"{row['id']} is measured by no file"
        check({key: value for key, value in row.items() if key not in ("machine", "date")}, (row["id"],))
        assert row["machine"]["cores"] and row["date"]


# ---------------------------------------------------------------------------------------------------- the large model

#: A network that builds in no time.
SMALL = {"architecture": "smp_unet", "encoder_name": "resnet18"}


def test_published_training_steps_are_measured_and_must_move_the_network(monkeypatch):
    found = large_step.measure(SMALL)
    assert f"U-Net with resnet18), {choose('auto', 'cpu').name}, 2 chips of 224 px" in found["what"]
    assert len(found["losses"]) == 3 and found["losses"][-1] < found["losses"][0]
    assert found["seconds"] > 0 and found["inference"] > 0 and found["gib"] > 0.1
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="noise\n" + json.dumps(found)))
    for row in large_step.run(quick=False):
        check(row, large_step.IDS)
    monkeypatch.setattr(Training, "step", lambda self, batch: 1.0)
    with pytest.raises(RuntimeError, match="encoder, decoder of U-Net with resnet18 stand where they stood"):
        large_step.measure(SMALL)


def test_the_published_run_differs_from_its_configuration_by_its_weights_alone():
    run, plain = published_run(), yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert run.model.weights is None and run.model.pretrained is False
    for name, value in {**plain["model"], "weights": None}.items():
        assert run.model.as_dict()[name] == value
    assert run.optim.layer_decay == plain["optim"]["layer_decay"] and run.trainer.precision == "bf16-mixed"
