"""A stand-in for a STAC service and its storage: API with paging, signing endpoint, files by HTTP ranges and as S3.

Run as a program of its own, ``python stac_server.py FOLDER``: GDAL may hold the interpreter's lock while it waits for
an answer, so the answer must come from another process. Only the standard library is imported. It prints its port.

``/stac`` is an API over the items of ``FOLDER/.stac.json`` (landing page, collections, POST /search with collections,
bbox, datetime, a limit on eo:cloud_cover and pages of ``limit`` items at most PAGE), ``/sas/ACCOUNT/CONTAINER`` gives
signing tokens, everything else is files of FOLDER, at the addresses that an S3 client would ask for too
(``/BUCKET/KEY``).

Controls: ``GET /.control/log`` gives and ``POST /.control/clear`` empties the list of requests. ``POST
/.control/faults`` gives the failures so far and sets new ones: {"match": part of the path, "status": code (0: hang up
half-way), "every": each n-th request of a file that matches, "times": how often at most, "over": only requests of more
bytes than this}. ``POST /.control/access`` sets what protects files: {"prefix": of the path, "sas": token that the
query must hold, or "key": S3 access key that must sign, "payer": whether the request must accept the costs, "public":
signed requests are refused}.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTROL, ITEMS = "/.control/", ".stac.json"
PAGE = 3  # items a page at most, so that every search of the tests has several
CONFORMANCE = [
    f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "collections", "item-search", "item-search#query")
]


def _s3_error(code: str) -> bytes:
    """As S3 words it, with the elements by which GDAL knows it."""
    extra = "<RequestId>1</RequestId><HostId>1</HostId>"
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message>{extra}</Error>".encode()


class StandIn(ThreadingHTTPServer):
    """The server and what it remembers."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root.resolve()
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str, int]] = []
        self.faults: list[dict[str, Any]] = []
        self.access: list[dict[str, Any]] = []

    def fault(self, path: str, size: int) -> int | None:
        """The status to fail a request with, or None to serve it."""
        with self.lock:
            for rule in self.faults:
                if rule["match"] in path and size > rule.get("over", -1):
                    seen = rule.setdefault("seen", {})  # file by file: threads that take turns change nothing
                    seen[path] = seen.get(path, 0) + 1
                    if rule["times"] > 0 and seen[path] % rule["every"] == 0:
                        rule["times"] -= 1
                        return int(rule["status"])
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: StandIn

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def _answer(
        self, status: int, body: bytes | dict = b"", headers: Mapping[str, str] | None = None, size: int = -1
    ) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        self.send_response(status)
        for name, value in {**kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if size < 0 else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.cut else data)
        self.wfile.flush()
        if not self.path.startswith(CONTROL):
            with self.server.lock:
                self.server.requests.append((self.command, self.path, len(data) if self.command != "HEAD" else 0))

    def _serve(self) -> None:
        self.cut = False
        posted = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith(CONTROL):
            return self._control(posted)
        status = self.server.fault(self.path, self._range_size())
        if status is not None and status > 0:
            return self._answer(status)
        if self.path.startswith("/stac"):
            return self._stac(json.loads(posted or b"{}"))
        if self.path.startswith("/sas/"):
            token = "st=2020-01-01T00%3A00%3A00Z&se=2099-01-01T00%3A00%3A00Z&sp=r&sig=token"
            return self._answer(200, {"msft:expiry": "2099-01-01T00:00:00Z", "token": token})
        self.cut = self.close_connection = status == 0
        return self._file()

    do_GET = do_HEAD = do_POST = _serve

    def _range_size(self) -> int:
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        return int(last) - int(first) + 1 if first and last else 0

    def _control(self, posted: bytes) -> None:
        with self.server.lock:
            body = json.dumps(self.server.requests).encode()
            for name in ("faults", "access"):
                if self.path.endswith(name):
                    body = json.dumps(getattr(self.server, name)).encode()
                    setattr(self.server, name, json.loads(posted))
            if self.path.endswith("clear"):
                self.server.requests.clear()
        self._answer(200, body, {"Content-Type": "application/json"})

    def _stac(self, asked: dict[str, Any]) -> None:
        items = json.loads((self.server.root / ITEMS).read_text(encoding="utf-8"))
        here = f"http://{self.headers['Host']}/stac"
        names = sorted({item["collection"] for item in items})
        if self.path == "/stac/search":
            return self._search(items, asked, here)
        everywhere = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        common = {"stac_version": "1.0.0", "description": "stand-in", "license": "other"}
        collections = [
            {"type": "Collection", **common, "id": name, "extent": everywhere, "links": []} for name in names
        ]
        if self.path == "/stac/collections":
            return self._answer(200, {"collections": collections, "links": []})
        links = [
            {"rel": "self", "href": here}, {"rel": "root", "href": here},
            {"rel": "data", "href": f"{here}/collections"},
            {"rel": "search", "href": f"{here}/search", "method": "POST", "type": "application/geo+json"},
        ]  # fmt: skip
        page = {"type": "Catalog", "stac_version": "1.0.0", "id": "stand-in", "description": "-", "links": links}
        self._answer(200, {**page, "conformsTo": CONFORMANCE})

    def _search(self, items: list[dict[str, Any]], asked: dict[str, Any], here: str) -> None:
        west, south, east, north = asked.get("bbox") or (-180, -90, 180, 90)
        cloudy = asked.get("query", {}).get("eo:cloud_cover", {}).get("lte", 100)
        first, _, last = str(asked.get("datetime") or "/").partition("/")

        def fits(item: dict[str, Any]) -> bool:
            w, s, e, n = item["bbox"]
            moment = item["properties"]["datetime"]
            meets = w <= east and e >= west and s <= north and n >= south
            meets = meets and item["properties"].get("eo:cloud_cover", 0) <= cloudy
            return meets and item["collection"] in asked["collections"] and first <= moment <= (last or "9")

        found = [item for item in items if fits(item)]
        begin = int(asked.get("token") or 0)
        end = begin + min(PAGE, int(asked.get("limit") or PAGE))
        links = [
            {"rel": "next", "href": f"{here}/search", "method": "POST", "body": {"token": str(end)}, "merge": True}
        ]
        answer = {"type": "FeatureCollection", "features": found[begin:end], "links": links if end < len(found) else []}
        self._answer(200, answer)

    def _refusal(self) -> str:
        """Why a file is not given, as S3 and Azure name it; empty where it is."""
        path, _, query = self.path.partition("?")
        for rule in self.server.access:
            if path.startswith(rule["prefix"]):
                if "sas" in rule and f"sig={rule['sas']}" not in query:
                    return "AuthenticationFailed"
                signed = self.headers.get("Authorization", "")
                if "key" in rule and f"Credential={rule['key']}/" not in signed:
                    return "InvalidAccessKeyId" if signed else "AccessDenied"
                if rule.get("payer") and self.headers.get("x-amz-request-payer") != "requester":
                    return "AccessDenied"
                if rule.get("public") and self.headers.get("Authorization"):
                    return "InvalidAccessKeyId"  # keys of another service
        return ""

    def _file(self) -> None:
        if refusal := self._refusal():
            return self._answer(403, _s3_error(refusal))
        root = self.server.root
        path = (root / self.path.split("?")[0].lstrip("/")).resolve()
        if not path.is_file() or not path.is_relative_to(root):
            return self._answer(404, _s3_error("NoSuchKey"))
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


if __name__ == "__main__":
    running = StandIn(Path(sys.argv[1]))
    print(running.server_address[1], flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        running.serve_forever(poll_interval=0.05)
