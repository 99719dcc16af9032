"""The benchmark harness: what it refuses, what it keeps, that it measures in turns; the GPU script on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from docutils import nodes

from benchmarks import gpu, harness, large_step
from benchmarks import gpu_record as gpu_record_module
from benchmarks.accelerator import Device, largest_batch
from benchmarks.gpu_record import refuse_to_replace
from benchmarks.harness import BenchmarkError, catalogue, check, interleaved, line, machine, merge, run
from benchmarks.published_model import CONFIG, Training, published_run
from cryosentinel.files import write_json
from cryosentinel.precision import choose

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "book" / "_ext")]

from cryosentinel_gpu import gpu_nodes  # noqa: E402

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
    assert min(seconds["peer"]) >= 0.02 > min(seconds["ours"])


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


def _memory_for(limit: int, tried: list[int]):
    """A step that fits up to ``limit`` chips."""

    def step(count: int) -> None:
        tried.append(count)
        if count > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return step


@pytest.mark.parametrize("fits", [2, 3, 7, 8, 9, 16, 37, 63, 64, 500])
def test_the_largest_batch_is_found_by_doubling_and_bisection(fits):
    tried: list[int] = []
    released: list[None] = []
    found = largest_batch(_memory_for(fits, tried), start=8, limit=64, release=lambda: released.append(None))
    assert found == min(fits, 64)
    assert len(released) == len(tried) == len(set(tried)) <= 10, "nothing is tried twice, and memory is given back"
    assert all(2 <= count <= 64 for count in tried)


def test_the_search_for_the_largest_batch_gives_up_and_lets_other_errors_through():
    with pytest.raises(BenchmarkError, match="Not even a batch of 2"):
        largest_batch(_memory_for(1, []), start=8, limit=64, release=lambda: None)

    def broken(count: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_batch(broken, start=8, limit=64, release=lambda: None)


@pytest.fixture(scope="module")
def gpu_record(tmp_path_factory):
    """The GPU script on the CPU, on networks that build in no time, and how many rows the file held at each writing."""
    out = tmp_path_factory.mktemp("gpu") / "gpu_results.json"
    plan = replace(gpu.PLANS["cpu"].quick(), model=SMALL, size=128, batches=(2, 1), sides=(128,))
    larger = {"architecture": "smp_unet", "encoder_name": "resnet34"}
    held: list[tuple[int, bool]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "published_run", lambda model=None: published_run(model or larger))
        patch.setattr(gpu_record_module, "write_json", lambda path, record: held.append(_written(path, record)))
        assert gpu.Measurement(plan, Device("cpu"), out).measure()
    return json.loads(out.read_text()), held


def _written(path, record) -> tuple[int, bool]:
    write_json(path, record)
    return len(record["rows"]), record["complete"]


def test_the_gpu_script_runs_on_a_cpu_and_says_so(gpu_record):
    record, held = gpu_record
    assert record["kind"] == "cpu" and record["device"].startswith(f"{machine()['cpu']}, ") and record["complete"]
    assert record["model"] == "U-Net with resnet18, 128 px, random weights"
    rows = {row["id"]: row for row in record["rows"]}
    assert len(rows) == len(record["rows"]), "no id twice"
    assert all(row["value"] is not None and row["value"] > 0 for row in rows.values())
    assert {"matrix_rate", "infer_autocast_b2", "infer_weights_b2", "train_b2", "train_b2_memory"} <= set(rows)
    assert rows["train_largest"]["value"] == 4, "a CPU's memory is not searched: the plan's limit holds"
    assert all((row["share"] is not None) == (row["unit"] in ("ms a chip", "steps/s")) for row in rows.values())
    # Forward and backward are about three passes; the published model's passes are counted, not run.
    assert 2.5 < rows["training_operations"]["value"] / rows["forward_operations"]["value"] < 3.1
    assert rows["published_operations"]["value"] > rows["forward_operations"]["value"]
    assert rows["goal_rate"]["value"] == pytest.approx(rows["published_operations"]["value"])  # four passes in 4 ms
    # A share is what it says: four passes in the time of a chip (GFLOP / ms is TFLOP/s), against the matrix rate.
    row = rows["infer_autocast_b2"]
    rate = 4 * rows["forward_operations"]["value"] / row["value"]
    assert row["share"] == pytest.approx(rate / rows["matrix_rate"]["value"])
    expected = [*((count, False) for count in range(1, len(rows) + 1)), (len(rows), True)]
    assert held == expected, "every row is in the file at once, and it is complete only at the end"


def test_a_part_that_fails_leaves_its_reason_and_the_others_run(tmp_path, monkeypatch):
    def broken(self) -> None:
        raise ValueError("no matrix here\nand a long story")

    def other(self) -> None:
        self.results.add("after", "what came after", 1.0, "GFLOP")

    monkeypatch.setattr(gpu.Measurement, "matrix_rate", broken)
    for name in ("operations", "inference", "training"):
        monkeypatch.setattr(gpu.Measurement, name, other)
    out = tmp_path / "out.json"
    plan = replace(gpu.PLANS["cpu"].quick(), model=SMALL)
    assert not gpu.Measurement(plan, Device("cpu"), out).measure()
    record = json.loads(out.read_text())
    assert [row["value"] for row in record["rows"][1:]] == [None, 1.0, 1.0, 1.0] and not record["complete"]
    assert record["rows"][1]["reason"] == "ValueError: no matrix here"
    assert not gpu.Measurement(replace(plan, minutes=-1), Device("cpu"), out).measure()
    record = json.loads(out.read_text())
    assert [row["id"] for row in record["rows"]] == ["parameters"] and not record["complete"], "the time was over"


def test_a_cpu_run_does_not_take_the_place_of_gpu_figures(tmp_path, monkeypatch):
    out = tmp_path / "gpu_results.json"
    text = json.dumps({"kind": "cuda", "device": "NVIDIA H100 80GB HBM3", "rows": []})
    out.write_text(text)
    monkeypatch.setattr(gpu, "Measurement", lambda *_: pytest.fail("it measures before it looks"))
    with pytest.raises(SystemExit, match=r"holds the figures of NVIDIA H100 80GB HBM3.*give another --out"):
        gpu.main(["--device", "cpu", "--out", str(out)])
    assert out.read_text() == text
    out.write_text("[]")
    with pytest.raises(SystemExit, match="not a result of this script"):
        gpu.main(["--device", "cpu", "--out", str(out)])
    refuse_to_replace(tmp_path / "none.json", "cpu")
    for old, new in (("cpu", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")):
        out.write_text(json.dumps({"kind": old, "device": "d"}))
        refuse_to_replace(out, new)


def test_a_gpu_that_is_not_there_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU here"):
        gpu.main(["--device", "cuda"])


def test_the_book_says_that_gpu_figures_are_missing_or_shows_them(gpu_record):
    record, _ = gpu_record
    (sentence,) = gpu_nodes(None)
    assert sentence.astext().startswith("GPU figures are missing") and "python -m benchmarks.gpu" in sentence.astext()
    said, table = gpu_nodes(record)
    assert said.astext().startswith("GPU figures are missing") and "on the CPU" in said.astext()
    cells = [entry.astext() for entry in table.findall(nodes.entry)]
    assert cells[:4] == ["What", "Value", "Of the matrix rate", "Goal"]
    assert len(cells) == 4 * (1 + len(record["rows"]))
    row = {"id": "x", "what": "inference", "value": 3.91, "unit": "ms a chip", "goal": "at most 4 ms", "share": 0.714}
    failed = {**row, "value": None, "unit": "", "goal": None, "share": None, "reason": "E: no"}
    cuda = {**record, "kind": "cuda", "device": "NVIDIA H100", "complete": True, "rows": [row, failed]}
    said, table = gpu_nodes(cuda)
    assert said.astext().startswith("Measured on NVIDIA H100") and "missing" not in said.astext()
    cells = [entry.astext() for entry in table.findall(nodes.entry)]
    assert "5,104 ms a chip" in gpu_nodes({**cuda, "rows": [{**row, "value": 5104.4}]})[1].astext()
    assert cells[4:] == ["inference", "3.91 ms a chip", "71%", "at most 4 ms", "inference", "none: E: no", "", ""]
    assert "rows are missing" in gpu_nodes({**cuda, "complete": False})[0].astext()


def test_published_training_steps_are_measured_and_must_move_the_network(monkeypatch):
    found = large_step.measure(SMALL)
    assert f"U-Net with resnet18), {choose('auto', 'cpu').name}, 2 chips of 224 px" in found["what"]
    assert len(found["losses"]) == 3 and found["losses"][-1] < found["losses"][0]
    assert found["seconds"] > 0 and found["gib"] > 0.1
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
