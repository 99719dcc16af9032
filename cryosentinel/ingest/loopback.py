"""A STAC service on this machine: a real API server (rustac) over scenes served as COGs with byte ranges.

For tests, benchmarks and trying an ingest without a network. Requests are counted, and failures can be made: the tests'
servers are as unreliable as real ones.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.files import write_json

BLOCK = 256  # pixels a side of a COG's blocks
START_S = 20.0


class Server:
    """A file server or relay in a process of its own, see :mod:`cryosentinel.ingest.loopback_server`.

    Attributes:
        root: folder that it serves.
        url: its address.
    """

    def __init__(self, root: Path, forward: int = 0) -> None:
        self.root = root
        script = Path(__file__).with_name("loopback_server.py")
        command = [sys.executable, str(script), str(root), *([str(forward)] if forward else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def _control(self, what: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/.control/{what}", data), timeout=20) as answer:
            return json.load(answer)

    def log(self) -> list[tuple[str, str, int]]:
        """Requests so far: method, path, bytes of the answer's body."""
        return [(method, path, size) for method, path, size in self._control("log")]

    def count(self) -> tuple[int, int]:
        """Requests so far, and bytes of their answers."""
        log = self.log()
        return len(log), sum(size for _, _, size in log)

    def clear(self) -> None:
        """Forget the requests so far."""
        self._control("clear", [])

    def fail(self, match: str, status: int = 503, every: int = 1, times: int = 1_000_000) -> None:
        """Answer each ``every``-th request whose path holds ``match`` with a status, ``times`` at most.

        Status 0 hangs up after half of a file's bytes.
        """
        self._control("faults", [{"match": match, "status": status, "every": every, "times": times}])

    def heal(self) -> None:
        """Fail no more."""
        self._control("faults", [])

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(timeout=10)
        if self.process.stdout is not None:
            self.process.stdout.close()


@dataclass
class Loopback:
    """A running service.

    Attributes:
        api: the STAC API.
        files: the server of the COGs.
    """

    api: Server
    files: Server


@contextlib.contextmanager
def serve_files(root: Path) -> Iterator[Server]:
    """Serve a folder over HTTP with byte ranges."""
    server = Server(root)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def serve_stac(files: Server, items: Sequence[dict[str, Any]]) -> Iterator[Loopback]:
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
    api = Server(files.root, forward=port)
    process = None
    try:
        command = [program, "-q", "-q", "serve", "--addr", api.url, "--bind", f"127.0.0.1:{port}"]
        hrefs = [str(folder / f"{name}.json") for name in [*names, "items"]]
        process = subprocess.Popen([*command, *hrefs], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait(process, port)
        yield Loopback(api, files)
    finally:
        api.stop()
        if process is not None:
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
    server: Server,
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
