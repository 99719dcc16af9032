"""Lake-by-lake scores against scikit-image and loops over pixels, and on handmade chips with countable lakes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cryosentinel.evaluation.objects import SIZE_CLASSES, boundary_distance, by_size, lake_table, match
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import INVALID

SIZE = 64


def plain_match(reference, water, valid) -> tuple[list, list]:
    """The rule of the module's text once more, with sets of pixels."""
    from skimage.measure import label

    def parts(mask):
        numbers = label(mask & valid, connectivity=2)
        return [set(map(tuple, np.argwhere(numbers == k))) for k in range(1, numbers.max() + 1)]

    lakes, found = parts(reference), parts(water)
    everywhere = set().union(*found) if found else set()
    owners = []
    for part in found:
        shares = [len(part & lake) for lake in lakes]
        owners.append(int(np.argmax(shares)) if shares and max(shares) else None)
    rows = []
    for k, lake in enumerate(lakes):
        detected = 2 * len(lake & everywhere) >= len(lake)
        own = [part for part, owner in zip(found, owners, strict=True) if owner == k]
        error = sum(map(len, own)) / len(lake) - 1 if detected and own else np.nan
        rows.append((len(lake), detected, error, (lake, set().union(*own)) if detected and own else None))
    return rows, [(len(part), owner is None) for part, owner in zip(found, owners, strict=True)]


def plain_boundary(pair, valid) -> float:
    def rim(part):
        beside = ((0, 1), (1, 0), (0, -1), (-1, 0))
        inside = lambda r, c: 0 <= r < SIZE and 0 <= c < SIZE and valid[r, c]  # noqa: E731
        return [(r, c) for r, c in part if any(inside(r + i, c + j) and (r + i, c + j) not in part for i, j in beside)]

    a, b = (np.array(rim(part), dtype=float).reshape(-1, 2) for part in pair)
    if not (len(a) and len(b)):
        return np.nan
    away = np.linalg.norm(a[:, None] - b[None], axis=2)
    return 10 * (away.min(axis=1).mean() + away.min(axis=0).mean()) / 2


@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_a_plain_reference(seed):
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random((SIZE, SIZE)), 2)
    lakes = field > np.quantile(field, 0.75)
    water = field + 0.5 * ndimage.gaussian_filter(rng.random((SIZE, SIZE)), 2)
    water = water > np.quantile(water, 0.75)
    valid = rng.random((SIZE, SIZE)) < 0.98
    valid[:, :3] = False
    found = match(lakes, water, valid)
    rows, predicted = plain_match(lakes, water, valid)
    ours = [r for r in found if r["lake"]]
    assert len(ours) == len(rows) > 5
    for mine, (pixels, detected, error, pair) in zip(ours, rows, strict=True):
        assert mine["area_ha"] == pytest.approx(pixels / 100) and mine["detected"] == detected
        np.testing.assert_allclose(mine["area_error"], error)
        np.testing.assert_allclose(mine["boundary_m"], plain_boundary(pair, valid) if pair else np.nan)
    theirs = [r for r in found if not r["lake"]]
    assert [(round(r["area_ha"] * 100), r["false"]) for r in theirs] == predicted
    assert any(r["false"] for r in theirs) and not all(r["detected"] for r in ours)


def test_the_rule_on_lakes_that_can_be_counted():
    lakes, water, valid = np.zeros((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), bool), np.ones((SIZE, SIZE), bool)
    lakes[0:10, 0:10] = water[0:10, 0:12] = True  # two columns too wide
    lakes[20:30, 0:10] = water[20:30, 0:5] = True  # half of it is found
    lakes[40:50, 0:10] = water[40:50, 0:4] = True  # less than half is
    lakes[0:5, 30:35] = lakes[5:10, 35:40] = water[0:10, 30:40] = True  # one lake that hangs together by a corner
    water[50:60, 50:60] = True  # false
    lakes[30:34, 50:54], valid[30:34, 50:54] = True, False  # no data: not judged
    found = match(lakes, water, valid)
    assert [(r["detected"], r["area_ha"]) for r in found if r["lake"]] == [
        (True, 1.0), (True, 0.5), (True, 1.0), (False, 1.0),
    ]  # fmt: skip
    assert [r["covered"] for r in found if r["lake"]] == [1.0, 1.0, 0.5, 0.4]
    assert [r["area_error"] for r in found if r["lake"]][:3] == pytest.approx([0.2, 1.0, -0.5])
    assert [r["false"] for r in found if not r["lake"]] == [False, False, False, False, True]
    # The lake in the corner has 19 boundary pixels, 8 of them 2 pixels away and one 1; its prediction has 21 pixels
    # that lie 21 pixels away in all. The chip's edge is no boundary.
    assert found[0]["boundary_m"] == pytest.approx(10 * (17 / 19 + 21 / 21) / 2)
    assert boundary_distance(lakes, lakes, valid) == 0.0
    assert np.isnan(boundary_distance(np.ones_like(lakes), lakes, valid))  # a chip of water has no boundary
    assert match(np.zeros_like(lakes), np.zeros_like(lakes), valid) == []


def test_tables_and_size_classes(tmp_path):
    masks = np.zeros((30, SIZE, SIZE), np.uint8)
    masks[:, 5:11, 5:11] = 1  # 0.36 ha each, found in every second chip
    masks[:, 20:52, 20:52] = 1  # 10.24 ha, found always
    bins = np.where(masks > 0, 180, 10).astype(np.uint8)
    bins[::2, 5:11, 5:11] = 10
    bins[:, :, 60:] = INVALID
    bins[0, 56:58, 5:7] = 180  # one false lake
    chips = [SimpleNamespace(chip_id=f"c{i}", region="r", snapshot_year=2022, mask=masks[i]) for i in range(30)]
    index = pd.DataFrame({"lat": 42.01 + 0.15 * np.arange(30), "lon": 77.01})

    class Store:
        def __getitem__(self, row):
            return chips[row]

    store = Store()
    store.index = index
    maps = ProbabilityMaps(bins, tuple(range(30)), "key")
    table = lake_table(maps, store)
    found = by_size(table, resamples=200)
    assert list(found) == [*SIZE_CLASSES, "all sizes"]
    small, large = found["under 0.5 ha"], found["over 10 ha"]
    assert small["detected"].value == 0.5 and small["detected"].n == 30
    assert small["detected"].low < 0.5 < small["detected"].high
    assert small["false"].value == 1 / 16 and large["false"].value == 0
    assert (
        small["area_bias"].value == 0
        and small["area_bias"].low is None
        and "20 are needed" in small["area_bias"].reason
    )
    assert small["covered"].value == pytest.approx(0.5)
    assert found["all sizes"]["covered"].value == pytest.approx(1 - 0.18 / 10.6)
    assert "covered" not in by_size(table.drop(columns="covered"))["all sizes"]
    assert (large["detected"].value, large["area_error"].value, large["boundary_m"].value) == (1, 0, 0)
    assert np.isnan(found["1 to 10 ha"]["detected"].value) and found["1 to 10 ha"]["detected"].reason
    nothing = lake_table(maps, store, reference=lambda chip: np.zeros_like(chip.mask))
    assert by_size(nothing)["all sizes"]["false"].value == 1.0 and not nothing["lake"].any()
    # Chips of one block are resampled together.
    one = lake_table(maps, store, block_size=50.0)
    assert by_size(one)["all sizes"]["detected"].low is None
