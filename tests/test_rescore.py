"""Scores from saved tables alone: every figure equals the pure function's, and unusable tables are named."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pandas as pd
import pytest

from cryosentinel import cli, commands
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation import bootstrap, calibration, metrics
from cryosentinel.evaluation.rescore import as_text, beside, read_named, score_tables, write_report
from cryosentinel.evaluation.scores import BINS, write_scores


def make_table(seed: int, blocks: int = 30, sure: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    lake = rng.multinomial(400, rng.dirichlet(np.linspace(0.1, 2, BINS) ** sure), blocks)
    background = rng.multinomial(4000, rng.dirichlet(np.linspace(2, 0.1, BINS) ** sure), blocks)
    return pd.DataFrame(
        {"chip_id": [f"c{i}" for i in range(blocks)], "region": ["a", "b"] * (blocks // 2), "year": [2021, 2022, 2022] *
         (blocks // 3), "lat": 43.0, "lon": 77.0, "block": [f"0|{i}" for i in range(blocks)],
         "n_valid": lake.sum(1) + background.sum(1), "lake": list(lake), "background": list(background)}
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("soup", 0), ("tiny", 1)):
        write_scores(tmp_path / name / "per_chip_test.parquet", make_table(seed), {"digest": name})
        write_scores(tmp_path / name / "per_chip_val.parquet", make_table(seed + 5))
    return tmp_path


def test_every_figure_is_the_pure_functions(folder, tmp_path):
    tables = read_named([folder / name / "per_chip_test.parquet" for name in ("soup", "tiny")])
    assert list(tables) == ["soup/per_chip_test.parquet", "tiny/per_chip_test.parquet"]
    val = read_named([folder / "soup" / "per_chip_val.parquet"])["per_chip_val.parquet"]
    soup, tiny = score_tables(tables, validation=val).values()
    one, other = tables.values()
    best = metrics.best_threshold(val)
    assert soup.threshold == tiny.threshold == best and soup.gain is None
    assert soup.scores["f1"] == bootstrap.estimate(one, "f1", best) and soup.scores["f1"].low is not None
    assert tiny.gain == bootstrap.difference(one, other, "iou", best)
    assert soup.regions["a"].value == metrics.score(one[one["region"] == "a"], "iou", best)
    assert soup.years["2022"].n == 20 and "20 are needed" in soup.regions["a"].reason
    pd.testing.assert_frame_equal(soup.sweep, metrics.sweep(one, metrics.ALL_THRESHOLDS))
    heat = calibration.fit_temperature(val)
    assert soup.calibration["temperature"] == heat
    assert soup.calibration["error_tempered"] == calibration.calibration_error(one, temperature=heat)
    write_report(tmp_path / "out", {"soup": soup, "tiny": tiny})
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["tiny"]["gain"]["low"] == tiny.gain.low and written["soup"]["made_from"]["digest"] == "soup"
    assert len(pd.read_csv(tmp_path / "out" / "sweep.csv")) == 2 * 199
    chips = pd.read_csv(tmp_path / "out" / "chips.csv")
    np.testing.assert_allclose(chips.loc[chips["table"] == "soup", "iou"], metrics.chip_iou(one, best))
    every = pd.read_csv(tmp_path / "out" / "chip_sweep.csv")
    np.testing.assert_allclose(every.loc[every["table"] == "tiny", "0.35"], metrics.chip_iou(other, 0.35))
    assert every.shape == (2 * len(one), 3 + 199 + 1)
    curve = pd.read_csv(tmp_path / "out" / "reliability.csv").query("table == 'soup' and temperature != 1")
    np.testing.assert_allclose(curve["observed"], calibration.reliability(one, 20, heat)["observed"])
    text = as_text({"soup": soup, "tiny": tiny})
    assert "fewer than 20 split blocks" in text and f"{tiny.gain.value:+.3f}" in text


def test_without_a_validation_table_the_threshold_is_a_half_and_none_is_rounded(folder):
    tables = read_named([folder / "soup" / "per_chip_test.parquet"])
    (found,) = score_tables(tables).values()
    assert found.threshold == 0.5 and set(found.calibration) == {"error"}
    with pytest.raises(ConfigError, match=r"0\.503"):
        score_tables(tables, 0.503)


def test_the_command_scores_and_compares(folder, tmp_path, capsys):
    paths = [str(folder / name / "per_chip_test.parquet") for name in ("soup", "tiny")]
    val = ["--val", str(folder / "soup" / "per_chip_val.parquet")]
    assert cli.main(["score", *paths, *val, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "tiny/per_chip_test.parquet" in text and "temperature" in text and "mean_chip_iou" in text
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert cli.main(["score", paths[0], "--threshold", "0.35", "--out", str(tmp_path / "own")]) == 0
    own = json.loads((tmp_path / "own" / "scores.json").read_text())["per_chip_test.parquet"]
    assert own["threshold"] == 0.35 != written["soup/per_chip_test.parquet"]["threshold"]
    capsys.readouterr()
    missing = str(tmp_path / "none.parquet")
    for words, said in (([missing], "none.parquet"), ([paths[0], "--threshold", "0.503"], "0.503")):
        assert cli.main(["score", *words]) == 2
        assert said in capsys.readouterr().err


def test_strata_beside_a_table_are_scored_too(folder, tmp_path, capsys):
    path = folder / "soup" / "per_chip_test.parquet"
    table = make_table(0)
    table.assign(cause="shadow").to_parquet(path.with_name("causes_test.parquet"))
    lakes = {"block": table["block"], "lake": True, "area_ha": 2.0, "detected": 1.0, "area_error": 0.1}
    lakes = pd.DataFrame({**lakes, "boundary_m": 3.0, "false": np.nan})
    lakes.to_parquet(path.with_name("lakes_test.parquet"))
    assert cli.main(["score", str(path), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "shadow: iou" in text and "lakes 1 to 10 ha: detected" in text
    written = json.loads((tmp_path / "out" / "scores.json").read_text())["per_chip_test.parquet"]["strata"]
    assert written["shadow"]["iou"]["value"] == pytest.approx(metrics.score(table, "iou", 0.5))
    assert cli.main(["score", str(path.with_name("lakes_test.parquet"))]) == 2
    assert "per_chip" in capsys.readouterr().err
    write_scores(path.with_name("per_chip_test_truth.parquet"), table, {"reference": "truth"})
    assert beside(path) == {} and set(beside(path.with_name("per_chip_test_truth.parquet"))) == {"causes", "lakes"}


def test_two_references_are_not_a_gain_and_a_closed_pipe_costs_no_file(folder, tmp_path, monkeypatch):
    one, other = (make_table(0) for _ in range(2))
    one.attrs["reference"], other.attrs["reference"] = "label", "truth"
    with pytest.raises(InputError, match=r"a against the label, b against the truth"):
        score_tables({"a": one, "b": other})

    def closed(*words):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with contextlib.suppress(BrokenPipeError):
        commands.score([folder / "soup" / "per_chip_test.parquet"], out=tmp_path / "out")
    assert (tmp_path / "out" / "scores.json").is_file()


def test_what_cannot_be_scored_is_said(folder, tmp_path):
    path = folder / "soup" / "per_chip_test.parquet"
    with pytest.raises(ConfigError, match="once"):
        read_named([path, path])
    invalid = make_table(0).assign(n_valid=0)
    invalid["lake"] = invalid["background"] = [np.zeros(BINS, int)] * len(invalid)
    write_scores(tmp_path / "empty.parquet", invalid)
    with pytest.raises(InputError, match=r"empty\.parquet .*valid pixel"):
        read_named([tmp_path / "empty.parquet"])
    dry = make_table(0)
    dry["n_valid"], dry["lake"] = 4000, [np.zeros(BINS, int)] * len(dry)
    (found,) = score_tables({"dry": dry}).values()
    assert np.isnan(found.scores["recall"].value) and "no lake" in as_text({"dry": found})
    with pytest.raises(InputError, match="no lake"):
        score_tables({"dry": dry}, validation=dry)
    with pytest.raises(InputError, match="same chips"):
        score_tables({"a": make_table(0), "b": make_table(0, 24)})
