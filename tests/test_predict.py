"""Scenes: windows leave no seams, nodata stays nodata, and a scene that cannot be used is refused with a sentence."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from cryosentinel.data.stack import stack_rasters
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.indices import mndwi
from cryosentinel.mapping.scene import predict_scene, window_starts


class PixelModel(torch.nn.Module):
    """Logit = 10 MNDWI: a network without context, so that every window must agree with the whole scene."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(10.0))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.shapes.append(tuple(batch["S2L2A"].shape))
        return self.gain * mndwi(batch["S2L2A"])


def write_scene(path: Path, bands: np.ndarray, crs: str | None = "EPSG:32643", pixel: float = 10.0) -> Path:
    profile = {"driver": "GTiff", "dtype": "float32", "count": len(bands), "height": bands.shape[1]}
    profile |= {"width": bands.shape[2], "crs": crs, "transform": from_origin(500_000, 4_700_000, pixel, pixel)}
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
    assert result["water_ha"] == pytest.approx((got == 1).sum() / 100)


def test_memory_follows_the_width_not_the_area(tmp_path: Path) -> None:
    model = PixelModel().eval()
    result = predict_scene(model, write_scene(tmp_path / "tall.tif", scene_bands(900, 230)), tmp_path, progress=False)
    assert result["windows"] == len(window_starts(900, 224, 112)) * len(window_starts(230, 224, 112))
    assert max(shape[0] for shape in model.shapes) == 2  # a row band holds two windows, however tall the scene


def test_windows_cover_every_pixel_and_end_at_the_edge() -> None:
    for length in (224, 225, 336, 337, 1000):
        starts = window_starts(length, 224, 112)
        assert starts[0] == 0 and starts[-1] + 224 == length
        assert all(b - a <= 112 for a, b in itertools.pairwise(starts))


def test_a_scene_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    bands, model = scene_bands(64, 64), PixelModel().eval()
    for name, scene, words in (
        ("bands", write_scene(tmp_path / "bands.tif", bands[:13]), "13 bands"),
        ("crs", write_scene(tmp_path / "crs.tif", bands, crs=None), "coordinate reference system"),
        ("degrees", write_scene(tmp_path / "degrees.tif", bands, crs="EPSG:4326"), "degrees"),
        ("pixel", write_scene(tmp_path / "pixel.tif", bands, pixel=30), "30 x 30 m"),
        ("missing", tmp_path / "none.tif", "cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            predict_scene(model, scene, tmp_path / "out", progress=False)
        assert not list((tmp_path / "out").glob("*")), name
    good = write_scene(tmp_path / "good.tif", bands)
    with pytest.raises(ConfigError, match="multiple of"):
        predict_scene(model, good, tmp_path / "out", threshold=0.5001)
    with pytest.raises(ConfigError, match="multiple of 16"):
        predict_scene(model, good, tmp_path / "out", window=100)


def test_a_truncated_scene_leaves_nothing(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "cut.tif", scene_bands(500, 300))
    with open(scene, "r+b") as handle:
        handle.truncate(scene.stat().st_size // 2)
    with pytest.raises(InputError, match="copy or build the file again"):
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
