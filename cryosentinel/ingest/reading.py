"""Reading assets on a grid: GDAL's options, keys and retries, and whose fault a failure was."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cryosentinel.errors import HubError
from cryosentinel.ingest.blocks import BLOCKS
from cryosentinel.ingest.services import Service, has_s3_keys, keys_file

#: A COG's directory fits in its first kilobytes, it has no side-car files, and neighbouring blocks lie together.
GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no request for a folder listing or for side-car files
    "GDAL_INGESTED_BYTES_AT_OPEN": 32_768,  # the directory in one request
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",  # a row of blocks in one request
    "GDAL_HTTP_MULTIPLEX": "YES",
    "CPL_VSIL_CURL_CACHE_SIZE": 32 * 1024 * 1024,  # directories, for the next group (rows of blocks are not kept)
    "GDAL_CACHEMAX": 64,  # MB of decoded blocks: they go when a file is closed, after each load
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_RETRY_CODES": "429,500,502,503,504",  # 500 is not among GDAL's own (GDAL 3.10; older ones ignore it)
}
THREADS = 4  # assets of an item fetched at once: waiting for a server takes no processor
FIRST_WAIT_S = 0.5  # of GDAL's retries, doubled each time; also between loads
LOADS = 3  # of one asset at least: GDAL retries a request, but not a transfer that breaks off

DENIED = re.compile(
    r"code: 40[13]|AccessDenied|Access Denied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|AccountProblem"
    r"|AuthenticationFailed|TokenRefreshRequired|credentials not filled|InvalidCredentials"
)
GONE = re.compile(r"code: 4(?!08|25|29)\d\d|NoSuchKey|NoSuchBucket|key does not exist|bucket does not exist")
UNREADABLE = re.compile(r"not recognized as|[Dd]ecod|not a supported|[Cc]orrupt|Invalid TIFF")


class BrokenAssetError(Exception):
    """An item's file is missing or cannot be decoded although its server answers: the item is of no use."""


class ServiceDownError(HubError):
    """A server does not answer, or answers with its own failures, in spite of the retries."""


class AccessDeniedError(HubError):
    """A service refuses its files: keys are missing, wrong or not entitled. No other file will fare better."""


@contextlib.contextmanager
def gdal(service: Service, retries: int, forget: bool = False) -> Iterator[None]:
    """GDAL for the files of a service, in this thread.

    Args:
        service: whose endpoint and keys to use.
        retries: times that GDAL repeats a request that failed for now.
        forget: read anew what GDAL remembers of files, such as that one is missing or half of it. It drops that when
            a file is closed, so open and close the file once.
    """
    import rasterio

    options = {**GDAL_OPTIONS, "GDAL_HTTP_MAX_RETRY": retries, "GDAL_HTTP_RETRY_DELAY": FIRST_WAIT_S}
    if service.s3_endpoint:
        address = urlsplit(service.s3_endpoint)
        options["AWS_S3_ENDPOINT"] = address.netloc
        options["AWS_HTTPS"] = "YES" if address.scheme == "https" else "NO"
        options["AWS_VIRTUAL_HOSTING"] = "TRUE" if address.netloc.endswith("amazonaws.com") else "FALSE"
    if service.keys == "none" or not has_s3_keys():
        options["AWS_NO_SIGN_REQUEST"] = "YES"  # public buckets; keys of another service would be refused there
    if "AWS_SHARED_CREDENTIALS_FILE" in os.environ:
        options["CPL_AWS_CREDENTIALS_FILE"] = str(keys_file())
    if forget:
        # A list divided by colons, of beginnings of names: an address holds colons itself and cannot stand in it.
        options["CPL_VSIL_CURL_NON_CACHED"] = "/vsicurl/http:/vsis3/"
    with rasterio.Env(**options):
        yield


def address(href: str, service: Service) -> str:
    """What GDAL opens for an asset: signed where the service wants that, S3 through GDAL's own file system.

    Raises:
        AccessDeniedError: the service refuses to sign.
        ServiceDownError: its signing does not answer.
    """
    if service.signed:
        import planetary_computer

        try:
            href = planetary_computer.sign(href)
        except Exception as error:  # requests, urllib3 and pydantic fail each in their own way
            answer = getattr(error, "response", None)
            if getattr(answer, "status_code", 0) in (401, 403):
                raise AccessDeniedError(
                    f"{service.name} refuses to sign addresses ({first_line(error)}); check your subscription key "
                    "(PC_SDK_SUBSCRIPTION_KEY) and whether the service has blocked you."
                ) from None
            raise ServiceDownError(f"{service.name} does not sign addresses ({first_line(error)}).") from None
    return "/vsis3/" + href.removeprefix("s3://") if href.startswith("s3://") else href


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, for a sentence."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")[:160] or type(error).__name__


def require(item: dict[str, Any], names: Iterable[str]) -> None:
    """Raise BrokenAssetError where an item lacks one of these assets."""
    if missing := [name for name in names if name not in item["assets"]]:
        raise BrokenAssetError(f"{item['id']} (no asset {', '.join(missing)})")


def read(
    item: dict[str, Any],
    names: Sequence[str],
    geobox: Any,
    service: Service,
    retries: int,
    *,
    dtype: str = "float32",
    nodata: float = np.nan,
    resampling: str = "bilinear",
    take: Callable[[str, np.ndarray], None] | None = None,
) -> dict[str, np.ndarray]:
    """Read assets of an item on a grid: pixels are copied where the grids agree, and resampled elsewhere.

    Args:
        item: STAC JSON, assets by our names.
        names: of the assets.
        geobox: grid to read on.
        service: where the files are.
        retries: times that a failure of a server is waited out.
        dtype: of the arrays.
        nodata: where the item has no data; also a value to read as no data where a file states none itself.
        resampling: GDAL's name, such as "bilinear".
        take: called with each asset's name and (H, W) as soon as it is there, from several threads; nothing is returned
            then.

    Returns:
        name -> (H, W).

    Raises:
        BrokenAssetError: an asset or its file is missing, or it cannot be decoded.
        ServiceDownError: a server fails in spite of the retries.
        AccessDeniedError: the service refuses the files.
    """
    require(item, names)

    def patient(name: str) -> np.ndarray:
        # Asset by asset, so that one that fails is repeated without the others; options of GDAL hold for a thread.
        what, href, said = item["id"], item["assets"][name]["href"], ""
        last = max(LOADS, retries + 1) - 1
        for attempt in range(last + 1):
            with gdal(service, retries, forget=attempt > 0):
                try:
                    if attempt:
                        _probe(address(href, service))
                    return _load(href, geobox, service, dtype, nodata, resampling)
                except HubError:
                    raise
                except Exception as error:  # GDAL's failures come as several kinds of errors
                    text = _story(error)
            if not attempt and (DENIED.search(text) or GONE.search(text)):
                said = text  # in more words than the second time
                continue  # perhaps only remembered: ask anew, at once
            if DENIED.search(text):
                raise AccessDeniedError(_denied(service, said or text))
            if GONE.search(text):
                raise BrokenAssetError(f"{what} ({(said or text)[:160]})")
            if attempt == last:
                if UNREADABLE.search(text):
                    raise BrokenAssetError(f"{what} ({text[:160]})")
                if _ends_early(address(href, service), service):
                    raise BrokenAssetError(f"{what} (its file for {name} is shorter than its own directory says)")
                raise ServiceDownError(
                    f"The server of {what} still fails after {retries} retries ({text[:160]}); run the same command "
                    "again to go on."
                )
            time.sleep(FIRST_WAIT_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def one(name: str) -> np.ndarray | None:
        found = patient(name)
        return found if take is None else take(name, found)

    with ThreadPoolExecutor(min(THREADS, len(names))) as threads:
        done = dict(zip(names, threads.map(one, names), strict=True))
    return {name: found for name, found in done.items() if found is not None}


def side_by_side(
    items: Iterable[dict[str, Any]], load: Callable[[dict[str, Any]], np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray, list[str]]:
    """What items show together, the first of those that overlap.

    Args:
        items: STAC JSON.
        load: gives one's (bands, H, W), not a number where it has no data.
        shape: of what it gives.

    Returns:
        (bands, H, W) float32, and what could not be read.
    """
    result, broken = np.full(shape, np.nan, np.float32), []
    for item in items:
        try:
            found = load(item)
        except BrokenAssetError as error:
            broken.append(str(error))
            continue
        empty = ~np.isfinite(result).all(axis=0)
        result[:, empty] = found[:, empty]
    return result, broken


def _load(href: str, geobox: Any, service: Service, dtype: str, nodata: float, resampling: str) -> np.ndarray:
    """One file on a grid, see :func:`read`."""
    import rasterio
    from odc.geo.geobox import GeoBox
    from odc.geo.overlap import compute_reproject_roi
    from rasterio.warp import Resampling, reproject

    with rasterio.open(address(href, service), sharing=False) as source:
        grid, empty = GeoBox.from_rio(source), nodata if source.nodata is None else source.nodata
        tolerance = 0.9 if resampling == "nearest" else 0.05  # of a pixel: such a shift is none
        overlap = compute_reproject_roi(grid, geobox, ttol=tolerance)
        copied = overlap.paste_ok and overlap.read_shrink == 1
        if not copied:  # and what lies around, for the kernel
            overlap = compute_reproject_roi(grid, geobox, ttol=tolerance, padding=2)
        window: Any = overlap.roi_src
        into: Any = overlap.roi_dst
        if any(part.start >= part.stop for part in (*window, *into)):
            return np.full(geobox.shape, nodata, dtype)
        pixels = BLOCKS.window(href, source, *window).astype(dtype, copy=False)
        if copied:  # without a second array where none is needed: several bands are in work at once
            if not np.array_equal(empty, nodata, equal_nan=True):
                pixels[pixels == empty] = nodata
            if pixels.shape == geobox.shape:
                return pixels
        result = np.full(geobox.shape, nodata, dtype)
        if copied:
            result[into] = pixels
            return result
        # GDAL would widen its kernel where a window is larger than what it covers: then pixels would depend on the cut.
        kernel = {"XSCALE": 1, "YSCALE": 1} if overlap.read_shrink == 1 else {}
        reproject(
            np.ascontiguousarray(pixels), result, src_transform=grid[window].affine, src_crs=source.crs,
            src_nodata=empty, dst_transform=geobox.affine, dst_crs=str(geobox.crs), dst_nodata=nodata,
            resampling=Resampling[resampling], **kernel,
        )  # fmt: skip
        return result


def _probe(path: str) -> None:
    """Open and close a file: asks its server anew, and makes GDAL forget what it remembers of it."""
    import rasterio

    with rasterio.open(path, sharing=False):
        pass


#: The last bytes of a file as an image: over S3 GDAL alone knows how to sign, and gives zeros beyond the end.
TAIL = """<VRTDataset rasterXSize="16" rasterYSize="1"><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform>
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativetoVRT="0">{}</SourceFilename><ImageOffset>{}</ImageOffset><PixelOffset>1</PixelOffset>
<LineOffset>16</LineOffset></VRTRasterBand></VRTDataset>"""


def _ends_early(path: str, service: Service) -> bool:
    """Whether a remote TIFF lacks its last block, which no retry will bring; False where unknown."""
    import rasterio
    import requests

    try:
        with gdal(service, 0, forget=True), rasterio.open(path, sharing=False) as source:
            (high, wide), at = source.block_shapes[0], source.shape
            block = f"{(at[1] - 1) // wide}_{(at[0] - 1) // high}"
            offset, size = (
                int(source.get_tag_item(f"BLOCK_{w}_{block}", "TIFF", bidx=1) or 0) for w in ("OFFSET", "SIZE")
            )
        end = offset + size - 1
        if end < 16:
            return False
        if path.startswith("/vsis3/"):
            with gdal(service, 0, forget=True), rasterio.open(TAIL.format(path, end - 15)) as tail:
                return not tail.read(1).any()  # compressed blocks end in their checksum
        return requests.get(path, headers={"Range": f"bytes={end}-{end}"}, timeout=20).status_code == 416
    except (OSError, ValueError):
        return False


def _story(error: BaseException) -> str:
    """What GDAL says of a failure: the cause is in the errors behind the one that is raised."""
    found: list[str] = []
    link: BaseException | None = error
    while link is not None and len(found) < 8:
        found.append(" ".join(str(link).split()))
        link = link.__cause__ or link.__context__
    return "; ".join(dict.fromkeys(reversed(found)))  # the innermost first


def _denied(service: Service, text: str) -> str:
    if service.signed:
        way_out = "its signatures may be refused to you: check PC_SDK_SUBSCRIPTION_KEY"
    elif service.keys == "none":
        way_out = "the files were public: see whether the service has moved them"
    else:
        way_out = (
            f"set S3 access keys ({service.hint}) in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "~/.aws/credentials; where the bucket charges its readers, accept that with "
            "AWS_REQUEST_PAYER=requester"
        )
    return f"{service.name} refuses its files ({text[:160]}); {way_out}. What is done is kept."
