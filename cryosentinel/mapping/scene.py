"""Prediction over a georeferenced scene, streamed in bands of rows: memory grows with the width, not with the area.

A row of overlapping windows is read, the windows that hold data and may hold a lake are predicted, their logits are
blended by linear tapers, and the rows that no later window touches are finished: a band. Every band is written to a
file of its own, so that a killed run goes on, and any process can make any band with the same result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.data.chips import check_geotiff, clean, split_bands, valid_mask
from cryosentinel.data.geotiff import BAND_NAMES, band_order, check_units
from cryosentinel.data.offset import check_offset
from cryosentinel.data.stack import check_modality, subtract_offset, to_db
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.scores import BINS, INVALID, probability_bins, threshold_bin
from cryosentinel.files import read_json, replacing, write_json
from cryosentinel.geo import utm_epsg
from cryosentinel.mapping.gate import Gate
from cryosentinel.paths import existing
from cryosentinel.precision import choose
from cryosentinel.sensors import CHIP_SIZE, HECTARE_M2, MODALITIES, PIXEL_SIZE_M

if TYPE_CHECKING:
    import rasterio
    from affine import Affine

    from cryosentinel.models.segmenter import Segmenter

#: What became of a window: predicted, skipped because no pixel holds data, or skipped by the physics gate.
RUN, NO_DATA, GATED = 0, 1, 2
WINDOW_STATES = ("run", "no data", "gated")

OPTICAL = len(MODALITIES["S2L2A"])

#: A pixel's true size may differ by this share from 10 m (map projections stretch) before the scene is resampled.
SIZE_TOLERANCE = 0.05
#: Beyond this factor the scene was not taken at 10 m, and resampling would invent detail.
SIZE_FACTOR = 1.5


@dataclass(frozen=True)
class Options:
    """How a scene is predicted.

    Attributes:
        flips: test-time flips averaged in logit space, 1, 2 or 4.
        window: pixels a side of a window, a multiple of 16.
        overlap: pixels that neighbouring windows share, below ``window``.
        batch_size: windows a forward pass.
        adaptive: flip only the windows whose first pass is undecided, see :func:`cryosentinel.models.tta.undecided`.
        gate: rules by which windows are skipped; None predicts every window that holds data.
        precision: of the network, see :func:`cryosentinel.precision.choose`.
    """

    flips: int = 4
    window: int = CHIP_SIZE
    overlap: int = CHIP_SIZE // 2
    batch_size: int = 8
    adaptive: bool = False
    gate: Gate | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.window < 16 or self.window % 16 or not 0 <= self.overlap < self.window:
            raise ConfigError(
                f"Windows of {self.window} px sharing {self.overlap} px do not work: take a multiple of 16, sharing "
                "less."
            )
        if self.flips not in (1, 2, 4) or self.batch_size < 1:
            raise ConfigError(
                f"flips is {self.flips} and batch_size {self.batch_size}; flips is 1, 2 or 4, a batch holds at least 1."
            )


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover ``length`` pixels; the last one is moved back to end at the edge."""
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def taper(window: int) -> np.ndarray:
    """(window, window) weights that fall linearly to the edges and stay above zero: seams between windows blend."""
    ramp = np.minimum(np.arange(window) + 0.5, window - np.arange(window) - 0.5).astype(np.float32)
    return np.outer(ramp, ramp)


# --- the scene ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Where a scene's pixels come from: a 15-band raster, or three rasters (Sentinel-2, Sentinel-1, DEM) on one grid.

    Attributes:
        paths: one path or three.
        name: stem of the outputs' names; that of the first path where empty.
        s2_offset: digital numbers to subtract from Sentinel-2; None where nothing is known, and a scene that carries
            the +1000 of newer products is refused.
        s1_linear: the radar is linear power rather than dB.
    """

    paths: tuple[str, ...]
    name: str = ""
    s2_offset: int | None = None
    s1_linear: bool = False

    @classmethod
    def of(
        cls,
        scene: Scene | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        name: str = "",
        s2_offset: int | None = None,
        s1_linear: bool = False,
    ) -> Scene:
        """A scene from a path or three of them.

        Raises:
            InputError: there are neither one nor three paths, or one of them does not exist.
        """
        if isinstance(scene, Scene):
            return scene
        given = [scene] if isinstance(scene, (str, os.PathLike)) else scene
        paths = tuple(os.fspath(path) for path in given)
        if len(paths) not in (1, 3):
            raise InputError(f"A scene is one raster or three (Sentinel-2, Sentinel-1, DEM), not {len(paths)}.")
        for path in paths:
            existing(path, "raster")
        # Workers of a cluster may run in other folders.
        paths = tuple(os.path.abspath(path) if Path(path).is_file() else path for path in paths)
        return cls(paths, name or Path(paths[0]).stem, s2_offset, s1_linear)

    def signature(self) -> list[list[Any]]:
        """Name, size and time of every file of the scene, those behind a VRT included: equal ones hold equal pixels."""
        import rasterio

        found = []
        for path in self.paths:
            with rasterio.open(path) as source:
                for name in source.files:
                    with contextlib.suppress(OSError):  # a remote file has no state here
                        state = os.stat(name)
                        found.append([os.path.basename(name), state.st_size, state.st_mtime_ns])
        return found


class OpenScene:
    """An open scene that was checked at the door: read by rows, in the units and with the nodata of a chip.

    Attributes:
        shape: (height, width) in pixels.
        crs, transform: of the grid.
        resampled: why the scene is resampled to its UTM zone while it is read; empty where it is read as it is.
        reordered: bands are read in another order than they lie in, by their descriptions.
        tags: the file's own tags.
    """

    def __init__(self, scene: Scene, stack: contextlib.ExitStack) -> None:
        self.scene = scene
        sources = [stack.enter_context(_open(path)) for path in scene.paths]
        if len(sources) == 1:
            check_geotiff(sources[0])
        else:
            for source, modality in zip(sources, MODALITIES, strict=True):
                check_modality(source, modality, sources[0])
        names = [BAND_NAMES] if len(sources) == 1 else list(MODALITIES.values())
        self._orders = [band_order(source, bands) for source, bands in zip(sources, names, strict=True)]
        self.reordered = any(self._orders)
        self.tags: dict[str, str] = {key: value for source in sources for key, value in source.tags().items()}
        self.resampled = _why_resample(sources[0])
        if self.resampled:
            grid = _utm_grid(sources[0])
            sources = [stack.enter_context(_warped(source, grid)) for source in sources]
        self._sources = sources
        self.shape: tuple[int, int] = sources[0].shape
        self.crs, self.transform = sources[0].crs, sources[0].transform

    def read(self, top: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the scene as a chip's arrays: (12, rows, W) uint16, (2, rows, W) float32, (1, rows, W) int16.

        Raises:
            InputError: the file breaks off there.
        """
        return split_bands(self.convert(self.read_raw(top, rows)))

    def preview(self, size: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Affine]:
        """The whole scene as :meth:`read` gives it, thinned to at most ``size`` pixels a side, and its transform."""
        from affine import Affine

        step = max(1.0, max(self.shape) / size)
        height, width = (max(1, round(side / step)) for side in self.shape)
        a, b, c, d, e, f = self.transform[:6]
        x, y = self.shape[1] / width, self.shape[0] / height
        thin = Affine(a * x, b * y, c, d * x, e * y, f)
        return split_bands(self.convert(self.read_raw(0, self.shape[0], (height, width)))), thin

    def read_raw(self, top: int, rows: int, shape: tuple[int, int] | None = None) -> np.ndarray:
        """The same rows as the files hold them, (15, rows, W) float32, not a number where a file declares no data.

        Args:
            top, rows: first row and number of rows.
            shape: thin them to so many rows and columns.
        """
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        window = Window(0, top, self.shape[1], rows)
        parts = []
        for source, order in zip(self._sources, self._orders, strict=True):
            try:
                # float32 holds every digital number, backscatter and elevation of the format exactly.
                out_shape = None if shape is None else (source.count, *shape)
                bands = source.read(order, window=window, out_dtype=np.float32, out_shape=out_shape)
            except (RasterioError, ValueError) as error:
                raise InputError(f"{source.name} breaks off at row {top} ({error}); copy or build it again.") from None
            if source.nodata is not None and not np.isnan(source.nodata):
                gone = bands == np.float32(source.nodata)
                # One optical band may well hold the value in deep shadow; all twelve do not.
                if len(bands) >= OPTICAL:
                    gone[:OPTICAL] = gone[:OPTICAL].all(axis=0)
                bands[gone] = np.nan
            parts.append(bands)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def convert(self, bands: np.ndarray) -> np.ndarray:
        """Rows as :meth:`read_raw` gives them, changed in place to a chip's units as the scene says."""
        if self.scene.s2_offset:
            bands[:OPTICAL] = subtract_offset(bands[:OPTICAL], self.scene.s2_offset)
        if self.scene.s1_linear:
            bands[OPTICAL : OPTICAL + 2] = to_db(bands[OPTICAL : OPTICAL + 2])
        return bands

    def block_rows_mb(self, rows: int) -> int:
        """Megabytes of so many rows of the files' blocks."""
        sizes = (s.block_shapes[0][0] * s.width * s.count * np.dtype(s.dtypes[0]).itemsize for s in self._sources)
        return 1 + rows * sum(sizes) // 10**6

    def pixel_ha(self) -> float:
        """Area of the middle pixel on the ellipsoid, ha."""
        width, height = true_pixel_size(self.crs, self.transform, self.shape)
        return width * height / HECTARE_M2


def _open(path: str) -> rasterio.DatasetReader:
    import rasterio

    try:
        return rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise InputError(f"{path} cannot be read as a raster ({error}); check the path and the file.") from None


@contextlib.contextmanager
def open_scene(scene: Scene | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Iterator[OpenScene]:
    """Open a scene and check it at the door.

    A scene in degrees, on a rotated grid, or in a projection that stretches (Web Mercator) is resampled to its UTM
    zone at 10 m while it is read, nearest neighbour, and a warning says so.

    Raises:
        InputError: not a raster; not 15 bands (or 12, 2 and 1 on one grid); no CRS; pixels far from 10 m; values that
            are not in a chip's units.
    """
    import rasterio

    with contextlib.ExitStack() as stack:
        opened = OpenScene(Scene.of(scene), stack)
        # GDAL would keep a twentieth of the machine's memory; what neighbouring bands share is two rows of blocks.
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=max(32, opened.block_rows_mb(2))))
        check_values(opened)
        if opened.resampled:
            warnings.warn(
                f"{opened.scene.paths[0]} {opened.resampled}; it is resampled to {opened.crs} at 10 m.", stacklevel=3
            )
        if opened.reordered:
            warnings.warn(f"{opened.scene.paths[0]}: bands are put in order by their descriptions.", stacklevel=3)
        yield opened


def true_pixel_size(crs: Any, transform: Affine, shape: tuple[int, int]) -> tuple[float, float]:
    """Width and height of the middle pixel on the ellipsoid, m."""
    from pyproj import CRS, Geod, Transformer

    to_degrees = Transformer.from_crs(CRS.from_user_input(crs), 4326, always_xy=True)
    row, col = shape[0] / 2, shape[1] / 2
    lon, lat = to_degrees.transform(*_at(transform, np.array([col, col + 1, col]), np.array([row, row, row + 1])))
    _, _, distance = Geod(ellps="WGS84").inv([lon[0]] * 2, [lat[0]] * 2, lon[1:], lat[1:])
    return float(distance[0]), float(distance[1])


def _at(transform: Affine, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Written out: affine 2 multiplies with *, affine 3 with @.
    a, b, c, d, e, f = transform[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f


def _why_resample(source: rasterio.DatasetReader) -> str:
    transform = source.transform
    try:
        width, height = true_pixel_size(source.crs, transform, source.shape)
    except Exception as error:  # pyproj: a local or engineering system has no place on the globe
        raise InputError(f"{source.name} lies in a system without a place on the globe ({error}).") from None
    geometric_mean = (width * height) ** 0.5
    if not 1 / SIZE_FACTOR < geometric_mean / PIXEL_SIZE_M < SIZE_FACTOR:
        raise InputError(
            f"{source.name} has pixels of {width:.4g} x {height:.4g} m; the model knows 10 m: build the scene from "
            "10 m images."
        )
    if source.crs.is_geographic:
        return f"is in degrees ({source.crs})"
    if transform.b or transform.d or transform.a < 0 or transform.e > 0:
        return "lies on a rotated or flipped grid"
    if max(abs(width / PIXEL_SIZE_M - 1), abs(height / PIXEL_SIZE_M - 1)) > SIZE_TOLERANCE:
        return f"has pixels of {width:.2f} x {height:.2f} m on the ground ({source.crs})"
    return ""


def _utm_grid(source: rasterio.DatasetReader) -> dict[str, Any]:
    """The north-up 10 m grid of the scene's UTM zone that holds it, corners on multiples of 10 m."""
    from pyproj import CRS, Transformer
    from rasterio.transform import from_origin

    height, width = source.shape
    # Points along the border, not only corners: its edges are curves in the other system.
    steps = np.linspace(0, 1, 21)
    ring = np.concatenate([[(s, e) for s in steps for e in (0, 1)], [(e, s) for s in steps for e in (0, 1)]])
    x, y = _at(source.transform, ring[:, 0] * width, ring[:, 1] * height)
    lon, lat = Transformer.from_crs(CRS.from_user_input(source.crs), 4326, always_xy=True).transform(x, y)
    epsg = utm_epsg(float(np.mean(lat)), float(np.mean(lon)))
    east, north = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    left, top = np.floor(min(east) / PIXEL_SIZE_M), np.ceil(max(north) / PIXEL_SIZE_M)
    right, bottom = np.ceil(max(east) / PIXEL_SIZE_M), np.floor(min(north) / PIXEL_SIZE_M)
    return {
        "crs": f"EPSG:{epsg}", "width": int(right - left), "height": int(top - bottom),
        "transform": from_origin(left * PIXEL_SIZE_M, top * PIXEL_SIZE_M, PIXEL_SIZE_M, PIXEL_SIZE_M),
    }  # fmt: skip


def _warped(source: rasterio.DatasetReader, grid: dict[str, Any]) -> rasterio.vrt.WarpedVRT:
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    # Nearest keeps the values that were delivered, and no data out of its neighbours.
    return WarpedVRT(source, **grid, resampling=Resampling.nearest, init_dest_nodata=True)


def check_values(scene: OpenScene) -> None:
    """Look at rows spread over the scene, and refuse values that are not in a chip's units.

    Where none of them holds data, the rows from the top are looked at until some do.

    Raises:
        InputError: see :func:`cryosentinel.data.geotiff.check_units` and :func:`cryosentinel.data.offset.check_offset`.
    """
    height = scene.shape[0]
    rows = min(8, height)
    tops = sorted({round(t) for t in np.linspace(0, height - rows, 9)})
    if _check_rows(scene, tops, rows):
        return
    for top in range(0, height, 64):
        if _check_rows(scene, [top], min(64, height - top)):
            return


def _check_rows(scene: OpenScene, tops: Sequence[int], rows: int) -> bool:
    """Whether ``rows`` rows from each of ``tops`` hold data; refuses them if these are in other units."""
    raw = np.concatenate([scene.read_raw(top, rows) for top in tops], axis=1)
    path = scene.scene.paths[0]
    check_units(path, raw[:OPTICAL], np.zeros(0))  # before the offset, which looks for dark pixels
    check_offset(raw[:OPTICAL], path, scene.scene.s2_offset)
    s2, s1, dem = split_bands(scene.convert(raw))
    valid = valid_mask(s2, s1, dem)
    if valid.any():
        check_units(path, raw[:OPTICAL], s1[:, valid], dem[0, valid], " (--s1_linear true converts it)")
    return bool(valid.any())


# --- prediction --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Band:
    """Finished rows of a scene.

    Attributes:
        index: of the row of windows that finished it.
        top: first row.
        bins: (rows, W) uint8: floor(200 p), 255 where invalid.
        states: (windows,) uint8 of that row of windows, positions in :data:`WINDOW_STATES`.
    """

    index: int
    top: int
    bins: np.ndarray
    states: np.ndarray


def predict_bands(
    segmenter: Segmenter, scene: OpenScene, options: Options, first: int = 0, last: int | None = None
) -> Iterator[Band]:
    """Predict bands ``first`` to ``last`` (not included) of a scene; each is the same whichever others are made.

    Args:
        segmenter: network in evaluation mode; any module from a batch of modalities to logits (B, H, W).
        scene: open scene.
        options: windows, flips and gate.
        first, last: bands, numbered as the rows of windows.
    """
    import torch

    from cryosentinel.models.tta import flip_logits

    window, stride = options.window, options.window - options.overlap
    height, width = scene.shape
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    last = len(tops) if last is None else last
    rows = min(window, height)
    weight, device = taper(window), next(segmenter.parameters()).device
    precision = choose(options.precision, device.type)
    # The first rows also hold what earlier windows say about them.
    begin = next(i for i, top in enumerate(tops) if top + rows > tops[first])
    total = np.zeros((rows, width), np.float32)  # weighted logits of the rows that later windows may still touch
    norm = np.zeros((rows, width), np.float32)
    pad = ((0, 0), (0, max(0, window - height)), (0, max(0, window - width)))
    for index in range(begin, last):
        top = tops[index]
        raw = scene.read(top, rows)
        valid = valid_mask(*raw)
        states = window_states(raw, valid, top, height, lefts, options)
        # A scene smaller than a window is mirrored up to it; the mirror is cut off again below.
        arrays = [np.pad(a, pad, mode="symmetric") for a in clean(*raw)]
        counted = np.pad(valid, pad[1:])
        wanted = [x for x, state in zip(lefts, states.tolist(), strict=True) if state == RUN]
        for start in range(0, len(wanted), options.batch_size):
            group = wanted[start : start + options.batch_size]
            batch = {}
            for name, array in zip(MODALITIES, arrays, strict=True):
                windows = np.stack([array[:, :, x : x + window] for x in group])
                batch[name] = torch.from_numpy(windows.astype(np.float32)).to(device)
            batch["valid"] = torch.from_numpy(np.stack([counted[:, x : x + window] for x in group]))
            with torch.inference_mode(), precision.autocast(device.type):
                logits = flip_logits(segmenter, batch, options.flips, options.adaptive).float().cpu().numpy()
            for x, logit in zip(group, logits, strict=True):
                columns = slice(x, min(x + window, width))
                part = (slice(0, rows), slice(0, columns.stop - x))
                total[:, columns] += (weight * logit)[part]
                norm[:, columns] += weight[part]
        done = (tops[index + 1] if index + 1 < len(tops) else height) - top
        if index >= first:
            seen = norm[:done] > 0
            logit = np.divide(total[:done], norm[:done], out=np.full((done, width), -60, np.float32), where=seen)
            bins = probability_bins(1 / (1 + np.exp(-np.clip(logit, -60, 60))))
            bins[~valid[:done]] = INVALID
            yield Band(index, top, bins, states)
        for rolling in (total, norm):
            rolling[: rows - done] = rolling[done:].copy()
            rolling[rows - done :] = 0


def window_states(
    raw: tuple[np.ndarray, np.ndarray, np.ndarray],
    valid: np.ndarray,
    top: int,
    height: int,
    lefts: Sequence[int],
    options: Options,
) -> np.ndarray:
    """What becomes of each window of a row of windows: (windows,) uint8, positions in :data:`WINDOW_STATES`.

    The gate asks about a window's core, without the half of its overlap that a neighbour sees better: the cores of all
    windows cover the scene, so that every possible lake is seen by the window that it lies deepest in.

    Args:
        raw: the rows as :meth:`OpenScene.read` gives them.
        valid: (rows, W) bool.
        top: first row.
        height: of the scene.
        lefts: first column of each window.
        options: window size, overlap and gate.
    """
    states = np.zeros(len(lefts), np.uint8)
    possible = options.gate.possible(*raw, valid) if options.gate else None
    (rows, width), half = valid.shape, options.overlap // 2
    core_rows = slice(half if top else 0, rows - half if top + rows < height else rows)
    for number, x in enumerate(lefts):
        if not valid[:, x : x + options.window].any():
            states[number] = NO_DATA
        elif possible is not None:
            right = x + options.window
            core = slice(x + half if x else 0, right - half if right < width else right)
            states[number] = RUN if possible[core_rows, core].any() else GATED
    return states


def seen_by_windows(
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray], options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """Which windows of a whole scene in memory would run, and what they see.

    Args:
        arrays: (12, H, W), (2, H, W) and (1, H, W) as :meth:`OpenScene.read` gives them; sides of a window or more.
        options: window size, overlap and gate.

    Returns:
        The state of each window, (windows,) uint8; and (H, W) bool, pixels that a window which runs holds.
    """
    valid, window = valid_mask(*arrays), options.window
    height, width = valid.shape
    stride = window - options.overlap
    lefts = window_starts(width, window, stride)
    seen, found = np.zeros(valid.shape, bool), []
    for top in window_starts(height, window, stride):
        rows = slice(top, top + window)
        s2, s1, dem = (array[:, rows] for array in arrays)
        states = window_states((s2, s1, dem), valid[rows], top, height, lefts, options)
        for x in np.array(lefts)[states == RUN].tolist():
            seen[rows, x : x + window] = True
        found.append(states)
    return np.concatenate(found), seen


# --- files -------------------------------------------------------------------------------------------------------

#: Makes runs of bands (first, last + 1) of a scene elsewhere, in any order.
Maker = Callable[[Scene, Options, Sequence[tuple[int, int]]], Iterable[Band]]


@dataclass
class _Parts:
    """The bands of a scene that are finished, each a file; a folder of another run is removed."""

    out: Path
    name: str
    key: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.out / f".{self.name}.{self.key[:16]}.parts"
        for stale in self.out.glob(f".{self.name}.*.parts"):
            if stale != self.folder:
                shutil.rmtree(stale, ignore_errors=True)

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def missing(self, bands: int) -> list[tuple[int, int]]:
        """Runs of bands (first, last + 1) that are not there."""
        lacking = [i for i in range(bands) if not self.path(i).exists()]
        runs: list[list[int]] = []
        for i in lacking:
            if runs and runs[-1][1] == i:
                runs[-1][1] = i + 1
            else:
                runs.append([i, i + 1])
        return [(a, b) for a, b in runs]

    def write(self, band: Band) -> None:
        with replacing(self.path(band.index)) as part:
            np.savez(part, bins=band.bins, states=band.states, top=band.top)

    def read(self, index: int) -> Band:
        with np.load(self.path(index), allow_pickle=False) as part:
            return Band(index, int(part["top"]), part["bins"], part["states"])


def prediction_key(scene: Scene, options: Options, weights: str) -> str:
    """Digest of everything that decides the probabilities: the scene's files, the options, the weights."""
    text = json.dumps(
        [scene.signature(), scene.s2_offset, scene.s1_linear, asdict(options), weights], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(segmenter: Segmenter) -> str:
    """SHA-256 over a network's tensors and statistics."""
    digest = hashlib.sha256()
    for name, tensor in [*segmenter.state_dict().items(), *segmenter.named_buffers()]:
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).data)
    return digest.hexdigest()


def predict_scene(
    segmenter: Segmenter | None,
    scene: Scene | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    threshold: float = 0.5,
    options: Options | None = None,
    progress: bool = True,
    weights: str | None = None,
    maker: Maker | None = None,
) -> dict[str, Any]:
    """Predict lake probability and water over a scene of any size.

    A run that was stopped goes on with the bands that are missing.

    Args:
        segmenter: network in evaluation mode; None where ``maker`` makes the bands.
        scene: 15 bands (12 Sentinel-2, VV, VH, elevation) in one raster, or three rasters.
        out: folder for ``<name>_probability.tif`` (uint8, floor(200 p) as in the score histograms) and
            ``<name>_water.tif`` (uint8, 1 where p >= threshold), both 255 where invalid: cloud-optimised GeoTIFFs with
            overviews, written beside and renamed.
        threshold: probability from which a pixel is water; a multiple of 1/200.
        options: windows, flips and gate.
        progress: show a progress bar, and say which precision was taken.
        weights: identifies the weights in the key of a run to go on with; a digest of the network by default.
        maker: makes runs of bands elsewhere (a cluster), in any order; needs ``weights``.

    Returns:
        What is also written to ``<name>.json``: the paths "probability" and "water", "pixels", "valid_pixels",
        "water_pixels", "water_ha", "windows" (their number by state), and in "window_states" the state of each,
        (rows of windows, columns of windows) uint8. A finished run with the same scene, options and weights is read
        back, and no file is touched.

    Raises:
        InputError: the scene cannot be used (see :func:`open_scene`).
        ConfigError: threshold or options cannot be used.
    """
    from tqdm import tqdm

    water_from, options = threshold_bin(threshold), options or Options()
    scene, out = Scene.of(scene), Path(out)
    if segmenter is not None:
        precision = choose(options.precision, next(segmenter.parameters()).device.type)
        options = replace(options, precision=precision.name)  # part of the key: a run goes on as it began
        if progress:
            print(precision, flush=True)
        weights = weights or weights_digest(segmenter)
    assert weights is not None
    key = prediction_key(scene, options, weights)
    finished = read_record(scene, out, key, threshold)
    if finished:
        return finished
    with open_scene(scene) as opened:
        height, width = opened.shape
        stride = options.window - options.overlap
        tops, lefts = window_starts(height, options.window, stride), window_starts(width, options.window, stride)
        parts = _Parts(out, scene.name, key)
        missing = parts.missing(len(tops))
        total = len(tops) * len(lefts)
        there = total - sum(last - first for first, last in missing) * len(lefts)
        with tqdm(total=total, initial=there, unit="window", desc=scene.name, disable=not progress) as bar:
            if maker is None:
                assert segmenter is not None
                made: Iterable[Band] = (
                    b for first, last in missing for b in predict_bands(segmenter, opened, options, first, last)
                )
            else:
                made = maker(scene, options, missing)
            for band in made:
                parts.write(band)
                bar.update(len(lefts))
        profile = {
            "driver": "GTiff", "dtype": "uint8", "count": 1, "height": height, "width": width, "crs": opened.crs,
            "transform": opened.transform, "nodata": INVALID, "compress": "deflate", "tiled": True,
            "blockxsize": 512, "blockysize": 512,
        }  # fmt: skip
        tags = {
            "probability": {"meaning": f"floor({BINS} x probability of glacial lake)"},
            "water": {"meaning": f"1: glacial lake (probability >= {threshold}), 0: not"},
        }
        paths = {name: out / f"{scene.name}_{name}.tif" for name in tags}

        def probability(band: Band) -> np.ndarray:
            return band.bins

        def water(band: Band) -> np.ndarray:
            wet = (band.bins >= water_from).astype(np.uint8)
            wet[band.bins == INVALID] = INVALID
            return wet

        for name, values, resampling in (("probability", probability, "average"), ("water", water, "mode")):
            bands = (parts.read(index) for index in range(len(tops)))
            write_cog(paths[name], ((b.top, values(b)) for b in bands), profile, tags[name], resampling, parts.folder)
        counts = {"pixels": height * width, "valid_pixels": 0, "water_pixels": 0}
        states = []
        for index in range(len(tops)):
            band = parts.read(index)
            valid = band.bins != INVALID
            counts["valid_pixels"] += int(valid.sum())
            counts["water_pixels"] += int((valid & (band.bins >= water_from)).sum())
            states.append("".join(map(str, band.states)))
        record = {
            "scene": scene.name, "key": key, "threshold": threshold, **counts,
            "water_ha": counts["water_pixels"] * opened.pixel_ha(),
            "windows": {name: sum(row.count(str(i)) for row in states) for i, name in enumerate(WINDOW_STATES)},
            "options": asdict(options), "resampled": opened.resampled, "tags": opened.tags,
            "size": {name: path.stat().st_size for name, path in paths.items()}, "window_states": states,
        }  # fmt: skip
    write_json(out / f"{scene.name}.json", record)
    shutil.rmtree(parts.folder, ignore_errors=True)
    return _result(record, out)


def read_record(scene: Scene, out: Path, key: str, threshold: float) -> dict[str, Any] | None:
    """The result of a finished run with the same scene, options, weights and threshold; None where there is none."""
    try:
        record = read_json(out / f"{scene.name}.json")
        paths = {name: out / f"{scene.name}_{name}.tif" for name in record["size"]}
        same = (record["key"], record["threshold"]) == (key, threshold)
        whole = all(path.stat().st_size == record["size"][name] for name, path in paths.items())
        return _result(record, out) if same and whole and len(paths) == 2 else None
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return None


def _result(record: dict[str, Any], out: Path) -> dict[str, Any]:
    states = np.array([[int(state) for state in row] for row in record["window_states"]], np.uint8)
    paths = {name: out / f"{record['scene']}_{name}.tif" for name in record["size"]}
    return {**record, **paths, "window_states": states}


def write_cog(
    path: Path,
    rows: Iterable[tuple[int, np.ndarray]],
    profile: dict[str, Any],
    tags: dict[str, str],
    resampling: str,
    scratch: Path,
) -> None:
    """Write a cloud-optimised GeoTIFF of one band with overviews, atomically, from rows as they come.

    Args:
        path: file to write.
        rows: (first row, (rows, W) array) that cover the raster.
        profile: of a tiled GeoTIFF.
        tags: of the file.
        resampling: of the overviews.
        scratch: folder for the raster before its overviews.

    Raises:
        OSError: the disk is full; an older file stays whole.
    """
    import rasterio
    import rasterio.shutil
    from rasterio.windows import Window

    plain = scratch / f"{path.stem}.plain.tif"
    plain.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with rasterio.open(plain, "w", **profile) as sink:
        sink.update_tags(**tags)
        for top, values in rows:
            sink.write(values, 1, window=Window(0, top, values.shape[1], values.shape[0]))
            digest.update(np.ascontiguousarray(values).data)
    with replacing(path) as part:
        rasterio.shutil.copy(
            plain, part, driver="COG", compress="deflate", blocksize=512, overview_resampling=resampling,
            overviews="ignore_existing",
        )  # fmt: skip
        # GDAL reports a full disk in its log only: what was written is read again.
        with rasterio.open(part) as written:
            check = hashlib.sha256()
            for _, window in _row_windows(written):
                check.update(written.read(1, window=window).data)
        if check.digest() != digest.digest():
            raise OSError(28, "the raster could not be written whole", str(path))
    plain.unlink()


def _row_windows(source: rasterio.DatasetReader) -> Iterator[tuple[int, Any]]:
    from rasterio.windows import Window

    for top in range(0, source.height, 512):
        yield top, Window(0, top, source.width, min(512, source.height - top))
