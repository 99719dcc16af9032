"""The simulated world: windows agree, lakes grow, labels err as stated, optics and radar behave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cryosentinel.errors import InputError
from cryosentinel.indices import ndwi
from cryosentinel.sensors import SNAPSHOT_YEARS
from cryosentinel.simulate import Material, render_scene
from cryosentinel.simulate.acquisition import GRANULE_PX, acquisition, granules
from cryosentinel.simulate.cover import IMAGE_DATE
from cryosentinel.simulate.field import render_year
from cryosentinel.simulate.ground import Window, make_ground, resample
from cryosentinel.simulate.kernels import flood_order
from cryosentinel.simulate.labels import NATURAL, SMALL_HA, make_labels, planted
from cryosentinel.simulate.materials import water_reflectance
from cryosentinel.simulate.noise import Draw, gradient_noise, normal, uniform
from cryosentinel.simulate.radar import lee
from cryosentinel.simulate.terrain import POST_PX, upsample
from cryosentinel.simulate.water import CELL_PX, GLACIAL, OTHER, cell_lakes, lakes_in, may_hold

EPSG, SEED = 32643, 5
LEFT, TOP = 671_000.0, 4_765_000.0  # in the Ile Alatau


@pytest.fixture(scope="module")
def scene() -> dict[str, np.ndarray]:
    return render_scene(EPSG, LEFT, TOP, 336, 224, 2021, SEED)


@pytest.fixture(scope="module")
def lakes() -> list:
    row, col = int(-TOP / 10) // CELL_PX, int(LEFT / 10) // CELL_PX
    return [lake for i in range(3) for j in range(3) for lake in cell_lakes(SEED, EPSG, row + i, col + j)]


def test_layers_have_the_published_types(scene):
    expected = {"s2": (12, "uint16"), "s1": (2, "float32"), "dem": (1, "int16")}
    for name, (bands, dtype) in expected.items():
        assert scene[name].shape == (bands, 224, 336) and scene[name].dtype == dtype
    for name in ("mask", "truth", "material", "cloud", "terrain_shadow"):
        assert scene[name].shape == (224, 336) and scene[name].dtype == np.uint8
    assert set(np.unique(scene["mask"])) <= {0, 1}
    assert set(np.unique(scene["material"])) <= {int(m) for m in Material}


@pytest.mark.parametrize(("dx", "dy", "width", "height"), [(112, 0, 224, 224), (37, 51, 100, 91), (1, 1, 130, 131)])
def test_windows_agree_bit_for_bit(scene, dx, dy, width, height):
    part = render_scene(EPSG, LEFT + dx * 10, TOP - dy * 10, width, height, 2021, SEED)
    for name, layer in scene.items():
        cut = layer[..., dy : dy + height, dx : dx + width]
        np.testing.assert_array_equal(part[name], cut, err_msg=name)


def test_seed_and_year_matter(scene):
    other_seed = render_scene(EPSG, LEFT, TOP, 64, 64, 2021, SEED + 1)
    other_year = render_scene(EPSG, LEFT, TOP, 64, 64, 2022, SEED)
    cut = {name: layer[..., :64, :64] for name, layer in scene.items()}
    assert abs(other_seed["dem"].astype(int) - cut["dem"]).mean() > 20
    np.testing.assert_array_equal(other_year["dem"], cut["dem"])  # one elevation model for all years
    assert (other_year["s2"] != cut["s2"]).mean() > 0.9
    assert (other_year["s1"] != cut["s1"]).mean() > 0.9


def test_scene_refuses_what_it_cannot_render():
    with pytest.raises(InputError, match="10 m grid"):
        render_scene(EPSG, LEFT + 3, TOP, 16, 16, 2021, SEED)
    with pytest.raises(InputError, match="empty"):
        render_scene(EPSG, LEFT, TOP, 0, 16, 2021, SEED)
    with pytest.raises(InputError, match="UTM"):
        render_scene(4326, LEFT, TOP, 16, 16, 2021, SEED)


def test_noise_is_a_function_of_place():
    rows, cols = np.arange(-40, 60), np.arange(1000, 1120)
    for function in (uniform, normal):
        whole = function(rows, cols, 9)
        np.testing.assert_array_equal(function(rows[30:50], cols[7:90], 9), whole[30:50, 7:90])
    big = normal(np.arange(600), np.arange(600), 3)
    assert abs(big.mean()) < 0.01 and abs(big.std() - 1) < 0.01
    neighbours = [
        np.corrcoef(big[:-1].ravel(), big[1:].ravel())[0, 1],
        np.corrcoef(big[:, :-1].ravel(), big[:, 1:].ravel())[0, 1],
    ]
    assert np.abs(neighbours).max() < 0.01
    keys = np.corrcoef(big.ravel(), normal(np.arange(600), np.arange(600), 4).ravel())[0, 1]
    assert abs(keys) < 0.01


def test_gradient_noise_against_its_definition():
    rows, cols = np.linspace(-13, 40, 31), np.linspace(5, 90, 29)
    fast = gradient_noise(rows, cols, 11.0, 77)

    def plain(y: float, x: float) -> float:
        y, x = y / 11.0, x / 11.0
        i, j = int(np.floor(y)), int(np.floor(x))
        total = 0.0
        for di in (0, 1):
            for dj in (0, 1):
                angle = 2 * np.pi * float(uniform(np.array([i + di]), np.array([j + dj]), 77)[0, 0])
                u, v = y - i - di, x - j - dj
                fade = np.prod([1 - (6 * t**5 - 15 * t**4 + 10 * t**3) for t in (abs(u), abs(v))])
                total += fade * (np.sin(angle) * u + np.cos(angle) * v)
        return 3.9 * total

    slow = np.array([[plain(y, x) for x in cols] for y in rows])
    np.testing.assert_allclose(fast, slow, atol=2e-5)
    wide = gradient_noise(np.arange(0, 4000, 5.0), np.arange(0, 4000, 5.0), 37.0, 1)
    assert 0.8 < wide.std() < 0.9


def test_upsampling_is_exact_on_planes():
    posts_r, posts_c = np.arange(-4, 20), np.arange(10, 40)
    plane = (3.0 * posts_r[:, None] - 2.0 * posts_c[None, :]).astype(np.float32)
    rows, cols = np.arange(0, 40), np.arange(45, 100)
    expected = 3.0 * (rows[:, None] - 1) / POST_PX - 2.0 * (cols[None, :] - 1) / POST_PX
    np.testing.assert_allclose(upsample(plane, -4, 10, rows, cols), expected, atol=1e-3)
    window = Window(12, 18, 24, 30)
    blocks = np.add.outer(np.arange(4.0), np.arange(5.0)).astype(np.float32)
    inner = resample(blocks, 6, window)[3:-3, 3:-3]
    np.testing.assert_allclose(np.diff(inner, axis=0), 1 / 6, atol=1e-5)


def test_flood_is_connected_and_prefers_low_ground():
    from scipy.ndimage import label

    cost = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    order = flood_order(cost, 20, 25, 400)
    assert order.max() == 400 and order[20, 25] == 1
    for n in (1, 7, 100, 400):
        assert label((order > 0) & (order <= n))[1] == 1
    # What is left at the rim of the flood cost more than what was taken last on average.
    assert cost[order > 0].mean() < cost[order == 0].mean()


def test_lakes_are_connected_nested_and_inside_their_cells(lakes):
    from scipy.ndimage import label

    assert len(lakes) > 30
    assert {lake.kind for lake in lakes} >= {"proglacial", "cirque", "flat"}
    assert len({lake.lake_id for lake in lakes}) == len(lakes)
    for lake in lakes:
        early, late = lake.mask(2017.67), lake.mask(2023.67)
        for mask in (early, late):
            assert label(mask)[1] <= 1
            if mask.any():
                assert mask.sum() / 100 == pytest.approx(lake.area(2017.67 if mask is early else 2023.67), abs=0.02)
        if lake.area(2023.67) >= lake.area(2017.67):
            assert not (early & ~late).any()
        height, width = lake.area_at.shape
        assert lake.row0 // CELL_PX == (lake.row0 + height - 1) // CELL_PX
        assert lake.col0 // CELL_PX == (lake.col0 + width - 1) // CELL_PX


def test_glacial_lakes_grow_and_some_come_or_go(lakes):
    glacial = [lake for lake in lakes if lake.glacial]
    before, after = (np.array([lake.area(y + 0.67) for lake in glacial]) for y in (2017, 2023))
    assert 1.01 < after.sum() / before.sum() < 1.3
    fates = [Draw(SEED, "fate", n) for n in range(4)]
    assert len({fate.uniform() for fate in fates}) == 4
    assert any(np.isfinite(lake.appears) for lake in glacial) and any(np.isfinite(lake.drains) for lake in glacial)


def test_a_cell_holds_no_kind_that_was_not_drawn():
    cells = [(SEED, EPSG, int(-TOP / 10) // CELL_PX + i, int(LEFT / 10) // CELL_PX + j) for i in (0, 1) for j in (0, 1)]
    for cell in cells:
        assert all(may_hold((lake.kind,), *cell) for lake in cell_lakes(*cell))
    assert not all(may_hold((kind,), *cell) for cell in cells for kind in (*GLACIAL, *OTHER))


def test_lakes_are_flat_in_the_elevation_model(lakes):
    lake = max((one for one in lakes if one.glacial and not np.isfinite(one.appears)), key=lambda one: one.area_ha)
    ground = make_ground(SEED, EPSG, Window(lake.row - 40, lake.col - 40, 80, 80))
    row, col = lake.row - ground.outer.row, lake.col - ground.outer.col
    around = ground.z[row - 3 : row + 4, col - 3 : col + 4]
    assert around.std() < 0.05
    assert ground.z.std() > 3


def test_lakes_in_finds_the_same_lakes_from_any_window(lakes):
    lake = lakes[0]
    narrow = lakes_in(SEED, EPSG, lake.row, lake.col, 1, 1)
    wide = lakes_in(SEED, EPSG, lake.row - 300, lake.col - 300, 600, 600)
    assert lake.lake_id in {one.lake_id for one in narrow}
    assert [one.lake_id for one in wide if one in narrow] == [one.lake_id for one in narrow]


def test_a_filled_basin_is_flat_and_dry(lakes):
    basin = max((lake for lake in lakes if lake.kind == "flat"), key=lambda lake: lake.area_ha)
    assert basin.area(2022.67) == 0 and not basin.glacial
    window = Window(basin.row - 40, basin.col - 40, 80, 80)
    ground = make_ground(SEED, EPSG, window)
    row, col = basin.row - ground.outer.row, basin.col - ground.outer.col
    assert ground.steep[row - 3 : row + 4, col - 3 : col + 4].max() < 4
    layers, body = render_year(ground, window, 2022)
    assert layers["truth"][40, 40] == 0 and body[40, 40] == 0
    assert layers["material"][40, 40] in (basin.floor, Material.RIVER)


def test_no_sensor_tells_the_kind_of_water(lakes):
    lake = max((one for one in lakes if one.kind in ("cirque", "moraine")), key=lambda one: one.area_ha)
    window = Window(lake.row - 30, lake.col - 30, 60, 60)
    ground = make_ground(SEED, EPSG, window)
    as_lake, body = render_year(ground, window, 2022)
    ground.lakes[ground.lakes.index(lake)] = replace(lake, kind="pond")
    as_pond, _ = render_year(ground, window, 2022)
    for name in ("s2", "s1", "dem"):
        np.testing.assert_array_equal(as_lake[name], as_pond[name])
    assert as_lake["truth"][body > 0].any() and (as_lake["truth"] != as_pond["truth"]).any()


def test_ice_covers_water_of_any_kind(lakes):
    lake = replace(max(lakes, key=lambda one: one.area_ha if one.glacial else 0), frozen=2.0)
    window = Window(lake.row - 20, lake.col - 20, 40, 40)
    ground = make_ground(SEED, EPSG, window)
    at = next(n for n, one in enumerate(ground.lakes) if one.lake_id == lake.lake_id)
    for kind in ("cirque", "pond"):
        ground.lakes[at] = replace(lake, kind=kind)
        layers, body = render_year(ground, window, 2022)
        frozen = layers["material"] == Material.FROZEN_LAKE
        assert (body[frozen] == at + 1).any() and (
            layers["truth"][frozen & (body == at + 1)] == (kind == "cirque")
        ).all()


def test_water_is_clear_or_milky_shallow_or_deep():
    def water(flour: float, depth: float, dissolved: float = 0.08) -> np.ndarray:
        values = (np.array([v]) for v in (flour, dissolved, 1.0, 1.0, depth))
        return water_reflectance(*values)[:, 0]

    clear, milky = water(1.0, 30.0), water(150.0, 30.0)
    assert clear[1] > clear[3] > clear[7] and milky[2] > 4 * clear[2]  # blue over red over infrared
    assert milky.argmax() in (2, 3) and milky[10] < 0.01  # water absorbs the short-wave infrared whatever it holds
    assert water(1.0, 0.4)[3] > 2 * clear[3]  # the bottom shows
    assert water(1.0, 30.0, dissolved=1.0)[0] < 0.6 * clear[0]


def test_scenes_differ_by_granule_and_year():
    scenes = [acquisition(SEED, EPSG, row, 6, year) for row in range(-44, -40) for year in SNAPSHOT_YEARS]
    for values in (
        [scene.sun_azimuth for scene in scenes],
        [scene.date for scene in scenes],
        [float(scene.offset[0]) for scene in scenes],
    ):
        assert len(set(values)) == len(scenes)
    assert {scene.look_azimuth < 180 for scene in scenes} == {True, False}
    assert all(45 < scene.sun_elevation < 66 and 120 < scene.sun_azimuth < 165 for scene in scenes)
    north, south = (
        np.mean([acquisition(SEED, EPSG, row, 6, year).sun_elevation for year in range(2016, 2030)])
        for row in (-46, -30)
    )
    assert south > north + 5


def test_windows_agree_across_a_granule_border():
    row, col = -43 * GRANULE_PX, 6 * GRANULE_PX + 300
    ground = make_ground(SEED, EPSG, Window(row - 30, col, 60, 50))
    assert len(granules(Window(row - 30, col, 60, 50))) == 2
    whole, _ = render_year(ground, Window(row - 30, col, 60, 50), 2022)
    for top in (row - 30, row):
        half = Window(top, col, 30, 50)
        layers, _ = render_year(make_ground(SEED, EPSG, half), half, 2022)
        for name, layer in layers.items():
            cut = whole[name][..., top - row + 30 : top - row + 60, :]
            np.testing.assert_array_equal(layer, cut, err_msg=name)


def test_lee_keeps_edges_and_removes_speckle():
    power = np.where(np.arange(60) < 30, 0.02, 0.5) * np.ones((60, 1))
    rng = np.random.default_rng(0)
    seen = (power * rng.gamma(5.2, 1 / 5.2, power.shape)).astype(np.float32)
    filtered = lee(seen)
    inside = (slice(5, -5), slice(5, 22))
    assert filtered[inside].std() < 0.5 * seen[inside].std()
    assert filtered[inside].mean() == pytest.approx(0.02, rel=0.05)
    assert np.median(filtered[:, 31] / filtered[:, 28]) > 5


def test_labels_follow_the_inventory_not_the_image(lakes):
    lake = max((one for one in lakes if one.kind == "proglacial"), key=lambda one: one.area_ha)
    window = Window(lake.row - 90, lake.col - 90, 180, 180)
    labels = {year: make_labels(SEED, EPSG, window, year)[0] for year in SNAPSHOT_YEARS}
    np.testing.assert_array_equal(labels[2021], labels[2022])
    np.testing.assert_array_equal(labels[2022], labels[2023])
    assert (labels[2017] != labels[2022]).any()


def test_planted_errors_are_weighted_back_to_their_natural_shares(lakes):
    lake = max((one for one in lakes if one.kind == "proglacial"), key=lambda one: one.area_ha)
    window = Window(lake.row - 90, lake.col - 90, 180, 180)
    natural = list(planted(SEED, EPSG, window, 2022, NATURAL))
    label = np.any([own for _, own, _, _ in natural], axis=0)
    np.testing.assert_array_equal(label, make_labels(SEED, EPSG, window, 2022)[0] > 0)
    assert {weight for *_, weight in natural} == {1.0}
    every = replace(NATURAL, missing=0.5, undersized=0.25, oversized=0.2, false=0.5)
    for body, own, error, weight in planted(SEED, EPSG, window, 2022, every):
        assert own.any() != (error == "missing") or not own.any()
        small = body.area(2022 + IMAGE_DATE) < SMALL_HA
        if body.kind == "flat":
            assert weight == pytest.approx(0.04 / 0.5 if error else 0.96 / 0.5)
        elif not small:
            assert weight == pytest.approx({"missing": 0.06, "undersized": 0.06, "oversized": 0.075, "": 18.8}[error])


def test_optics_and_radar_see_water():
    # A window with a large clear lake: dark in the infrared and, but for wind, in the radar.
    found = [
        lake
        for i in range(6)
        for lake in cell_lakes(SEED, EPSG, int(-TOP / 10) // CELL_PX + i, int(LEFT / 10) // CELL_PX)
        if lake.kind in ("cirque", "moraine") and lake.area_ha > 12 and lake.flour < 60 and lake.frozen < 0.4
    ]
    lake = found[0]
    layers = render_scene(EPSG, (lake.col - 64) * 10.0, -(lake.row - 64) * 10.0, 128, 128, 2022, SEED)
    water = (layers["material"] == Material.LAKE) & (layers["cloud"] == 0)
    land = (layers["truth"] == 0) & (layers["cloud"] == 0) & (layers["terrain_shadow"] == 0)
    land &= layers["s2"].max(axis=0) > 0
    water &= layers["s2"].max(axis=0) > 0
    assert ndwi(layers["s2"])[water].mean() > ndwi(layers["s2"])[land].mean() + 0.2
    assert np.nanmean(layers["s1"][0][water]) < np.nanmean(layers["s1"][0][land]) - 3
    assert layers["s2"].max() < 16_000
