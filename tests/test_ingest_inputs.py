"""What is refused at the door, with one sentence each; grid and labels."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely

from cryosentinel.errors import ConfigError, HubError, InputError
from cryosentinel.geo import chip_grid, utm_epsg
from cryosentinel.ingest import Settings, ingest, parse_box
from cryosentinel.ingest.grid import Cell, all_cells, centres, make_groups, region_box, with_background, zones
from cryosentinel.ingest.inventory import burn, label_of, lake_cells, nearest_year, outlines_of, read_inventory

BOX = (77.0, 43.0, 77.2, 43.2)
LAKE = shapely.box(77.1, 43.1, 77.103, 43.102)


def written(path, geometries, crs=4326, **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=geometries, crs=crs)
    frame.to_file(path, driver="GPKG")
    return path


@pytest.mark.parametrize(
    ("bbox", "sentence"),
    [
        ((170, 40, -170, 45), "crosses the antimeridian"),
        ((78, 45, 77, 44), "crosses the antimeridian|west to east"),
        ((77, 44, 78, 43), "south to north"),
        ((77, 43, 77, 44), "west to east"),
        ((77, 80, 78, 89), "UTM ends there"),
        ((77, 43, float("nan"), 44), "four numbers"),
        ((77, 43, 78), "four numbers"),
    ],
)
def test_boxes_that_are_none(bbox, sentence):
    with pytest.raises(ConfigError, match=sentence):
        region_box("somewhere", bbox)


def test_boxes_as_text():
    assert parse_box("76.5,42.7,78.2,43.55") == (76.5, 42.7, 78.2, 43.55)
    for text in ("76.5,42.7,78.2", "west,42,78,43", ""):
        with pytest.raises(ConfigError, match="four numbers"):
            parse_box(text)


def test_regions_that_are_none():
    with pytest.raises(ConfigError, match="There is no region 'atlantis'"):
        region_box("atlantis", None)
    with pytest.raises(ConfigError, match="names a folder"):
        region_box("../up", BOX)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"season": ("09-30", "08-01")}, "first day must come first"),
        ({"season": ("Aug", "Sep")}, "MM-DD"),
        ({"speckle": 4}, "odd"),
        ({"max_cloud": 130}, "max_cloud is 130"),
        ({"background": -1}, "background"),
        ({"hidden_classes": (0, 9)}, "hidden_classes"),
        ({"cloud_buffer": -1}, "cloud_buffer"),
        ({"limit": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Settings(**changes)


def test_inventories_that_are_none(tmp_path):
    def refused(path, sentence):
        with pytest.raises(InputError, match=sentence):
            read_inventory([path], 2023, BOX)

    refused(tmp_path / "none.geojson", "There is no inventory")
    (tmp_path / "text.geojson").write_text("not a map")
    refused(tmp_path / "text.geojson", "cannot be read")
    refused(written(tmp_path / "points.gpkg", [shapely.Point(77.1, 43.1)]), r"no polygons \(Point\)")
    refused(written(tmp_path / "empty.gpkg", [shapely.Polygon()]), "only empty geometries")
    refused(written(tmp_path / "nowhere.gpkg", [LAKE], crs=None), "states no coordinate system")
    metres = shapely.box(672_000, 4_790_000, 672_300, 4_790_300)
    refused(written(tmp_path / "metres.gpkg", [metres]), "they are not degrees")
    with pytest.raises(InputError, match="No inventory"):
        read_inventory([], 2023, BOX)


def test_an_inventory_elsewhere_is_one_sentence(tmp_path):
    far = written(tmp_path / "far.gpkg", [shapely.box(10, 46, 10.01, 46.01)])
    with pytest.raises(InputError, match="holds no lake in the box"):
        ingest("here", 2023, "http://127.0.0.1:9", tmp_path / "out", far, BOX, progress=False)


def test_a_service_that_is_none(tmp_path):
    lakes = written(tmp_path / "lakes.gpkg", [LAKE])
    with pytest.raises(HubError, match="cannot be reached"):
        ingest(
            "here", 2023, "http://127.0.0.1:9", tmp_path / "out", lakes, BOX,
            settings=Settings(retries=0), progress=False,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="year is 1999"):
        ingest("here", 1999, "http://127.0.0.1:9", tmp_path / "out", lakes, BOX)


def test_invalid_and_empty_outlines_are_repaired_or_left_out(tmp_path):
    bow = shapely.Polygon([(77.1, 43.1), (77.102, 43.102), (77.102, 43.1), (77.1, 43.102)])
    path = written(tmp_path / "mixed.gpkg", [bow, shapely.Polygon(), None, LAKE])
    lakes = read_inventory([path], 2023, BOX)
    assert len(lakes) == 2 and lakes.geometry.is_valid.all() and (lakes.geometry.area > 0).all()


def test_any_coordinate_system_and_column_names(tmp_path):
    frame = geopandas.GeoDataFrame({"GLID": ["a7"], "Inv_Year": ["2022"]}, geometry=[LAKE], crs=4326).to_crs(3857)
    frame.to_parquet(tmp_path / "lakes.parquet")
    lakes = read_inventory([tmp_path / "lakes.parquet"], 2021, BOX)
    assert lakes.crs.to_epsg() == 4326 and lakes["lake_id"].tolist() == ["a7"] and lakes["year"].tolist() == [2022]
    assert lakes.geometry.iloc[0].symmetric_difference(LAKE).area < 1e-12


def test_the_nearest_inventory_year_counts(tmp_path):
    assert [nearest_year((2016, 2022), y) for y in (2017, 2018, 2019, 2021, 2023)] == [2016, 2016, 2022, 2022, 2022]
    column = written(tmp_path / "both.gpkg", [LAKE, LAKE], lake_id=["old", "new"], year=[2016, 2022])
    assert read_inventory([column], 2017, BOX)["lake_id"].tolist() == ["old"]
    names = [written(tmp_path / f"lakes_{y}.gpkg", [LAKE], lake_id=[str(y)]) for y in (2016, 2022)]
    assert read_inventory(names, 2023, BOX)["lake_id"].tolist() == ["2022"]


def test_cells_follow_the_published_grid():
    cells = all_cells("x", BOX)
    lat, lon = centres(cells[0].epsg, *np.array([(c.i, c.j) for c in cells]).T)
    assert ((lon >= BOX[0]) & (lon <= BOX[2]) & (lat >= BOX[1]) & (lat <= BOX[3])).all()
    area = 111.19 * 0.2 * 111.32 * 0.2 * np.cos(np.radians(43.1))  # km2
    assert len(cells) == pytest.approx(area / 1.12**2, rel=0.05)
    for cell, y, x in list(zip(cells, lat, lon, strict=True))[::50]:
        assert utm_epsg(y, x) == cell.epsg
        _, transform = chip_grid(float(y), float(x))
        assert (transform.c, transform.f) == pytest.approx((cell.left, cell.top), abs=0.002)
        assert cell.left % 1120 == 0 and cell.top % 1120 == 0


def test_zones_and_hemispheres():
    assert zones((77, 43, 79, 44)) == [32643, 32644]
    assert zones((179, -1, 180, 1)) == [32760, 32660]
    south = all_cells("x", (-70.02, -16.02, -69.98, -15.98))
    assert {cell.epsg for cell in south} == {32719}
    assert south[0].chip_id("andes", 2023).startswith("andes_19S_")


def test_groups_hold_every_chip_once_and_little_else():
    near, apart = {Cell(32643, 0, 0), Cell(32643, 0, 1)}, {Cell(32643, 9, 9), Cell(32643, 20, 0)}
    close_by = {Cell(32643, 3, 0)}  # a box around it and the pair is half needed: read as one
    groups = make_groups(near | close_by | apart, Settings(group=16))
    assert [set(group.cells) for group in groups] == [near | close_by, {Cell(32643, 9, 9)}, {Cell(32643, 20, 0)}]
    assert groups[0].shape == (560, 336)
    assert groups[0].needed().mean() == pytest.approx(10 / 15)
    assert groups[0].slices(Cell(32643, 0, 1))[1] == slice(112, 336)
    assert len(make_groups(near | apart, Settings(group=16, limit=2))) == 1


def test_background_chips_are_near_empty_and_always_the_same():
    lakes = {Cell(32643, -4276, 600), Cell(32643, -4276, 601)}
    box = (76.0, 42.0, 78.0, 44.0)
    cells = with_background("x", box, lakes, 3.0)
    assert lakes < cells and len(cells) == 8
    assert cells == with_background("x", box, {Cell(32643, -4276, 601), Cell(32643, -4276, 600)}, 3.0)
    assert all(abs(cell.i + 4276) <= 4 and -4 <= cell.j - 600 <= 5 for cell in cells)


def test_labels_touch_every_pixel_and_name_the_largest_lake(tmp_path):
    small = shapely.box(77.106, 43.1, 77.1063, 43.1003)
    path = written(tmp_path / "lakes.gpkg", [LAKE, small], lake_id=["large", "small"])
    lakes = read_inventory([path], 2023, BOX)
    cells = lake_cells(lakes, "x", BOX)
    for group in make_groups(cells, Settings()):
        burned, names = burn(outlines_of(lakes, group), group)
        for cell in group.cells:
            mask, lake = label_of(burned[group.slices(cell)], names)
            outlines = lakes.geometry.to_crs(cell.epsg)
            here = outlines.intersection(shapely.box(*cell.box)).area
            assert mask.any() == (here.sum() > 0)
            assert mask.sum() * 100 >= here.sum()  # all touched: never less than the area
            if here.min() > 0:
                assert lake == "large"
    assert label_of(np.zeros((4, 4), np.int32), [])[1] == ""
