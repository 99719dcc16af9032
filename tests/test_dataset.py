"""The store against the codec, its cache under change, damage, competition and kill, and the loaders on top of it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from chip_factory import make_chip, write_dataset

from cryosentinel.data import cache, sanity
from cryosentinel.data.augment import AugmentConfig
from cryosentinel.data.chips import LAYOUT, clean, write_shard
from cryosentinel.data.dataset import ChipDataModule, ChipDataset, ChipStore
from cryosentinel.data.sampler import BalancedSampler
from cryosentinel.errors import ConfigError, InputError


@pytest.fixture
def dataset(tmp_path):
    return tmp_path / "data", write_dataset(tmp_path / "data")


# ---- store ----------------------------------------------------------------------------------------------------------


def test_the_store_serves_what_the_shards_hold(dataset):
    root, chips = dataset
    store = ChipStore(root)
    assert len(store) == len(chips) == 24 and store.chip_size == (32, 32)
    for i in np.random.default_rng(0).permutation(24):
        for name in LAYOUT:
            np.testing.assert_array_equal(getattr(store[i], name), getattr(chips[i], name))
        assert (store[i].chip_id, store[i].lat, store[i].region) == (chips[i].chip_id, chips[i].lat, chips[i].region)
    index = store.index
    assert index["chip_id"].tolist() == [chip.chip_id for chip in chips]
    assert index["shard"].iloc[0] == "ile_alatau/2021/shard_000.parquet" and index["row"].tolist() == [*range(12)] * 2
    np.testing.assert_allclose(index["water_frac"], [chip.water_frac for chip in chips])
    assert {"year", "lake_id", "sanity", "valid_frac", "mndwi_iou_0.0", "mndwi_water_0.3"} <= set(index.columns)
    again = pickle.loads(pickle.dumps(store))  # as a worker process gets it
    np.testing.assert_array_equal(again[5].s2, chips[5].s2)
    with pytest.raises(ValueError, match="read-only"):
        store[0].s2[0, 0, 0] = 1


def test_regions_and_years_choose_folders(dataset):
    root, _ = dataset
    assert set(ChipStore(root, regions=["tien_shan_full"]).index["region"]) == {"tien_shan_full"}
    with pytest.raises(ConfigError, match=r"pamir.*ile_alatau"):
        ChipStore(root, regions=["pamir"])
    with pytest.raises(ConfigError, match="1999"):
        ChipStore(root, years=[1999])


def test_an_unusable_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="none"):
        ChipStore(tmp_path / "none")
    with pytest.raises(InputError, match="no shards"):
        ChipStore(tmp_path)
    write_dataset(tmp_path / "data")
    write_shard(tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", [make_chip(size=16)])
    with pytest.raises(InputError, match=r"pamir/2021/shard_000.parquet.*16 x 16.*32 x 32"):
        ChipStore(tmp_path / "data")
    write_shard(tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", [make_chip(), make_chip(size=16)])
    with pytest.raises(InputError, match=r"Row 1 .*16 x 16"):
        ChipStore(tmp_path / "data")
    write_shard(tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", [])
    with pytest.raises(InputError, match="no chips"):
        ChipStore(tmp_path / "data")


def test_a_changed_shard_is_converted_again_and_others_are_not(dataset):
    root, _ = dataset
    store = ChipStore(root)
    before = {path: path.stat().st_mtime_ns for path in store.paths}
    shard = root / "ile_alatau" / "2021" / "shard_000.parquet"
    write_shard(shard, [make_chip(k) for k in range(500, 507)])
    store = ChipStore(root)
    assert len(store) == 7 + 12 and store[0].chip_id == "chip_00500"
    kept = [path for path in store.paths if path in before]
    assert len(kept) == 1 and kept[0].stat().st_mtime_ns == before[kept[0]]
    entries = sorted(path.name for path in store.cache_dir.iterdir() if not path.name.startswith("."))
    assert len(entries) == 2  # the stale entry is gone
    # A change that leaves size and footer alone is seen by its time.
    name = cache.shard_digest(shard)
    os.utime(shard, ns=(1, 1))
    assert cache.shard_digest(shard) != name


def test_the_cache_goes_where_it_can(dataset, tmp_path, monkeypatch):
    root, _ = dataset
    assert ChipStore(root).cache_dir == root / ".cache" / "chips"
    assert ChipStore(root, tmp_path / "elsewhere").cache_dir == tmp_path / "elsewhere"
    monkeypatch.setattr(cache.os, "access", lambda *_: False)  # a read-only dataset
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    store = ChipStore(root)
    assert store.cache_dir.is_relative_to(tmp_path / "xdg" / "cryosentinel" / "chips") and len(store) == 24


def test_a_corrupt_shard_leaves_the_others_converted_and_no_parts(dataset):
    root, _ = dataset
    shard = root / "tien_shan_full" / "2021" / "shard_000.parquet"
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 50]) + whole[middle + 50 :])
    with pytest.raises(InputError, match=r"tien_shan_full/2021/shard_000.parquet"):
        ChipStore(root)
    names = [path.name for path in (root / ".cache" / "chips").iterdir() if path.name != ".locks"]
    assert len(names) == 1 and names[0].startswith("ile_alatau--2021--shard_000-")
    shard.write_bytes(whole)
    assert len(ChipStore(root)) == 24


def test_a_full_disk_is_a_sentence_and_leaves_nothing(dataset, monkeypatch):
    root, _ = dataset

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np.lib.format, "open_memmap", full)
    with pytest.raises(InputError, match="No space left on device"):
        ChipStore(root)
    assert [path.name for path in (root / ".cache" / "chips").iterdir()] == [".locks"]


OPEN_STORE = """
import sys
from cryosentinel.data.store import ChipStore
print(len(ChipStore(sys.argv[1])))
"""


def test_processes_that_convert_at_once_end_well_and_a_killed_one_leaves_no_harm(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, shards=4, chips=60, size=64)
    command = [sys.executable, "-c", OPEN_STORE, str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = root / ".cache" / "chips"
    deadline = time.monotonic() + 300
    while killed.poll() is None and time.monotonic() < deadline:
        if folder.is_dir() and any(path.name.endswith("part") for path in folder.iterdir()):
            break  # it is in the middle of a shard
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    racing = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    for process in racing:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0 and out.split()[-1] == b"240", err.decode()
    left = [path.name for path in folder.iterdir() if path.name != ".locks"]
    assert len(left) == 4 and not any("part" in name for name in left)


def test_orphaned_parts_are_cleaned_when_their_shard_is_converted(dataset):
    root, _ = dataset
    orphan = root / ".cache" / "chips" / ".ile_alatau--2021--shard_000-abc.1234.part"
    orphan.mkdir(parents=True)
    (orphan / "pixels.npy").write_bytes(b"half")
    ChipStore(root)
    assert not orphan.exists()


def test_memory_of_reading_does_not_grow_with_the_dataset(tmp_path):
    code = """
import sys, numpy as np
from cryosentinel.data.store import ChipStore
def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
store = ChipStore(sys.argv[1], workers=1)
total = [int(store[i].s2.sum()) for i in range(20)]
before = private()
for i in np.random.default_rng(0).permutation(len(store)):
    total.append(int(store[int(i)].s2.sum()))
print(private() - before, sum(path.stat().st_size for path in store.paths) // 1024)
"""
    write_dataset(tmp_path / "data", shards=2, chips=120, size=112)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")], capture_output=True, text=True, check=True
    )
    grown, size = map(int, run.stdout.split())
    assert size > 90_000 and grown < size / 20  # kB


# ---- what is amiss --------------------------------------------------------------------------------------------------


def test_chips_without_a_place_are_read_and_belong_to_no_split(tmp_path):
    write_dataset(tmp_path / "data", shards=1)
    write_shard(
        tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", [make_chip(k, lat=None, lon=None) for k in range(3)]
    )
    with pytest.warns(UserWarning, match="3 of 15 .*lat and lon"):
        module = ChipDataModule(tmp_path / "data", buffer_rule="foreign")
        module.setup()
    assert (module.splits[-3:] == "").all() and module.store[14].lat is None
    assert sum(map(len, module.rows.values())) <= 12


def test_a_stated_water_share_that_the_mask_denies_is_said(tmp_path):
    chips = [make_chip(0), make_chip(1, water_frac=0.9)]
    write_shard(tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", chips)
    with pytest.warns(UserWarning, match=r"1 of 2 chips .* 'chip_00001'"):
        store = ChipStore(tmp_path / "data")
    assert store.index["water_frac"].tolist() == [0.125, 0.125]


def test_duplicates_are_found_by_place_and_by_name(tmp_path):
    root = tmp_path / "data"
    chips = [make_chip(k) for k in range(4)]
    write_shard(root / "ile_alatau" / "2021" / "shard_000.parquet", chips)
    others = [
        make_chip(50, lat=chips[2].lat + 2e-7, lon=chips[2].lon, region="tien_shan_full"),  # the same place
        make_chip(51, chip_id="chip_00001", region="tien_shan_full"),  # only the same name
        make_chip(52, lat=chips[3].lat, lon=chips[3].lon, snapshot_year=2022, region="tien_shan_full"),  # another year
    ]
    write_shard(root / "tien_shan_full" / "2021" / "shard_000.parquet", others)
    found = ChipStore(root).duplicates()
    assert found["position"].tolist() == [4, 5] and found["kind"].tolist() == ["place", "chip_id"]
    assert found["first"].tolist() == [2, 1] and found["first_region"].tolist() == ["ile_alatau"] * 2
    with pytest.warns(UserWarning, match="1 of 7 .*place and year"):
        module = ChipDataModule(root)
        module.setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = ChipDataModule(root, drop_duplicates=True)
        module.setup()
    assert module.splits[4] == ""


# ---- sanity filter --------------------------------------------------------------------------------------------------


def test_the_sanity_filter_is_a_column_that_is_applied_on_reading(tmp_path):
    size = 40
    good, bare = make_chip(0, size), make_chip(1, size, lake=False)
    shifted = make_chip(2, size).replace(mask=np.roll(good.mask, 15, axis=1))  # label beside the water
    small = np.zeros_like(good.mask)
    small[:20, :3] = 1  # 60 of the water's 200 pixels: IoU 0.3, ratio 3.3
    undersized = make_chip(3, size).replace(mask=small)
    unlabelled = make_chip(4, size).replace(mask=np.zeros_like(good.mask))  # water without a label: 12.5 %
    s2 = good.s2.copy()
    s2[2], s2[10] = 1500, 1000  # MNDWI 0.2 everywhere: water at threshold 0, none at 0.3
    grey = make_chip(5, size, lake=False).replace(s2=s2)
    write_shard(
        tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", [good, bare, shifted, undersized, unlabelled, grey]
    )
    store = ChipStore(tmp_path / "data")
    expected = ["", "", "low_iou", "high_ratio", "unlabelled_water", ""]
    assert store.index["sanity"].tolist() == store.sanity(0.3).tolist() == store.sanity(0.31).tolist() == expected
    assert store.sanity(0.0).tolist() == [*expected[:5], "unlabelled_water"]
    report = store.sanity_report()
    row = report.loc[0.3]
    assert (row["chips"], row["lake_kept"], row["background_kept"], row["background_dropped"]) == (6, 1, 2, 1)
    assert row["lake_dropped_iou_0.00_0.05"] == 1 and row["lake_dropped_ratio"] == row["ratio_above_3"] == 1
    assert report.loc[0.0, "background_dropped"] == 2
    for threshold, dropped in ((None, 0), (0.3, 3), (0.0, 4)):
        module = ChipDataModule(tmp_path / "data", sanity=threshold)
        module.setup()
        assert (module.splits == "").sum() == dropped and len(module.store) == 6


def test_the_sanity_filters_limits_are_the_published_ones():
    kept = [(0.20, 0.1, 0.1), (0.5, 0.3, 0.1), (0.0, 0.05, 0.0)]  # IoU, share of water, share of label
    dropped = [(0.199, 0.1, 0.1), (0.5, 0.301, 0.1), (0.0, 0.051, 0.0)]
    why = [sanity.reasons(*np.array(cases).T).tolist() for cases in (kept, dropped)]
    assert why == [[""] * 3, ["low_iou", "high_ratio", "unlabelled_water"]]


# ---- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_in_physical_units_clipped_filled_and_masked(tmp_path):
    chip = make_chip(0, 8)
    s2, s1, dem = chip.s2.copy(), chip.s1.copy(), chip.dem.copy()
    s2[3, 2, 2], s2[:, 0, 0], s1[0, 1, 1], s1[1, 3, 3], dem[0, 4, 4] = 40_000, 0, np.nan, np.inf, -32_768
    odd = chip.replace(s2=s2, s1=s1, dem=dem)
    write_shard(tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", [chip, odd, make_chip(2, 8, lake=False)])
    store = ChipStore(tmp_path / "data")
    batch = ChipDataset(store, [2, 1]).__getitems__([1, 0])
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "S2L2A": ((2, 12, 8, 8), torch.float32),
        "S1GRD": ((2, 2, 8, 8), torch.float32),
        "DEM": ((2, 1, 8, 8), torch.float32),
        "label": ((2, 8, 8), torch.float32),
        "valid": ((2, 8, 8), torch.bool),
        "row": ((2,), torch.int64),
    }
    assert batch["row"].tolist() == [1, 2]
    for name, array in zip(("S2L2A", "S1GRD", "DEM"), clean(s2, s1, dem), strict=True):
        np.testing.assert_array_equal(batch[name][0], array.astype(np.float32))
        assert torch.isfinite(batch[name]).all()
    np.testing.assert_array_equal(batch["valid"][0], odd.valid)
    assert (~batch["valid"][0]).sum() == 4 and batch["label"].unique().tolist() == [0, 1]
    single = ChipDataset(store)[1]
    assert torch.equal(single["S2L2A"], batch["S2L2A"][0]) and single["row"] == 1
    with pytest.raises(InputError, match="3 chips"):
        ChipDataset(store, [3])


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_every_chip_of_a_split_once(tmp_path, workers):
    write_dataset(tmp_path / "data", shards=2, chips=60, size=8)
    module = ChipDataModule(tmp_path / "data", batch_size=7, workers=workers, buffer_rule="foreign")
    for split in ("val", "test"):
        rows = torch.cat([batch["row"] for batch in module.loader(split)])
        np.testing.assert_array_equal(rows, module.rows[split])
    sizes = [len(batch["row"]) for batch in module.train_dataloader()]
    assert sum(sizes) == len(module.rows["train"])
    assert module.check_split().passed


def test_protected_blocks_of_a_later_stage_are_left_out(tmp_path):
    write_dataset(tmp_path / "data", shards=2, chips=100, size=4)
    free = ChipDataModule(tmp_path / "data", block_size=0.25)
    kept = ChipDataModule(tmp_path / "data", block_size=0.25, protect_block_size=0.15)
    later = ChipDataModule(tmp_path / "data", block_size=0.15)
    for module in (free, kept, later):
        module.setup()
    evaluated = np.concatenate([later.rows["val"], later.rows["test"]])
    assert np.isin(free.rows["train"], evaluated).any() and not np.isin(kept.rows["train"], evaluated).any()


def test_an_empty_split_and_bad_options_are_sentences(tmp_path):
    write_shard(tmp_path / "data" / "pamir" / "2021" / "shard_000.parquet", [make_chip(0, lat=43.22, lon=77.07)])
    module = ChipDataModule(tmp_path / "data")
    with pytest.raises(InputError, match=r"val split.*1 train, 0 val, 0 test"):
        module.val_dataloader()
    for options, says in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"buffer_rule": "none"}, "no buffer_rule 'none'"),
        ({"sanity": 3.0}, "sanity is 3.0"),
    ):
        with pytest.raises(ConfigError, match=says):
            ChipDataModule(tmp_path / "data", **options)
    with pytest.raises(InputError, match=r"lake.*positive_ratio"):
        ChipDataModule(tmp_path / "data", positive_threshold=0.9).train_dataloader()


# ---- the order of an epoch ------------------------------------------------------------------------------------------


def test_the_sampler_keeps_the_ratio_and_draws_evenly():
    positive = np.arange(1000) < 300
    sampler = BalancedSampler(positive, 3.0, seed=1)
    counts = np.zeros(1000, int)
    for epoch in range(6):
        order = sampler.order(epoch)
        assert len(order) == 1000 and positive[order].sum() == 750
        np.add.at(counts, order, 1)
    assert np.ptp(counts[positive]) <= 1 and np.ptp(counts[~positive]) <= 1  # over epochs too
    assert not np.array_equal(sampler.order(0), sampler.order(1))
    np.testing.assert_array_equal(sampler.order(3), BalancedSampler(positive, 3.0, seed=1).order(3))
    assert not np.array_equal(sampler.order(0), BalancedSampler(positive, 3.0, seed=2).order(0))
    runs = np.diff(np.flatnonzero(np.diff(positive[sampler.order(0)].astype(int)) != 0))
    assert runs.max() < 40  # shuffled, not lakes first
    assert sorted(BalancedSampler(positive, None).order(0)) == list(range(1000))
    assert positive[BalancedSampler(positive[:300], 3.0).order(0)].all()


def test_a_sampler_goes_on_after_what_was_drawn():
    sampler = BalancedSampler(np.arange(20) % 2 == 0)
    whole = list(sampler)
    sampler.skip(7)
    assert list(sampler) == whole[7:] and list(sampler) == whole  # once


def test_training_batches_alone_are_augmented(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, shards=1, size=8)
    module = ChipDataModule(root, augment=AugmentConfig(flip_p=1.0, jitter_p=1.0, scale_p=0, copy_paste_p=0))
    batch = ChipDataset(ChipStore(root)).__getitems__(range(4))
    assert torch.equal(module.on_after_batch_transfer(batch, 0)["label"], batch["label"])  # no trainer
    epochs = []
    for epoch in (0, 1):
        module.trainer = SimpleNamespace(training=True, current_epoch=epoch)
        epochs.append(module.on_after_batch_transfer(batch, 0))
        assert torch.equal(epochs[epoch]["label"], batch["label"].flip(-1, -2))
        assert not torch.equal(epochs[epoch]["S2L2A"], batch["S2L2A"])
    assert not torch.equal(epochs[0]["S2L2A"], epochs[1]["S2L2A"])
    module.trainer = SimpleNamespace(training=False, current_epoch=0)
    assert module.on_after_batch_transfer(batch, 0) is batch


def test_ranks_share_one_global_order():
    positive = np.arange(101) % 4 == 0
    alone = BalancedSampler(positive, seed=3)
    ranks = [BalancedSampler(positive, seed=3, num_replicas=4, rank=rank) for rank in range(4)]
    for sampler in (alone, *ranks):
        sampler.set_epoch(2)
    drawn = [list(sampler) for sampler in ranks]
    assert {len(d) for d in drawn} == {26} == {len(sampler) for sampler in ranks}
    together = np.array(drawn).T.ravel()
    np.testing.assert_array_equal(together[:101], list(alone))
    np.testing.assert_array_equal(together[101:], list(alone)[:3])  # filled up, so that no rank waits


class Recorder(lightning.LightningModule):
    """Writes down the rows and pixels that it is given, and stops where it is told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple] = []
        self.stop_after = stop_after

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append((self.current_epoch, batch_idx, batch["row"].tolist(), float(batch["S2L2A"].sum())))
        return self.layer(batch["DEM"].mean().reshape(1, 1) / 1e4).sum()

    def validation_step(self, batch, batch_idx):
        assert "flips" not in batch  # evaluation is never augmented

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_in_mid_epoch_or_at_its_end_goes_on_with_the_same_batches(tmp_path, workers):
    write_dataset(tmp_path / "data", shards=2, chips=40, size=8)

    def fit(folder: Path, ckpt: Path | None = None, stop_after: int | None = None) -> Recorder:
        model = Recorder(stop_after)
        module = ChipDataModule(
            tmp_path / "data", batch_size=8, workers=workers, augment=AugmentConfig(), buffer_rule="foreign"
        )
        saver = lightning.pytorch.callbacks.ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, module, ckpt_path=ckpt)
        return model

    whole = fit(tmp_path / "whole").seen
    steps = len(whole) // 3
    assert steps >= 4 and len({tuple(rows) for _, _, rows, _ in whole}) == len(whole)
    for done in (2, steps, steps + 3):  # in the first epoch, at its very end, in the second
        rest = fit(tmp_path / "rest", tmp_path / "whole" / f"step={done}.ckpt").seen
        assert rest == whole[done:]
