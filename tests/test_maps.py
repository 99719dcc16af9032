"""Maps of lakes: the right place, pop-ups, and nothing from the network."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from cryosentinel.errors import InputError
from cryosentinel.geo import chip_grid
from cryosentinel.mapping.maps import Overlay, embed, lake_map, on_web_grid, self_contained, true_colour

LAT, LON = 42.99, 76.71
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _lakes(names=("Upper <b>lake</b>", "Lower lake")):
    import geopandas as gpd
    from shapely.geometry import box

    epsg, grid = chip_grid(LAT, LON)
    squares = [
        box(grid.c + 10 * (20 + 80 * i), grid.f - 600, grid.c + 10 * (60 + 80 * i), grid.f - 200)
        for i in range(len(names))
    ]
    return gpd.GeoDataFrame({"name": list(names), "area_ha": [16.0] * len(names)}, geometry=squares, crs=epsg)


def _overlay():
    epsg, grid = chip_grid(LAT, LON)
    s2 = np.full((12, 224, 224), 1500, np.uint16)
    s2[:, :, :112] = 400
    return Overlay(true_colour(s2), grid, epsg)


@pytest.fixture(scope="module")
def page() -> str:
    return embed(lake_map({"label": _lakes()}, {"true colour": _overlay()})).data


def test_true_colour_is_transparent_without_data_and_brighter_with_reflectance():
    s2 = np.zeros((12, 1, 3), np.uint16)
    s2[:, 0, 1], s2[:, 0, 2] = 500, 4000
    rgba = true_colour(s2)
    assert rgba.shape == (1, 3, 4) and rgba.dtype == np.uint8
    assert rgba[0, 0, 3] == 0 and rgba[0, 1, 3] == 255
    assert (rgba[0, 2, :3] > rgba[0, 1, :3]).all()


def test_true_colour_orders_red_green_blue():
    s2 = np.full((12, 1, 1), 100, np.uint16)
    s2[3] = 4000  # B04
    assert true_colour(s2)[0, 0].argmax() == 3 and true_colour(s2)[0, 0, :3].argmax() == 0


def test_warped_image_covers_the_chip_and_keeps_places():
    image, ((south, west), (north, east)) = on_web_grid(_overlay())
    assert south < LAT < north and west < LON < east
    # A chip is 2.24 km wide; the warped frame holds it with a rim of a few per cent.
    assert 2240 < (north - south) * 111_130 < 2400
    opaque = image[..., 3] > 0
    assert 0.9 < opaque.mean() <= 1
    middle = image[image.shape[0] // 2, :, 0][opaque[image.shape[0] // 2]]
    assert middle[len(middle) // 4] < middle[3 * len(middle) // 4], "west is the dark half"


def test_image_must_be_bytes():
    overlay = _overlay()
    with pytest.raises(InputError, match="uint8"):
        on_web_grid(Overlay(overlay.image.astype(float), overlay.transform, overlay.epsg))


def test_embedded_map_asks_nothing_of_the_network(page):
    import html

    inner = html.unescape(page)
    assert page.startswith("<div><iframe srcdoc=")
    for attribute in re.findall(r'(?:src|href)="([^"]*)"', inner.replace("<iframe srcdoc=", "")):
        assert attribute.startswith(("#", "data:", "https://leafletjs.com")), attribute[:80]
    assert "images/layers.png" not in inner and "cdn." not in inner


def test_text_of_a_file_cannot_become_markup(page):
    assert "\\u0026lt;b\\u0026gt;lake" in page, "escaped for HTML, then for JSON"
    assert "\\u003cb\\u003elake" not in page and "<b>lake" not in page


def test_the_control_of_layers_shows_their_colours(page):
    import html

    assert r"style=\"color:#E69F00\"" in html.unescape(page)


def test_marker_is_refused_with_what_to_leave_out():
    with pytest.raises(InputError, match=r"jquery.*leave the plug-in or the marker out"):
        self_contained('<script src="https://x/jquery.min.js"></script><script>$(`<div>`)</script>')
    with pytest.raises(InputError, match="draw"):
        self_contained('<link rel="stylesheet" href="https://x/leaflet.draw.css"/>')


def test_lakes_without_crs_and_empty_maps_are_refused():
    with pytest.raises(InputError, match="no CRS"):
        lake_map({"label": _lakes().set_crs(None, allow_override=True)})
    with pytest.raises(InputError, match="neither a lake nor an image"):
        lake_map({"label": _lakes().iloc[:0]})


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_map_works_in_a_browser_without_network(page, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{page}</body>", encoding="utf-8")
    arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        tab = browser.new_page(viewport={"width": 900, "height": 600})
        asked, failed = [], []
        tab.on("request", lambda r: asked.append(r.url) if r.url.startswith("http") else None)
        tab.on("pageerror", lambda error: failed.append(str(error)))
        tab.goto((tmp_path / "page.html").as_uri())
        frame = tab.frame_locator("iframe")
        frame.locator("path.leaflet-interactive").nth(1).wait_for()
        frame.locator("path.leaflet-interactive").first.click()
        popup = frame.locator(".leaflet-popup-content")
        popup.wait_for()
        assert "Upper <b>lake</b>" in popup.inner_text() and "16" in popup.inner_text()
        image = frame.locator("img.leaflet-image-layer")
        assert image.evaluate("node => node.complete && node.naturalWidth > 100")
        assert frame.locator(".leaflet-control-layers label").count() == 2
        # The outline and the image agree: both lie well inside the frame.
        assert image.bounding_box()["width"] > 200
        browser.close()
    assert not asked and not failed
