"""The hub's client against a server on this machine that speaks the hub's protocol, and dies when it is told to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chip_factory import write_dataset

from cryosentinel.data.dataset import ChipStore
from cryosentinel.errors import HubError
from cryosentinel.hub import HubUri, download_dataset, download_file, parse_hub_uri

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
PORTION = 1 << 14


def git_name(data: bytes) -> str:
    """What git, and so the hub, calls a small file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Repositories of ``server.repos``: "models/owner/name" or "datasets/owner/name" -> path -> bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.serve()

    def do_GET(self) -> None:
        self.serve()

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if self.server.ill:
            return self.answer(503)
        api = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            repo, what, revision = api.groups()
        elif file:
            repo, what, revision = f"{'datasets' if file[1] else 'models'}/{file[2]}", "file", file[3]
        else:
            return self.answer(404)
        if repo not in self.server.repos:
            return self.answer(404, X_Error_Code="RepoNotFound")
        commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = self.server.repos[repo]
        if what == "revision":
            body = json.dumps({"id": repo.split("/", 1)[1], "sha": commit, "siblings": []}).encode()
            return self.answer(200, body, Content_Type="application/json")
        if what == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": git_name(data)} for name, data in files.items()
            ]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        return self.send_file(files.get(file[4]), commit)

    def send_file(self, data: bytes | None, commit: str) -> None:
        if data is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
        headers = {"ETag": f'"{self.server.tag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return self.answer(200, data if not start else b"", **headers)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(206 if start else 200)
        for name, value in {"Content-Length": len(data) - start, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        for at in range(start, len(data), PORTION):
            if self.server.allowance is not None:
                self.server.allowance -= PORTION
                if self.server.allowance < 0:
                    self.server.dead = True
            if self.server.dead:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return None
            self.wfile.write(data[at : at + PORTION])
        return None

    def handle_one_request(self) -> None:
        if self.server.dead:
            self.close_connection = True
            return
        try:
            super().handle_one_request()
        except (OSError, ValueError):  # the connection was closed under its feet
            self.close_connection = True


@contextmanager
def hub(repos: dict[str, dict[str, bytes]], port: int = 0):
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.repos, server.requests, server.allowance, server.dead = repos, [], None, False
    server.tag, server.ill = git_name, False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """No proxy, no token, small portions, and no waiting between the client's own attempts: how long they would be."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", PORTION)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    waited: list[float] = []
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", waited.append)
    return waited


def point_to(server, monkeypatch) -> str:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    return url


def test_addresses_are_read_or_refused():
    assert parse_hub_uri("hf://a/b/c/soup.ckpt") == HubUri("a/b", "c/soup.ckpt")
    assert parse_hub_uri("hf://a/b/soup.ckpt@v1") == HubUri("a/b", "soup.ckpt", "v1")
    assert parse_hub_uri("hf://a/b/soup.ckpt@refs/pr/3").revision == "refs/pr/3"
    assert parse_hub_uri("hf://datasets/a/b/x.json") == HubUri("a/b", "x.json", None, "dataset")
    for wrong in ("soup.ckpt", "hf://a/b", "hf://a/b/", "hf://a//c", "hf://a/b/../c", "hf://a/b/c@", "hf://a b/c/d"):
        with pytest.raises(HubError, match="hf://owner/repo"):
            parse_hub_uri(wrong)


def test_a_file_is_fetched_once_and_found_again_without_the_hub(tmp_path, monkeypatch, waits):
    data = bytes(range(256)) * 500
    with hub({"models/a/b": {"ckpt/soup.ckpt": data}}) as server:
        point_to(server, monkeypatch)
        path = download_file("hf://a/b/ckpt/soup.ckpt@v1", cache_dir=tmp_path)
        assert path.read_bytes() == data
        assert download_file("hf://a/b/ckpt/soup.ckpt@v1", cache_dir=tmp_path) == path
        assert [command for command, _, _ in server.requests].count("GET") == 1
        server.ill = True  # a hub that answers, but only with an error
        assert download_file("hf://a/b/ckpt/soup.ckpt@v1", cache_dir=tmp_path) == path
        with pytest.raises(HubError, match=r"hf://a/b/other\.ckpt"):
            download_file("hf://a/b/other.ckpt", cache_dir=tmp_path)
        asked = len(server.requests)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert download_file("hf://a/b/ckpt/soup.ckpt@v1", cache_dir=tmp_path) == path
        assert len(server.requests) == asked
        with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
            download_file("hf://a/b/other.ckpt", cache_dir=tmp_path)
        monkeypatch.delenv("HF_HUB_OFFLINE")
    waits.clear()  # the hub is gone
    assert download_file("hf://a/b/ckpt/soup.ckpt@v1", cache_dir=tmp_path) == path
    with pytest.raises(HubError, match="cannot be reached"):
        download_file("hf://a/b/other.ckpt", cache_dir=tmp_path)
    assert not waits


def test_what_the_hub_does_not_hold_is_named(tmp_path, monkeypatch):
    with hub({"models/a/b": {"soup.ckpt": b"x"}, "datasets/a/d": {"README.md": b"x"}}) as server:
        point_to(server, monkeypatch)
        for uri, says in (
            ("hf://a/none/soup.ckpt", "repository .*hf://a/none/soup.ckpt"),
            ("hf://a/b/none.ckpt", "file .*hf://a/b/none.ckpt"),
            ("hf://a/b/soup.ckpt@v9", "revision .*hf://a/b/soup.ckpt@v9"),
        ):
            with pytest.raises(HubError, match=says) as caught:
                download_file(uri, cache_dir=tmp_path)
            assert "\n" not in str(caught.value)
        with pytest.raises(HubError, match=r"a/d .*shards"):
            download_dataset("a/d", cache_dir=tmp_path)
        with pytest.raises(HubError, match=r"repository .*a/none"):
            download_dataset("a/none", cache_dir=tmp_path)
        with pytest.raises(HubError, match="'none'"):
            download_dataset("none", cache_dir=tmp_path)


def test_a_hub_that_dies_half_way_is_one_sentence_and_the_next_call_resumes(tmp_path, monkeypatch):
    data = bytes(range(251)) * 4000  # about 1 MB
    repos = {"models/a/b": {"soup.ckpt": data}}
    with hub(repos) as server:
        point_to(server, monkeypatch)
        port = server.server_address[1]
        server.allowance = len(data) // 2
        with pytest.raises(HubError, match=r"hf://a/b/soup.ckpt") as caught:
            download_file("hf://a/b/soup.ckpt", cache_dir=tmp_path)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("snapshots/*/soup.ckpt"))  # nothing half-written is ever served
    with hub(repos, port) as server:
        point_to(server, monkeypatch)
        assert download_file("hf://a/b/soup.ckpt", cache_dir=tmp_path).read_bytes() == data
        ranges = [asked for command, _, asked in server.requests if command == "GET"]
        assert len(ranges) == 1 and int(re.match(r"bytes=(\d+)-", ranges[0])[1]) > len(data) // 4


def test_a_damaged_file_is_thrown_away(tmp_path, monkeypatch):
    with hub({"models/a/b": {"soup.ckpt": b"good" * 100}}) as server:
        point_to(server, monkeypatch)
        server.tag = lambda data: hashlib.sha256(b"something else").hexdigest()  # of a large file
        with pytest.raises(HubError, match=r"soup\.ckpt .*damaged"):
            download_file("hf://a/b/soup.ckpt", cache_dir=tmp_path)
        assert not [path for path in tmp_path.rglob("*.partial") if path.is_file()]
        server.tag = lambda data: hashlib.sha256(data).hexdigest()
        assert download_file("hf://a/b/soup.ckpt", cache_dir=tmp_path).read_bytes() == b"good" * 100


@pytest.fixture
def published(tmp_path) -> dict[str, dict[str, bytes]]:
    """A dataset of two regions and two years as the hub would hold it, with a file that nobody asks for."""
    root = tmp_path / "published"
    write_dataset(root, shards=2, chips=3, size=16)
    for region in ("ile_alatau", "tien_shan_full"):
        target = root / region / "2022" / "shard_000.parquet"
        target.parent.mkdir()
        target.write_bytes((root / region / "2021" / "shard_000.parquet").read_bytes())
    (root / "dataset_stats_v3.json").write_text("{}")
    (root / "README.md").write_text("# Chips")
    (root / "extra.bin").write_bytes(b"0" * 1000)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {"datasets/a/chips": files}


def test_a_dataset_is_fetched_by_region_and_year_and_read_by_the_store(tmp_path, monkeypatch, published, waits):
    with hub(published) as server:
        point_to(server, monkeypatch)
        root = download_dataset(
            "a/chips", revision="v1", regions=["ile_alatau"], years=[2021], local_dir=tmp_path / "chips",
            cache_dir=tmp_path / "hub",
        )  # fmt: skip
        got = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and ".cache" not in p.parts)
        assert got == ["README.md", "dataset_stats_v3.json", "ile_alatau/2021/shard_000.parquet"]
        assert root == tmp_path / "chips" and len(ChipStore(root)) == 3
        assert all("resolve/" + COMMITS["v1"] in path for _, path, _ in server.requests if "resolve" in path)
        whole = download_dataset("a/chips", cache_dir=tmp_path / "hub")
        assert len(ChipStore(whole, tmp_path / "converted")) == 12
        with pytest.raises(HubError, match="region pamir"):
            download_dataset("a/chips", regions=["pamir", "ile_alatau"], cache_dir=tmp_path / "hub")
        with pytest.raises(HubError, match="year 1999"):
            download_dataset("a/chips", years=[1999], cache_dir=tmp_path / "hub")
    waits.clear()  # without the hub
    assert download_dataset("a/chips", cache_dir=tmp_path / "hub") == whole
    assert not waits
    with pytest.raises(HubError, match="cannot be reached"):
        download_dataset("a/other", cache_dir=tmp_path / "hub")
    assert download_dataset(str(whole)) == whole  # a local folder instead
    with pytest.raises(HubError, match="nowhere"):
        download_dataset("./nowhere")


def test_a_dataset_goes_on_where_its_hub_died(tmp_path, monkeypatch, published):
    total = sum(map(len, published["datasets/a/chips"].values()))
    options = {"local_dir": tmp_path / "chips", "cache_dir": tmp_path / "hub"}
    with hub(published) as server:
        point_to(server, monkeypatch)
        port = server.server_address[1]
        server.allowance = 5 * PORTION
        with pytest.raises(HubError, match=r"a/chips"):
            download_dataset("a/chips", **options)
    with pytest.raises(HubError, match=r"a/chips .*cache"):
        download_dataset("a/chips", **options)  # still away: half a dataset is not passed off as a whole one
    with hub(published, port) as server:
        root = download_dataset("a/chips", **options)
        for name, data in published["datasets/a/chips"].items():
            if name != "extra.bin":
                assert (root / name).read_bytes() == data
        fetched = [path for command, path, _ in server.requests if command == "GET" and "resolve" in path]
        assert 0 < len(fetched) < len(published["datasets/a/chips"]) - 1 and total > 5 * PORTION
    assert isinstance(root, Path) and len(ChipStore(root)) == 12


def test_the_command_fetches_what_it_is_asked_for(tmp_path, monkeypatch, capsys, published):
    from cryosentinel.cli import main

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with hub(published) as server:
        point_to(server, monkeypatch)
        words = ["download", str(tmp_path / "chips"), "--repo", "a/chips", "--revision", "v1"]
        assert main([*words, "--regions", "[tien_shan_full]", "--years", "[2022]"]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "chips")
        assert all("resolve/" + COMMITS["v1"] in path for _, path, _ in server.requests if "resolve" in path)
        assert main([*words, "--regions", "[atlantis]"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("cryosentinel: error: ") and "atlantis" in said
    shards = {path.relative_to(tmp_path / "chips").as_posix() for path in (tmp_path / "chips").glob("*/*/*.parquet")}
    assert shards == {"tien_shan_full/2022/shard_000.parquet"}
    assert len(ChipStore(tmp_path / "chips")) == 3
