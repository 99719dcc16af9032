"""A STAC service on this machine: a real API server (rustac) over scenes served as COGs with byte ranges.

For tests, benchmarks and trying an ingest without a network. Requests are counted, and failures can be made: the tests'
servers are as unreliable as real ones.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.files import write_json

BLOCK = 256  # pixels a side of a COG's blocks
START_S = 20.0

#: What a request is to be refused with: (method, path, how many came before) -> HTTP status, or None to serve it.
Fault = Callable[[str, str, int], int | None]


@dataclass
class Log:
    """What a server was asked for: (method, path, bytes of the answer's body)."""

    requests: list[tuple[str, str, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, method: str, path: str, size: int) -> None:
        with self.lock:
            self.requests.append((method, path, size))

    def count(self) -> tuple[int, int]:
        """Requests, and bytes of their answers."""
        with self.lock:
            return len(self.requests), sum(size for _, _, size in self.requests)

    def clear(self) -> None:
        with self.lock:
            self.requests.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, size: int = -1) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size < 0 else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
        self.server.log.add(self.command, self.path, len(body) if self.command != "HEAD" else 0)

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        posted = self.rfile.read(length)
        fault = self.server.fault
        status = fault(self.command, self.path, len(self.server.log.requests)) if fault else None
        if status is not None:
            self._answer(status)
        elif self.server.forward:
            self._pass_on(posted)
        else:
            self._file()

    do_GET = do_HEAD = do_POST = _serve

    def _pass_on(self, posted: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.forward, timeout=60)
        sent = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        connection.request(self.command, self.path, posted or None, sent)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self._answer(answer.status, body, {"Content-Type": answer.headers.get("Content-Type", "application/json")})

    def _file(self) -> None:
        root = self.server.root.resolve()
        path = (root / self.path.split("?")[0].lstrip("/")).resolve()
        if path.is_dir() and path.is_relative_to(root):  # GDAL asks for listings of folders
            listing = "".join(f'<a href="{p.name}">{p.name}</a>' for p in path.iterdir())
            return self._answer(200, listing.encode(), {"Content-Type": "text/html"})
        if not path.is_file() or not path.is_relative_to(root):
            return self._answer(404)
        size = path.stat().st_size
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            body = path.read_bytes() if self.command != "HEAD" else b""
            return self._answer(200, body, headers, size)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) if last else size - 1, size - 1)
        if begin >= size:
            return self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
        with open(path, "rb") as handle:
            handle.seek(begin)
            body = handle.read(end - begin + 1)
        self._answer(206, body, {**headers, "Content-Range": f"bytes {begin}-{end}/{size}"}, end - begin + 1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, root: Path, forward: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.forward = root, forward
        self.log = Log()
        self.fault: Fault | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""


@contextlib.contextmanager
def _running(server: _Server) -> Iterator[_Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Loopback:
    """A running service.

    Attributes:
        api: the STAC API; ``api.url`` is its address, ``api.log`` counts, ``api.fault`` makes failures.
        files: the server of the COGs, in the same way.
        root: folder that ``files`` serves.
    """

    api: Any
    files: Any
    root: Path


@contextlib.contextmanager
def serve_files(root: Path) -> Iterator[Any]:
    """Serve a folder over HTTP with byte ranges; ``.url`` is the address, ``.log`` counts, ``.fault`` fails."""
    with _running(_Server(root)) as server:
        yield server


@contextlib.contextmanager
def serve_stac(files: Any, items: Sequence[dict[str, Any]]) -> Iterator[Loopback]:
    """Run a STAC API over some items, whose files ``files`` serves.

    Raises:
        InputError: the API server is not installed, or does not start.
    """
    program = shutil.which("rustac", path=sysconfig.get_path("scripts")) or shutil.which("rustac")
    if program is None:
        raise InputError("The STAC server is not installed; pip install rustac.")
    folder = files.root / ".stac"
    names = sorted({item["collection"] for item in items} | {"sentinel-2-l2a", "sentinel-1-rtc", "cop-dem-glo-30"})
    everywhere = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    for name in names:
        collection = {
            "type": "Collection",
            "stac_version": "1.0.0",
            "id": name,
            "description": name,
            "license": "other",
        }
        write_json(folder / f"{name}.json", {**collection, "extent": everywhere, "links": []})
    write_json(folder / "items.json", {"type": "FeatureCollection", "features": list(items)})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _running(_Server(files.root, forward=port)) as api:
        command = [program, "-q", "-q", "serve", "--addr", api.url, "--bind", f"127.0.0.1:{port}"]
        hrefs = [str(folder / f"{name}.json") for name in [*names, "items"]]
        process = subprocess.Popen([*command, *hrefs], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(process, port)
            yield Loopback(api, files, files.root)
        finally:
            process.terminate()
            process.wait(timeout=10)


def _wait(process: subprocess.Popen, port: int) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise InputError("The STAC server does not start; run rustac serve by hand to see why.")


def write_cog(
    path: Path, array: np.ndarray, epsg: int, left: float, top: float, pixel: float = 10.0, nodata: float | None = None
) -> None:
    """Write one band as a COG."""
    import rasterio
    from affine import Affine

    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="COG", height=array.shape[0], width=array.shape[1], count=1, dtype=array.dtype,
        crs=f"EPSG:{epsg}", transform=Affine(pixel, 0, left, 0, -pixel, top), nodata=nodata,
        blocksize=BLOCK, compress="deflate", overviews="none",
    ) as target:  # fmt: skip
        target.write(array, 1)


def make_item(
    server: Any,
    collection: str,
    name: str,
    moment: str,
    bands: Mapping[str, np.ndarray],
    epsg: int,
    left: float,
    top: float,
    properties: Mapping[str, Any] | None = None,
    nodata: float | None = None,
) -> dict[str, Any]:
    """Write a scene's bands as COGs into a served folder, and describe them as a STAC item.

    Args:
        server: of :func:`serve_files`.
        collection, name: of the item.
        moment: time of acquisition, RFC 3339.
        bands: asset key -> (H, W), all on the same 10 m grid (or coarser ones over the same area).
        epsg, left, top: of the grid.
        properties: of the item, beside time and projection.
        nodata: of the files.
    """
    from pyproj import Transformer
    from shapely.geometry import box, mapping

    height = max(band.shape[0] for band in bands.values())
    width = max(band.shape[1] for band in bands.values())
    for key, band in bands.items():
        file = server.root / collection / name / f"{key}.tif"
        write_cog(file, band, epsg, left, top, 10.0 * width / band.shape[1], nodata)
    bounds = left, top - 10 * height, left + 10 * width, top
    degrees = Transformer.from_crs(epsg, 4326, always_xy=True).transform_bounds(*bounds)
    kind = "image/tiff; application=geotiff; profile=cloud-optimized"
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "collection": collection,
        "bbox": list(degrees),
        "geometry": mapping(box(*degrees)),
        "properties": {"datetime": moment, "proj:code": f"EPSG:{epsg}", **(properties or {})},
        "links": [],
        "assets": {
            key: {"href": f"{server.url}/{collection}/{name}/{key}.tif", "type": kind, "roles": ["data"]}
            for key in bands
        },
    }
    return json.loads(json.dumps(item))
