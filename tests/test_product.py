"""From scenes to lakes: every output opens, a second run touches nothing, a cluster gives the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from affine import Affine
from chip_factory import write_dataset
from test_predict import PixelModel, exact, write_scene

from cryosentinel.cli import main
from cryosentinel.errors import CheckpointError, ConfigError, HubError, InputError
from cryosentinel.files import read_json
from cryosentinel.mapping import product
from cryosentinel.mapping.areas import calibrate
from cryosentinel.mapping.cluster import cluster, cluster_maker
from cryosentinel.mapping.gate import Gate
from cryosentinel.mapping.product import chip_scenes, default_weights, map_lakes
from cryosentinel.mapping.scene import Options, predict_scene

OPTIONS = Options(flips=1, gate=Gate(ndwi=0, mndwi=0.2, slope=20, open_ndwi=1, open_vv=-99, min_pixels=5))


def slow_model() -> PixelModel:
    """What a worker opens: a model that takes a while, so that the worker can be killed meanwhile."""

    class Slow(PixelModel):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            time.sleep(0.15)
            return super().forward(batch)

    return Slow().eval()


def model_that_tells_threads() -> PixelModel:
    """Its logits say how many threads of torch made them."""

    class Telling(PixelModel):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            return super().forward(batch) * 0 + torch.get_num_threads()

    return Telling().eval()


def ground(height: int, width: int) -> np.ndarray:
    bands = np.full((15, height, width), 2000, np.float32)
    bands[10:12], bands[12:14] = 3000, -12
    bands[14] = 4000 + np.arange(height)[:, None]
    return bands


@pytest.fixture
def scenes(tmp_path: Path) -> list[Path]:
    """Two scenes side by side with a lake across their border and one more in each."""
    both = ground(230, 1400)
    both[6:12, 100:120, 680:720] = 100
    both[6:12, 40:60, 40:60] = both[6:12, 40:60, 1340:1360] = 100
    return [
        write_scene(tmp_path / f"{name}.tif", both[:, :, at : at + 700],
                    transform=Affine(10, 0, 500_000 + 10 * at, 0, -10, 4_760_000))
        for name, at in (("west", 0), ("east", 700))
    ]  # fmt: skip


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.iterdir())}


def test_a_map_is_whole_and_a_second_run_touches_nothing(tmp_path: Path, ckpt: Path, scenes: list[Path]) -> None:
    glacier = gpd.GeoDataFrame(geometry=gpd.points_from_xy([500_500], [4_770_000]).buffer(2000), crs=32643)
    glacier.to_file(tmp_path / "ice.gpkg")
    out = tmp_path / "out"

    def run() -> product.LakeMap:
        return map_lakes(scenes, out, ckpt, options=OPTIONS, glaciers=tmp_path / "ice.gpkg", progress=False, year=2022)

    result = run()
    lakes = gpd.read_parquet(result.lakes)
    assert lakes.crs.to_epsg() == 32643 and len(lakes) == result.summary["lakes"] == 3
    assert lakes["area_ha"].tolist() == pytest.approx([8.0, 4.0, 4.0], rel=1e-3), "the lake on the border is one"
    assert lakes["lake_id"].is_unique and lakes["lake_id"].str.match(r"G\d{6}E\d{5}N").all()
    assert (lakes["year"] == 2022).all() and (lakes["glacier_m"] > 5000).all()
    assert (lakes["area_low_ha"] < lakes["area_ha"]).all() and (lakes["area_high_ha"] > lakes["area_ha"]).all()
    assert set(lakes["interval"]) == {"outline"}
    package = gpd.read_file(result.folder / "lakes.gpkg", layer="lakes")
    assert package.geometry.area.tolist() == pytest.approx(lakes.geometry.area.tolist())
    assert {name for name, _ in pyogrio.list_layers(result.folder / "lakes.gpkg")} == {"lakes", "windows", "scenes"}
    windows = gpd.read_file(result.folder / "lakes.gpkg", layer="windows")
    assert len(windows) == result.summary["windows"]["gated"] > 0
    covered = gpd.read_file(result.folder / "lakes.gpkg", layer="scenes")
    assert covered.geometry.area.tolist() == pytest.approx([7000 * 2300] * 2) and set(covered["year"]) == {2022}
    page = result.page.read_text()
    assert "hillshade west" in page and "forecasts nothing" in page and "Pictures of" not in page
    assert "<script src" not in page and "8.0" in page and "skipped by the gate" in page
    for scene in scenes:
        assert (out / f"{scene.stem}.png").stat().st_size > 10_000
        with rasterio.open(out / f"{scene.stem}_water.tif") as water:
            assert (water.read(1) == 1).sum() == 800
    before = state(out)
    run()
    assert state(out) == before
    elsewhere = map_lakes(scenes, tmp_path / "other", ckpt, options=OPTIONS, glaciers=tmp_path / "ice.gpkg", year=2022,
                          progress=False)  # fmt: skip
    assert {n: b for n, (_, b) in state(elsewhere.folder).items()} == {n: b for n, (_, b) in before.items()}


def test_intervals_of_a_file_are_used_and_pooled_classes_said(tmp_path: Path, ckpt: Path, scenes: list[Path]) -> None:
    area = np.linspace(0.6, 30, 60)
    calibrate(area, area * np.linspace(0.9, 1.2, 60), "label", "blocks of a test").write(tmp_path / "i.json")
    result = map_lakes(scenes, tmp_path / "o", ckpt, options=OPTIONS, intervals=tmp_path / "i.json", progress=False)
    lakes = gpd.read_parquet(result.lakes)
    assert set(lakes["interval"]) == {"conformal 90% of label"}
    assert ((lakes["area_high_ha"] / lakes["area_ha"]) < 1.25).all()
    assert result.summary["interval"] == "blocks of a test" and result.summary["pooled_size_classes"]


def test_intervals_of_the_packaged_weights_are_taken_where_these_map_as_calibrated(
    tmp_path: Path, ckpt: Path, scenes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    area = np.linspace(0.6, 30, 60)
    (tmp_path / "weights").mkdir()
    calibrate(area, area * 1.1, "label", "the box").write(tmp_path / "weights" / "intervals.json")
    ckpt.rename(tmp_path / "weights" / "box.safetensors")
    monkeypatch.setattr(product.paths, "PACKAGE", tmp_path)

    def sources(**options: object) -> set[str]:
        made = map_lakes(scenes, tmp_path / "o", **({"options": Options()} | options), progress=False)
        return set(gpd.read_parquet(made.lakes)["interval"])

    assert sources() == {"conformal 90% of label"}
    assert sources(options=Options(flips=1)) == {"outline"}
    assert sources(threshold=0.6) == {"outline"} == sources(ckpt=tmp_path / "weights" / "box.safetensors")


def test_lakes_that_overlapping_scenes_show_in_part_keep_their_ground(tmp_path: Path, ckpt: Path) -> None:
    both = ground(224, 336)
    both[6:12, 100:110, 150:336] = 100
    west, east = both[:, :, :224].copy(), both[:, :, 112:]
    west[6:12, 100:110, 200:203], west[10:12, 100:110, 200:203] = 2000, 3000  # a bar that the other one does not show
    pair = [write_scene(tmp_path / f"{n}.tif", b, transform=Affine(10, 0, 500_000 + x, 0, -10, 4_760_000))
            for n, b, x in (("a", west, 0), ("b", east, 1120))]  # fmt: skip
    result = map_lakes(pair, tmp_path / "o", ckpt, options=Options(flips=1), progress=False)
    lakes = gpd.read_parquet(result.lakes)
    assert lakes["area_ha"].tolist() == pytest.approx([18.6], rel=1e-3)
    assert lakes["interval"].tolist() == ["lower bound"] and result.summary["lakes_cut"] == 1
    assert result.summary["area_high_ha"] == pytest.approx(result.summary["area_ha"])


def test_scenes_whose_picture_the_page_lacks_are_said(
    tmp_path: Path, ckpt: Path, scenes: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(product, "_PREVIEWS", 1)
    assert main(["map", *map(str, scenes), "--ckpt", str(ckpt), "--flips", "1", "--out", str(tmp_path / "o")]) == 0
    page = (tmp_path / "o" / "lakes.html").read_text()
    assert "true colour west" in page and "true colour east" not in page
    assert "1 of 2 scenes" in page and "1 of 2 scenes" in capsys.readouterr().out


def test_glaciers_that_cannot_be_read_end_before_prediction(
    tmp_path: Path, ckpt: Path, scenes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "_load", lambda *_: pytest.fail("predicted"))
    (tmp_path / "ice.gpkg").write_text("no")
    with pytest.raises(InputError, match=r"ice\.gpkg"):
        map_lakes(scenes, tmp_path / "o", ckpt, glaciers=tmp_path / "ice.gpkg", progress=False)


def test_a_disk_that_is_full_when_lakes_are_written_is_said(
    tmp_path: Path, ckpt: Path, scenes: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise pyogrio.errors.FeatureError("disk I/O error")

    monkeypatch.setattr(pyogrio, "write_dataframe", full)
    assert main(["map", str(scenes[0]), "--ckpt", str(ckpt), "--flips", "1", "--out", str(tmp_path / "o")]) == 2
    assert "free space" in capsys.readouterr().err
    assert not list((tmp_path / "o").glob("*.gpkg"))


def test_a_scene_without_lakes_gives_empty_tables(tmp_path: Path, ckpt: Path) -> None:
    scene = write_scene(tmp_path / "dry.tif", ground(100, 90))
    for name, options in (("gated", OPTIONS), ("run", Options(flips=1))):
        result = map_lakes([scene], tmp_path / name, ckpt, options=options, progress=False)
        assert gpd.read_parquet(result.lakes).empty and len(gpd.read_file(tmp_path / name / "lakes.gpkg")) == 0
        assert result.summary["area_ha"] == 0 and result.page.stat().st_size > 0


def test_a_killed_map_goes_on(tmp_path: Path, ckpt: Path, scenes: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(product, "write_lakes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            map_lakes(scenes, tmp_path / "o", ckpt, options=OPTIONS, progress=False)
    monkeypatch.setattr(product, "_load", lambda *_: pytest.fail("finished scenes are predicted again"))
    result = map_lakes(scenes, tmp_path / "o", ckpt, options=OPTIONS, progress=False)
    assert result.summary["lakes"] == 3


def test_chips_of_a_dataset_are_scenes(tmp_path: Path, ckpt: Path) -> None:
    write_dataset(tmp_path / "data", shards=1, chips=4, size=64)
    scenes = chip_scenes(tmp_path / "data", "ile_alatau", 2021, tmp_path / "chips", n_chips=3)
    assert len(scenes) == 3
    before = state(tmp_path / "chips")
    chip_scenes(tmp_path / "data", "ile_alatau", 2021, tmp_path / "chips", n_chips=3)
    assert state(tmp_path / "chips") == before
    result = map_lakes(scenes, tmp_path / "o", ckpt, options=Options(flips=1), progress=False)
    lakes = gpd.read_parquet(result.lakes)
    assert len(lakes) >= 2 and (lakes["year"] == 2021).all()
    with pytest.raises(ConfigError, match="region"):
        chip_scenes(tmp_path / "data", "pamir", 2021, tmp_path / "chips")


def test_what_does_not_exist_is_named_before_anything_is_built(tmp_path: Path, scenes: list[Path]) -> None:
    ckpt = tmp_path / "m.ckpt"
    ckpt.write_bytes(b"")
    for arguments, error, word in (
        (([tmp_path / "none.tif"], tmp_path / "o", ckpt), InputError, r"none\.tif"),
        (([], tmp_path / "o", ckpt), InputError, "no scene"),
        (([scenes[0], scenes[0]], tmp_path / "o", ckpt), InputError, "west"),
        ((scenes, tmp_path / "o", tmp_path / "none.ckpt"), CheckpointError, r"none\.ckpt"),
        (([scenes], tmp_path / "o", ckpt), InputError, "three"),
    ):
        with pytest.raises(error, match=word):
            map_lakes(*arguments, progress=False)
    for name in ("glaciers", "intervals", "statistics"):
        with pytest.raises(InputError, match=r"gone\.x"):
            map_lakes(scenes, tmp_path / "o", ckpt, progress=False, **{name: tmp_path / "gone.x"})
    assert not (tmp_path / "o").exists()


def test_a_version_without_weights_asks_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_weights().stat().st_size < 16_000_000
    monkeypatch.setattr(product.paths, "PACKAGE", tmp_path)
    with pytest.raises(InputError, match="--ckpt"):
        default_weights()


def test_commands_map_scenes_three_rasters_and_chips_and_compare_years(
    tmp_path: Path, ckpt: Path, scenes: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--ckpt", str(ckpt), "--flips", "1"]
    for year, scene in ((2017, scenes[:1]), (2022, scenes)):
        words = ["map", *map(str, scene), *common, "--out", str(tmp_path / str(year)), "--year", str(year)]
        assert main(words) == 0
        assert gpd.read_parquet(tmp_path / str(year) / "lakes.parquet")["year"].unique().tolist() == [year]
    assert "3 lakes" in capsys.readouterr().out
    found = [str(tmp_path / str(year) / "lakes.parquet") for year in (2017, 2022)]
    assert main(["change", *found, "--out", str(tmp_path / "change")]) == 0
    assert len(gpd.read_parquet(tmp_path / "change" / "outlines.parquet")) == 5
    assert "not compared" in capsys.readouterr().out, "a lake was cut by the scene's edge in one year"
    assert (tmp_path / "change" / "events.csv").read_text().count("2017,not imaged") == 1, "it lies in the other scene"

    both = ground(230, 300)
    both[6:12, 40:60, 40:60] = 100
    three = [(f"--{n}", str(write_scene(tmp_path / f"{n}.tif", both[part]))) for n, part in
             (("s2", slice(0, 12)), ("s1", slice(12, 14)), ("dem", slice(14, 15)))]  # fmt: skip
    assert main(["map", *(word for pair in three for word in pair), *common, "--out", str(tmp_path / "three")]) == 0
    assert read_json(tmp_path / "three" / "metrics.json")["lakes"] == 1

    write_dataset(tmp_path / "data", shards=1, chips=3, size=64)
    chips = ["--data", str(tmp_path / "data"), "--region", "ile_alatau", "--year", "2021", "--n_chips", "2"]
    assert main(["map", *chips, *common, "--out", str(tmp_path / "chips")]) == 0
    assert len(read_json(tmp_path / "chips" / "metrics.json")["scenes"]) == 2
    for wrong in ([*chips, *three[0]], list(three[0]), chips[:2], []):
        assert main(["map", *wrong, *common]) == 2
    assert "region" in capsys.readouterr().err


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers, processes of their own: the address, and the workers."""
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    base = [sys.executable, "-m", "dask"]
    here = {"env": environment, "cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*base, "scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1",
                                 "--scheduler-file", str(file)], **here)]  # fmt: skip
    worker = [*base, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    started += [subprocess.Popen(worker, **here) for _ in range(2)]
    try:
        for _ in range(3000):
            if file.exists() and file.stat().st_size:
                break
            time.sleep(0.1)
        yield read_json(file)["address"], started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_cluster_gives_the_same_bytes_also_when_a_worker_is_killed(
    tmp_path: Path, dask: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = dask
    bands = ground(1500, 300)
    bands[6:12] = np.random.default_rng(0).integers(100, 4000, (6, 1500, 300))
    scene = write_scene(tmp_path / "a.tif", bands)
    alone = predict_scene(slow_model(), scene, tmp_path / "alone", options=exact(flips=1), progress=False, weights="w")
    killed = []
    with cluster(address) as client:
        client.wait_for_workers(2, timeout=300)
        maker = cluster_maker(slow_model, client)

        def watched(*arguments):  # type: ignore[no-untyped-def]
            for band in maker(*arguments):
                if not killed:
                    workers[0].send_signal(signal.SIGKILL)
                    killed.append(band.index)
                yield band

        there = predict_scene(None, scene, tmp_path / "there", options=exact(flips=1), progress=False, weights="w",
                              maker=watched)  # fmt: skip
    assert killed and workers[0].wait() == -signal.SIGKILL
    for name in ("probability", "water"):
        assert there[name].read_bytes() == alone[name].read_bytes()
    assert (tmp_path / "there" / "a.json").read_bytes() == (tmp_path / "alone" / "a.json").read_bytes()


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryosentinel.dask_client.CONNECT_S", 0.5)
    with pytest.raises(HubError, match=r"tcp://127\.0\.0\.1:9"), cluster("tcp://127.0.0.1:9"):
        pass


def test_workers_take_as_many_threads_as_this_process(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    scene, threads = write_scene(tmp_path / "a.tif", ground(224, 224)), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        options = exact(flips=1)
        alone = predict_scene(model_that_tells_threads(), scene, tmp_path / "alone", options=options, progress=False)
        with cluster("local") as client:
            maker = cluster_maker(model_that_tells_threads, client)
            there = predict_scene(None, scene, tmp_path / "there", options=options, progress=False, weights="w",
                                  maker=maker)  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert there["probability"].read_bytes() == alone["probability"].read_bytes()
