"""The tables of chapter 3 are written and read back whole, and folders that are none are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryosentinel.errors import InputError
from cryosentinel.evaluation.evaluate import Evaluation, kept, table_path
from cryosentinel.evaluation.scores import BINS, write_scores
from cryosentinel.study.scoring import BASELINES, OWN, PLAIN, Scored, read_all

ABOUT = {"data": "simulated", "preset": "tiny", "checkpoint": "tiny/soup.ckpt"}


def table(n: int = 3) -> pd.DataFrame:
    counts = np.arange(n * BINS).reshape(n, BINS)
    return pd.DataFrame(
        {"chip_id": [f"c{i}" for i in range(n)], "region": "r", "year": 2022, "lat": 43.0, "lon": 77.0, "block": "0|0",
         "n_valid": 2 * counts.sum(axis=1), "lake": list(counts), "background": list(counts)}
    )  # fmt: skip


def scored() -> Scored:
    splits = [(split, reference) for split in ("val", "test") for reference in ("label", "truth")]
    lakes = pd.DataFrame({"chip_id": ["c0"], "lake": [True], "area_ha": [0.5]})
    return Scored(Evaluation(Path(), {key: table() for key in splits}), 0.35, lakes, table().assign(cause="rock"))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    scored().write(tmp_path, ABOUT)
    found, was = Scored.read(tmp_path), scored()
    assert found.evaluation.tables.keys() == was.evaluation.tables.keys() and found.threshold == 0.35
    assert {key: found.about[key] for key in ABOUT} == ABOUT
    pd.testing.assert_frame_equal(found.table("test", "truth"), table(), check_dtype=False)
    pd.testing.assert_frame_equal(found.lakes, was.lakes)
    assert np.array_equal(np.stack(found.causes["lake"]), np.stack(was.causes["lake"]))


def test_folders_that_are_no_saved_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Scored.read(tmp_path / "nowhere")
    write_scores(table_path(tmp_path / "bare", "test"), table())
    with pytest.raises(InputError, match=r"bare.*threshold"):
        Scored.read(tmp_path / "bare")
    for name in (OWN, PLAIN, *BASELINES):
        scored().write(tmp_path / "all" / name, ABOUT)
    assert list(read_all(tmp_path / "all")) == [OWN, PLAIN, *BASELINES]
    (tmp_path / "all" / OWN / "causes_test.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="causes_test"):
        read_all(tmp_path / "all")
    scored().write(tmp_path / "all" / OWN, ABOUT)
    (tmp_path / "all" / OWN / "lakes_test.parquet").unlink()
    with pytest.raises(InputError, match="lakes_test"):
        read_all(tmp_path / "all")


def test_a_table_is_kept_by_what_it_depends_on(tmp_path: Path) -> None:
    path, made = tmp_path / "folder" / "x.parquet", []

    def make() -> pd.DataFrame:
        made.append(1)
        return pd.DataFrame({"a": [1.5]})

    for key in ("one", "one", "two", "two"):
        assert kept(path, key, make)["a"].tolist() == [1.5]
    assert len(made) == 2
    path.write_bytes(path.read_bytes()[:50])
    assert kept(path, "two", make)["a"].tolist() == [1.5] and len(made) == 3
