"""Scenes: windows leave no seams, nodata stays nodata, and a scene that cannot be used is refused with a sentence."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from affine import Affine
from rasterio.transform import from_origin

from cryosentinel.data.chips import BAND_NAMES, clean, read_geotiff, split_bands
from cryosentinel.data.stack import stack_rasters
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.indices import mndwi
from cryosentinel.mapping import scene as scenes
from cryosentinel.mapping.gate import Gate
from cryosentinel.mapping.scene import GATED, NO_DATA, Options, open_scene, predict_bands, predict_scene, window_starts
from cryosentinel.sensors import MODALITIES


class PixelModel(torch.nn.Module):
    """Logit = 10 MNDWI: a network without context, so that every window must agree with the whole scene."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(10.0))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.shapes.append(tuple(batch["S2L2A"].shape))
        return self.gain * mndwi(batch["S2L2A"])


def exact(**options: Any) -> Options:
    """Options in float32, whatever the device's own format: results are compared with another computation."""
    return Options(precision="32-true", **options)


class ContextModel(torch.nn.Module):
    """Sees eight pixels around: elevation and radar, smoothed, mirrored or not by what is flipped."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution = torch.nn.Conv2d(3, 1, 17, padding=8, bias=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = torch.cat([batch["S1GRD"] / 10, batch["DEM"] / 5000], dim=1)
        return 4 * self.convolution(inputs)[:, 0]


def write_scene(
    path: Path, bands: np.ndarray, crs: str | None = "EPSG:32643", pixel: float = 10.0, **profile: object
) -> Path:
    profile = {"driver": "GTiff", "dtype": "float32", "count": len(bands), "height": bands.shape[1], **profile}
    profile |= {"width": bands.shape[2], "crs": crs}
    profile.setdefault("transform", from_origin(500_000, 4_700_000, pixel, pixel))
    with rasterio.open(path, "w", **profile) as sink:
        sink.write(bands.astype(np.float32))
    return path


def scene_bands(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    bands = rng.integers(100, 5000, (15, height, width)).astype(np.float32)
    bands[12:14] = rng.normal(-15, 4, (2, height, width))
    return bands


@pytest.mark.parametrize(("height", "width"), [(300, 410), (224, 224), (100, 500), (70, 90)])
def test_a_scene_of_any_size_equals_the_pixels(tmp_path: Path, height: int, width: int) -> None:
    bands = scene_bands(height, width)
    bands[:12, 10:20, 30:50] = 0  # no optical data
    bands[12, 40, 60] = np.nan  # no radar
    result = predict_scene(PixelModel().eval(), write_scene(tmp_path / "a.tif", bands), tmp_path / "o", progress=False)
    expected = 10 * mndwi(bands[:12]) >= 0
    invalid = np.zeros((height, width), bool)
    invalid[10:20, 30:50] = invalid[40, 60] = True
    with rasterio.open(result["water"]) as water:
        got = water.read(1)
        assert water.crs.to_epsg() == 32643
        assert water.transform == from_origin(500_000, 4_700_000, 10, 10)
    assert (got[invalid] == 255).all()
    # The blended logit is a mean of equal numbers: only a logit within rounding of zero may fall on either side.
    differs = (got != expected) & ~invalid & (np.abs(mndwi(bands[:12])) > 1e-6)
    assert not differs.any()
    assert result["valid_pixels"] == (~invalid).sum()
    assert result["water_ha"] == pytest.approx((got == 1).sum() / 100 / 0.9996**2, rel=1e-5)  # true area, not the map's


def test_memory_follows_the_width_not_the_area(tmp_path: Path) -> None:
    model = PixelModel().eval()
    result = predict_scene(model, write_scene(tmp_path / "tall.tif", scene_bands(900, 230)), tmp_path, progress=False)
    assert result["windows"]["run"] == len(window_starts(900, 224, 112)) * len(window_starts(230, 224, 112))
    assert max(shape[0] for shape in model.shapes) == 2  # a row band holds two windows, however tall the scene


def test_adaptive_flips_run_fewer_passes_over_a_scene(tmp_path: Path) -> None:
    bands = scene_bands(224, 448)
    bands[2], bands[10] = 4000, 100  # every pixel decided
    scene, passes = write_scene(tmp_path / "a.tif", bands), []
    for adaptive in (False, True):
        model = PixelModel().eval()
        predict_scene(model, scene, tmp_path / str(adaptive), options=exact(adaptive=adaptive), progress=False)
        passes.append(sum(shape[0] for shape in model.shapes))
    assert passes == [12, 3]


def test_windows_cover_every_pixel_and_end_at_the_edge() -> None:
    for length in (224, 225, 336, 337, 1000):
        starts = window_starts(length, 224, 112)
        assert starts[0] == 0 and starts[-1] + 224 == length
        assert all(b - a <= 112 for a, b in itertools.pairwise(starts))


def whole(model: torch.nn.Module, bands: np.ndarray) -> np.ndarray:
    """One pass over the whole scene."""
    arrays = clean(*split_bands(bands))
    batch = {m: torch.from_numpy(a.astype(np.float32))[None] for m, a in zip(MODALITIES, arrays, strict=True)}
    with torch.inference_mode():
        return torch.sigmoid(model(batch))[0].numpy()


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(1)


def test_a_network_with_context_sees_the_scene_as_if_whole(tmp_path: Path) -> None:
    bands, model = scene_bands(400, 460), ContextModel().eval()
    bands[12, 200, 230] = np.nan  # radar without data: filled before the network sees it, or its neighbours are lost
    result = predict_scene(model, write_scene(tmp_path / "a.tif", bands), tmp_path, options=exact(flips=1),
                           progress=False)  # fmt: skip
    got, expected = read(result["probability"]), whole(model, bands)
    assert got[200, 230] == 255 and (got == 255).sum() == 1
    error = np.abs((got + 0.5) / 200 - expected)[got != 255]
    # Windows lack context at their edges, where the taper gives them little weight. Unblended windows are off by 0.3
    # there and more.
    assert error.max() < 0.15 and np.quantile(error, 0.999) < 0.06
    with open_scene(tmp_path / "a.tif") as opened:
        flat = np.concatenate([b.bins for b in predict_bands(model, opened, exact(flips=1, overlap=0))])
    assert np.abs((flat + 0.5) / 200 - expected)[got != 255].max() > 0.3


def test_probability_and_water_are_floored_and_cut_at_the_threshold(tmp_path: Path) -> None:
    bands, model = scene_bands(224, 224), ContextModel().eval()
    scene = write_scene(tmp_path / "a.tif", bands)
    result = predict_scene(model, scene, tmp_path, threshold=0.7, options=exact(flips=1), progress=False)
    expected, got = whole(model, bands), read(result["probability"])
    clear = np.abs(expected * 200 - np.rint(expected * 200)) > 1e-3  # not within rounding of an edge
    np.testing.assert_array_equal(got[clear], np.floor(expected[clear] * 200))
    np.testing.assert_array_equal(read(result["water"]), got >= 140)
    assert 0 < result["water_pixels"] < got.size


def test_flips_are_averaged(tmp_path: Path) -> None:
    bands, model = scene_bands(224, 224), ContextModel().eval()
    scene = write_scene(tmp_path / "a.tif", bands)
    logits = []
    for axes in ((), (2,), (1,), (1, 2)):
        p = np.clip(whole(model, np.flip(bands, axes)), 1e-6, 1 - 1e-6).astype(np.float64)
        logits.append(np.flip(np.log(p / (1 - p)), [a - 1 for a in axes]))
    for flips in (1, 2, 4):
        result = predict_scene(model, scene, tmp_path / str(flips), options=exact(flips=flips), progress=False)
        expected = 1 / (1 + np.exp(-np.mean(logits[:flips], axis=0)))
        np.testing.assert_allclose((read(result["probability"]) + 0.5) / 200, expected, atol=0.0026)


@pytest.mark.parametrize("overlap", [112, 32])
def test_windows_equal_monai(tmp_path: Path, overlap: int) -> None:
    inferers = pytest.importorskip("monai.inferers")
    bands, model = scene_bands(400, 500), ContextModel().eval()
    result = predict_scene(model, write_scene(tmp_path / "a.tif", bands), tmp_path,
                           options=exact(flips=1, overlap=overlap), progress=False)  # fmt: skip
    stacked = torch.from_numpy(np.concatenate(clean(*split_bands(bands))).astype(np.float32))[None]

    def network(x: torch.Tensor) -> torch.Tensor:
        return model({"S2L2A": x[:, :12], "S1GRD": x[:, 12:14], "DEM": x[:, 14:]})[:, None]

    with torch.inference_mode():
        logits = inferers.sliding_window_inference(
            stacked, 224, 8, network, overlap=overlap / 224, roi_weight_map=torch.from_numpy(scenes.taper(224))
        )  # fmt: skip
    expected = torch.sigmoid(logits)[0, 0].numpy() * 200
    clear = np.abs(expected - np.rint(expected)) > 1e-3
    np.testing.assert_array_equal(read(result["probability"])[clear], np.floor(expected[clear]))


def test_rasters_are_cloud_optimised(tmp_path: Path) -> None:
    cogeo = pytest.importorskip("rio_cogeo")
    result = predict_scene(PixelModel().eval(), write_scene(tmp_path / "a.tif", scene_bands(1100, 600)), tmp_path,
                           progress=False)  # fmt: skip
    for name in ("probability", "water"):
        valid, errors, warnings = cogeo.cog_validate(result[name], quiet=True)
        assert valid and not errors and not warnings
        with rasterio.open(result[name]) as source:
            assert source.nodata == 255 and source.overviews(1)


def test_windows_without_data_are_never_run(tmp_path: Path) -> None:
    bands, model = scene_bands(224, 900), PixelModel().eval()
    bands[:12, :, 400:] = 0
    result = predict_scene(model, write_scene(tmp_path / "a.tif", bands), tmp_path, options=exact(flips=1),
                           progress=False)  # fmt: skip
    states = result["window_states"]
    assert (states == NO_DATA).sum() == 4 and result["windows"]["run"] == states.size - 4
    assert sum(shape[0] for shape in model.shapes) == result["windows"]["run"]
    water = read(result["water"])
    assert (water[:, 400:] == 255).all() and (water[:, :400] != 255).all()


def test_gated_windows_are_counted_and_dry(tmp_path: Path) -> None:
    bands = scene_bands(224, 900)
    bands[:12], bands[10], bands[12:14], bands[14] = 2000, 3000, -12, 3000
    bands[7:12, 50:100, 50:100] = 100  # one lake, bright in green and dark beyond
    gate = Gate(ndwi=0.0, mndwi=0.2, slope=15, open_ndwi=1, open_vv=-99, min_pixels=20)
    result = predict_scene(PixelModel().eval(), write_scene(tmp_path / "a.tif", bands), tmp_path,
                           options=exact(flips=1, gate=gate), progress=False)  # fmt: skip
    states = result["window_states"]
    assert states[0, 0] != GATED and (states == GATED).sum() == states.size - 1 == result["windows"]["gated"]
    water = read(result["water"])
    assert water[60:90, 60:90].all() and water.sum() == 2500 and (water != 255).all()


def test_a_killed_run_goes_on_and_a_band_is_the_same_whoever_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, model = write_scene(tmp_path / "a.tif", scene_bands(900, 300)), ContextModel().eval()
    options = exact(flips=1, overlap=144)  # more than half: three rows of windows reach into a band
    through = predict_scene(model, scene, tmp_path / "through", options=options, progress=False)
    with monkeypatch.context() as patch:
        write, written = scenes._Parts.write, []

        def dies(self: object, band: scenes.Band) -> None:
            if len(written) == 4:
                raise KeyboardInterrupt
            write(self, band)
            written.append(band.index)

        patch.setattr(scenes._Parts, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            predict_scene(model, scene, tmp_path / "killed", options=options, progress=False)
    parts = next((tmp_path / "killed").glob(".a.*.parts"))
    assert len(list(parts.glob("*.npz"))) == 4
    (parts / "000001.npz").unlink()  # a band in the middle is lost too
    made = []
    predict = scenes.predict_bands

    def counted(*arguments: object) -> Iterator[scenes.Band]:
        for band in predict(*arguments):
            made.append(band.index)
            yield band

    monkeypatch.setattr(scenes, "predict_bands", counted)
    resumed = predict_scene(model, scene, tmp_path / "killed", options=options, progress=False)
    assert made == [1, *range(4, len(window_starts(900, 224, 80)))]
    for name in ("probability", "water"):
        assert through[name].read_bytes() == resumed[name].read_bytes()
    assert not list((tmp_path / "killed").glob(".*"))
    times = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "killed").iterdir()}
    made.clear()
    again = predict_scene(model, scene, tmp_path / "killed", options=options, progress=False)
    assert not made and {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "killed").iterdir()} == times
    assert again["water_ha"] == resumed["water_ha"]
    predict_scene(ContextModel().eval(), scene, tmp_path / "killed", options=exact(flips=2), progress=False)
    assert made, "other options are another run"


def test_a_full_disk_leaves_the_old_raster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, model = write_scene(tmp_path / "a.tif", scene_bands(300, 300)), PixelModel().eval()
    before = predict_scene(model, scene, tmp_path / "o", progress=False)["water"].read_bytes()
    copy = rasterio.shutil.copy

    def cut(source: Path, target: Path, **options: object) -> None:
        copy(source, target, **options)
        with rasterio.open(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as broken:
            broken.write(np.zeros((300, 300), np.uint8), 1)

    monkeypatch.setattr(rasterio.shutil, "copy", cut)
    with pytest.raises(OSError, match="whole"):
        predict_scene(model, scene, tmp_path / "o", threshold=0.9, progress=False)
    assert (tmp_path / "o" / "a_water.tif").read_bytes() == before


def test_a_scene_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    bands, model = scene_bands(64, 64), PixelModel().eval()
    linear, shares, order = bands.copy(), bands.copy(), np.roll(bands, 3, axis=0)
    linear[12:14] = 10 ** (linear[12:14] / 10)
    shares[:12] /= 10_000
    for name, scene, words in (
        ("bands", write_scene(tmp_path / "bands.tif", bands[:13]), "13 bands"),
        ("crs", write_scene(tmp_path / "crs.tif", bands, crs=None), "coordinate reference system"),
        ("pixel", write_scene(tmp_path / "pixel.tif", bands, pixel=30), "30.* m"),
        ("linear", write_scene(tmp_path / "linear.tif", linear), "dB"),
        ("shares", write_scene(tmp_path / "shares.tif", shares), "10,000"),
        ("order", write_scene(tmp_path / "order.tif", order), "order"),
        ("missing", tmp_path / "none.tif", "no raster"),
    ):
        with pytest.raises(InputError, match=words):
            predict_scene(model, scene, tmp_path / "out", progress=False)
        assert not list((tmp_path / "out").glob("*")), name
    good = write_scene(tmp_path / "good.tif", bands)
    with pytest.raises(ConfigError, match="multiple of"):
        predict_scene(model, good, tmp_path / "out", threshold=0.5001)
    for options in ({"window": 100}, {"overlap": 224}, {"flips": 3}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            Options(**options)


def test_a_scene_with_the_offset_is_refused_and_mapped_when_it_is_named(tmp_path: Path) -> None:
    bands, model = scene_bands(64, 64), PixelModel().eval()
    bands[12:14] = 10 ** (bands[12:14] / 10)
    raised = bands.copy()
    raised[:12] += 1000
    scene = write_scene(tmp_path / "new.tif", raised)
    with pytest.raises(InputError, match=r"new\.tif.*s2_offset"):
        predict_scene(model, scene, tmp_path / "o", progress=False)
    as_said = scenes.Scene.of(scene, "said", s2_offset=1000, s1_linear=True)
    got = read(predict_scene(model, as_said, tmp_path / "o", progress=False)["probability"])
    plain = scenes.Scene.of(write_scene(tmp_path / "old.tif", bands), s1_linear=True)
    np.testing.assert_array_equal(got, read(predict_scene(model, plain, tmp_path / "o", progress=False)["probability"]))
    with pytest.raises(InputError, match=r"old\.tif.*s2_offset"):
        predict_scene(model, scenes.Scene.of(tmp_path / "old.tif", "", 1000, True), tmp_path / "o", progress=False)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1.23e-4, 0, 75, 0, -0.9e-4, 42.4)),
        ("EPSG:3857", Affine(10, 0, 8_348_962, 0, -10, 5_221_000)),
        ("EPSG:32643", Affine(8.66025404, 5, 500_000, 5, -8.66025404, 4_700_000)),
    ],
)
def test_a_scene_on_another_grid_is_resampled_to_utm(tmp_path: Path, crs: str, transform: Affine) -> None:
    bands = scene_bands(120, 130)
    bands[:12], bands[10], bands[12:14] = 2000, 3000, -12
    bands[7:12, 40:80, 40:90] = 100
    scene = write_scene(tmp_path / "a.tif", bands, crs=crs, transform=transform)
    with pytest.warns(UserWarning, match="resampled to EPSG:32643"):
        result = predict_scene(PixelModel().eval(), scene, tmp_path / "o", progress=False)
    with rasterio.open(result["water"]) as water:
        assert water.crs.to_epsg() == 32643 and water.res == (10, 10)
        wet = water.read(1) == 1
    width, height = scenes.true_pixel_size(crs, transform, (120, 130))
    assert wet.sum() == pytest.approx(40 * 50 * width * height / 100, rel=0.03)


def test_three_rasters_are_one_scene(tmp_path: Path) -> None:
    bands, model = scene_bands(230, 240), ContextModel().eval()
    bands[:12, :9] = 0
    bands[13, 50, 60] = bands[14, 70, 80] = np.nan
    whole_scene = write_scene(tmp_path / "one.tif", bands)
    marked = np.where(np.isnan(bands), -9999, bands)
    three = [write_scene(tmp_path / "s2.tif", marked[:12], nodata=0), write_scene(tmp_path / "s1.tif", marked[12:14],
             nodata=-9999), write_scene(tmp_path / "dem.tif", marked[14:], nodata=-9999)]  # fmt: skip
    one = predict_scene(model, whole_scene, tmp_path / "o", progress=False)
    other = predict_scene(model, three, tmp_path / "o", progress=False)
    np.testing.assert_array_equal(read(one["probability"]), read(other["probability"]))
    shifted = write_scene(tmp_path / "shifted.tif", bands[14:], transform=from_origin(500_100, 4_700_000, 10, 10))
    with pytest.raises(InputError, match=r"shifted\.tif.*grid"):
        predict_scene(model, [*three[:2], shifted], tmp_path / "no", progress=False)
    with pytest.raises(InputError, match="1 bands"):
        predict_scene(model, [three[0], three[2], three[1]], tmp_path / "no", progress=False)


def test_a_truncated_scene_leaves_nothing(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "cut.tif", scene_bands(500, 300))
    with open(scene, "r+b") as handle:
        handle.truncate(scene.stat().st_size // 2)
    with pytest.raises(InputError, match="again"):
        predict_scene(PixelModel().eval(), scene, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").glob("*"))


def write_raster(path: Path, array: np.ndarray, left: float = 500_000) -> Path:
    profile = {"driver": "GTiff", "dtype": array.dtype, "count": len(array), "height": 32, "width": 32}
    with rasterio.open(path, "w", **profile, crs="EPSG:32643", transform=from_origin(left, 4_700_000, 10, 10)) as sink:
        sink.write(array)
    return path


def test_stack_keeps_values_and_refuses_another_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    s2 = rng.integers(1000, 9000, (12, 32, 32)).astype(np.int16)
    s2[:, :4] = 0
    power = rng.uniform(0.001, 0.5, (2, 32, 32))
    dem = rng.integers(3000, 4000, (1, 32, 32)).astype(np.int16)
    paths = [write_raster(tmp_path / f"{n}.tif", a) for n, a in (("s2", s2), ("s1", power), ("dem", dem))]
    out = stack_rasters(*paths, tmp_path / "chip.tif", s2_offset=1000, s1_linear=True)
    with rasterio.open(out) as source:
        bands = source.read()
        assert source.descriptions[0] == "B01" and source.descriptions[12:] == ("VV", "VH", "elevation")
    assert (bands[:12, :4] == 0).all()
    np.testing.assert_array_equal(bands[:12, 4:], np.clip(s2[:, 4:] - 1000, 1, None))
    np.testing.assert_allclose(bands[12:14], 10 * np.log10(power), rtol=1e-6)
    np.testing.assert_array_equal(bands[14], dem[0])
    shifted = write_raster(tmp_path / "shifted.tif", dem, left=500_100)
    with pytest.raises(InputError, match="grid"):
        stack_rasters(paths[0], paths[1], shifted, tmp_path / "no.tif")
    with pytest.raises(InputError, match="2 bands"):
        stack_rasters(paths[1], paths[1], paths[2], tmp_path / "no.tif")
    assert not (tmp_path / "no.tif").exists()


def test_real_chips_stack_and_predict(tmp_path: Path) -> None:
    folder = os.environ.get("CRYOSENTINEL_REAL_DATA")
    if not folder:
        pytest.skip("CRYOSENTINEL_REAL_DATA is not set: no real chips here")
    chips = Path(folder) / "terramesh_chips"
    name = "282D_485L_3_3.tif"
    out = stack_rasters(chips / "S2L2A" / name, chips / "S1RTC" / name, chips / "DEM" / name, tmp_path / name)
    result = predict_scene(PixelModel().eval(), out, tmp_path / "out", progress=False)
    with rasterio.open(result["water"]) as water, rasterio.open(chips / "LULC" / name) as cover:
        agree = (water.read(1) == 1) == (cover.read(1) == 1)
    # Half of the chip is water, so a wrong band order or grid would agree on about half of it; turbid water and
    # mangrove keep the index from agreeing everywhere.
    assert agree.mean() > 0.7


def test_bands_that_are_described_are_put_in_order_or_refused(tmp_path: Path) -> None:
    bands = scene_bands(64, 64)
    bands[14] = 4000
    order = [*range(11, -1, -1), 13, 12, 14]

    def written(name: str, descriptions: list[str | None]) -> Path:
        path = write_scene(tmp_path / f"{name}.tif", bands[order])
        with rasterio.open(path, "r+") as sink:
            sink.descriptions = descriptions
        return path

    names = [BAND_NAMES[i] for i in order]
    path = written("all", names)
    with pytest.warns(UserWarning, match="descriptions"), open_scene(path) as opened:
        np.testing.assert_array_equal(opened.read_raw(0, 64), bands)
        assert opened.preview(32)[0][0].shape == (12, 32, 32)
    np.testing.assert_array_equal(read_geotiff(path).s2, bands[:12].astype(np.uint16))
    for name, said in (("twice", [names[0], *names[:14]]), ("some", ["x"] * 12 + ["VH", "VV", "elevation"])):
        with pytest.raises(InputError, match="described"), open_scene(written(name, said)):
            pass


def test_fractions_with_a_broken_pixel_and_data_between_the_sampled_rows_are_refused(tmp_path: Path) -> None:
    bands = scene_bands(64, 64)
    bands[14] = 4000
    bands[:12] /= 10_000
    bands[3, 32, 32] = 2.3
    with pytest.raises(InputError, match="reflectance"), open_scene(write_scene(tmp_path / "a.tif", bands)):
        pass
    tall = np.zeros((15, 2000, 64), np.float32)
    tall[12:14], tall[14] = np.nan, -32768
    for change, word in ((slice(0, 12), "reflectance"), (slice(12, 14), "linear")):
        part = scene_bands(64, 64)
        part[14] = 4000
        part[change] = part[change] / 10_000 if word == "reflectance" else 10 ** (part[change] / 10)
        tall[:, 20:84] = part
        with pytest.raises(InputError, match=word), open_scene(write_scene(tmp_path / "b.tif", tall)):
            pass
