"""Interactive maps that need no network: lakes with pop-ups over true colour, everything inside the page.

Leaflet is shipped in the folder ``leaflet`` beside this file. :func:`embed` writes it into the map's own frame, so that
a map in a notebook, in a page of the book or in a file works from any folder and without a server.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel import colours
from cryosentinel.data.chip_plots import composite
from cryosentinel.errors import InputError
from cryosentinel.geo import chip_grid
from cryosentinel.mapping.lakes import vectorise
from cryosentinel.sensors import REFLECTANCE_SCALE

if TYPE_CHECKING:
    import geopandas as gpd
    import leafmap.foliumap as leafmap
    from affine import Affine
    from IPython.display import HTML

    from cryosentinel.data.chips import Chip

_MERCATOR = 3857  # Leaflet's projection: an image stretched between two corners is right only on this grid

# What folium asks for by default and these maps do not use: markers with icons, and the widgets around them.
_UNUSED = ("jquery", "bootstrap", "awesome-markers", "awesome.rotate", "fontawesome", "glyphicons")
_SCRIPT = re.compile(r'<script src="([^"]+)"></script>')
_RANDOM_NAME = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_STYLE = re.compile(r'<link rel="stylesheet" href="([^"]+)"\s*/?>')


@dataclass(frozen=True)
class Overlay:
    """An image and where it lies.

    Attributes:
        image: (H, W, 3) or (H, W, 4) uint8, RGB or RGBA.
        transform: from (column, row) to the coordinates of ``epsg``.
        epsg: code of the projection.
    """

    image: np.ndarray
    transform: Affine
    epsg: int


def true_colour(s2: np.ndarray, brightest: float = 0.5) -> np.ndarray:
    """Red, green and blue as the eye would see them, shadows lifted.

    Args:
        s2: (12, H, W), reflectance x 10,000.
        brightest: reflectance that becomes white.

    Returns:
        (H, W, 4) uint8; pixels without data (all bands 0) are transparent.
    """
    rgb = composite(s2, white=REFLECTANCE_SCALE * brightest)
    alpha = (s2 != 0).any(axis=0)[..., None].astype(np.float32)
    return np.rint(np.concatenate([rgb, alpha], axis=-1) * 255).astype(np.uint8)


def on_web_grid(overlay: Overlay) -> tuple[np.ndarray, list[list[float]]]:
    """Warp an image to the projection in which Leaflet stretches it.

    Returns:
        The image, (h, w, 4) uint8, transparent outside, and its corners [[south, west], [north, east]] in degrees.
    """
    from pyproj import Transformer
    from rasterio.transform import array_bounds
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    image = overlay.image
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8:
        raise InputError(f"A map's image is (H, W, 3 or 4) uint8, not {image.shape} {image.dtype}; scale it first.")
    height, width = image.shape[:2]
    if image.shape[2] == 3:
        image = np.dstack([image, np.full((height, width), 255, np.uint8)])
    bounds = array_bounds(height, width, overlay.transform)
    transform, columns, rows = calculate_default_transform(overlay.epsg, _MERCATOR, width, height, *bounds)
    out = np.zeros((4, rows, columns), np.uint8)
    # Nearest keeps the pixels as they are, and transparent neighbours out of the colours.
    reproject(
        np.ascontiguousarray(image.transpose(2, 0, 1)), out, src_transform=overlay.transform, src_crs=overlay.epsg,
        dst_transform=transform, dst_crs=_MERCATOR, resampling=Resampling.nearest,
    )  # fmt: skip
    west, south, east, north = array_bounds(rows, columns, transform)
    to_degrees = Transformer.from_crs(_MERCATOR, 4326, always_xy=True)
    (west, south), (east, north) = to_degrees.transform(west, south), to_degrees.transform(east, north)
    return out.transpose(1, 2, 0), [[south, west], [north, east]]


def lake_map(
    lakes: Mapping[str, gpd.GeoDataFrame],
    images: Mapping[str, Overlay] | None = None,
    tiles: str | None = None,
    height: int = 480,
    hidden: tuple[str, ...] = (),
) -> leafmap.Map:
    """A map of lakes with one pop-up a lake and a control of layers.

    Args:
        lakes: name of a layer -> its outlines; every column but the geometry is shown in the pop-up, under its name.
        images: name of a layer -> an image beneath the lakes.
        tiles: name of a base map of leafmap or folium, which then needs a network; none by default.
        height: of the map in the page, pixels.
        hidden: layers whose names begin with one of these are off until they are asked for.

    Raises:
        InputError: there is nothing to show, or a layer has no CRS.
    """
    import folium
    import leafmap.foliumap as leafmap

    corners: list[list[float]] = []
    shown = leafmap.Map(
        tiles=tiles, height=height, width="100%", fullscreen_control=False, draw_control=False, measure_control=False,
        layers_control=False, attribution_control=tiles is not None, max_zoom=18, zoom_snap=0.25,
    )  # fmt: skip
    for name, overlay in (images or {}).items():
        image, bounds = on_web_grid(overlay)
        layer = folium.raster_layers.ImageOverlay(
            _png(image), bounds=bounds, name=html.escape(name), pixelated=True, show=not name.startswith(hidden)
        )
        layer.add_to(shown)
        corners += bounds
    layer_colours = colours.of_layers(list(lakes))
    for number, (name, outlines) in enumerate(lakes.items()):
        if outlines.crs is None:
            raise InputError(f"The lakes {name!r} have no CRS; set it (GeoDataFrame.set_crs) before they are mapped.")
        if outlines.empty:
            continue
        outlines = outlines.to_crs(4326)
        fields = [column for column in outlines.columns if column != outlines.geometry.name]
        colour = layer_colours[number]
        # Text in the columns goes into the page as HTML, and names of lakes come from files.
        outlines = outlines.assign(**{f: outlines[f].map(_safe) for f in fields})
        folium.GeoJson(
            outlines.to_json(),
            name=f'<span style="color:{colour}">&#9632;</span> {html.escape(name)}',
            show=not name.startswith(hidden),
            style_function=lambda _, colour=colour: {"color": colour, "weight": 2, "fillOpacity": 0.12},
            popup=folium.GeoJsonPopup(fields, [html.escape(f).replace("_", " ") for f in fields]) if fields else None,
        ).add_to(shown)
        west, south, east, north = outlines.total_bounds
        corners += [[south, west], [north, east]]
    if not corners:
        raise InputError("There is neither a lake nor an image to map; give at least one.")
    folium.LayerControl(collapsed=False).add_to(shown)
    shown.fit_bounds([np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()])
    return shown


def chip_map(chip: Chip, masks: Mapping[str, np.ndarray], **options: Any) -> leafmap.Map:
    """A map of one chip: its true colour, and the outlines and areas of the lakes in some masks.

    Args:
        chip: with the latitude and longitude of its centre.
        masks: name of a layer -> (H, W), lake where 1.
        options: as for :func:`lake_map`.
    """
    if chip.lat is None or chip.lon is None:
        raise InputError(f"Chip {chip.chip_id!r} has no centre, so it cannot be placed on a map; choose another.")
    epsg, transform = chip_grid(chip.lat, chip.lon, chip.mask.shape[0])
    lakes = {
        name: vectorise(mask.astype(np.uint8), transform, epsg, year=chip.snapshot_year).round({"area_ha": 2})
        for name, mask in masks.items()
    }
    image = Overlay(true_colour(chip.s2), transform, epsg)
    return lake_map(lakes, {f"true colour {chip.snapshot_year}": image}, **options)


def embed(shown: leafmap.Map) -> HTML:
    """A map as self-contained HTML for a notebook's output or a page: Leaflet inside, nothing from the network.

    Args:
        shown: a map of leafmap or folium without icon markers; base-map tiles, where it has any, still need a network.

    Raises:
        InputError: the map uses a plug-in that is not shipped with the package.
    """
    from IPython.display import HTML

    figure = shown.get_root()
    page = self_contained(figure.render())
    height = str(figure.height or 480)
    size = f"width:100%;height:{height}{'px' if height.isdigit() else ''};border:none"
    frame = f'<iframe srcdoc="{html.escape(page)}" style="{size}" title="Map of lakes" loading="lazy"></iframe>'
    return HTML(f"<div>{frame}</div>")  # a bare frame makes IPython warn


def self_contained(page: str) -> str:
    """A rendered map with its links to Leaflet replaced by Leaflet itself.

    Raises:
        InputError: the page links to something else that it needs.
    """
    needs_jquery = "$(" in page

    def script(match: re.Match[str]) -> str:
        if "/leaflet.js" in match[1]:
            return f"<script>{_leaflet('leaflet.js')}</script>"
        return _drop(match[1], needs_jquery)

    def style(match: re.Match[str]) -> str:
        if "/leaflet.css" in match[1]:
            return f"<style>{_leaflet('leaflet.css')}</style>"
        return _drop(match[1], needs_jquery)

    return _STYLE.sub(style, _SCRIPT.sub(script, _numbered(page)))


def _numbered(page: str) -> str:
    """The page with folium's random names of its elements as numbers: the same map is the same text."""
    names: dict[str, str] = {}
    return _RANDOM_NAME.sub(lambda match: names.setdefault(match[0], f"{len(names):032d}"), page)


def _drop(url: str, needs_jquery: bool) -> str:
    if any(name in url for name in _UNUSED) and not (needs_jquery and "jquery" in url):
        return ""
    raise InputError(
        f"The map loads {url}, which a page without a network cannot; leave the plug-in or the marker out that asks it."
    )


@cache
def _leaflet(name: str) -> str:
    """A file of Leaflet as text; the images that its style sheet names become part of it."""
    folder = resources.files("cryosentinel.mapping") / "leaflet"
    text = (folder / name).read_text(encoding="utf-8")

    def inline(match: re.Match[str]) -> str:
        return f"url({_data_url((folder / match[1]).read_bytes())})"

    text = re.sub(r"url\((images/[\w-]+\.png)\)", inline, text)
    return re.sub(r"//# sourceMappingURL=.*", "", text)


def _png(image: np.ndarray) -> str:
    """(H, W, 4) uint8 as a PNG in a data URL."""
    import io

    import matplotlib.image

    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, image, format="png")
    return _data_url(buffer.getvalue())


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _safe(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return ""  # a cut lake's upper bound
    return html.escape(value) if isinstance(value, str) else value
