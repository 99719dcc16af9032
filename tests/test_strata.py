"""Where predictions fail, on handmade chips with countable pixels."""

from types import SimpleNamespace

import numpy as np
import pytest

from cryosentinel.errors import InputError
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import INVALID
from cryosentinel.evaluation.strata import by_condition, by_lake_size, by_material
from cryosentinel.mapping.landcover import water_by_class


def maps_of(*water: np.ndarray) -> ProbabilityMaps:
    bins = np.stack([np.where(w == 255, INVALID, np.where(w > 0, 180, 20)) for w in water]).astype(np.uint8)
    return ProbabilityMaps(bins, tuple(range(len(water))), "key")


def known(shape: tuple[int, int] = (40, 40)) -> SimpleNamespace:
    zeros = {name: np.zeros(shape, np.uint8) for name in ("lake", "material", "cloud", "terrain_shadow")}
    return SimpleNamespace(**zeros)


def test_recall_by_lake_size_counts_lakes_and_pixels() -> None:
    truth, water = known(), np.zeros((40, 40), np.uint8)
    truth.lake[2:6, 2:6] = 1  # 16 pixels, 0.16 ha, missed
    truth.lake[10:18, 10:20] = 1  # 80 pixels, 0.8 ha, 60 of them found
    water[10:16, 10:20] = 1
    truth.lake[25:39, 20:39] = 1  # 266 pixels, 2.66 ha, wholly invalid: not judged
    water[25:39, 20:39] = 255
    table = by_lake_size(maps_of(water), ["a"], {"a": truth}).set_index("size_ha")
    assert table.loc["0 to 0.5", ["lakes", "found", "pixel_recall"]].tolist() == [1, 0.0, 0.0]
    assert table.loc["0.5 to 1", ["lakes", "found", "pixel_recall"]].tolist() == [1, 1.0, 0.75]
    assert table["lakes"].sum() == 2


def test_lakes_hang_together_by_their_corners() -> None:
    truth = known()
    truth.lake[0:6, 0:6] = truth.lake[6:12, 6:12] = 1  # 72 pixels, 0.72 ha, one lake
    table = by_lake_size(maps_of(truth.lake), ["a"], {"a": truth}).set_index("size_ha")
    assert table["lakes"].to_dict() == {**dict.fromkeys(table.index, 0), "0.5 to 1": 1}


def test_alarms_by_material_count_only_valid_pixels() -> None:
    truth, water = known(), np.zeros((40, 40), np.uint8)
    truth.material[:10] = 7
    water[:5] = 1
    water[39] = 255
    table = by_material(maps_of(water), ["a"], {"a": truth}, {0: "rock", 7: "reservoir"})
    assert table["material"].tolist() == ["reservoir", "rock"]
    assert table["pixels"].tolist() == [400, 40 * 29]
    assert table["share"].tolist() == [0.5, 0.0]


def test_conditions_count_each_pixel_once() -> None:
    truth, water = known(), np.zeros((40, 40), np.uint8)
    truth.lake[:, :20] = 1
    truth.cloud[:10], truth.cloud[10:20] = 1, 2
    truth.terrain_shadow[5:30] = 1
    water[20:, :20] = 1
    table = by_condition(maps_of(water), ["a"], {"a": truth}).set_index("condition")
    assert table["pixels"].tolist() == [400, 400, 400, 400]
    assert table.loc["clear", "iou"] == table.loc["terrain shadow", "iou"] == 1.0
    assert table.loc["cloud", "recall"] == 0.0
    assert np.isnan(table.loc["cloud", "precision"])


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
