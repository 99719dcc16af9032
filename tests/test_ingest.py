"""Ingest from end to end: what the simulator made, a STAC service gives back; without an inventory."""

from __future__ import annotations

import ingest_world as world
import numpy as np
import pandas as pd
import pytest

from cryosentinel.data.store import ChipStore
from cryosentinel.ingest import ingest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def test_chips_come_back_as_simulated(tmp_path):
    with world.service(tmp_path) as files:
        lakes = world.inventory(tmp_path / "lakes.geojson")
        result = ingest(
            world.REGION, world.YEAR, files.stac, tmp_path / "out", lakes, world.box(), settings=world.FAST,
            progress=False,
        )  # fmt: skip
    chips = world.chips_of(tmp_path / "out")
    assert result.chips == len(chips) == 9
    world.assert_equal(chips)
    index = pd.read_parquet(tmp_path / "out" / world.REGION / "2023" / "index.parquet")
    assert set(index["status"]) == {"kept"}
    assert set(index["s1_direction"]) == {"descending"} and set(index["s1_days"]) == {3}
    assert set(index["s1_product"]) == {"RTC"} and set(index["s1_backscatter"]) == {"gamma0"}
    assert set(result.sanity.index) == {0.0, 0.3} and (result.sanity["chips"] == 9).all()
    store = ChipStore(tmp_path / "out")
    assert len(store) == 9
    np.testing.assert_allclose(store.index["lat"], index["lat"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---") and "1, 3, 8, 9, 10 hidden" in card and "RTC gamma0" in card and "3.0 dB" in card
    assert not (tmp_path / "out" / ".ingest").exists()


def test_without_an_inventory_every_chip_of_the_box_comes_unlabelled(tmp_path):
    with world.service(tmp_path) as files:
        result = ingest(
            world.REGION, world.YEAR, files.stac, tmp_path / "out", bbox=world.box(),
            settings=world.Settings(retries=0), progress=False,
        )  # fmt: skip
    made = world.chips_of(tmp_path / "out")
    assert result.chips == 9 and not any(chip.mask.any() for chip in made)
    world.assert_equal(made, {**world.scene(), "mask": np.zeros_like(world.scene()["mask"])})
    assert "no inventory" in (tmp_path / "out" / "README.md").read_text()
