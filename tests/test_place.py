"""A place and a year in one command: images of a box come back as simulated, in one raster, and are mapped."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import ingest_world as world
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from pyproj import Transformer

from cryosentinel.cli import main
from cryosentinel.data.chips import read_geotiff
from cryosentinel.errors import InputError
from cryosentinel.ingest.grid import tiles
from cryosentinel.mapping import place
from cryosentinel.mapping.change import comparison_notes
from cryosentinel.mapping.place import mosaic_tags, place_name, place_scenes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")

#: Two tiles high, and three wide, of which the stand-in's scene shows two.
WEST, NORTH, EAST, SOUTH = world.LEFT + 300, world.TOP - 300, world.LEFT + 4480 + 800, world.TOP - 4480 + 300
CORNERS = Transformer.from_crs(world.EPSG, 4326, always_xy=True).transform([WEST, EAST], [SOUTH, NORTH])
BOX = (CORNERS[0][0], CORNERS[1][0], CORNERS[0][1], CORNERS[1][1])


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_one_command_from_a_box_and_a_year_to_lakes(
    tmp_path: Path, ckpt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["--bbox", *(f"{v:.6f}" for v in BOX), "--year", "2023", "--ckpt", str(ckpt), "--out", str(out)]
    with world.service(tmp_path) as files:
        command = ["map", "--service", files.stac, *words, "--flips", "1", "--settings.retries", "1"]
        with monkeypatch.context() as patch:  # killed when the tiles are there
            patch.setattr(place, "write_mosaic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert main(command) == 130
        assert not list(out.glob("images/*.tif"))
        read = files.count()
        assert main(command) == 0
        assert files.count() == read, "finished tiles are not read twice"
        before = state(out)
        assert main(command) == 0
        assert state(out) == before and files.count() == read
    name = f"{place_name(BOX)}_43N_2023"
    whole = (out / "images" / f"{name}.tif").read_bytes()
    with rasterio.open(out / "images" / f"{name}.tif", "r+") as other:
        other.update_tags(images="of another ingest")
    rounded = tuple(float(f"{v:.6f}") for v in BOX)
    place_scenes(2023, files.stac, out / "images", rounded, settings=world.Settings(retries=1), progress=False)
    assert (out / "images" / f"{name}.tif").read_bytes() == whole, "written again from the tiles, without the service"
    raster = read_geotiff(out / "images" / f"{name}.tif")
    assert raster.s2.shape == (12, 448, 672) and raster.transform[2] == world.LEFT and raster.transform[5] == world.TOP
    assert not raster.valid[:, 448:].any(), "a tile that no image shows holds no data"
    there = world.scene()
    assert np.abs(raster.s2[:, :, :448].astype(int) - there["s2"]).max() <= 1
    np.testing.assert_allclose(raster.s1[:, :, :448], there["s1"], atol=1e-3)
    assert np.abs(raster.dem[:, :, :448].astype(int) - there["dem"]).max() <= 1
    lakes = gpd.read_parquet(out / "lakes.parquet")
    assert len(lakes) and lakes["scene"].eq(name).all() and lakes["year"].eq(2023).all()
    first = lakes.iloc[0]
    assert (first["date"], first["orbit"], first["radar_product"]) == ("2023-08-25", "descending 63", "RTC gamma0")
    assert first["cloud"] == "0.333", "a third of the box was never seen"
    assert (out / "lakes.html").stat().st_size > 100_000
    assert "4 of 6 planned" in capsys.readouterr().out


def test_a_place_outside_every_image_or_beyond_the_disk_is_one_sentence(
    tmp_path: Path, ckpt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.service(tmp_path) as files:
        common = ["map", "--service", files.stac, "--year", "2023", "--ckpt", str(ckpt), "--out", str(tmp_path / "o")]
        assert main([*common, "--bbox", "-70.2,-15.1,-70.1,-15"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("cryosentinel: error:") and "Sentinel-2" in line and "W070150" in line
    for wrong in ([], ["--bbox", "77,43,76,42"], ["--bbox", "77,43"], ["--region", "nowhere"]):
        assert main([*common, *wrong]) == 2
    assert main(["map", "--bbox", "77,43,78,44", "--year", "2023"]) == 2, "no service"
    assert len(capsys.readouterr().err.strip().splitlines()) == 5
    monkeypatch.setattr(place, "BYTES_A_PIXEL", 1e15)
    with pytest.raises(InputError, match="GB"):
        place_scenes(2023, "planetary-computer", tmp_path / "o", BOX)


def test_tiles_cover_a_box_over_two_zones_and_none_is_far_from_it() -> None:
    box = (77.9, 43.0, 78.2, 43.2)  # the zones 43 and 44 meet at 78 degrees
    found = tiles(box)
    assert {cell.epsg for cell in found} == {32643, 32644}
    assert all(cell.i % 2 == cell.j % 2 == 0 for cell in found)
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(box[0], box[2], 2000), rng.uniform(box[1], box[3], 2000)
    covered = np.zeros(2000, bool)
    for epsg, zone in ((32643, lon < 78), (32644, lon >= 78)):
        x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
        squares = shapely.union_all([shapely.box(*cell.box) for cell in found if cell.epsg == epsg])
        covered |= zone & shapely.contains_xy(squares, x, y)
    assert covered.all()
    assert len(found) < 1.6 * (24.4 * 22.2) / 2.24**2
    assert {cell.epsg for cell in tiles((77.9, 43.0, 78.0, 43.1))} == {32643}


def test_change_says_what_differs_between_the_images_of_two_years() -> None:
    def made(year: int, day: str, orbit: int, direction: str, clear: float, radar: str = "RTC") -> dict[str, str]:
        row = {"status": "kept", "s2_date": f"{year}-{day}", "s1_direction": direction, "s1_orbit": orbit,
               "s1_product": radar, "s1_backscatter": "gamma0", "s2_clear": clear}  # fmt: skip
        other = {**row, "s2_date": f"{year}-09-30", "s2_clear": 1.0}
        hidden = {"status": "cloud"} if clear < 1 else row
        return mosaic_tags(pd.DataFrame([row, row, other, hidden]))

    first, last = made(2017, "08-05", 63, "descending", 1.0), made(2023, "09-20", 158, "ascending", 0.5, "geocoded")
    assert first["cloud"] == "0.000" and last["cloud"] == "0.500" and last["s2_dates"] == "2023-09-20 2023-09-30"
    notes = " ".join(comparison_notes({**first, "year": 2017}, {**last, "year": 2023}))
    for word in ("season", "orbit", "radar product", "50% cloud"):
        assert word in notes
    assert comparison_notes({**first, "year": 2017}, {**first, "year": 2021}) == []
