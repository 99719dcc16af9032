"""Runs that are cut short: servers that fail now and then or for good, kills, a full disk, another cluster."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ingest_world as world
import numpy as np
import pytest

from cryosentinel.data.chips import Chip
from cryosentinel.errors import HubError, InputError
from cryosentinel.ingest import group, ingest, pipeline, reading, staging
from cryosentinel.ingest.grid import centres

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
SMALL = replace(world.FAST, group=1)  # a group a chip


@pytest.fixture
def running(tmp_path):
    with world.service(tmp_path / "service") as service:
        yield service


@pytest.fixture
def run(running, tmp_path):
    lakes = world.inventory(tmp_path / "lakes.geojson")

    def start(settings=SMALL, **options):
        options = {"progress": False, "workers": 1, **options}
        where = running.stac, tmp_path / "out", lakes, world.box(3)
        return ingest(world.REGION, world.YEAR, *where, settings=settings, **options)

    return start


@pytest.mark.parametrize("status", [503, 0])
def test_a_server_that_fails_or_hangs_up_now_and_then_is_waited_for(run, running, tmp_path, status, monkeypatch):
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.05)
    running.fail("/" if status else ".tif", status, every=3)
    result = run(replace(SMALL, retries=5))
    assert result.chips == 4 and not result.broken
    assert running.heal() > 10
    world.assert_equal(world.chips_of(tmp_path / "out"))


def test_a_server_that_stays_down_costs_only_its_groups_and_they_are_made_up_for(run, running, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.01)
    running.fail("B12.tif", 500)
    with pytest.raises(HubError, match="4 of 4 groups of chips could not be read"):
        run(replace(SMALL, retries=0))
    assert not world.chips_of(tmp_path / "out")
    running.heal()
    assert run(replace(SMALL, retries=1)).chips == 4  # other retries go on where the first ones gave up
    world.assert_equal(world.chips_of(tmp_path / "out"))


def test_a_search_that_fails_now_and_then_is_repeated(run, running):
    running.fail("/search", 502, every=2)
    assert run(replace(SMALL, retries=3)).chips == 4


def test_failed_groups_may_be_left_out_when_asked_to(run, running, monkeypatch):
    def some(task):
        if task.group.number == 2:
            return group.Result(failure="The server is down.")
        return group.build_group(task)

    monkeypatch.setattr(pipeline, "build_group", some)
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
    assert sorted(done) == [0, 1, 2, 3]  # each group once
    assert result.chips == 4
    world.assert_equal(world.chips_of(tmp_path / "out"))

    # The same bytes as a run in one go, and a finished run asks for nothing more.
    shard = tmp_path / "out" / world.REGION / "2023" / "shard_000.parquet"
    first = shard.read_bytes()
    running.clear()
    running.clear()
    assert run().index.equals(result.index)
    assert running.count()[0] == running.count()[0] == 0
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
    running.clear()
    assert run().chips == 4
    assert running.count()[0] == 0


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
    parts = list((tmp_path / "out" / ".ingest").rglob("group_*"))
    assert len(parts) == 2  # one group, whole
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


def dies_once(task, folder):
    """What a worker does: the first group of all ends with its process killed."""
    (folder / f"{task.group.number}-{os.getpid()}").touch()
    try:
        (folder / "killed").touch(exist_ok=False)
    except FileExistsError:
        return group.build_group(task)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dask_worker_that_is_killed_costs_nothing(run, tmp_path, monkeypatch):
    """A cluster of separate processes: another worker takes the group of the one that died."""
    from distributed import LocalCluster

    assert run(scheduler="local").chips == 4  # processes of this machine
    (tmp_path / "out").rename(tmp_path / "first")
    (tmp_path / "seen").mkdir()
    monkeypatch.setattr(pipeline, "build_group", functools.partial(dies_once, folder=tmp_path / "seen"))
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        assert run(scheduler=cluster.scheduler_address).chips == 4
    world.assert_equal(world.chips_of(tmp_path / "out"))
    seen = [path.name.split("-") for path in (tmp_path / "seen").glob("*-*")]
    assert {number for number, _ in seen} == {"0", "1", "2", "3"} and len({pid for _, pid in seen}) > 1
    assert len(seen) == 5  # the killed one twice, and no other


def test_a_cluster_that_gives_up_is_one_sentence(monkeypatch):
    from distributed.scheduler import KilledWorker

    class Lost:
        def result(self):
            raise KilledWorker("task", None, 3)

    with pytest.raises(HubError, match=r"tcp://somewhere gave a group of chips up.*run the same command"):
        pipeline._outcome(Lost(), "tcp://somewhere")


def test_an_unreachable_scheduler_is_one_sentence(run, monkeypatch):
    monkeypatch.setattr("cryosentinel.dask_client.CONNECT_S", 0.2)
    with pytest.raises(HubError, match=r"scheduler tcp://127\.0\.0\.1:9 cannot be reached"):
        run(scheduler="tcp://127.0.0.1:9")


KILLED_AFTER = """
import os, signal, sys
import ingest_world as world
import test_ingest_resume as here
from cryosentinel.ingest import pipeline, staging
put, done = staging.Staging.put, []
def kill(self, number, result):
    put(self, number, result)
    done.append(number)
    if len(done) == 60:
        os.kill(os.getpid(), signal.SIGKILL)
staging.Staging.put = kill
pipeline.build_group = here.invented
here.hundred(*sys.argv[1:])
"""


def invented(task):
    """A group whose chips cost nothing: what is tested is which groups are built, not what from."""
    draw = np.random.default_rng(task.group.number)
    result = group.Result()
    for cell in task.group.cells:
        lat, lon = (float(v[0]) for v in centres(cell.epsg, np.array([cell.i]), np.array([cell.j])))
        name = cell.chip_id(task.region, task.year)
        result.chips.append(Chip(
            s2=draw.integers(1, 9000, (12, 16, 16)).astype(np.uint16), mask=np.zeros((16, 16), np.uint8),
            s1=draw.normal(-12, 3, (2, 16, 16)).astype(np.float32), dem=np.full((1, 16, 16), 9, np.int16) + cell.i % 5,
            chip_id=name, region=task.region, snapshot_year=task.year, lat=lat, lon=lon,
        ))  # fmt: skip
        product = {"s1_product": "RTC", "s1_backscatter": "gamma0"}
        result.rows.append({"chip_id": name, "status": "kept", "lat": lat, "lon": lon, "water_frac": 0.0, **product})
    return result


def hundred(stac, out):
    settings = world.Settings(group=1, retries=1)
    return ingest("square", world.YEAR, stac, out, bbox=world.box(11), settings=settings, workers=1, progress=False)


def test_a_hundred_groups_go_on_after_kill_9_and_a_finished_one_is_not_built_again(tmp_path, monkeypatch):
    side, out = 11 * 112, tmp_path / "out"
    with world.serve(tmp_path / "files") as running:
        thin = {"s2": np.full((12, side, side), 800, np.uint16)}
        running.hold(world.s2_item(running, **thin), world.s1_item(running, s1=np.full((2, side, side), -12.0)))
        running.hold(world.dem_item(running, dem=np.full((1, side, side), 9)))
        command = [sys.executable, "-W", "ignore", "-c", KILLED_AFTER, running.stac, str(out)]
        ended = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
        assert ended.returncode == -9, ended.stderr[-2000:]
        finished = {int(path.stem[-5:]) for path in (out / ".ingest").rglob("group_*.json")}
        assert len(finished) == 60
        built = []
        monkeypatch.setattr(pipeline, "build_group", lambda task: built.append(task.group.number) or invented(task))
        result = hundred(running.stac, out)
    assert sorted([*finished, *built]) == list(range(100))  # each once
    assert result.chips == 100
