"""Lakes as vectors: areas on the ellipsoid, holes kept, small ones left out, flags for what may be wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Geod, Transformer
from shapely import Polygon, box
from test_predict import PixelModel, write_scene

from cryosentinel.errors import InputError
from cryosentinel.geo import chip_grid
from cryosentinel.mapping.lakes import (
    add_glacier_distance,
    describe,
    geodesic,
    join_scenes,
    label_lakes,
    vectorise,
    vectorise_labels,
)
from cryosentinel.mapping.scene import open_scene, predict_scene


def test_area_holes_and_order() -> None:
    epsg, transform = chip_grid(42.99, 76.71)
    water = np.zeros((224, 224), np.uint8)
    water[10:30, 10:40] = 1  # 6 ha
    water[15:20, 15:20] = 0  # with an island of 0.25 ha
    water[100:140, 100:150] = 1  # 20 ha
    water[200:204, 5:10] = 1  # 0.2 ha: left out
    water[60:80, 60:80] = 255  # no data is no lake
    lakes = vectorise(water, transform, epsg, year=2022)
    assert len(lakes) == 2 and lakes.crs.to_epsg() == epsg
    # UTM areas differ from geodesic ones by the square of the scale factor, within 0.1 % of 1.
    assert lakes["area_ha"].tolist() == pytest.approx([20.0, 5.75], rel=1e-3)
    assert lakes["area_ha"].iloc[0] != 20.0
    assert lakes["perimeter_m"].tolist() == pytest.approx([1800, 1000 + 200], rel=1e-3)
    assert len(lakes.geometry.iloc[1].interiors) == 1
    assert (lakes["year"] == 2022).all()


def test_pixels_that_touch_at_a_corner_are_one_valid_lake() -> None:
    water = np.zeros((40, 40), np.uint8)
    water[5:15, 5:15] = water[15:25, 15:25] = 1
    water[30:36, 2:12] = 1
    lakes = vectorise(water, Affine(10, 0, 500_000, 0, -10, 4_760_000), 32643, min_area_ha=0.5)
    assert len(lakes) == 2 and lakes.is_valid.all()
    assert lakes["area_ha"].tolist() == pytest.approx([2.0, 0.6], rel=1e-3)
    assert lakes.geometry.iloc[0].geom_type == "MultiPolygon"


def test_outlines_cover_exactly_the_pixels() -> None:
    import rasterio.features

    water = (np.random.default_rng(0).random((90, 110)) < 0.4).astype(np.uint8)
    transform = Affine(10, 0, 500_000, 0, -10, 4_760_000)
    lakes = vectorise(water, transform, 32643, min_area_ha=0)
    assert lakes.is_valid.all() and len(lakes) == label_lakes(water)[1] > 20
    burned = rasterio.features.rasterize(lakes.geometry, out_shape=water.shape, transform=transform)
    np.testing.assert_array_equal(burned, water)


@pytest.mark.parametrize("epsg", [32643, 3857, 4326])
def test_areas_are_on_the_ellipsoid_whatever_the_projection(epsg: int) -> None:
    geod, to_map = Geod(ellps="WGS84"), Transformer.from_crs(4326, epsg, always_xy=True)
    # Squares of 1 km about 43 N, with a hole; their true area by geodesics.
    lon, lat = np.array([75.6, 75.8, 78.0])[:, None], np.array([43.0, 43.1, 42.9])[:, None]
    degrees = [
        Polygon(np.column_stack([x + np.array([0, 0.012, 0.012, 0]), y + np.array([0, 0, 0.009, 0.009])]),
                [np.column_stack([x + np.array([0.004, 0.008, 0.006]), y + np.array([0.003, 0.003, 0.006])])])
        for x, y in zip(lon[:, 0], lat[:, 0], strict=True)
    ]  # fmt: skip
    true = [geod.geometry_area_perimeter(shapely.orient_polygons(p)) for p in degrees]
    flat = shapely.transform(np.array(degrees), lambda c: np.column_stack(to_map.transform(*c.T)))
    area, perimeter = geodesic(flat, epsg)
    np.testing.assert_allclose(area, [a for a, _ in true], rtol=1e-5)
    np.testing.assert_allclose(perimeter, [geod.geometry_length(p.boundary) for p in degrees], rtol=1e-6)


def test_area_at_43_north_is_not_web_mercator_s() -> None:
    """The published code measures in Web Mercator: 1 / cos(43 deg)^2 = 1.87 times too much."""
    water = np.zeros((60, 60), np.uint8)
    water[10:40, 10:50] = 1
    scale = np.cos(np.radians(43.0))
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(77.0, 43.0)
    mercator = Affine(10 / scale, 0, x, 0, -10 / scale, y + 300 / scale)  # pixels of 10 m on the ground
    lake = vectorise(water, mercator, 3857).iloc[0]
    assert lake["area_ha"] == pytest.approx(12.0, rel=6e-3)  # a sphere's projection on an ellipsoid
    assert lake.geometry.area / 1e4 / lake["area_ha"] == pytest.approx(1.87, abs=0.015)
    epsg, utm = chip_grid(43.0, 77.0, 60)
    true = Geod(ellps="WGS84").geometry_area_perimeter(vectorise(water, utm, epsg).to_crs(4326).geometry.iloc[0])[0]
    assert vectorise(water, utm, epsg)["area_ha"].iloc[0] == pytest.approx(abs(true) / 1e4, rel=1e-5)
    assert vectorise(water, utm, epsg)["area_ha"].iloc[0] == pytest.approx(12.0, rel=1e-3)


def test_specks_go_by_their_true_area() -> None:
    water = np.zeros((60, 60), np.uint8)
    water[10:15, 10:20] = 1  # 50 pixels
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(77.0, 43.0)
    assert vectorise(water, Affine(10, 0, x, 0, -10, y), 3857, min_area_ha=0.5).empty  # 0.27 ha on the ground
    assert len(vectorise(water, Affine(10, 0, 500_000, 0, -10, 4_760_000), 32643, min_area_ha=0.5)) == 1


def scene_with(tmp_path: Path, change: Callable[[np.ndarray], None]) -> tuple[Path, dict[str, Any]]:
    """A scene of bare ground on which ``change`` paints, and its prediction by an index."""
    bands = np.full((15, 224, 224), 2000, np.float32)
    bands[10:12], bands[12:14] = 3000, -12
    bands[14] = 4000 + np.arange(224)[:, None]  # rises by 1 m a pixel to the south: 5.7 degrees
    change(bands)
    scene = write_scene(tmp_path / "s.tif", bands)
    return scene, predict_scene(PixelModel().eval(), scene, tmp_path, progress=False)


def described(tmp_path: Path, change: Callable[[np.ndarray], None]) -> gpd.GeoDataFrame:
    scene, result = scene_with(tmp_path, change)
    with open_scene(scene) as opened, rasterio.open(result["water"]) as water:
        frame, labels = vectorise_labels(water.read(1), opened.transform, opened.crs, 0.1)
        with rasterio.open(result["probability"]) as probability:
            return describe(frame, labels, opened, probability)


def test_a_lake_is_described_by_its_pixels(tmp_path: Path) -> None:
    def change(bands: np.ndarray) -> None:
        bands[6:12, 100:120, 50:80] = 100

    (lake,) = described(tmp_path, change).itertuples()
    assert lake.flags == ""
    assert lake.elevation_m == pytest.approx(4109.5) and lake.slope_deg == pytest.approx(5.71, abs=0.01)
    assert lake.confidence > 0.99
    lon, lat = Transformer.from_crs(32643, 4326, always_xy=True).transform(500_650, 4_698_900)
    assert (lake.lat, lake.lon) == pytest.approx((lat, lon), abs=1e-3)


@pytest.mark.parametrize("flag", ["candidate", "edge", "no data", "cloud", "frozen", "shadow"])
def test_each_flag_is_raised_by_its_cause_alone(tmp_path: Path, flag: str) -> None:
    def change(bands: np.ndarray) -> None:
        rows, columns = slice(100, 120), slice(50, 80)
        if flag == "candidate":
            rows, columns = slice(100, 106), slice(50, 56)
        elif flag == "edge":
            columns = slice(194, 224)
        bands[6:12, rows, columns] = 100
        if flag == "no data":
            bands[:12, 100:120, 80:90] = 0
        elif flag == "cloud":
            bands[:12, rows, 50:60] = 5000
            bands[10:12, rows, 50:60] = 2500
        elif flag == "frozen":
            bands[:10, rows, columns] = 3500
        elif flag == "shadow":
            bands[:12, rows, columns] = 300
            bands[10:12, rows, columns] = 100

    (lake,) = described(tmp_path, change).itertuples()
    assert lake.flags == flag


def test_distance_to_the_nearest_glacier() -> None:
    water = np.zeros((60, 60), np.uint8)
    water[10:20, 10:20] = water[40:50, 10:20] = 1
    lakes = vectorise(water, Affine(10, 0, 500_000, 0, -10, 4_760_000), 32643)
    glacier = gpd.GeoSeries([box(500_300, 4_759_800, 500_900, 4_760_000)], crs=32643).to_crs(4326)
    found = add_glacier_distance(lakes, gpd.GeoDataFrame(geometry=glacier))
    assert sorted(found["glacier_m"]) == pytest.approx([100, np.hypot(100, 200)], abs=0.5)
    with pytest.raises(InputError, match="CRS"):
        add_glacier_distance(lakes, gpd.GeoDataFrame(geometry=glacier).set_crs(None, allow_override=True))


def piece(water: np.ndarray, left: int, flags: str) -> gpd.GeoDataFrame:
    frame = vectorise(water, Affine(10, 0, 500_000 + left, 0, -10, 4_760_000), 32643)
    return frame.assign(lat=43.0, lon=75.0 + left / 1e6, flags=flags)


def test_a_lake_across_the_border_of_two_scenes_is_one() -> None:
    water = np.zeros((50, 60), np.uint8)
    water[10:20, 20:40] = 1
    west, east = water[:, :30], water[:, 30:]
    joined = join_scenes([piece(west, 0, "edge"), piece(east, 300, "edge")])
    whole = vectorise(water, Affine(10, 0, 500_000, 0, -10, 4_760_000), 32643)
    assert len(joined) == 1
    assert joined["area_ha"].iloc[0] == pytest.approx(whole["area_ha"].iloc[0], rel=1e-6)
    assert joined.geometry.iloc[0].equals(whole.geometry.iloc[0])
    # Scenes that overlap: the whole one stands for its cut copy, and is not counted twice.
    joined = join_scenes([piece(west, 0, "edge"), piece(water, 0, "")])
    assert joined["area_ha"].tolist() == whole["area_ha"].tolist() and joined["flags"].tolist() == [""]


def test_no_lake_is_an_empty_frame_with_the_same_columns() -> None:
    lakes = vectorise(np.zeros((32, 32), np.uint8), Affine.scale(10, -10), 32643)
    assert lakes.empty and "area_ha" in lakes and lakes.crs.to_epsg() == 32643
    with pytest.raises(InputError, match="one scene"):
        vectorise(np.zeros((2, 32, 32), np.uint8), Affine.scale(10, -10), 32643)


def test_a_chip_on_a_map_shows_its_lakes_where_they_are() -> None:
    from cryosentinel.data.chips import Chip
    from cryosentinel.mapping.maps import chip_map, embed

    mask = np.zeros((224, 224), np.uint8)
    mask[100:140, 100:150] = 1
    arrays = {"s2": np.full((12, 224, 224), 900, np.uint16), "s1": np.full((2, 224, 224), -12, np.float32)}
    chip = Chip(**arrays, dem=np.full((1, 224, 224), 3500, np.int16), mask=mask, chip_id="a", region="ile_alatau",
                snapshot_year=2022, lat=42.99, lon=76.71)  # fmt: skip
    page = embed(chip_map(chip, {"label": mask, "predicted": mask * 0})).data
    assert "http" not in page.split("srcdoc")[0] and "true colour 2022" in page
    assert "20.0" in page  # the lake's hectares in its pop-up
    assert "76.7" in page and "42.9" in page


def boxes(rectangles: list[tuple[float, float, float, float]], flags: list[str]) -> gpd.GeoDataFrame:
    """Lakes by left, bottom, right and top in metres."""
    shapes = [box(500_000 + a, 4_760_000 + b, 500_000 + c, 4_760_000 + d) for a, b, c, d in rectangles]
    area, perimeter = geodesic(np.array(shapes), 32643)
    values = {"area_ha": area / 1e4, "perimeter_m": perimeter, "flags": flags, "lat": 43.0, "lon": 75.0}
    return gpd.GeoDataFrame(values, geometry=shapes, crs=32643)


def test_a_whole_pond_does_not_stand_for_the_lake_that_another_scene_shows_cut() -> None:
    ponds = boxes([(0, 0, 100, 100), (200, 0, 320, 100)], ["", ""])
    joined = join_scenes([ponds, boxes([(0, 0, 2000, 400)], ["edge"])])
    assert joined["area_ha"].tolist() == pytest.approx([80], rel=1e-3) and joined["flags"].tolist() == ["edge"]


def test_every_whole_lake_of_the_scene_that_stands_for_a_group_is_kept() -> None:
    two = boxes([(0, 0, 1000, 400), (1010, 0, 2000, 400)], ["", ""])
    joined = join_scenes([two, boxes([(0, 0, 1500, 400)], ["edge"])])
    assert joined["area_ha"].tolist() == pytest.approx([40, 39.6], rel=1e-3)


def test_a_lake_joined_inside_what_the_scenes_cover_is_not_cut() -> None:
    west = boxes([(0, 500, 300, 550), (200, 100, 300, 200)], ["candidate, edge", "edge"])
    east = boxes([(300, 500, 600, 550), (300, 100, 400, 200)], ["edge, no data", "candidate, edge"])
    covered = [gpd.GeoSeries([box(500_000 + a, 4_760_000, 500_000 + a + 300, 4_761_000)], crs=32643) for a in (0, 300)]
    flags = {
        round(a): f for a, f in zip(*join_scenes([west, east], covered)[["area_ha", "flags"]].T.values, strict=True)
    }
    assert flags == {3: "edge, no data", 2: ""}, "the first reaches the outer border"
    assert set(join_scenes([west, east])["flags"]) == {"edge, no data", "edge"}, "not known without footprints"
