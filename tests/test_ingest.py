"""Ingest from end to end: what the simulator made, a real STAC server gives back."""

from __future__ import annotations

import ingest_world as world
import numpy as np
import pandas as pd
import pytest

from cryosentinel.data.store import ChipStore
from cryosentinel.ingest import ingest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def test_chips_come_back_as_simulated(tmp_path):
    with world.service(tmp_path) as running:
        lakes = world.inventory(tmp_path / "lakes.geojson")
        result = ingest(
            world.REGION, world.YEAR, lakes, running.api.url, tmp_path / "out", world.box(), settings=world.FAST,
            progress=False,
        )  # fmt: skip
    chips = world.chips_of(tmp_path / "out")
    assert result.chips == len(chips) == 9
    world.assert_equal(chips)
    index = pd.read_parquet(tmp_path / "out" / world.REGION / "2023" / "index.parquet")
    assert set(index["status"]) == {"kept"}
    assert set(index["s1_direction"]) == {"descending"} and set(index["s1_days"]) == {3}
    assert set(result.sanity.index) == {0.0, 0.3} and (result.sanity["chips"] == 9).all()
    store = ChipStore(tmp_path / "out")
    assert len(store) == 9
    np.testing.assert_allclose(store.index["lat"], index["lat"])
    assert (tmp_path / "out" / "README.md").read_text().startswith("---")
    assert not (tmp_path / "out" / ".ingest").exists()


def test_the_command_takes_what_its_documentation_shows(tmp_path, capsys):
    from cryosentinel.cli import main

    with world.service(tmp_path) as running:
        lakes = world.inventory(tmp_path / "lakes.geojson")
        words = ["ingest", "--region", world.REGION, "--year", str(world.YEAR), "--inventory", str(lakes)]
        words += ["--stac", running.api.url, "--out", str(tmp_path / "out")]
        words += ["--bbox", ",".join(map(str, world.box())), "--settings.limit", "2", "--settings.background", "null"]
        assert main(words) == 0
    assert "2 of 2 planned chips" in capsys.readouterr().out
    assert len(world.chips_of(tmp_path / "out")) == 2
    words[words.index("--year") + 1] = "1999"
    assert main(words) == 2
    assert "1999" in capsys.readouterr().err
