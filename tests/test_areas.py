"""Area intervals: they hold the reference as often as they say, and say which classes were pooled."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.files import read_json, write_json
from cryosentinel.mapping.areas import Intervals, add_interval, calibrate, coverage_table, matched_areas, outline_bounds


def lakes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Small lakes are mapped worse than large ones, and all a little too large."""
    rng = np.random.default_rng(seed)
    true = np.exp(rng.normal(1.2, 1.3, n))
    return true * np.exp(rng.standard_t(4, n) * 0.25 / true**0.3 + 0.1), true


def test_intervals_hold_as_many_as_they_promise_in_every_class() -> None:
    held, wider = [], []
    for seed in range(20):
        found = calibrate(*lakes(600, seed), "truth", "simulated")
        table = coverage_table(found, *lakes(2000, 1000 + seed)).set_index("size_ha")
        held.append(table["covered"])
        wider.append(table["width"].iloc[0] > 1.5 * table["width"].iloc[-2])
    mean = sum(held) / len(held)
    assert ((mean > 0.885) & (mean < 0.95)).all()
    assert all(wider), "small lakes have wider intervals"


def test_ranks_are_the_finite_sample_ones() -> None:
    mapped = np.full(19, 3.0)
    found = calibrate(mapped, mapped * np.linspace(0.5, 2.3, 19), "label", "x", coverage=0.9)
    assert [v for c in found.classes for v in (c.low, c.high)] == pytest.approx([0.5, 2.3] * len(found.classes))
    with pytest.raises(InputError, match="18 lakes"):
        calibrate(mapped[1:], mapped[1:], "label", "x", coverage=0.9)
    with pytest.raises(ConfigError, match="coverage"):
        calibrate(mapped, mapped, "label", "x", coverage=1.0)


def test_classes_with_too_few_lakes_are_pooled_and_say_so() -> None:
    mapped = np.concatenate([np.full(5, 0.3), np.full(40, 0.7), np.full(40, 3.0), np.full(3, 50.0)])
    found = calibrate(mapped, mapped * 1.1, "label", "x")
    by_low = {c.low_ha: c for c in found.classes}
    assert by_low[0.0].pooled == by_low[0.5].pooled == "0 to 2 ha" and by_low[0.5].lakes == 45
    assert by_low[20.0].pooled and by_low[20.0].lakes == 43
    assert [c.high_ha for c in found.classes] == [0.5, 1.0, 2.0, 5.0, 20.0, None]


def test_intervals_survive_a_file_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    found = calibrate(*lakes(600, 1), "label", "validation blocks of x")
    found.write(tmp_path / "a.json")
    assert Intervals.read(tmp_path / "a.json") == found
    value = read_json(tmp_path / "a.json")
    for damage in ({"classes": value["classes"][1:]}, {"classes": []}, {"coverage": None}):
        write_json(tmp_path / "b.json", {**value, **damage})
        with pytest.raises(InputError, match=r"b\.json"):
            Intervals.read(tmp_path / "b.json")


def test_outline_bounds_follow_the_perimeter() -> None:
    low, high = outline_bounds(np.array([4.0, 0.01]), np.array([800.0, 40.0]))
    assert high[0] - 4 == pytest.approx(1.645 * 0.6872 * 800 * 5 / 1e4) == pytest.approx(4 - low[0])
    assert low[1] == 0


def test_only_whole_lakes_that_both_masks_show_are_compared() -> None:
    water, label, valid = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint8), np.ones((100, 100), bool)
    water[10:20, 10:20], label[10:22, 10:20] = 1, 1  # one lake, seen smaller
    water[40:50, 40:50] = 1
    label[40:50, 38:43] = label[40:50, 45:52] = 1  # two in the label, one mapped
    water[60:70, 90:100] = label[60:70, 90:100] = 1  # cut by the border
    water[80:90, 10:20] = label[80:90, 10:20] = 1  # beside missing data
    valid[80:90, 20:22] = False
    water[80:90, 50:60] = 1  # found by one only
    label[60:70, 50:60] = 1
    water[20:30, 70:74], label[20:30, 70:80] = 1, 1  # less than half of it is mapped: not detected
    table = matched_areas(water, label, valid)
    assert table["mapped_ha"].tolist() == pytest.approx([1.0, 1.0])
    assert table["reference_ha"].tolist() == pytest.approx([1.2, 1.2])
    assert (table["row"].iloc[0], table["col"].iloc[0]) == (15.5, 14.5)


def test_a_cut_lake_has_a_lower_bound_and_no_upper_one() -> None:
    area = np.linspace(0.3, 60, 300)
    table = pd.DataFrame({"area_ha": [50.0, 5.0, 5.0], "perimeter_m": 3000.0, "flags": ["edge", "no data", "cloud"]})
    for known in (None, calibrate(area, area * np.linspace(0.9, 1.1, 300), "label", "x")):
        found = add_interval(table, known)
        assert (found["interval"] == "lower bound").tolist() == [True, True, False]
        assert found["area_high_ha"].isna().tolist() == [True, True, False] and (found["area_low_ha"] > 0).all()
