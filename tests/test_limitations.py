"""The stress tests of chapter 5 compare the same chips, and sort lakes by what makes them hard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cryosentinel import Study, paths
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.evaluate import Evaluation
from cryosentinel.evaluation.scores import BINS
from cryosentinel.files import write_json
from cryosentinel.simulate import PRESETS
from cryosentinel.study import limitations

N = 30


def table(found: np.ndarray) -> pd.DataFrame:
    """Chips of ten lake pixels, so many of which are found."""
    lake, background = np.zeros((N, BINS), np.int64), np.zeros((N, BINS), np.int64)
    lake[:, 150], lake[:, 10], background[:, 5] = found, 10 - found, 90
    return pd.DataFrame(
        {"chip_id": [f"c{i}" for i in range(N)], "region": "r", "year": 2022, "lat": 43.0, "lon": 77.0,
         "block": [f"0|{i}" for i in range(N)], "n_valid": 100, "lake": list(lake), "background": list(background)}
    )  # fmt: skip


def evaluation(found: np.ndarray, of: slice = slice(None)) -> Evaluation:
    return Evaluation(Path(), {("test", "truth"): table(found)[of].reset_index(drop=True)})


def test_differences_are_of_the_chips_that_both_hold() -> None:
    whole = np.full(N, 8)
    whole[25:] = 0  # where the other one was not measured
    found = limitations.differences(
        {"base": evaluation(whole), "less": evaluation(np.full(N, 6), slice(0, 25))}, "base", 0.5
    )
    assert list(found) == ["less"] and found["less"].n == 25
    assert found["less"].value == pytest.approx(-0.2) and found["less"].high < 0


def test_lakes_count_under_what_holds_for_half_of_them() -> None:
    rows = [
        (0.0, 0.0, 0.0, -0.4),
        (0.0, 0.0, 0.0, -0.2),
        (0.4, 0.0, 0.0, 0.1),
        (0.0, 0.9, 0.0, 0.5),
        (0.9, 0.0, 0.9, 0.0),
    ]
    lakes = pd.DataFrame(rows, columns=["cloud", "frozen", "shadow", "turbidity"])
    lakes = lakes.assign(
        lake=True, detected=1.0, area_ha=1.0, area_error=0.0, boundary_m=1.0, false=np.nan, block="0|0"
    )
    counts = {name: of["detected"].n for name, of in limitations.conditions(lakes).items()}
    assert counts == {"open, clear": 2, "open, turbid": 1, "frozen": 1, "in shadow": 0, "under cloud": 1}


def test_one_chip_of_every_place() -> None:
    index = pd.DataFrame(
        {"lat": [42.01, 42.02, 43.01, 42.02, 43.01], "lon": 77.01, "region": ["a", "a", "b", "a", "b"], "chip_id": "c"}
    )
    module = SimpleNamespace(store=SimpleNamespace(index=index), rows={"test": np.array([1, 2, 3, 4])}, block_size=0.15)
    study = SimpleNamespace(datamodule=module, truth=None, root=Path())
    assert limitations.one_a_place(study).rows == {"test": [1, 2]}
    assert limitations.one_a_place(study, 1).rows == {"test": [1]}
    for regions in (["c"], ["a", "b"], []):
        with pytest.raises(ConfigError, match="a, b"):
            limitations.held_out(study, regions)


@pytest.mark.parametrize(("name", "open_them"), [("tiny", Study.chips), ("reservoirs_tiny", limitations.reservoirs)])
def test_chips_of_an_older_simulator_are_refused(name, open_them, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(paths.OUTPUTS_VARIABLE, str(tmp_path))
    record = paths.datasets() / name / "simulation.json"
    write_json(record, {"fingerprint": "of an older version", "complete": True, "shards": []})
    with pytest.raises(InputError, match="another configuration or version"):
        open_them(Study("tiny", out=tmp_path / "study"))


def test_chips_that_are_there_are_used_without_a_word(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(paths.OUTPUTS_VARIABLE, str(tmp_path))
    record = {"fingerprint": PRESETS["tiny"].fingerprint(), "complete": True, "shards": []}
    write_json(paths.datasets() / "tiny" / "simulation.json", record)
    study = Study("tiny", out=tmp_path / "study")
    capsys.readouterr()
    assert study.chips() == study.root and not capsys.readouterr().out
