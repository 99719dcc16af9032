"""The Sentinel-2 composite: offsets by what items say, clouds, fallback, broken scenes, two zones."""

from __future__ import annotations

import ingest_world as world
import numpy as np
import pytest
from pyproj import Transformer

from cryosentinel.errors import InputError
from cryosentinel.ingest import ingest
from cryosentinel.ingest.composite import choose, offset_of, reflectance
from cryosentinel.ingest.loopback import write_cog
from cryosentinel.ingest.reading import BrokenAssetError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def item(properties, band=None, name="S2A_x"):
    asset = {"href": "x"} | ({"raster:bands": [band]} if band else {})
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
        (item({}, name="S2B_MSIL2A_20230825T053639_N0509_R005_T43TFH"), (1.0, 1000.0)),
        (item({"s2:product_uri": "S2B_MSIL2A_20210825T053639_N0301_R005_T43TFH.SAFE"}), (1.0, 0.0)),
    ],
)
def test_offset_follows_what_the_item_says(given, expected):
    assert offset_of(given, "B02") == expected


def test_an_item_that_states_no_offset_is_refused():
    with pytest.raises(BrokenAssetError, match="baseline"):
        offset_of(item({}), "B02")


def test_reflectance_keeps_no_data_apart_from_dark_data():
    raw = np.array([[0, 1, 1000, 1001, 4000]], np.uint16)
    assert reflectance(raw, 1.0, 1000.0).tolist() == [[0, 1, 1, 1, 3000]]


def test_the_clearest_acquisition_comes_first_and_the_next_fills_its_clouds():
    needed = np.ones((10, 10), bool)
    one, other = np.full((10, 10), 5, np.uint8), np.full((10, 10), 5, np.uint8)
    one[:5], other[0, :3] = 9, 8
    source, order = choose([one, other], ["a", "b"], needed)
    assert order == [1, 0]
    assert (source[0, :3] == -1).all()  # both cloudy
    assert (source[1:] == 1).all()


def test_a_shadow_in_every_acquisition_is_the_ground():
    needed = np.ones((10, 10), bool)
    one, other = np.full((10, 10), 5, np.uint8), np.full((10, 10), 5, np.uint8)
    one[0], other[0] = 3, 3
    one[1] = 3  # the second one is clear there: a cloud's shadow
    other[2] = 9
    source, _ = choose([one, other], ["a", "b"], needed)
    assert (source >= 0).all()
    assert (source[1] == 1).all() and (source[2] == 0).all()
    alone, _ = choose([one], ["a"], needed)
    assert (alone[0] == -1).all()  # one acquisition cannot tell


def run(tmp_path, *makers, settings=world.FAST, box=None, **options):
    with world.service(tmp_path, *makers) as running:
        lakes = world.inventory(tmp_path / "lakes.geojson")
        result = ingest(
            world.REGION, world.YEAR, lakes, running.api.url, tmp_path / "out", box or world.box(3),
            settings=settings, progress=False, **options,
        )  # fmt: skip
    return result, world.chips_of(tmp_path / "out")


def test_the_offset_of_new_baselines_is_removed(tmp_path):
    result, chips = run(tmp_path, lambda f: world.s2_item(f, offset=1000), world.s1_item, world.dem_item)
    world.assert_equal(chips)
    assert set(result.index["s2_offset"]) == {1000}


def test_names_and_flags_of_earth_search(tmp_path):
    properties = {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}
    _, chips = run(
        tmp_path, lambda f: world.s2_item(f, earth_search=True, properties=properties), world.s1_item, world.dem_item
    )
    world.assert_equal(chips)


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


def test_an_item_with_a_broken_asset_gives_way_to_the_next(tmp_path):
    def broken(files):
        made = world.s2_item(files, "S2A_43TFH_20230820_0_L2A", "2023-08-20", properties={"eo:cloud_cover": 0.0})
        path = files.root / "sentinel-2-l2a" / made["id"] / "B08.tif"
        path.write_bytes(path.read_bytes()[:3000])
        return made

    def gone(files):
        made = world.s2_item(files, "S2A_43TFH_20230822_0_L2A", "2023-08-22", properties={"eo:cloud_cover": 1.0})
        (files.root / "sentinel-2-l2a" / made["id"] / "SCL.tif").unlink()
        return made

    result, chips = run(tmp_path, broken, gone, world.s2_item, world.s1_item, world.dem_item)
    world.assert_equal(chips)
    assert len(result.broken) == 2
    assert {name.split()[0] for name in result.broken} == {"S2A_43TFH_20230820_0_L2A", "S2A_43TFH_20230822_0_L2A"}
    assert "20230825" in result.index["s2_scenes"].iloc[0]


def test_coarser_bands_are_resampled_in_place(tmp_path):
    """A ramp survives bilinear resampling exactly, half a pixel of misplacement would not."""
    rows, cols = np.mgrid[: world.SIDE, : world.SIDE]
    ramp = (1000 + 2 * cols + rows).astype(np.uint16)
    coarse = ramp.reshape(world.SIDE // 2, 2, world.SIDE // 2, 2).mean(axis=(1, 3))

    def maker(files):
        made = world.s2_item(files, s2=np.stack([ramp] * 12))
        path = files.root / "sentinel-2-l2a" / made["id"] / "B11.tif"
        write_cog(path, np.rint(coarse * 4).astype(np.uint16), world.EPSG, world.LEFT, world.TOP, 20.0, 0)
        return made

    _, chips = run(tmp_path, maker, world.s1_item, world.dem_item, box=world.box(2, 1))
    (chip,) = chips
    b03, b11 = (chip.s2[n].astype(float) for n in (2, 10))
    assert np.abs(b11 / 4 - b03).max() <= 0.5


def test_two_zones_each_chip_in_its_own(tmp_path):
    """Two tiles over one place, each in its zone and of its own value: a chip takes the one on its grid first."""
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
            lambda f, e=epsg, g=grid, a=s2: world.s2_item(f, f"S2_{e}", s2=a, **g),
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
