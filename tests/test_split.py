"""The hash blocks against hashlib, the two buffer rules against their guarantee, the check against all pairs."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosentinel.data.split import (
    assign_splits,
    block_bucket,
    block_ids,
    check_split,
    check_stages,
    exclude_stage,
)
from cryosentinel.data.split_check import chips_overlap, earth_centred
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.geo import chip_id, place_id, utm_epsg
from cryosentinel.sensors import REGIONS

TIEN_SHAN = REGIONS["tien_shan_full"]


def uniform(count: int, seed: int = 0, box=TIEN_SHAN) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    west, south, east, north = box
    return rng.uniform(south, north, count), rng.uniform(west, east, count)


def plain_split(lat: float, lon: float, size: float, buffer: float) -> str:
    """The published rule, written down once more."""
    i, j = math.floor(lat / size), math.floor(lon / size)
    edges = (lat - i * size, (i + 1) * size - lat, lon - j * size, (j + 1) * size - lon)
    if min(edges) < buffer:
        return "buffer"
    bucket = int(hashlib.sha1(f"cryosentinel-blocks-v1|{i}|{j}".encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 80 else "val" if bucket < 90 else "test"


def test_buckets_are_the_sha1_of_salt_and_indices():
    # Worked out with `printf 'cryosentinel-blocks-v1|288|514' | sha1sum`.
    vectors = {(288, 514): "7ac4590e", (0, 0): "42b53a67", (-1, -468): "775a6ef2", (172, 306): "6ca52578"}
    for (i, j), digits in vectors.items():
        assert hashlib.sha1(f"cryosentinel-blocks-v1|{i}|{j}".encode()).hexdigest()[:8] == digits
        assert block_bucket(i, j) == int(digits, 16) % 100
    assert block_bucket(288, 514, "another salt") == int(
        hashlib.sha1(b"another salt|288|514").hexdigest()[:8], 16
    ) % 100  # fmt: skip


@pytest.mark.parametrize("size", [0.15, 0.25, 0.1, 1.0])
def test_the_edge_rule_is_the_published_one(size):
    lat, lon = uniform(2000, seed=1, box=(-80.0, -50.0, 80.0, 50.0))
    expected = [plain_split(a, b, size, 0.02) for a, b in zip(lat.tolist(), lon.tolist(), strict=True)]
    np.testing.assert_array_equal(assign_splits(lat, lon, size), expected)


def test_block_ids_floor_towards_the_south_west():
    assert block_ids([43.21, -0.01, -0.15], [77.11, -70.1, 0.0], 0.15).tolist() == ["288|514", "-1|-468", "-1|0"]
    assert block_ids([], [], 0.15).shape == (0,)


def across(lat, lon, splits) -> float:
    """Smallest Chebyshev distance in degrees between kept centres of different splits, by all pairs."""
    smallest = np.inf
    for a, b in itertools.combinations(("train", "val", "test"), 2):
        one, two = splits == a, splits == b
        gap = np.maximum(np.abs(lat[one][:, None] - lat[two][None]), np.abs(lon[one][:, None] - lon[two][None]))
        smallest = min(smallest, gap.min(initial=np.inf))
    return smallest


@pytest.mark.parametrize("rule", ["edge", "foreign"])
@pytest.mark.parametrize(("size", "buffer"), [(0.15, 0.02), (0.25, 0.02), (0.1, 0.03)])
def test_kept_chips_of_different_splits_are_two_buffers_apart(rule, size, buffer):
    # Centres on a fine lattice, so that all corner and edge cases occur, and uniform ones.
    fine = np.arange(0, 8 * size, size / 15 + 1e-9)
    lat, lon = (v.ravel() for v in np.meshgrid(42.0 + fine, 77.0 + fine))
    more_lat, more_lon = uniform(4000, box=(77.0, 42.0, 77.0 + 8 * size, 42.0 + 8 * size))
    lat, lon = np.concatenate([lat, more_lat]), np.concatenate([lon, more_lon])
    splits = assign_splits(lat, lon, size, buffer, rule=rule)
    assert len(set(splits)) == 4
    smallest = across(lat, lon, splits)
    assert smallest >= 2 * buffer - 1e-9
    if rule == "edge":
        assert smallest < 2 * buffer * 1.3  # the guarantee is tight: it promises no more than that


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.lists(st.floats(0, 0.3), min_size=4, max_size=4))
def test_the_foreign_rule_keeps_two_buffers_around_any_corner(block, offsets):
    """Two chips anywhere in 2 x 2 blocks: whenever both are kept in different splits they are far enough apart."""
    lat = np.array([42.0 + 0.15 * block + offsets[0], 42.0 + 0.15 * block + offsets[1]])
    lon = np.array([76.95 + offsets[2], 76.95 + offsets[3]])
    splits = assign_splits(lat, lon, 0.15, 0.02, rule="foreign")
    if "buffer" not in splits and splits[0] != splits[1]:
        assert max(abs(lat[0] - lat[1]), abs(lon[0] - lon[1])) >= 0.04 - 1e-9


def test_a_naive_corner_rule_would_not_keep_the_guarantee():
    """Dropping only what is nearer than a buffer to a foreign block, corners included, halves the distance there."""
    size, buffer = 0.15, 0.02
    for i, j in itertools.product(range(250, 300), range(480, 540)):
        here, corner = (block_bucket(i, j) < 80, block_bucket(i + 1, j + 1) < 80)
        if here and not corner and block_bucket(i + 1, j) < 80 and block_bucket(i, j + 1) < 80:
            break
    # One chip just below the corner, one just to its right: each a buffer away from the other's block.
    lat = np.array([(i + 1) * size - buffer * 1.001, (i + 1) * size + 1e-6])
    lon = np.array([(j + 1) * size - 1e-6, (j + 1) * size + buffer * 1.001])
    assert max(lat[1] - lat[0], lon[1] - lon[0]) < 1.1 * buffer
    assert assign_splits(lat, lon, size, buffer, rule="foreign")[0] == "buffer"


def test_the_foreign_rule_keeps_the_edge_rules_chips_and_many_more():
    lat, lon = uniform(60_000, seed=42)
    for size, factor in ((0.15, 1.5), (0.25, 1.25)):
        edge, foreign = (assign_splits(lat, lon, size, rule=rule) for rule in ("edge", "foreign"))
        kept = edge != "buffer"
        np.testing.assert_array_equal(foreign[kept], edge[kept])
        assert (foreign != "buffer").sum() >= factor * kept.sum()


def test_options_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="near"):
        assign_splits([43.0], [77.0], rule="near")
    with pytest.raises(ConfigError, match="half a block"):
        assign_splits([43.0], [77.0], 0.04, 0.02)
    with pytest.raises(ConfigError, match="block size"):
        assign_splits([43.0], [77.0], 0.0)
    with pytest.raises(InputError, match=r"2 of 3 .*number 1"):
        assign_splits([43.0, np.nan, 43.0], [77.0, 77.0, 190.0])


# ---- check -----------------------------------------------------------------------------------------------------------


def plain_squares(lat, lon, centre) -> list:
    """Exact squares on the UTM grids of their centres, seen in one equidistant projection of the neighbourhood."""
    from pyproj import CRS, Transformer
    from shapely.geometry import Polygon

    plane = CRS(f"+proj=aeqd +lat_0={centre[0]} +lon_0={centre[1]} +datum=WGS84")
    zones = dict.fromkeys(map(utm_epsg, lat, lon))
    from_zone = {zone: Transformer.from_crs(zone, plane, always_xy=True) for zone in zones}
    to_zone = {zone: Transformer.from_crs(4326, zone, always_xy=True) for zone in zones}
    squares = []
    for k in range(len(lat)):
        zone = utm_epsg(lat[k], lon[k])
        x, y = to_zone[zone].transform(lon[k], lat[k])
        half = 1120 - 2.5  # two chips must share half a pixel, as documented
        corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
        squares.append(Polygon([from_zone[zone].transform(*corner) for corner in corners]))
    return squares


@pytest.mark.parametrize("centre", [(43.0, 77.0), (43.0, 78.0), (30.0, 96.0)])  # 78 and 96 E part UTM zones
def test_overlap_is_that_of_the_squares_on_their_grids(centre):
    rng = np.random.default_rng(3)
    lat = centre[0] + rng.uniform(-0.03, 0.03, 60)
    lon = centre[1] + rng.uniform(-0.04, 0.04, 60)
    a, b = np.triu_indices(60, 1)
    ours = chips_overlap(lat, lon, a, b)
    squares = plain_squares(lat, lon, centre)
    theirs = np.array([squares[i].intersects(squares[j]) for i, j in zip(a, b, strict=True)])
    differ = ours != theirs
    assert differ.mean() < 0.005  # a few metres of a projection decide those
    assert 0.2 < ours.mean() < 0.8


def test_neighbours_of_the_published_grid_touch_or_share_half():
    from pyproj import Transformer

    back = Transformer.from_crs(32643, 4326, always_xy=True)
    for easting in (300_000, 500_000, 700_000):
        lon, lat = back.transform(easting + 1120 * np.arange(4), np.full(4, 4_760_000.0))
        assert chips_overlap(np.array(lat), np.array(lon), np.zeros(3, int), np.array([1, 2, 3])).tolist() == [
            True, False, False,
        ]  # fmt: skip


def test_the_check_counts_what_all_pairs_count():
    lat, lon = uniform(400, seed=5, box=(77.0, 43.0, 77.4, 43.3))
    splits = np.random.default_rng(0).choice(["train", "val", "test", "buffer", ""], 400, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    found = check_split(lat, lon, splits)
    a, b = np.triu_indices(400, 1)
    counted = np.isin(splits, ["train", "val", "test"])
    cross = counted[a] & counted[b] & (splits[a] != splits[b])
    a, b = a[cross], b[cross]
    overlap = chips_overlap(lat, lon, a, b)
    points = earth_centred(lat, lon)
    distance = np.linalg.norm(points[a] - points[b], axis=1)
    assert found.overlapping_pairs == overlap.sum() > 100 and not found.passed
    assert sum(found.overlapping_by_splits.values()) == found.overlapping_pairs
    assert found.smallest_distance_m == pytest.approx(distance.min())
    assert set(found.nearest) == {a[distance.argmin()], b[distance.argmin()]}
    assert found.chips == {name: int((splits == name).sum()) for name in ("train", "val", "test", "buffer")}


def test_chips_of_several_years_on_one_place_overlap():
    lat, lon = np.array([43.0, 43.0, 43.0, 44.0]), np.array([77.0, 77.0, 77.0, 77.0])
    found = check_split(lat, lon, ["train", "train", "val", "test"])
    assert found.overlapping_by_splits == {"train-val": 2, "train-test": 0, "val-test": 0}
    assert found.smallest_distance_m == 0 and set(found.nearest) == {0, 2} and not found.passed


def test_distances_are_geodesic():
    from pyproj import Geod

    lat, lon = uniform(50, seed=8, box=(77.0, 43.0, 77.1, 43.1))
    points = earth_centred(lat, lon)
    _, _, true = Geod(ellps="WGS84").inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    np.testing.assert_allclose(np.linalg.norm(np.diff(points, axis=0), axis=1), true, rtol=1e-5)


@pytest.mark.parametrize("rule", ["edge", "foreign"])
def test_the_published_split_passes_and_one_split_compares_with_nothing(rule):
    lat, lon = uniform(20_000, seed=6, box=(76.0, 42.0, 79.0, 44.0))
    found = check_split(lat, lon, assign_splits(lat, lon, rule=rule))
    assert found.passed and found.smallest_distance_m >= 0.04 * 111_320 * math.cos(math.radians(44.0)) * 0.999
    assert "no two splits" in str(found)
    alone = check_split(lat, lon, np.full(len(lat), "train"))
    assert alone.smallest_distance_m is None and alone.passed and alone.nearest is None


def test_stages_leak_unless_the_later_ones_blocks_are_kept_out():
    lat, lon = uniform(4000, seed=7, box=(76.0, 42.0, 79.0, 44.0))
    early = assign_splits(lat, lon, 0.25)
    for rule in ("edge", "foreign"):
        late = assign_splits(lat, lon, 0.15, rule=rule)
        leak = check_stages((lat, lon, early), (lat, lon, late))
        trained = np.flatnonzero(early == "train")
        for name in ("val", "test"):
            chips = np.flatnonzero(late == name)
            a, b = (v.ravel() for v in np.meshgrid(chips, trained, indexing="ij"))
            near = chips_overlap(lat, lon, a, b).reshape(len(chips), -1)
            assert leak[name]["chips"] == len(chips) and leak[name]["seen"] == near.any(1).sum() > 0
        kept = ~exclude_stage(lat, lon, 0.15)
        assert 0.5 < kept.mean() < 0.9
        clean = check_stages((lat[kept], lon[kept], early[kept]), (lat, lon, late))
        for name in ("val", "test"):
            assert clean[name]["seen"] == 0 and clean[name]["smallest_distance_m"] > 2240
        gap_lat = np.abs(lat[kept][:, None] - lat[np.isin(late, ["val", "test"])][None])
        gap_lon = np.abs(lon[kept][:, None] - lon[np.isin(late, ["val", "test"])][None])
        assert np.maximum(gap_lat, gap_lon).min() >= 0.04 - 1e-9
    empty = check_stages((lat, lon, np.full(len(lat), "val")), (lat, lon, late))
    assert empty["test"]["seen"] == 0 and empty["test"]["smallest_distance_m"] is None


def test_a_chips_name_tells_its_place_and_year():
    name = chip_id("ile_alatau", 32643, row=-478240, col=6720, year=2022)
    assert name == "ile_alatau_43N_06720_478240_2022"
    assert (
        place_id(name) == place_id(chip_id("ile_alatau", 32643, -478240, 6720, 2017)) == "ile_alatau_43N_06720_478240"
    )
    assert chip_id("andes", 32719, row=-800000, col=50, year=2023) == "andes_19S_00050_800000_2023"
