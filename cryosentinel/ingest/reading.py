"""Reading a window of an item's assets: GDAL told what a COG is, retries that end, and what kind of failure it was."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cryosentinel.errors import HubError

#: A COG's directory fits in its first kilobytes, it has no side-car files, and neighbouring blocks lie together.
GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no request for a folder listing or for side-car files
    "GDAL_INGESTED_BYTES_AT_OPEN": 32_768,  # the directory in one request
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",  # a row of blocks in one request
    "GDAL_HTTP_MULTIPLEX": "YES",
    "CPL_VSIL_CURL_CACHE_SIZE": 128 * 1024 * 1024,  # windows side by side share blocks
    "GDAL_CACHEMAX": 256,  # MB of decoded blocks
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_TIMEOUT": 120,
}
THREADS = 4  # assets of an item fetched at once: waiting for a server takes no processor
FIRST_WAIT_S = 0.5


class BrokenAssetError(Exception):
    """An item's file is missing or cannot be decoded although its server answers: the item is of no use."""


class ServiceDownError(HubError):
    """A server does not answer, or answers with its own failures, in spite of the retries."""


@contextlib.contextmanager
def gdal(retries: int) -> Iterator[None]:
    """GDAL as :data:`GDAL_OPTIONS` say, with bounded retries of requests that a server refuses for now."""
    import rasterio

    options = {**GDAL_OPTIONS, "GDAL_HTTP_MAX_RETRY": retries, "GDAL_HTTP_RETRY_DELAY": FIRST_WAIT_S}
    if not any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN")):
        options["AWS_NO_SIGN_REQUEST"] = "YES"  # public buckets, such as the one of the Copernicus DEM
    with rasterio.Env(**options):
        yield


def signer(stac: str) -> Any:
    """The function that signs addresses of a service's files just before they are read, or None.

    Raises:
        HubError: the service wants signed addresses, and the package that signs them is not installed.
    """
    if "planetarycomputer.microsoft.com" not in stac:
        return None
    try:
        import planetary_computer
    except ImportError:
        raise HubError("The Planetary Computer wants signed addresses: pip install planetary-computer.") from None
    return planetary_computer.sign


def asset_key(item: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The item's key of an asset that is known by several names (in lower case), the first name first."""
    lower = {key.lower(): key for key in item["assets"]}
    return next((lower[name] for name in names if name in lower), None)


def read_item(
    item: dict[str, Any],
    keys: Mapping[str, str],
    geobox: Any,
    *,
    dtype: str,
    nodata: float,
    resampling: str,
    retries: int,
    sign: Any = None,
) -> dict[str, np.ndarray]:
    """Read some assets of an item on a grid.

    Where the grids agree pixels are copied, elsewhere they are resampled.

    Args:
        item: STAC JSON.
        keys: what to call an array -> key of the asset.
        geobox: grid to read on.
        dtype: of the arrays.
        nodata: where the item has none; also a value to read as no data where the file states none itself.
        resampling: GDAL's name, such as "bilinear".
        retries: times that a failure of a server is waited out.
        sign: turns an address into a signed one.

    Returns:
        name -> (H, W).

    Raises:
        BrokenAssetError: a file is missing or cannot be decoded.
        ServiceDownError: a server fails in spite of the retries.
    """
    import odc.stac
    import pystac

    loaded = pystac.Item.from_dict(item)
    config = {"*": {"assets": {"*": {"data_type": dtype, "nodata": nodata}}}}

    def load(key: str) -> np.ndarray:
        data = odc.stac.load(
            [loaded],
            bands=[key],
            geobox=geobox,
            dtype=dtype,
            resampling=resampling,
            stac_cfg=config,
            patch_url=sign,
            fail_on_error=True,
        )
        return data[key].values[0]

    def one(key: str) -> np.ndarray:
        # Asset by asset, so that one that fails is repeated without the others.
        address = item["assets"][key]["href"]
        with gdal(retries):  # options hold for a thread
            return patiently(lambda: load(key), item["id"], [sign(address) if sign else address], retries)

    with ThreadPoolExecutor(min(THREADS, len(keys))) as threads:
        return dict(zip(keys, threads.map(one, keys.values()), strict=True))


def patiently(read: Callable[[], Any], what: str, addresses: Sequence[str], retries: int) -> Any:
    """Call ``read`` until it succeeds, a file turns out to be broken, or the retries are used up.

    Args:
        read: reads the files; GDAL's failures come as several kinds of errors, and none says whose fault it was.
        what: name of the item.
        addresses: of its files, asked after a failure.
        retries: calls after the first one, with waits that double.

    Raises:
        BrokenAssetError: a server does not have or give a file, or all answer and yet it cannot be decoded.
        ServiceDownError: a server still fails after the last retry.
    """
    wait = FIRST_WAIT_S
    for attempt in range(retries + 1):
        try:
            if not attempt:
                return read()
            with forgetting(addresses):
                return read()
        except Exception as error:
            answers = [_answer(address) for address in addresses]
            if "gone" in answers or (answers.count("well") == len(answers) and attempt == retries):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise BrokenAssetError(f"{what} ({reason})") from None
            if attempt == retries:
                raise ServiceDownError(
                    f"The server of {what} still fails after {retries} retries; run the same command again to go on."
                ) from None
        time.sleep(wait)
        wait *= 2
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def forgetting(addresses: Sequence[str]) -> Iterator[None]:
    """Read anew what GDAL remembers of files, such as that one is missing or half of it.

    GDAL drops what it holds of such a file when it is closed, so each is opened and closed first.
    """
    import rasterio

    # A list divided by colons, of beginnings of names: an address holds colons itself and cannot stand in it.
    with rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsicurl/http"):
        for address in addresses:
            with contextlib.suppress(Exception), rasterio.open(address, sharing=False):
                pass
        yield


def _answer(address: str) -> str:
    """Whether a server gives a file: "well", "gone" (it answers that it does not), or "down" (it does not answer)."""
    if not address.startswith("http"):
        return "well"
    request = urllib.request.Request(address, headers={"Range": "bytes=0-0"})
    try:
        with urllib.request.urlopen(request, timeout=20):
            return "well"
    except urllib.error.HTTPError as error:
        return "gone" if 400 <= error.code < 500 and error.code not in (408, 425, 429) else "down"
    except (OSError, ValueError):
        return "down"
