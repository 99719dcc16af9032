"""A file server with byte ranges, or a relay to another server, that counts requests and fails when told to.

Run as a program of its own, ``python loopback_server.py FOLDER [PORT TO RELAY TO]``: GDAL may hold the interpreter's
lock while it waits for an answer, so the answer must come from another process. Only the standard library is imported.
It prints its port. ``GET /.control/log`` gives and ``POST /.control/clear`` empties the list of requests, ``POST
/.control/faults`` sets failures: a list of {"match": part of the path, "status": code (0: hang up half-way), "every":
each n-th request that matches, "times": how often at most}.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTROL = "/.control/"


class Server(ThreadingHTTPServer):
    """The server and what it remembers."""

    daemon_threads = True

    def __init__(self, root: Path, forward: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.forward = root.resolve(), forward
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str, int]] = []
        self.faults: list[dict[str, Any]] = []

    def fault(self, path: str) -> int | None:
        """The status to fail a request with, or None to serve it."""
        with self.lock:
            for rule in self.faults:
                if rule["match"] in path:
                    rule["seen"] = rule.get("seen", 0) + 1
                    if rule["times"] > 0 and rule["seen"] % rule["every"] == 0:
                        rule["times"] -= 1
                        return int(rule["status"])
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""


class Handler(BaseHTTPRequestHandler):
    """Answers requests for files, whole or in ranges of bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, size: int = -1) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size < 0 else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        self.wfile.flush()
        if not self.path.startswith(CONTROL):
            with self.server.lock:
                self.server.requests.append((self.command, self.path, len(body) if self.command != "HEAD" else 0))

    def _serve(self) -> None:
        self.cut = False
        length = int(self.headers.get("Content-Length") or 0)
        posted = self.rfile.read(length)
        if self.path.startswith(CONTROL):
            self._control(posted)
        elif (status := self.server.fault(self.path)) is not None and status > 0:
            self._answer(status)
        elif self.server.forward:
            self._pass_on(posted)
        else:
            self.cut = self.close_connection = status == 0
            self._file()

    do_GET = do_HEAD = do_POST = _serve

    def _control(self, posted: bytes) -> None:
        with self.server.lock:
            body = json.dumps(self.server.requests).encode()
            if self.path.endswith("clear"):
                self.server.requests.clear()
            if self.path.endswith("faults"):
                self.server.faults = json.loads(posted)
        self._answer(200, body, {"Content-Type": "application/json"})

    def _pass_on(self, posted: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.forward, timeout=60)
        sent = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        connection.request(self.command, self.path, posted or None, sent)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self._answer(answer.status, body, {"Content-Type": answer.headers.get("Content-Type", "application/json")})

    def _file(self) -> None:
        root = self.server.root
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


if __name__ == "__main__":
    running = Server(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(running.server_address[1], flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        running.serve_forever(poll_interval=0.05)
