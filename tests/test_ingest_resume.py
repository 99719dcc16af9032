"""Runs that are cut short: servers that fail now and then or for good, kills, a full disk, another cluster."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ingest_world as world
import pytest

from cryosentinel.errors import HubError, InputError
from cryosentinel.ingest import ingest, pipeline, reading, staging, window

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
SMALL = replace(world.FAST, window=1)  # a window a chip


@pytest.fixture
def running(tmp_path):
    # A service of its own for each test: GDAL remembers what it read from an address.
    with world.service(tmp_path / "service") as service:
        yield service


@pytest.fixture
def run(running, tmp_path):
    lakes = world.inventory(tmp_path / "lakes.geojson")

    def start(settings=SMALL, **options):
        options = {"progress": False, "workers": 1, **options}
        where = running.api.url, tmp_path / "out", world.box(3)
        return ingest(world.REGION, world.YEAR, lakes, *where, settings=settings, **options)

    return start


@pytest.mark.parametrize("status", [503, 0])
def test_a_server_that_fails_or_hangs_up_now_and_then_is_waited_for(run, running, tmp_path, status, monkeypatch):
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.05)
    running.files.fail("/", status, every=5)
    running.api.fail("/search", 502, every=2)
    result = run(replace(SMALL, retries=5))
    assert result.chips == 4 and not result.broken
    assert len(running.files.log()) > 4 * 15  # it did fail
    world.assert_equal(world.chips_of(tmp_path / "out"))


def test_a_server_that_stays_down_costs_only_its_windows_and_they_are_made_up_for(run, running, tmp_path):
    running.files.fail("B12.tif", 500)
    with pytest.raises(HubError, match="4 of 4 windows could not be read"):
        run(replace(SMALL, retries=0))
    assert not world.chips_of(tmp_path / "out")
    running.files.heal()
    assert run(replace(SMALL, retries=0)).chips == 4
    world.assert_equal(world.chips_of(tmp_path / "out"))


def test_failed_windows_may_be_left_out_when_asked_to(run, running, monkeypatch):
    def some(task):
        if task.window.number == 2:
            return window.Result(failure="The server is down.")
        return window.build_window(task)

    monkeypatch.setattr(pipeline, "build_window", some)
    result = run(allow_failed=True)
    assert sorted(result.index["status"]) == ["kept", "kept", "kept", "server_down"]


class Killed(BaseException):
    """What ends a run at any moment."""


def test_a_killed_run_goes_on_where_it_stopped(run, running, monkeypatch, tmp_path):
    put, done = staging.Staging.put, []

    def kill(self, number, result):
        if len(done) == 2:
            raise Killed
        put(self, number, result)
        done.append(number)

    monkeypatch.setattr(staging.Staging, "put", kill)
    with pytest.raises(Killed):
        run()
    monkeypatch.setattr(
        staging.Staging, "put", lambda self, number, result: (put(self, number, result), done.append(number))
    )
    result = run()
    assert sorted(done) == [0, 1, 2, 3]  # each window once
    assert result.chips == 4
    world.assert_equal(world.chips_of(tmp_path / "out"))

    # The same bytes as a run in one go, and a finished run asks for nothing more.
    shard = tmp_path / "out" / world.REGION / "2023" / "shard_000.parquet"
    first = shard.read_bytes()
    running.files.clear()
    running.api.clear()
    assert run().index.equals(result.index)
    assert running.files.count()[0] == running.api.count()[0] == 0
    (tmp_path / "out").rename(tmp_path / "before")
    run(workers=3)
    assert shard.read_bytes() == first


def test_a_kill_while_shards_are_put_together_costs_nothing(run, running, monkeypatch, tmp_path):
    def kill(*_):
        raise Killed

    monkeypatch.setattr(pipeline, "write_statistics", kill)
    with pytest.raises(Killed):
        run()
    monkeypatch.undo()
    running.files.clear()
    assert run().chips == 4
    assert running.files.count()[0] == 0


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(run, monkeypatch, tmp_path):
    write, count = staging.write_shard, []

    def full(path, chips):
        if len(count) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        count.append(path)
        write(path, chips)

    monkeypatch.setattr(staging, "write_shard", full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space"):
        run()
    monkeypatch.undo()
    parts = list((tmp_path / "out" / ".ingest").rglob("window_*"))
    assert len(parts) == 2  # one window, whole
    assert run().chips == 4
    world.assert_equal(world.chips_of(tmp_path / "out"))


def test_other_settings_do_not_mix(run):
    run()
    with pytest.raises(InputError, match="another output folder"):
        run(replace(SMALL, speckle=5))


def test_shards_of_another_origin_are_left_alone(run, tmp_path):
    folder = tmp_path / "out" / world.REGION / "2023"
    folder.mkdir(parents=True)
    (folder / "shard_000.parquet").write_bytes(b"precious")
    with pytest.raises(InputError, match="another origin"):
        run()
    assert (folder / "shard_000.parquet").read_bytes() == b"precious"


def test_a_dask_cluster_builds_the_same_chips(run, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        assert run(scheduler=cluster.scheduler_address).chips == 4
    world.assert_equal(world.chips_of(tmp_path / "out"))


def test_an_unreachable_scheduler_is_one_sentence(run, monkeypatch):
    monkeypatch.setattr(pipeline, "CONNECT_S", 0.2)
    with pytest.raises(HubError, match=r"scheduler tcp://127\.0\.0\.1:9 cannot be reached"):
        run(scheduler="tcp://127.0.0.1:9")


KILLED_AFTER_TWO = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from pathlib import Path
import ingest_world as world
from cryosentinel.ingest import ingest, staging
put, done = staging.Staging.put, []
def kill(self, number, result):
    put(self, number, result)
    done.append(number)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
staging.Staging.put = kill
url, folder = sys.argv[1], Path(sys.argv[2])
where = folder / "lakes.geojson", url, folder / "out", world.box(3)
ingest(world.REGION, world.YEAR, *where, settings=replace(world.FAST, window=1), workers=1)
"""


@pytest.mark.slow
def test_a_run_that_the_system_kills_goes_on(run, running, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", KILLED_AFTER_TWO, running.api.url, str(tmp_path)]
    ended = subprocess.run(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, timeout=120)
    assert ended.returncode == -9
    assert len(list((tmp_path / "out" / ".ingest").rglob("window_*.json"))) == 2
    running.files.clear()
    assert run().chips == 4
    reads = [path for _, path, _ in running.files.log() if path.endswith("SCL.tif")]
    assert reads  # the other two windows
    world.assert_equal(world.chips_of(tmp_path / "out"))
