"""Where predictions fail, on handmade chips with countable pixels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cryosentinel.errors import InputError
from cryosentinel.evaluation.causes import CAUSES, by_cause, cause_map, cause_table, rates
from cryosentinel.evaluation.metrics import chip_counts
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import INVALID
from cryosentinel.mapping.landcover import water_by_class
from cryosentinel.simulate import Material

SIZE = 20


def known() -> SimpleNamespace:
    """Rows 0 to 9: half lake (frozen in its first column), half rock; below reservoir, snow, meadow; some cloud."""
    zeros = {name: np.zeros((SIZE, SIZE), np.uint8) for name in ("lake", "material", "cloud", "terrain_shadow")}
    truth = SimpleNamespace(**zeros)
    truth.material[:] = Material.SCREE
    truth.lake[:10, :10], truth.material[:10, :10] = 1, Material.LAKE
    truth.material[:10, 0] = Material.FROZEN_LAKE
    truth.material[12:14], truth.material[14:16], truth.material[16:18] = (
        Material.RESERVOIR,
        Material.SNOW,
        Material.MEADOW,
    )
    truth.cloud[:2], truth.cloud[2] = 1, 2
    truth.terrain_shadow[0], truth.terrain_shadow[3] = 1, 1
    return truth


def test_every_pixel_has_the_first_cause_that_applies() -> None:
    found = pd.Series(np.array(list(CAUSES))[cause_map(known())].ravel()).value_counts().to_dict()
    assert found == {
        "cloud": 40, "shadow": 40, "other water": 40, "ice and snow": 40, "vegetation": 40,
        "shore": 2 * 6 + 11 + 9,  # both sides of the right edge below the shadow, both sides of the lower edge
        "frozen": 5, "open": 5 * 8, "rock": 400 - 200 - 32 - 45,
    }  # fmt: skip


def store_of(truths: dict[str, SimpleNamespace]) -> SimpleNamespace:
    index = pd.DataFrame({"chip_id": list(truths), "region": "r", "year": 2022, "lon": 77.01})
    return SimpleNamespace(index=index.assign(lat=42.01 + 0.15 * np.arange(len(index))))


def test_errors_are_counted_by_cause() -> None:
    truths = {f"c{i}": known() for i in range(24)}
    bins = np.where(truths["c0"].lake > 0, 180, 10).astype(np.uint8)
    bins[12:14, :5] = 180  # ten pixels of the reservoir
    bins[4:9, 3] = 90  # five of the open lake, below 0.5
    bins[:1] = INVALID
    maps = ProbabilityMaps(np.stack([bins] * 24), tuple(range(24)), "key")
    table = cause_table(maps, store_of(truths), truths)
    assert chip_counts(table, 0.5).sum() == 24 * 380 and set(table["cause"]) == set(CAUSES)
    found = by_cause(table)
    assert list(found.index) == list(CAUSES)
    assert found.loc["other water", ["missed", "false"]].tolist() == [0, 240]
    assert found.loc["open", ["lake", "missed", "false"]].tolist() == [24 * 40, 120, 0]
    assert found["share"].to_dict() == {**dict.fromkeys(CAUSES, 0.0), "other water": 2 / 3, "open": 1 / 3}
    assert by_cause(table, 0.45)["missed"].sum() == 0
    of = rates(table)
    assert (of["open"]["found"].value, of["other water"]["false"].value) == (35 / 40, 0.25)
    assert of["other water"]["false"].low == 0.25 and "found" not in of["rock"]
    assert of["open"]["iou"].value == 35 / 40 and "iou" not in of["rock"]
    few = rates(table[table["chip_id"].isin(["c0", "c1"])])["open"]["found"]
    assert few.low is None and "20 are needed" in few.reason
    right = by_cause(table[table["cause"] == "rock"])
    assert right["share"].isna().all() and right["pixels"].sum() == 24 * found.loc["rock", "pixels"] / 24


def test_water_by_class() -> None:
    cover, water = np.full((10, 10), 7), np.zeros((10, 10), np.uint8)
    cover[:5] = 1
    water[:4], water[9] = 1, 255
    rows = {row["class"]: row for row in water_by_class(water, cover)}
    assert rows["water"]["predicted_water"] == pytest.approx(0.8)
    assert rows["snow and ice"] == {"class": "snow and ice", "pixels": 40, "predicted_water": 0.0, "iou": None}
    assert rows["all classes"]["iou"] == pytest.approx(40 / 50)
    with pytest.raises(InputError, match="differ in size"):
        water_by_class(water, cover[:5])
