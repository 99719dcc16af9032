"""Prediction over a georeferenced scene, streamed in bands of rows: memory grows with the width, not with the area."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.data.chips import check_geotiff, clean, split_bands, valid_mask
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.scores import INVALID, probability_bins, threshold_bin
from cryosentinel.files import replacing
from cryosentinel.sensors import CHIP_SIZE, MODALITIES, PIXEL_SIZE_M

if TYPE_CHECKING:
    import rasterio

    from cryosentinel.models.segmenter import Segmenter


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover ``length`` pixels; the last one is moved back to end at the edge."""
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def _taper(window: int) -> np.ndarray:
    """(window, window) weights that fall linearly to the edges and stay above zero: seams between windows blend."""
    ramp = np.minimum(np.arange(window) + 0.5, window - np.arange(window) - 0.5).astype(np.float32)
    return np.outer(ramp, ramp)


@contextlib.contextmanager
def open_scene(path: str | os.PathLike[str]) -> Iterator[rasterio.DatasetReader]:
    """Open a 15-band scene and check it at the door.

    Raises:
        InputError: not a raster; not 15 bands; no CRS; a geographic CRS; pixels that are not 10 m.
    """
    import rasterio

    try:
        source = rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise InputError(f"{path} cannot be read as a raster ({error}); check the path and the file.") from None
    with source:
        check_geotiff(source)
        if source.crs.is_geographic:
            raise InputError(f"{path} is in degrees ({source.crs}); warp it to its UTM zone at 10 m (gdalwarp -t_srs).")
        step_x, step_y = source.res
        if max(abs(step_x - PIXEL_SIZE_M), abs(step_y - PIXEL_SIZE_M)) > 0.5:
            raise InputError(
                f"{path} has pixels of {step_x:g} x {step_y:g} m; "
                "resample it to the 10 m that the model knows (gdalwarp -tr 10 10)."
            )
        yield source


def _read_rows(source: rasterio.DatasetReader, top: int, rows: int) -> tuple[np.ndarray, ...]:
    """Rows of a scene as the chip's three arrays; nodata marked as the chips mark it."""
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    try:
        bands = source.read(window=Window(0, top, source.width, rows))
    except (RasterioError, ValueError) as error:
        raise InputError(f"{source.name} breaks off at row {top} ({error}); copy or build the file again.") from None
    return split_bands(bands, source.nodata)


def predict_scene(
    segmenter: Segmenter,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    threshold: float = 0.5,
    flips: int = 4,
    window: int = CHIP_SIZE,
    overlap: int = CHIP_SIZE // 2,
    batch_size: int = 8,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict lake probability and water over a 15-band GeoTIFF of any size.

    Overlapping windows are predicted, their logits blended by linear tapers, and finished rows written at once.

    Args:
        segmenter: network in evaluation mode.
        path: 15 bands (12 Sentinel-2, VV, VH, elevation), projected, 10 m.
        out: folder for ``<stem>_probability.tif`` (uint8, floor(200 p) as in the score histograms) and
            ``<stem>_water.tif`` (uint8, 1 where p >= threshold), both 255 where invalid. Both are written beside and
            renamed.
        threshold: probability from which a pixel is water; a multiple of 1/200.
        flips: test-time flips, 1, 2 or 4.
        window: pixels a side of a window, a multiple of 16.
        overlap: pixels that neighbouring windows share, below ``window``.
        batch_size: windows a forward pass.
        progress: show a progress bar.

    Returns:
        ``{"probability": Path, "water": Path, "pixels", "valid_pixels", "water_pixels", "water_ha", "windows"}``.

    Raises:
        InputError: the scene cannot be used (see :func:`open_scene`).
        ConfigError: threshold, window or overlap cannot be used.
    """
    import rasterio
    import torch
    from rasterio.windows import Window
    from tqdm import tqdm

    from cryosentinel.models.tta import flip_logits

    first_water_bin = threshold_bin(threshold)
    if window % 16 or not 0 <= overlap < window:
        raise ConfigError(
            f"Windows of {window} px sharing {overlap} px do not work: take a multiple of 16, sharing less."
        )
    device = next(segmenter.parameters()).device
    out, stem = Path(out), Path(path).stem
    paths = {name: out / f"{stem}_{name}.tif" for name in ("probability", "water")}
    weight = _taper(window)
    with open_scene(path) as source, contextlib.ExitStack() as stack:
        height, width = source.shape
        tops, lefts = window_starts(height, window, window - overlap), window_starts(width, window, window - overlap)
        profile = {
            "driver": "GTiff", "dtype": "uint8", "count": 1, "height": height, "width": width, "crs": source.crs,
            "transform": source.transform, "nodata": INVALID, "compress": "deflate", "tiled": True,
            "blockxsize": 256, "blockysize": 256,
        }  # fmt: skip
        sinks = {n: stack.enter_context(rasterio.open(stack.enter_context(replacing(p)), "w", **profile))
                 for n, p in paths.items()}  # fmt: skip
        sinks["probability"].update_tags(meaning="floor(200 x probability of glacial lake)", threshold=str(threshold))
        rows = min(window, height)
        total = np.zeros((rows, width), np.float32)  # weighted logits of the rows that later windows may still touch
        norm = np.zeros((rows, width), np.float32)
        valid = np.zeros((rows, width), bool)
        counts = {"pixels": height * width, "valid_pixels": 0, "water_pixels": 0, "windows": 0}
        pad = ((0, 0), (0, max(0, window - height)), (0, max(0, window - width)))
        bar = stack.enter_context(tqdm(total=len(tops) * len(lefts), unit="window", desc=stem, disable=not progress))
        for index, top in enumerate(tops):
            raw = _read_rows(source, top, rows)
            valid = valid_mask(*raw)
            # A scene smaller than a window is mirrored up to it; the mirror is cut off again below.
            arrays = [np.pad(a, pad, mode="symmetric") for a in clean(*raw)]
            for first in range(0, len(lefts), batch_size):
                group = lefts[first : first + batch_size]
                batch = {}
                for name, array in zip(MODALITIES, arrays, strict=True):
                    windows = np.stack([array[:, :, x : x + window] for x in group])
                    batch[name] = torch.from_numpy(windows.astype(np.float32)).to(device)
                with torch.inference_mode():
                    logits = flip_logits(segmenter, batch, flips=flips).float().cpu().numpy()
                for x, logit in zip(group, logits, strict=True):
                    columns = slice(x, min(x + window, width))
                    part = (slice(0, rows), slice(0, columns.stop - x))
                    total[:, columns] += (weight * logit)[part]
                    norm[:, columns] += weight[part]
                bar.update(len(group))
                counts["windows"] += len(group)
            done = (tops[index + 1] if index + 1 < len(tops) else height) - top
            probability = 1 / (1 + np.exp(-np.clip(total[:done] / norm[:done], -60, 60)))
            bins = probability_bins(probability)
            water = (bins >= first_water_bin).astype(np.uint8)
            bins[~valid[:done]] = water[~valid[:done]] = INVALID
            for name, values in (("probability", bins), ("water", water)):
                sinks[name].write(values, 1, window=Window(0, top, width, done))
            counts["valid_pixels"] += int(valid[:done].sum())
            counts["water_pixels"] += int((water == 1).sum())
            for rolling in (total, norm):
                rolling[: rows - done] = rolling[done:].copy()
                rolling[rows - done :] = 0
        pixel_ha = abs(source.transform.determinant) / 10_000
    return {**paths, **counts, "water_ha": counts["water_pixels"] * pixel_ha}
