"""The reproduction of published and recorded figures: what agrees, what differs, and the status that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryosentinel import paths
from cryosentinel.evaluation.scores import BINS

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

import reproduce_benchmarks as reproduce  # noqa: E402


def table(hits: int) -> pd.DataFrame:
    """Two chips of two regions: ``hits`` of 100 lake pixels found, the other chip's all."""
    rows = []
    for region, found in (("ile_alatau", hits), ("tien_shan_full", 100)):
        lake, background = np.zeros((2, BINS), np.int64)
        lake[150], lake[10] = found, 100 - found
        background[0] = 900
        rows.append({"region": region, "lake": lake, "background": background})
    return pd.DataFrame(rows)


def test_published_rows_are_scores_of_the_tables():
    rows = reproduce.published_rows({"val": table(50), "test": table(80)})
    assert rows["val_iou@0.50_tta"] == 0.75 and rows["test_iou@0.80_tta"] == 0.0
    assert rows["chips_val"] == 2 and rows["soup_val_chips_below_iou_0.05"] == 0 and rows["best_threshold"] == 0.5
    assert reproduce.published_rows({"val": table(2), "test": table(0)})["soup_test_chips_below_iou_0.05"] == 1
    assert rows["test_iou@0.50_tta_ile_alatau"] == 0.8 and rows["test_mean_chip_iou@0.50"] == pytest.approx(0.9)
    published = json.loads(paths.PUBLISHED.read_text())
    compared = {row["row"]: row for row in reproduce.against_published(rows, published)}
    # Every row of the published sweep and regions; the corrected score cannot be made again.
    wanted = {
        n for n in published if n.startswith(("val_iou@", "test_iou@", "val_mean", "test_mean", "soup_val_chips"))
    }
    assert {n for n in wanted if "label_corrected" not in n} < set(compared)
    assert compared["chips_test"]["recorded"] == 665 and compared["chips of test_iou@0.50_tta_ile_alatau"]["found"] == 1


def test_a_published_row_that_was_not_found_differs(capsys):
    rows = reproduce.against_published(
        {}, {"test_iou@0.50_tta_pamir": {"value": 0.9, "n": 3}, "train_dollars": {"value": 5}}
    )
    assert [(row["row"], row["found"], row["agrees"]) for row in rows] == [
        (name, None, False) for name in ("test_iou@0.50_tta_pamir", "chips of test_iou@0.50_tta_pamir")
    ]
    assert reproduce.show(rows) == 1 and "missing" in capsys.readouterr().out


@pytest.mark.parametrize(("found", "agrees"), [(0.89184, True), (0.89176, True), (0.89186, False), (0.8917, False)])
def test_published_rows_agree_to_four_decimals(found, agrees):
    (row,) = reproduce.against_published({"val_iou@0.50_tta": found}, {"val_iou@0.50_tta": {"value": 0.8918}})
    assert row["agrees"] is agrees


def test_each_kind_of_figure_has_its_tolerance():
    record = {"n_chips/val": {"value": 40}, "test_iou@0.50_tta": {"value": 0.6}, "mndwi_test_iou@0.50": {"value": 0.3},
              "test_iou_soup_minus_mndwi": {"value": 0.1}, "compared_soup_seconds_a_chip": {"value": 1.0},
              "test_iou@best": {"value": None}}  # fmt: skip
    found = {"n_chips/val": {"value": 41}, "test_iou@0.50_tta": {"value": 0.62}}
    rows = {row["row"]: row["agrees"] for row in reproduce.against_record(found, record)}
    assert rows == {"n_chips/val": False, "test_iou@0.50_tta": True, "mndwi_test_iou@0.50": False}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    program = ["sh", str(ROOT / "scripts" / "reproduce_benchmarks.sh"), *words]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(program, capture_output=True, text=True, check=False, env=environment)


def test_without_the_published_files_it_says_so_and_compares_the_benchmark(tmp_path):
    record, study = tmp_path / "record.json", tmp_path / "metrics.json"
    record.write_text(json.dumps({"metrics": {"val_iou@0.50": {"value": 0.6}}}))
    study.write_text(json.dumps({"val_iou@0.50": {"value": 0.61}}))
    done = run("--record", str(record), "--study", str(tmp_path))
    assert done.returncode == 0 and "not given" in done.stdout and "1 of 1 rows agree" in done.stdout
    study.write_text(json.dumps({"val_iou@0.50": {"value": 0.5}}))
    done = run("--record", str(record), "--study", str(tmp_path))
    assert done.returncode == 1 and "DIFFERS" in done.stdout


def test_half_of_the_published_files_is_refused():
    done = run("--ckpt", "soup.ckpt")
    assert done.returncode == 2 and "--data" in done.stderr and done.stderr.count("\n") == 1


def test_a_study_of_another_preset_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "timings.json").write_text(json.dumps({"fit": {"preset": "tiny"}}))
    done = run("--preset", "standard", "--study", str(tmp_path))
    assert done.returncode == 2 and "tiny" in done.stderr and done.stderr.count("\n") == 1


def test_a_whole_record_of_the_preset_goes_before_its_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    (tmp_path / "book").mkdir()
    figures = {"preset": "quick", "commit": "a", "figures": {"x": {"values": {"42": 1}}}}
    (tmp_path / "book" / "seeds.json").write_text(json.dumps(figures))
    assert reproduce.record_of("quick", None)[0] == {"x": {"value": 1}}
    whole = {"commit": "b", "metrics": {"n_chips/val": {"value": 40}}}
    (tmp_path / "book" / "quick_metrics.json").write_text(json.dumps(whole))
    assert reproduce.record_of("quick", None)[0] == whole["metrics"]


def test_committed_records_are_found_by_preset():
    metrics, source = reproduce.record_of("standard", None)
    assert "test_iou@0.50_tta" in metrics and "standard_metrics.json" in source
