"""Sentinel-1: decibels, the nearest pass, gaps, speckle, the calibration of plain GRD."""

from __future__ import annotations

from dataclasses import replace

import ingest_world as world
import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.control import GroundControlPoint

from cryosentinel.errors import InputError
from cryosentinel.ingest import ingest
from cryosentinel.ingest.grd import calibration_table, read_grd, sigma_nought, wants_calibration
from cryosentinel.ingest.loopback import serve_files
from cryosentinel.ingest.sentinel1 import in_decibels, lee, passes, to_db

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def run(tmp_path, *makers, settings=world.FAST):
    with world.service(tmp_path, world.s2_item, world.dem_item, *makers) as running:
        lakes = world.inventory(tmp_path / "lakes.geojson")
        result = ingest(
            world.REGION, world.YEAR, lakes, running.api.url, tmp_path / "out", world.box(3),
            settings=settings, progress=False,
        )  # fmt: skip
    return result, world.chips_of(tmp_path / "out")


def test_the_nearest_pass_is_taken_and_an_incomplete_one_only_where_it_shows_the_chip(tmp_path):
    near = world.scene()["s1"].copy()
    near[:, :, :112] = np.nan  # the swath ends
    result, chips = run(
        tmp_path,
        lambda f: world.s1_item(f, "near", "2023-08-26", near + 3),
        lambda f: world.s1_item(f, "later", "2023-08-31"),
        lambda f: world.s1_item(f, "too_late", "2023-09-02", near - 3),
    )
    index = result.index.set_index("chip_id")
    first = {chip.chip_id for chip in chips if f"_{int(world.LEFT / 10):05d}_" in chip.chip_id}
    assert set(index.loc[list(first), "s1_item"]) == {"later"} and set(index.loc[list(first), "s1_days"]) == {6}
    for chip in chips:
        shift = 0 if chip.chip_id in first else 3
        np.testing.assert_allclose(chip.s1, world.cut(chip)["s1"] + shift, atol=1e-3)


def test_chips_without_a_pass_are_skipped_and_reported(tmp_path):
    part = world.scene()["s1"].copy()
    part[:, :, :112] = np.nan
    result, chips = run(tmp_path, lambda f: world.s1_item(f, s1=part))
    assert sorted(result.index["status"]) == ["kept", "kept", "no_sentinel1", "no_sentinel1"]
    assert len(chips) == 2


def test_no_pass_at_all_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no Sentinel-1 acquisition"):
        run(tmp_path, lambda f: world.s1_item(f, day="2023-08-10"))


def test_the_speckle_filter_is_what_the_setting_says(tmp_path):
    _, chips = run(tmp_path, world.s1_item, settings=replace(world.FAST, speckle=5))
    power = 10 ** (world.scene()["s1"].astype(np.float64) / 10)
    filtered = world.scene() | {"s1": np.stack([to_db(lee(band, 5)) for band in power])}
    for chip in chips:
        inner = (slice(None), slice(3, -3), slice(3, -3))  # a window's edge has fewer neighbours
        np.testing.assert_allclose(chip.s1[inner], world.cut(chip, filtered)["s1"][inner], atol=1e-2)


def test_lee_smooths_speckle_and_keeps_edges_and_gaps():
    draw = np.random.default_rng(0)
    power = np.repeat([[0.01, 1.0]], 64, axis=0).repeat(32, axis=1) * draw.gamma(4.4, 1 / 4.4, (64, 64))
    power[0, 0] = np.nan
    out = lee(power, 5)
    for half in (np.s_[4:, 4:28], np.s_[4:, 36:60]):
        assert out[half].std() < 0.6 * power[half].std()
        assert out[half].mean() == pytest.approx(power[half].mean(), rel=0.05)
    assert out[:, 31].mean() < 0.2 < 0.5 < out[:, 32].mean()
    assert np.isnan(out[0, 0]) and np.isfinite(out).sum() == out.size - 1


def test_no_power_is_no_data():
    assert np.isnan(to_db(np.array([0.0, -1e-6, np.nan]))).all()
    assert to_db(np.array([0.1]))[0] == pytest.approx(-10)


def test_decibels_are_told_by_unit_or_by_sign():
    def item(**band):
        return {"assets": {"vv": {"raster:bands": [band]}}}

    assert in_decibels(item(unit="dB"), "vv", np.array([1.0]))
    assert not in_decibels(item(unit="1"), "vv", np.array([-1.0]))
    assert in_decibels(item(), "vv", np.array([-9.0, -12.0, 1.0, np.nan]))
    assert not in_decibels(item(), "vv", np.array([0.1, -1e-5, 0.2]))


def test_frames_of_one_overpass_are_one_pass():
    def frame(name, moment, orbit="ascending"):
        return {"id": name, "properties": {"datetime": moment, "sat:orbit_state": orbit, "sat:relative_orbit": 5}}

    found = passes([
        frame("b", "2023-08-20T12:00:25Z"), frame("a", "2023-08-20T12:00:00Z"),
        frame("c", "2023-08-20T00:50:00Z", "descending"), frame("d", "2023-09-01T12:00:00Z"),
    ])  # fmt: skip
    assert [p.name for p in found] == ["c", "a+b", "d"]
    assert [p.direction for p in found] == ["descending", "ascending", "ascending"]


ANNOTATION = """<calibration><calibrationVectorList count="2">
<calibrationVector><line>0</line><pixel count="2">0 400</pixel><sigmaNought count="2">100 300</sigmaNought>
</calibrationVector>
<calibrationVector><line>400</line><pixel count="2">0 400</pixel><sigmaNought count="2">200 400</sigmaNought>
</calibrationVector></calibrationVectorList></calibration>"""


def test_calibration_interpolates_between_lines_and_pixels():
    table = calibration_table(ANNOTATION.encode())
    got = sigma_nought(np.array([[0.0, 350.0]]), 200, 199, table)
    assert np.isnan(got[0, 0])
    assert got[0, 1] == pytest.approx((350 / 250) ** 2)


def test_plain_grd_is_calibrated_and_placed_by_its_control_points(tmp_path):
    """A product whose geometry is a UTM grid turned by control points alone: power 0.25 left, 1 right of the middle."""
    rows, cols = np.mgrid[:401, :401]
    scale = np.array([[100, 300], [200, 400]], float)
    scale = scale[0, 0] + cols / 400 * 200 + rows / 400 * 100
    wanted = np.where(cols < 200, 0.5, 1.0)
    to_degrees = Transformer.from_crs(world.EPSG, 4326, always_xy=True)
    points = []
    for row in np.linspace(0, 400, 5):
        for col in np.linspace(0, 400, 5):
            lon, lat = to_degrees.transform(world.LEFT + 10 * col, world.TOP - 10 * row)
            points.append(GroundControlPoint(row=row, col=col, x=lon, y=lat, z=0))
    for key in ("vv", "vh"):
        with rasterio.open(
            tmp_path / f"{key}.tif", "w", driver="GTiff", height=401, width=401, count=1, dtype="uint16",
            gcps=points, crs="EPSG:4326",
        ) as file:  # fmt: skip
            file.write(np.rint(scale * wanted).astype(np.uint16), 1)
        (tmp_path / f"{key}.xml").write_text(ANNOTATION)
    with serve_files(tmp_path) as files:
        assets = {key: {"href": f"{files.url}/{key}.tif"} for key in ("vv", "vh")}
        assets |= {f"schema-calibration-{key}": {"href": f"{files.url}/{key}.xml"} for key in ("vv", "vh")}
        item = {"id": "grd", "properties": {}, "assets": assets}
        keys = {"VV": "vv", "VH": "vh"}
        assert wants_calibration(item, keys)
        assert not wants_calibration({**item, "properties": {"proj:epsg": 32643}}, keys)
        grid = GeoBox((100, 200), Affine(10, 0, world.LEFT + 1000, 0, -10, world.TOP - 1000), f"EPSG:{world.EPSG}")
        power = read_grd(item, keys, grid, retries=0)["VV"]
    assert np.isfinite(power).all()
    np.testing.assert_allclose(power[:, :98], 0.25, rtol=0.02)
    np.testing.assert_allclose(power[:, 102:], 1.0, rtol=0.02)
