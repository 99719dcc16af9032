"""Files from the hub: a checkpoint by its address, a dataset by region and year.

Downloads resume: a file where it broke off, a dataset file by file. What was fetched before is served from the cache
when the hub cannot be reached or ``HF_HUB_OFFLINE`` is set. ``HF_ENDPOINT`` names another hub (read at each call),
``HF_TOKEN`` opens private ones. Nothing here runs or unpickles what it fetches.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryosentinel.errors import HubError
from cryosentinel.paths import SHARDS

DATASET = "abzal-glw/cryosentinel-glof-v3"
ENDPOINT = "https://huggingface.co"
CONNECT_SECONDS = 5.0
SCHEME = "hf://"
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class HubUri:
    """Where a file lies on the hub.

    Attributes:
        repo_id: ``owner/repo``.
        path: of the file in the repository.
        revision: branch, tag or commit; None for the main branch.
        repo_type: "model" or "dataset".
    """

    repo_id: str
    path: str
    revision: str | None = None
    repo_type: str = "model"


def parse_hub_uri(uri: str) -> HubUri:
    """Read ``hf://owner/repo/path/to/file[@revision]``; ``hf://datasets/owner/...`` for a dataset.

    Raises:
        HubError: it is not of this form, or its path leaves the repository.
    """
    form = f"{uri!r} is not an address of the form hf://owner/repo/path/to/file@revision; the revision may be left out."
    if not uri.startswith(SCHEME):
        raise HubError(form)
    address, _, revision = uri.removeprefix(SCHEME).partition("@")
    parts = address.split("/")
    repo_type = "model"
    if parts[0] in ("datasets", "models"):
        repo_type = parts.pop(0).removesuffix("s")
    names_fit = len(parts) >= 3 and all(_NAME.fullmatch(part) for part in parts[:2])
    if not names_fit or any(part in ("", ".", "..") for part in parts) or ("@" in uri and not revision):
        raise HubError(form)
    return HubUri("/".join(parts[:2]), "/".join(parts[2:]), revision or None, repo_type)


def download_file(uri: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Fetch a file of the hub into the cache, or find it there. A download that broke off goes on where it stopped.

    Args:
        uri: see :func:`parse_hub_uri`.
        cache_dir: of the downloads; the hub's own by default.

    Returns:
        Path of the local copy.

    Raises:
        HubError: the address is wrong, the file does not exist, or the hub cannot be reached and the file is not in
            the cache.
    """
    where = parse_hub_uri(uri)

    def fetch(local_only: bool) -> str:
        from huggingface_hub import hf_hub_download

        if not local_only:
            _fetch_blob(where, cache_dir)
        return hf_hub_download(
            where.repo_id,
            where.path,
            repo_type=where.repo_type,
            revision=where.revision,
            cache_dir=cache_dir if cache_dir is None else Path(cache_dir),
            endpoint=_endpoint(),
            local_files_only=local_only,
        )

    return Path(_ask(fetch, uri))


def _fetch_blob(where: HubUri, cache_dir: str | os.PathLike[str] | None) -> None:
    """Bring a file's content into the hub's cache, continuing a partial one of an earlier call.

    The client resumes within a call, but throws a partial file away when the call ends in an error: a checkpoint of
    gigabytes would begin again each time. It takes a blob that is already there as it is, so the blob is checked
    against its digest here.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(
        where.repo_id, where.path, repo_type=where.repo_type, revision=where.revision, endpoint=_endpoint()
    )
    try:
        about = get_hf_file_metadata(url)
    except Exception:
        return  # the client asks again, and knows what is in the cache and what to say
    folder = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(
        repo_id=where.repo_id, repo_type=where.repo_type
    )
    if not about.etag or not about.size or getattr(about, "xet_file_data", None) is not None:
        return  # nothing to check against; or stored in chunks, which the client's own store resumes
    blob = folder / "blobs" / about.etag
    partial = blob.with_name(f"{about.etag}.partial")
    same_host = urlsplit(about.location).netloc == urlsplit(url).netloc
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(blob.with_name(f"{about.etag}.partial.lock")):
        if blob.exists():
            return
        with open(partial, "ab") as handle:
            # The token is the hub's, not that of the store that a large file may be redirected to.
            headers = build_hf_headers() if same_host else None
            http_get(
                about.location, handle, resume_size=handle.tell(), headers=headers, expected_size=about.size,
                displayed_filename=where.path,
            )  # fmt: skip
        if not _digest_fits(partial, about.etag):
            partial.unlink()
            raise HubError(f"{where.repo_id}/{where.path} came damaged (its digest differs); fetch it again.")
        os.replace(partial, blob)


def _digest_fits(path: Path, etag: str) -> bool:
    """Compare a file with its tag on the hub: a large file's SHA-256, or the name that git gives a small one."""
    digest: Any
    if len(etag) == 64:
        digest = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return True  # another kind of tag, which says nothing about the content
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest() == etag


def download_dataset(
    repo_id: str = DATASET,
    revision: str | None = None,
    regions: Sequence[str] | None = None,
    years: Sequence[int] | None = None,
    local_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Fetch a dataset's shards by region and year, with its statistics and its card.

    Args:
        repo_id: ``owner/repo`` on the hub; or a local folder given by an absolute path or one that begins with ``./``
            or ``~``, which is returned after the same check.
        revision: branch, tag or commit; pin a commit to read the same data again.
        regions, years: fetch only these; None for all.
        local_dir: folder that receives ``<region>/<year>/shard_NNN.parquet``; by default they stay in the hub's cache,
            in a folder of the same form.
        cache_dir: of the downloads; the hub's own by default.

    Returns:
        The dataset's folder, ready for :class:`cryosentinel.data.dataset.ChipStore`.

    Raises:
        HubError: the dataset, revision, a region or a year does not exist, or the hub cannot be reached and not all of
            it is there already. What was fetched stays, and the next call goes on from there.
    """
    if repo_id.startswith(("/", "./", "../", "~")):
        folder = Path(repo_id).expanduser()
        if not folder.is_dir():
            raise HubError(f"There is no dataset folder {folder}; check the path.")
    else:
        if not re.fullmatch(rf"{_NAME.pattern}/{_NAME.pattern}", repo_id):
            raise HubError(f"{repo_id!r} does not name a dataset of the hub; give owner/name, or the path of a folder.")
        shards = [
            f"{r}/{y}/shard_*.parquet" for r in regions or ["*"] for y in [str(year) for year in years or ()] or ["*"]
        ]

        def fetch(local_only: bool) -> str:
            from huggingface_hub import snapshot_download

            return snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=revision,
                allow_patterns=[*shards, "dataset_stats*.json", "README.md"],
                local_dir=local_dir if local_dir is None else Path(local_dir),
                cache_dir=cache_dir if cache_dir is None else Path(cache_dir),
                endpoint=_endpoint(),
                local_files_only=local_only,
            )

        folder = Path(_ask(fetch, f"{repo_id}{f'@{revision}' if revision else ''}"))
    _check_folders(folder, repo_id, regions, years)
    return folder


#: What of a run folder goes to the hub: its card, checkpoints, diagnostics and configuration, in the published layout.
PUSHED = ("README.md", "checkpoints/soup.ckpt", "diagnostics/*.parquet", "diagnostics/*.json", "logs/config.yaml",
          "logs/metrics.csv")  # fmt: skip


def push_run(run: str | os.PathLike[str], repo_id: str, dry_run: bool = True, private: bool = True) -> dict[str, int]:
    """Put a run on the hub, or only say what would go there.

    Args:
        run: its folder, with a card (:func:`cryosentinel.study.model_card.write_model_card`).
        repo_id: ``owner/repo`` of the model; made if it is not there.
        dry_run: ask nobody and send nothing.
        private: of a repository that is made.

    Returns:
        Path in the repository, ``<run>/...`` but for the card -> bytes.

    Raises:
        HubError: the name is wrong, the run lacks its card or soup, or the hub does not take it.
    """
    folder = Path(run)
    if not re.fullmatch(rf"{_NAME.pattern}/{_NAME.pattern}", repo_id):
        raise HubError(f"{repo_id!r} does not name a model of the hub; give owner/name.")
    found = {path for pattern in PUSHED for path in folder.glob(pattern)}
    if missing := [name for name in PUSHED[:2] if folder / name not in found]:
        raise HubError(f"{folder} holds no {' and no '.join(missing)}; make the soup and write the card first.")
    names = {path: path.relative_to(folder).as_posix() for path in sorted(found)}
    there = {path: name if name == "README.md" else f"{folder.name}/{name}" for path, name in names.items()}
    if not dry_run:

        def send(local_only: bool) -> None:
            from huggingface_hub import CommitOperationAdd, HfApi

            if local_only:
                raise HubError(f"{_endpoint()} cannot be reached, or HF_HUB_OFFLINE is set; nothing was sent.")
            api = HfApi(endpoint=_endpoint())
            api.create_repo(repo_id, private=private, exist_ok=True)
            parts = [CommitOperationAdd(name, str(path)) for path, name in there.items()]
            api.create_commit(repo_id, parts, commit_message=f"Run {folder.name}")

        _ask(send, repo_id, "Sending")
    return {name: path.stat().st_size for path, name in there.items()}


def _check_folders(folder: Path, name: str, regions: Sequence[str] | None, years: Sequence[int] | None) -> None:
    """Every region and year that was asked for must have come."""
    held = {(path.parts[-3], path.parts[-2]) for path in folder.glob(SHARDS)}
    wanted = [
        (region, str(year)) for region in regions or {r for r, _ in held} for year in years or {y for _, y in held}
    ]
    found = [pair for pair in wanted if pair in held]
    for asked, position, what in ((regions, 0, "region"), (years, 1, "year")):
        missing = {str(value) for value in asked or ()} - {pair[position] for pair in found}
        if missing:
            raise HubError(f"{name} holds no shards of the {what} {', '.join(sorted(missing))} that was asked for.")
    if not found:
        raise HubError(f"{name} holds no shards at <region>/<year>/shard_NNN.parquet.")


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def _offline() -> bool:
    from huggingface_hub import constants  # which read the variable when they were imported

    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _reachable(endpoint: str) -> bool:
    """Whether anything answers there. The client's own retries would take most of half a minute to say no."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")):
        return True  # the proxy is who would know
    url = urlsplit(endpoint)
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _ask(fetch: Callable[[bool], Any], what: str, doing: str = "Fetching") -> Any:
    """Ask the hub, or its cache when the hub cannot be asked; every failure is one sentence."""
    from huggingface_hub import errors

    endpoint, offline = _endpoint(), _offline()
    asked = not offline and _reachable(endpoint)
    try:
        return fetch(not asked)
    except HubError:
        raise
    except errors.GatedRepoError:
        sentence = f"{what} is gated on {endpoint}; ask for access there and set HF_TOKEN."
    except errors.RepositoryNotFoundError:
        sentence = f"{endpoint} has no repository for {what}, or it is private; check the name, or set HF_TOKEN."
    except errors.RevisionNotFoundError:
        sentence = f"{endpoint} has no such revision of {what}; name a branch, a tag or a commit that exists."
    except errors.LocalEntryNotFoundError as error:  # before its parent, which means that the hub said no
        why = "HF_HUB_OFFLINE is set" if offline else f"{endpoint} cannot be reached or broke off"
        if asked and error.__cause__ is not None:
            why += f" ({_first_line(error.__cause__)})"
        sentence = f"{what} is not in the local cache, or not all of it, and {why}; try again when the hub answers."
    except errors.EntryNotFoundError:
        sentence = f"{endpoint} holds no file at {what}; check the path and the revision."
    except OSError as error:
        sentence = f"{doing} {what} at {endpoint} failed ({_first_line(error)}); call again, what came is kept."
    except Exception as error:
        # The client's network library is not ours to know: whatever it raises, the download did not end.
        sentence = f"{doing} {what} at {endpoint} broke off ({_first_line(error)}); call again, what came is kept."
    raise HubError(sentence) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
