"""The Sentinel-2 composite: offsets by items and pixels, clouds, versions, datastrips, broken scenes, two zones."""

from __future__ import annotations

from dataclasses import replace

import ingest_world as world
import numpy as np
import pytest
from pyproj import Transformer

from cryosentinel.errors import InputError
from cryosentinel.ingest import Settings, ingest, reading
from cryosentinel.ingest.reading import BrokenAssetError
from cryosentinel.ingest.sentinel2 import (
    Conversion,
    choose,
    clear_pixels,
    reflectance,
    settle_offset,
    stated_conversion,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


EXACT = Settings(cloud_buffer=0)  # clouds end where the classification says
CRISP = replace(world.FAST, cloud_buffer=0)


def item(properties, band=None, name="S2A_x", asset=None):
    asset = {"href": "x"} | (asset or {}) | ({"raster:bands": [band]} if band else {})
    return {"id": name, "properties": properties, "assets": {"B02": asset}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (item({"s2:processing_baseline": "04.00"}), (1.0, 1000.0)),
        (item({"s2:processing_baseline": "05.10"}), (1.0, 1000.0)),
        (item({"s2:processing_baseline": "03.01"}), (1.0, 0.0)),
        (item({"processing:version": "05.11"}), (1.0, 1000.0)),
        # Earth Search has removed the offset, says so, and states it all the same.
        (
            item(
                {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True},
                {"scale": 0.0001, "offset": -0.1},
            ),
            (1.0, 0.0),
        ),
        (item({"earthsearch:boa_offset_applied": False}, {"scale": 0.0001, "offset": -0.1}), (1.0, 1000.0)),
        (item({"s2:processing_baseline": "02.14"}, {"scale": 0.0001, "offset": 0}), (1.0, 0.0)),
        # Composites of other scales: factor and offset both count.
        (item({"s2:processing_baseline": "05.09"}, {"scale": 0.0002, "offset": -0.1}), (2.0, 1000.0)),
        # STAC 1.1, as Copernicus Data Space writes it: on the asset itself, or in its bands.
        (item({}, asset={"raster:scale": 0.0001, "raster:offset": -0.1}), (1.0, 1000.0)),
        (item({}, asset={"bands": [{"name": "B02", "raster:scale": 0.0001, "raster:offset": -0.1}]}), (1.0, 1000.0)),
        (item({}, name="S2B_MSIL2A_20230825T053639_N0509_R005_T43TFH"), (1.0, 1000.0)),
        (item({"s2:product_uri": "S2B_MSIL2A_20210825T053639_N0301_R005_T43TFH.SAFE"}), (1.0, 0.0)),
    ],
)
def test_offset_follows_what_the_item_says(given, expected):
    found = stated_conversion(given, "B02")
    assert found is not None and (found.factor, found.offset) == expected


DARK = np.repeat(np.array([[300], [2000]] * 6, np.uint16), 200, axis=1)  # digital numbers without the offset
BRIGHT = np.full((12, 200), 6000, np.uint16)


@pytest.mark.parametrize(
    ("stated", "numbers", "offset", "noted"),
    [
        (Conversion(1.0, 1000.0), DARK + 1000, 1000, False),
        (Conversion(1.0, 1000.0), DARK, 0, True),  # already removed, whatever the metadata say
        (Conversion(1.0, 1000.0), BRIGHT, 1000, False),  # a bright scene tells nothing: metadata stand
        (Conversion(2.0, 1000.0), (DARK + 1000) // 2, 1000, False),  # a scale of its own: limits hold for reflectance
        (Conversion(2.0, 1000.0), DARK // 2, 0, True),
        (Conversion(1.0, 0.0), DARK, 0, False),
        (Conversion(1.0, 0.0, never=True), DARK + 1000, 0, False),  # older than the offset
        (None, DARK, 0, False),
        (None, DARK + 1000, 1000, False),
    ],
)
def test_pixels_have_a_say_in_the_offset(stated, numbers, offset, noted):
    found, note = settle_offset(item({}), stated, numbers)
    assert (found, bool(note)) == (offset, noted)


@pytest.mark.parametrize(("stated", "numbers"), [(Conversion(1.0, 0.0), DARK + 1000), (None, BRIGHT)])
def test_an_offset_that_cannot_be_settled_refuses_the_scene(stated, numbers):
    with pytest.raises(BrokenAssetError, match=r"S2A_x.*offset"):
        settle_offset(item({}), stated, numbers)


def test_reflectance_keeps_no_data_apart_from_dark_data():
    raw = np.array([[0, 1, 1000, 1001, 4000]], np.uint16)
    assert reflectance(raw, 1.0, 1000.0).tolist() == [[0, 1, 1, 1, 3000]]


def test_the_clearest_acquisition_comes_first_and_the_next_fills_its_clouds():
    needed = np.ones((10, 10), bool)
    one, other = np.full((10, 10), 5, np.uint8), np.full((10, 10), 5, np.uint8)
    one[:5], other[0, :3] = 9, 8
    source = choose([one, other], ["a", "b"], needed, EXACT)
    assert (source[0, :3] == -1).all()  # both cloudy
    assert (source[1:] == 1).all()


def test_a_shadow_in_every_acquisition_is_the_ground():
    needed = np.ones((10, 10), bool)
    one, other = np.full((10, 10), 5, np.uint8), np.full((10, 10), 5, np.uint8)
    one[0], other[0] = 3, 3
    one[1] = 3  # the second one is clear there: a cloud's shadow
    other[2] = 9
    source = choose([one, other], ["a", "b"], needed, EXACT)
    assert (source >= 0).all()
    assert (source[1] == 1).all() and (source[2] == 0).all()
    alone = choose([one], ["a"], needed, EXACT)
    assert (alone[0] == -1).all()  # one acquisition cannot tell


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [False] * 5 + [True]),  # 1 saturated, 3 shadow, 8 and 9 cloud, 10 cirrus, 5 bare
        ({"hidden_classes": (3, 8, 9)}, [True, False, False, False, True, True]),  # a glacier that saturates
    ],
)
def test_which_classes_hide_the_ground_is_a_setting(changes, expected):
    classes = np.array([[1, 3, 8, 9, 10, 5]], np.uint8)
    assert clear_pixels(classes, Settings(cloud_buffer=0, **changes)).tolist() == [expected]


def test_clouds_grow_by_the_buffer_and_shadows_do_not():
    classes = np.full((9, 9), world.CLEAR, np.uint8)
    classes[4, 4], classes[0, 0] = world.CLOUD, 3
    hidden = ~clear_pixels(classes, Settings(cloud_buffer=2))
    assert hidden[2:7, 2:7].all() and hidden.sum() == 25 + 1


def run(tmp_path, *makers, settings=CRISP, box=None, **options):
    with world.service(tmp_path, *makers) as files:
        lakes = world.inventory(tmp_path / "lakes.geojson")
        result = ingest(
            world.REGION, world.YEAR, files.stac, tmp_path / "out", lakes, box or world.box(3), settings=settings,
            progress=False, **options,
        )  # fmt: skip
    return result, world.chips_of(tmp_path / "out")


def test_the_offset_of_new_baselines_is_removed(tmp_path):
    result, chips = run(tmp_path, lambda f: world.s2_item(f, offset=1000), world.s1_item, world.dem_item)
    world.assert_equal(chips)
    assert set(result.index["s2_offset"]) == {1000}


def test_a_scale_of_its_own_is_applied_in_the_composite(tmp_path):
    """Half the digital numbers, twice the scale."""
    halves = (world.scene()["s2"] // 2).astype(np.uint16)
    band = {"raster:bands": [{"scale": 0.0002, "offset": 0}]}

    def maker(files):
        made = world.s2_item(files, s2=halves)
        for name, asset in made["assets"].items():
            asset.update({} if name == "SCL" else band)
        return made

    _, chips = run(tmp_path, maker, world.s1_item, world.dem_item, box=world.box(2))
    (chip,) = chips
    assert np.abs(chip.s2.astype(int) - world.cut(chip)["s2"]).max() <= 1


def cloudy(where, scl_class=world.CLOUD):
    """The scene under a cloud that fills ``where``."""
    s2 = world.scene()["s2"].copy()
    scl = np.full(s2.shape[1:], world.CLEAR, np.uint8)
    s2[(slice(None), *where)] = 9000
    scl[where] = scl_class
    return {"s2": s2, "scl": scl}


def test_clouds_are_filled_from_other_acquisitions(tmp_path):
    left, right = np.s_[:, :200], np.s_[:, 150:]
    result, chips = run(
        tmp_path,
        lambda f: world.s2_item(f, **cloudy(left)),
        lambda f: world.s2_item(f, "S2A_43TFH_20230903_0_L2A", "2023-09-03", **cloudy(right), offset=1000),
        world.s1_item,
        world.dem_item,
        box=world.box(2),
    )
    (chip,) = chips
    wanted = world.cut(chip)["s2"]
    hidden = (chip.s2 == 0).all(axis=0)
    assert 0.1 < hidden.mean() < 0.3  # cloudy in both
    assert np.abs(chip.s2.astype(int) - wanted)[:, ~hidden].max() <= 1
    assert result.index["s2_clear"].iloc[0] == pytest.approx(1 - hidden.mean())
    assert len(result.index["s2_scenes"].iloc[0].split()) == 2


@pytest.mark.parametrize("applied", [True, False])
def test_a_small_gap_over_bright_ground_does_not_decide_on_the_offset(tmp_path, applied):
    """Snow in a gap of 30 x 30 pixels begins near 1000 without any offset; around it something is dark."""
    gap, s2 = np.s_[102:132, 102:132], world.scene()["s2"].copy()
    s2[(slice(None), *gap)] = np.random.default_rng(0).integers(1050, 5000, (12, 30, 30))
    scl, other = np.full(s2.shape[1:], world.CLEAR, np.uint8), np.full(s2.shape[1:], world.CLOUD, np.uint8)
    scl[gap], other[gap] = world.CLOUD, world.CLEAR
    right, flag = {"earthsearch:boa_offset_applied": True}, {"earthsearch:boa_offset_applied": applied}
    result, chips = run(
        tmp_path,
        lambda f: world.s2_item(f, "most", s2=s2, scl=scl, kind="es-s2", properties=right),
        lambda f: world.s2_item(f, "gap", "2023-08-30", s2=s2, scl=other, kind="es-s2", properties=flag),
        world.s1_item,
        world.dem_item,
        box=world.box(2),
    )
    world.assert_equal(chips, {**world.scene(), "s2": s2})
    assert not result.broken and any("gap" in note for note in result.notes) == (not applied)


def test_october_fills_in_only_where_summer_is_not_enough(tmp_path):
    october = ("S2A_43TFH_20231005_0_L2A", "2023-10-05")
    result, chips = run(
        tmp_path,
        lambda f: world.s2_item(f, **cloudy(np.s_[:, :112])),
        lambda f: world.s2_item(f, *october),
        lambda f: world.s1_item(f),
        lambda f: world.s1_item(f, "S1A_RTC_20231003", "2023-10-03"),
        world.dem_item,
        box=world.box(3),
    )
    index = result.index.set_index("chip_id")
    first = [name for name in index.index if f"_{int(world.LEFT / 10):05d}_" in name]
    assert len(first) == 2 and len(index) == 4
    assert all("20231005" in index.loc[name, "s2_scenes"] for name in first)
    assert not any("20231005" in scenes for name, scenes in index["s2_scenes"].items() if name not in first)
    world.assert_equal(chips)


def test_chips_that_stay_hidden_are_skipped_and_reported(tmp_path):
    result, chips = run(tmp_path, lambda f: world.s2_item(f, **cloudy(np.s_[:, :112])), world.s1_item, world.dem_item)
    assert sorted(result.index["status"]) == ["cloud", "cloud", "kept", "kept"]
    assert len(chips) == 2 and "2 cloud" in result.summary()
    world.assert_equal(chips)


def test_an_item_with_a_broken_asset_gives_way_to_the_next(tmp_path, monkeypatch):
    def broken(files):
        made = world.s2_item(files, "S2A_43TFH_20230820_0_L2A", "2023-08-20", properties={"eo:cloud_cover": 0.0})
        path = files.root / files.unique / "sentinel-2-l2a" / made["id"] / "B08.tif"
        path.write_bytes(path.read_bytes()[:3000])
        return made

    def spoilt(files):
        made = world.s2_item(files, "S2A_43TFH_20230821_0_L2A", "2023-08-21", properties={"eo:cloud_cover": 0.5})
        path = files.root / files.unique / "sentinel-2-l2a" / made["id"] / "B08.tif"
        held = bytearray(path.read_bytes())
        held[len(held) // 2 : len(held) // 2 + 60_000] = bytes(60_000)
        path.write_bytes(held)
        return made

    def gone(files):
        made = world.s2_item(files, "S2A_43TFH_20230822_0_L2A", "2023-08-22", properties={"eo:cloud_cover": 1.0})
        (files.root / files.unique / "sentinel-2-l2a" / made["id"] / "SCL.tif").unlink()
        return made

    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.01)
    one = replace(CRISP, max_scenes=3)  # of those that can be looked at, of which gone is none
    result, chips = run(tmp_path, broken, spoilt, gone, world.s2_item, world.s1_item, world.dem_item, settings=one)
    world.assert_equal(chips)
    assert {name.split()[0] for name in result.broken} == {f"S2A_43TFH_2023082{day}_0_L2A" for day in (0, 1, 2)}
    assert "20230825" in result.index["s2_scenes"].iloc[0]


def test_a_chip_lost_to_failures_is_not_counted_as_cloud(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.01)

    def gone(files):
        made = world.s2_item(files)
        (files.root / files.unique / "sentinel-2-l2a" / made["id"] / "B08.tif").unlink()
        return made

    with pytest.raises(InputError, match=r"4 unreadable.*20230825"):
        run(tmp_path, gone, world.s1_item, world.dem_item)


def old_and_new(files, first):
    """One scene in two processings: what the oldest shows is wrong."""
    wrong = world.scene()["s2"] + np.uint16(500)
    old = {"s2:processing_baseline": "02.14", "s2:generation_time": "2023-08-25T09:00:00Z"}
    new = {"s2:processing_baseline": "05.00", "s2:generation_time": "2023-12-01T09:00:00Z"}
    items = [
        world.s2_item(files, "Z_old", s2=wrong, properties=old),
        world.s2_item(files, "A_new", properties=new, offset=1000),
    ]
    return items[first]


def test_the_newest_reprocessing_wins(tmp_path):
    makers = [lambda f: old_and_new(f, 0), lambda f: old_and_new(f, 1)]
    result, chips = run(tmp_path, *makers, world.s1_item, world.dem_item, box=world.box(2))
    assert set(result.index["s2_scenes"]) == {"A_new"}
    world.assert_equal(chips)


@pytest.mark.parametrize("lost", ["SCL", "B08"])
def test_a_broken_version_gives_way_to_the_next(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.01)
    old = {"s2:processing_baseline": "02.14", "s2:generation_time": "2023-08-25T09:00:00Z"}

    def new(files):
        made = old_and_new(files, 1)
        (files.root / files.unique / "sentinel-2-l2a" / made["id"] / f"{lost}.tif").unlink()
        return made

    makers = [lambda f: world.s2_item(f, "Y_old", properties=old), new, world.s1_item, world.dem_item]
    result, chips = run(tmp_path, *makers, box=world.box(2))
    assert set(result.index["s2_scenes"]) == {"Y_old"} and "A_new" in result.broken[0]
    world.assert_equal(chips)


def test_a_cloud_beyond_the_group_grows_into_it(tmp_path):
    """However groups are cut, the same pixels are hidden."""
    settings = replace(world.FAST, cloud_buffer=6)
    makers = [lambda f: world.s2_item(f, **cloudy(np.s_[:, 224:])), world.s1_item, world.dem_item]
    _, (chip,) = run(tmp_path, *makers, settings=settings, box=world.box(2))
    hidden = (chip.s2 == 0).all(axis=0)
    assert hidden[:, 218:].all() and not hidden[:, :218].any()


def test_two_datastrips_of_one_datatake_are_both_used(tmp_path):
    """As the Planetary Computer gives them: one tile in two parts, which state the same time."""

    def part(files, n):
        rows = np.s_[:300] if n else np.s_[300:]
        s2, scl = world.scene()["s2"].copy(), np.full((world.SIDE, world.SIDE), world.CLEAR, np.uint8)
        s2[:, rows], scl[rows] = 0, 0
        made = world.s2_item(files, f"S2B_43TFH_20230825_{n}_L2A", s2=s2, scl=scl)
        strip = made["properties"]["s2:datastrip_id"]
        made["properties"]["s2:datastrip_id"] = strip.replace("_S20230825T053641", f"_S20230825T05364{n}")
        return made

    makers = [lambda f: part(f, 0), lambda f: part(f, 1)]
    result, chips = run(tmp_path, *makers, world.s1_item, world.dem_item, box=world.box(4))
    assert set(result.index["status"]) == {"kept"} and len(chips) == 9
    world.assert_equal(chips)


def test_collection_1_is_preferred_and_the_older_one_fills_its_gaps(tmp_path):
    """The older collection of Earth Search has both days, with wrong values on the one that Collection 1 has too."""
    wrong = world.scene()["s2"] + np.uint16(500)
    left = cloudy(np.s_[:, :200])
    newer = {"collection": "sentinel-2-c1-l2a", "offset": 1000, "properties": {"earthsearch:boa_offset_applied": None}}

    makers = [
        lambda f: world.s2_item(f, "S2B_T43TFH_C1", kind="es-s2", **newer, **left),
        lambda f: world.s2_item(f, "S2B_43TFH_old", kind="es-s2", s2=wrong),
        lambda f: world.s2_item(f, "S2A_43TFH_gap", "2023-08-30", kind="es-s2", **cloudy(np.s_[:, 300:])),
        lambda f: world.s1_item(f),
        world.dem_item,
    ]  # fmt: skip
    result, chips = run(tmp_path, *makers)
    used = set(" ".join(result.index["s2_scenes"]).split())
    assert used == {"S2B_T43TFH_C1", "S2A_43TFH_gap"}
    world.assert_equal(chips)


def test_coarser_bands_are_resampled_in_place(tmp_path):
    """A ramp survives bilinear resampling exactly, half a pixel of misplacement would not."""
    rows, cols = np.mgrid[: world.SIDE, : world.SIDE]
    ramp = (1000 + 2 * cols + rows).astype(np.uint16)
    coarse = ramp.reshape(world.SIDE // 2, 2, world.SIDE // 2, 2).mean(axis=(1, 3))

    def maker(files):
        made = world.s2_item(files, s2=np.stack([ramp] * 12))
        path = files.root / files.unique / "sentinel-2-l2a" / made["id"] / "B11.tif"
        world.write_cog(path, np.rint(coarse * 4).astype(np.uint16), world.EPSG, world.LEFT, world.TOP, 20.0, 0)
        return made

    _, chips = run(tmp_path, maker, world.s1_item, world.dem_item, box=world.box(2, 1))
    (chip,) = chips
    b03, b11 = (chip.s2[n].astype(float) for n in (2, 10))
    assert np.abs(b11 / 4 - b03).max() <= 0.5


@pytest.mark.parametrize("kind", ["pc-s2", "cdse-s2"])
def test_two_zones_each_chip_in_its_own(tmp_path, kind):
    """Two tiles over one place, each in its zone and of its own value: a chip takes the one on its grid first.

    Copernicus Data Space states the grid on assets alone.
    """
    makers, half = [], 1120.0
    for epsg, value in ((32643, 800), (32644, 700)):
        x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(78.0, 43.2)
        reach = 2 if epsg == 32643 else 1  # strides to the west
        grid = {"epsg": epsg, "left": np.floor(x / half - reach) * half, "top": np.ceil(y / half + 1) * half}
        s2, s1, dem = (
            np.full((12, 448, 448), value, np.uint16),
            np.full((2, 448, 448), -12.0),
            np.full((1, 448, 448), 9),
        )
        makers += [
            lambda f, e=epsg, g=grid, a=s2: world.s2_item(f, f"S2_{e}", s2=a, kind=kind, **g),
            lambda f, e=epsg, g=grid, a=s1: world.s1_item(f, f"S1_{e}", s1=a, **g),
            lambda f, e=epsg, g=grid, a=dem: world.dem_item(f, f"DEM_{e}", dem=a, **g),
        ]
    _, chips = run(tmp_path, *makers, box=(78.0 - 0.022, 43.2 - 0.008, 78.0 + 0.022, 43.2 + 0.008))
    assert {chip.chip_id.split("_")[-4] for chip in chips} == {"43N", "44N"}
    for chip in chips:
        own = 800 if "_43N_" in chip.chip_id else 700
        assert (chip.lon < 78) == (own == 800)
        assert (chip.s2[0] == own).mean() > 0.7
        np.testing.assert_allclose(chip.s1[np.isfinite(chip.s1)], -12, atol=1e-3)


def test_no_acquisitions_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no Sentinel-2 acquisition"):
        run(tmp_path, lambda f: world.s2_item(f, properties={"eo:cloud_cover": 80.0}), world.s1_item, world.dem_item)
    assert not (tmp_path / "out").exists()
