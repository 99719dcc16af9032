"""Lakes as vectors: areas on the ellipsoid, holes kept, small ones left out."""

import numpy as np
import pytest
from affine import Affine

from cryosentinel.errors import InputError
from cryosentinel.geo import chip_grid
from cryosentinel.mapping.lakes import vectorise


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
    assert len(lakes.geometry.iloc[1].interiors) == 1
    assert (lakes["year"] == 2022).all()


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
