"""Three rasters to one of 15 bands, and the +1000 offset of Sentinel-2: found in the values, never guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from chip_factory import make_chip
from rasterio.transform import from_origin

from cryosentinel import paths
from cryosentinel.data.geotiff import BAND_NAMES
from cryosentinel.data.offset import offset_state
from cryosentinel.data.stack import stack_rasters
from cryosentinel.errors import InputError

SIZE = 32


def write(path: Path, array: np.ndarray, nodata: float | None = None) -> Path:
    profile = {"driver": "GTiff", "dtype": array.dtype, "count": len(array), "height": SIZE, "width": SIZE}
    where = from_origin(500_000, 4_700_000, 10, 10)
    with rasterio.open(path, "w", **profile, crs="EPSG:32643", transform=where, nodata=nodata) as sink:
        sink.write(array)
    return path


@pytest.fixture
def rasters(tmp_path: Path) -> dict[str, Path]:
    """A lake and bare ground, without the offset ("s2") and with it ("raw")."""
    chip = make_chip(3, SIZE)
    optical = chip.s2.copy()
    optical[:, :4] = 0  # no data
    return {
        "s2": write(tmp_path / "s2.tif", optical),
        "raw": write(tmp_path / "raw.tif", np.where(optical == 0, 0, optical + 1000).astype(np.uint16)),
        "s1": write(tmp_path / "s1.tif", chip.s1),
        "dem": write(tmp_path / "dem.tif", chip.dem),
    }


def bands(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        assert source.descriptions == BAND_NAMES
        return source.read()


def test_the_offset_is_subtracted_when_asked_and_missed_when_not(rasters, tmp_path):
    s1, dem, out = rasters["s1"], rasters["dem"], tmp_path / "scene.tif"
    with pytest.raises(InputError, match=r"raw\.tif.*--s2_offset 1000"):
        stack_rasters(rasters["raw"], s1, dem, out)
    with pytest.raises(InputError, match=r"s2\.tif.*already removed"):
        stack_rasters(rasters["s2"], s1, dem, out, s2_offset=1000)
    assert not out.exists()
    plain = bands(stack_rasters(rasters["s2"], s1, dem, out))
    np.testing.assert_array_equal(bands(stack_rasters(rasters["raw"], s1, dem, out, s2_offset=1000)), plain)
    assert (plain[:12, :4] == 0).all(), "pixels without data stay without"
    kept = bands(stack_rasters(rasters["raw"], s1, dem, out, s2_offset=0))  # the user knows better
    np.testing.assert_array_equal(kept[:12, 4:], plain[:12, 4:] + 1000)


def test_what_values_say_of_the_offset():
    rng = np.random.default_rng(1)
    ground = rng.integers(150, 4000, (12, 40, 40))
    assert offset_state(ground) == "removed" and offset_state(ground + 1000) == "carried"
    shadow = ground + 1000
    shadow[:, :1, :20] = 850  # a little noise below 1000 does not change it, much of it makes it doubtful
    assert offset_state(shadow) == "unknown"
    assert offset_state(rng.integers(2500, 9000, (12, 40, 40))) == "unknown", "cloud: bright in every band"
    snow = rng.integers(1200, 12_000, (12, 40, 40))
    snow[10:] = rng.integers(100, 1600, (2, 40, 40))
    assert offset_state(snow) == "removed", "snow is dark in the short-wave infrared"
    assert offset_state(ground[:, :3, :3] + 1000) == "unknown", "nine pixels say nothing"
    empty = np.zeros((12, 40, 40))
    assert offset_state(empty) == "unknown" and offset_state(np.full_like(empty, np.nan)) == "unknown"
    empty[:, :, 20:] = ground[:, :, 20:] + 1000
    assert offset_state(empty) == "carried", "pixels without data are left out"


def test_real_chips_are_told_from_themselves_with_the_offset():
    folder = paths.real_chips()
    if folder is None:
        pytest.skip("CRYOSENTINEL_REAL_DATA is not set: no real chips here")
    found = {}
    for path in sorted((folder / "S2L2A").glob("*.tif")):
        with rasterio.open(path) as source:
            values = source.read()
        found[path.stem] = offset_state(values), offset_state(values + 1000)
    states = list(found.values())
    assert len(states) == 3 and all(plain == "removed" and raw != "removed" for plain, raw in states), found
    assert sum(raw == "carried" for _, raw in states) >= 2


def test_radar_in_the_wrong_unit_is_refused(rasters, tmp_path):
    s2, dem, out = rasters["s2"], rasters["dem"], tmp_path / "scene.tif"
    power = np.random.default_rng(2).uniform(0.001, 0.5, (2, SIZE, SIZE)).astype(np.float32)
    linear = write(tmp_path / "linear.tif", power)
    with pytest.raises(InputError, match=r"linear\.tif.*dB"):
        stack_rasters(s2, linear, dem, out)
    with pytest.raises(InputError, match=r"s1\.tif.*--s1_linear"):
        stack_rasters(s2, rasters["s1"], dem, out, s1_linear=True)
    made = bands(stack_rasters(s2, linear, dem, out, s1_linear=True))
    np.testing.assert_allclose(made[12:14], 10 * np.log10(power), rtol=1e-5)


@pytest.mark.parametrize("nodata", [-9999, 0])
def test_a_rasters_own_value_for_no_data_is_none_in_the_scene(rasters, tmp_path, nodata):
    from cryosentinel.data.geotiff import read_geotiff

    chip = make_chip(4, SIZE)
    optical, radar, dem = chip.s2.astype(np.float32) + 1000, chip.s1.copy(), chip.dem.astype(np.float32)
    optical[:, 0, 0] = radar[:, 1, 1] = dem[:, 2, 2] = nodata
    given = [write(tmp_path / f"{n}_.tif", a, nodata) for n, a in (("s2", optical), ("s1", radar), ("dem", dem))]
    valid = read_geotiff(stack_rasters(*given, tmp_path / "scene.tif", s2_offset=1000)).valid
    assert {tuple(at) for at in np.argwhere(~valid)} == {(0, 0), (1, 1), (2, 2)}
