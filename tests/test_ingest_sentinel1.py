"""Sentinel-1: decibels, the nearest pass, gaps, speckle, and radar that cannot be right or is not where it says."""

from __future__ import annotations

from dataclasses import replace

import ingest_world as world
import numpy as np
import pytest
import rasterio

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.ingest import ingest
from cryosentinel.ingest.report import mixed_radar
from cryosentinel.ingest.sentinel1 import displacement, implausible, in_decibels, lee, passes, product_of, to_db
from cryosentinel.simulate.acquisition import GRANULE_PX, acquisition
from cryosentinel.simulate.field import render_scene

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def run(tmp_path, *makers, settings=world.FAST, **options):
    with world.service(tmp_path, world.s2_item, world.dem_item, *makers) as files:
        lakes = world.inventory(tmp_path / "lakes.geojson")
        result = ingest(
            world.REGION, world.YEAR, files.stac, tmp_path / "out", lakes, world.box(3), settings=settings,
            progress=False, **options,
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


def reference_lee(power, side, looks=4.4):
    """Lee's local-statistics filter as the paper writes it (1980, IEEE TPAMI 2), over explicit squares of pixels.

    Multiplicative noise of mean 1 and variance s: the signal's local variance is (V + m^2) / (s + 1) - m^2 with m the
    local mean and V the observed local variance, and the gain is that over m^2 s + (1 + s) times it.
    """
    noise = 1 / looks
    squares = np.lib.stride_tricks.sliding_window_view(np.pad(power, side // 2, mode="symmetric"), (side, side))
    mean, observed = squares.mean(axis=(2, 3)), squares.var(axis=(2, 3))
    signal = np.maximum((observed + mean**2) / (noise + 1) - mean**2, 0)
    gain = signal / (mean**2 * noise + (1 + noise) * signal)
    return mean + gain * (power - mean)


def speckled(shape=(64, 64)):
    draw = np.random.default_rng(0)
    return np.repeat([[0.01, 1.0]], shape[0], axis=0).repeat(shape[1] // 2, axis=1) * draw.gamma(4.4, 1 / 4.4, shape)


def test_lee_is_what_the_paper_says():
    power = speckled((40, 40))
    np.testing.assert_allclose(lee(power, 5), reference_lee(power, 5), rtol=1e-4)


def test_the_speckle_filter_is_applied_to_power_with_the_side_of_the_setting(tmp_path):
    _, chips = run(tmp_path, world.s1_item, settings=replace(world.FAST, speckle=5))
    power = 10 ** (world.scene()["s1"].astype(np.float64) / 10)
    filtered = world.scene() | {"s1": np.stack([10 * np.log10(reference_lee(band, 5)) for band in power])}
    for chip in chips:
        inner = (slice(None), slice(3, -3), slice(3, -3))  # a group's edge has fewer neighbours
        np.testing.assert_allclose(chip.s1[inner], world.cut(chip, filtered)["s1"][inner], atol=1e-2)


def test_lee_keeps_edges_and_gaps():
    power = speckled()
    power[0, 0] = np.nan
    out = lee(power, 5)
    assert out[:, 31].mean() < 0.2 < 0.5 < out[:, 32].mean()
    assert np.isnan(out[0, 0]) and np.isfinite(out).sum() == out.size - 1


@pytest.mark.parametrize("nodata", [-9999.0, -32768.0])
def test_a_number_for_no_data_that_the_file_does_not_state_is_none(tmp_path, nodata):
    """Two frames side by side: where the first has no data the second shows."""
    left, right = world.scene()["s1"].copy(), world.scene()["s1"].copy()
    left[:, :, 224:], right[:, :, :224] = np.nan, np.nan

    def frame(files, name, s1):
        made = world.s1_item(files, name, s1=s1, nodata=nodata)
        for asset in made["assets"].values():
            asset.pop("raster:bands", None)
            path = files.root / asset["href"].removeprefix(files.url + "/")
            with rasterio.open(path) as source:
                values = source.read(1)
            world.write_cog(path, values, world.EPSG, world.LEFT, world.TOP, nodata=None)
        return made

    _, chips = run(tmp_path, lambda f: frame(f, "A", left), lambda f: frame(f, "B", right))
    assert len(chips) == 4
    world.assert_equal(chips)


def test_decibels_are_not_made_decibels_again(tmp_path):
    def in_db(files):
        made = world.s1_item(files)
        for n, key in enumerate(("vv", "vh")):
            made["assets"][key]["raster:bands"] = [{"unit": "dB"}]
            path = files.root / made["assets"][key]["href"].removeprefix(files.url + "/")
            world.write_cog(path, world.scene()["s1"][n], world.EPSG, world.LEFT, world.TOP, nodata=float("nan"))
        return made

    _, chips = run(tmp_path, in_db)
    world.assert_equal(chips)


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


def test_products_are_told_by_the_words_of_services():
    rtc = world.dialect("pc-s1")
    assert product_of(rtc | {"id": "S1A_rtc", "collection": "sentinel-1-rtc"}) == ("RTC", "gamma0")
    plain = {"id": "x", "collection": "mosaic", "properties": {}, "assets": {"vv": {"title": "Sigma nought"}}}
    assert product_of(plain) == ("geocoded", "sigma0")
    assert product_of(plain | {"assets": {"vv": {}}}) == ("geocoded", "unknown")


@pytest.mark.parametrize("kind", ["grd", "grd-4326"])
def test_radar_in_its_own_geometry_is_refused_before_anything_is_read(tmp_path, kind):
    """Newer items carry EPSG:4326 where there is no grid at all."""

    def grd(files):
        made = world.s1_item(files, kind=kind, collection="sentinel-1-grd")
        assert made["properties"].get("proj:epsg") == (4326 if kind == "grd-4326" else None)
        return made

    settings = replace(world.FAST, s1_collection="sentinel-1-grd")
    with pytest.raises(InputError, match=r"GRD.*--s1_service"):
        run(tmp_path, grd, settings=settings)
    assert not world.chips_of(tmp_path / "out")


@pytest.mark.parametrize("name", ["earth-search", "cdse"])
def test_services_with_grd_alone_say_where_to_get_better(name):
    with pytest.raises(ConfigError, match=r"GRD.*--s1_service planetary-computer"):
        ingest(world.REGION, world.YEAR, name, "out", bbox=world.box())


def test_numbers_that_were_never_calibrated_are_refused(tmp_path):
    """On a grid, so only the values tell: +33 dB."""
    amplitude = world.scene()["s1"] + 45
    with pytest.raises(InputError, match=r"4 implausible_sentinel1.*no calibrated backscatter"):
        run(tmp_path, lambda f: world.s1_item(f, s1=amplitude))


def flight(seed):
    """Direction of flight of the simulated pass over the world's corner; its scenes lie within one granule."""
    row, column = int(-world.TOP // 10) // GRANULE_PX, int(world.LEFT // 10) // GRANULE_PX
    scene = acquisition(seed, world.EPSG, row, column, world.YEAR)
    return "ascending" if scene.look_azimuth < 180 else "descending"


def relief(seed, shift=0, side=224):
    """Backscatter, elevation and direction of flight over simulated mountains; the radar displaced by some pixels."""
    layers = render_scene(world.EPSG, world.LEFT, world.TOP, side + 80, side + 80, world.YEAR, seed)
    direction = flight(seed)
    here, there = slice(40, 40 + side), slice(40 - shift, 40 - shift + side)
    return layers["s1"][:, here, there], layers["dem"][:, here, here], direction


@pytest.mark.parametrize("seed", [0, 2])
def test_displaced_radar_is_told_by_the_relief(seed):
    s1, dem, direction = relief(seed, 30)
    metres, peak, here = displacement(s1[0], dem[0], direction)
    assert metres == pytest.approx(300, abs=45) and peak > 0.5 > here
    assert "displaced" in implausible(s1, dem, direction, 150)
    assert not implausible(s1, dem, direction, 0)  # any is let through
    assert not implausible(*relief(seed), 150)


def test_radar_without_relief_in_it_is_let_through():
    _, dem, direction = relief(0)
    flat = np.random.default_rng(0).normal(-12, 2, (2, 224, 224)).astype(np.float32)
    assert not implausible(flat, dem, direction, 150)


def test_a_displaced_pass_gives_way_to_the_next(tmp_path):
    shifted = np.roll(world.scene()["s1"], 40, axis=2)
    direction = flight(world.SEED)
    stated = {"sat:orbit_state": direction}
    result, chips = run(
        tmp_path,
        lambda f: world.s1_item(f, "displaced", "2023-08-26", shifted, stated),
        lambda f: world.s1_item(f, "in_place", "2023-08-31", properties=stated),
    )
    assert set(result.index["s1_item"]) == {"in_place"}
    assert any("displaced by" in note for note in result.notes)
    world.assert_equal(chips)


def test_products_that_are_mixed_are_named():
    records = [{"s1_products": ["RTC gamma0"]}, {"s1_products": ["geocoded sigma0"]}]
    mixed, published = mixed_radar(records)
    assert "RTC gamma0" in mixed and "geocoded sigma0" in mixed and "3.0 dB" in published
    assert len(mixed_radar(records[:1])) == 1
