"""Blocks of remote files: each is asked for once, whatever groups of chips meet on it."""

from __future__ import annotations

import errno
import io
from concurrent.futures import ThreadPoolExecutor

import ingest_world as world
import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from cryosentinel.ingest import blocks as blocks_module
from cryosentinel.ingest import reading
from cryosentinel.ingest.blocks import Blocks, rectangles
from cryosentinel.ingest.reading import read
from cryosentinel.ingest.services import Service

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
SIDE = 3 * world.BLOCK + 40


@pytest.fixture
def path(tmp_path):
    values = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    world.write_cog(tmp_path / "a.tif", values, world.EPSG, world.LEFT, world.TOP)
    return tmp_path / "a.tif", values


class Counted:
    """An open dataset that counts the blocks that are read."""

    def __init__(self, source):
        self.source, self.blocks = source, 0

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, band, out, window):
        found = self.source.read(band, out=out, window=window)
        self.blocks += -(-found.shape[0] // world.BLOCK) * -(-found.shape[1] // world.BLOCK)
        return found


WINDOWS = [np.s_[10:300, 0:500], np.s_[200:SIDE, 300:SIDE], np.s_[0:SIDE, 0:SIDE], np.s_[250:260, 250:260]]


@pytest.mark.parametrize(("capacity", "forgets"), [(2**30, False), (8 * 4 * world.BLOCK**2, True)])
def test_windows_share_blocks_and_forgotten_ones_are_read_again(path, capacity, forgets):
    blocks = Blocks(capacity)
    with rasterio.open(path[0]) as opened:
        source = Counted(opened)
        for window in WINDOWS:
            np.testing.assert_array_equal(blocks.window("a", source, *window), path[1][window])
    assert (source.blocks > 16) == forgets and source.blocks >= 16
    assert len(blocks.halves) <= 2 and all(half.end <= capacity // 2 for half in blocks.halves)


def test_a_full_disk_costs_only_that_blocks_are_fetched_again(path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(blocks_module.tempfile, "TemporaryFile", lambda **_: Full())
    blocks = Blocks()
    with rasterio.open(path[0]) as opened:
        source = Counted(opened)
        for _ in range(2):
            np.testing.assert_array_equal(blocks.window("a", source, *WINDOWS[2]), path[1])
    assert source.blocks == 32


def test_threads_that_want_the_same_blocks_fetch_them_once(path):
    blocks = Blocks()

    def one(window):
        with rasterio.open(path[0], sharing=False) as opened:
            source = Counted(opened)
            np.testing.assert_array_equal(blocks.window("a", source, *window), path[1][window])
            return source.blocks

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(one, WINDOWS * 4)) == 16


def test_blocks_are_asked_for_in_rectangles():
    assert rectangles((i, j) for i in range(3) for j in range(2, 6)) == [(0, 2, 3, 4)]
    corner = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 0)]
    found = rectangles(corner)
    assert sorted(found) == [(0, 0, 1, 3), (1, 2, 2, 1), (2, 0, 1, 1)]
    assert sorted((i + a, j + b) for i, j, down, right in found for a in range(down) for b in range(right)) == sorted(
        corner
    )


def test_windows_of_an_item_go_through_the_shared_blocks(path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCKS", Blocks())
    item = {"id": "a", "assets": {"DEM": {"href": str(path[0])}}}
    grid = GeoBox((224, 448), Affine(10, 0, world.LEFT, 0, -10, world.TOP), f"EPSG:{world.EPSG}")
    for cols in (slice(0, 224), slice(112, 448)):  # of blocks of 256 pixels
        found = read(item, ["DEM"], grid[:, cols], Service("here", "", {}), 1)["DEM"]
        np.testing.assert_array_equal(found, path[1][:224, cols])
    (half,) = reading.BLOCKS.halves
    assert set(half.places) == {(str(path[0]), 0, 0), (str(path[0]), 0, 1)}


def test_what_another_zones_tile_shows_does_not_depend_on_the_cut(tmp_path):
    """GDAL widens its kernel where the window that is read is larger than what it covers."""
    noise = np.random.default_rng(0).integers(1000, 5000, (600, 600)).astype(np.uint16)
    x, y = Transformer.from_crs(world.EPSG, 32644, always_xy=True).transform(world.LEFT, world.TOP)
    world.write_cog(tmp_path / "a.tif", noise, 32644, x // 10 * 10, y // 10 * 10, nodata=0)
    item = {"id": "a", "assets": {"B02": {"href": str(tmp_path / "a.tif")}}}
    whole = GeoBox((448, 448), Affine(10, 0, world.LEFT - 1120, 0, -10, world.TOP + 1120), f"EPSG:{world.EPSG}")
    options = {"dtype": "uint16", "nodata": 0, "resampling": "bilinear"}
    service = Service("here", "", {})
    everything = read(item, ["B02"], whole, service, 0, **options)["B02"]
    inner = np.s_[224:448, 224:448]
    part = read(item, ["B02"], whole[inner], service, 0, **options)["B02"]
    assert (part > 0).mean() > 0.8
    assert np.abs(part.astype(int) - everything[inner]).mean() < 5  # of 4,000; GDAL's transformer is an approximation
