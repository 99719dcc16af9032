"""Streaming evaluation: exact tables, outputs kept and reused, a killed run goes on, bad predictions are named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from model_factory import batch, toy  # noqa: E402

from cryosentinel.data.chips import Chip  # noqa: E402
from cryosentinel.errors import InputError  # noqa: E402
from cryosentinel.evaluation import metrics  # noqa: E402
from cryosentinel.evaluation.evaluate import evaluate, score_maps, table_path  # noqa: E402
from cryosentinel.evaluation.predictors import ModelPredictor  # noqa: E402
from cryosentinel.evaluation.probability_maps import ProbabilityMaps  # noqa: E402
from cryosentinel.evaluation.scores import INVALID, read_scores  # noqa: E402
from cryosentinel.evaluation.summary import headline  # noqa: E402

SIZE = 16


class MemoryStore:
    """Chips in memory, with the index of a store."""

    def __init__(self, n: int = 23, seed: int = 0, size: int = SIZE) -> None:
        rng = np.random.default_rng(seed)
        self.chips, rows = [], []
        for i in range(n):
            mask = (rng.random((size, size)) < (0.2 if i % 3 else 0.0)).astype(np.uint8)
            s2 = rng.integers(1, 12_000, (12, size, size)).astype(np.uint16)
            s2[:, :2, : i % 4] = 0  # some pixels without data
            chip = Chip(
                s2, rng.normal(-12, 3, (2, size, size)).astype(np.float32),
                rng.integers(3000, 5000, (1, size, size)).astype(np.int16), mask,
                f"chip{i:03d}", ("ile_alatau", "tien_shan_full")[i % 2], 2022, 42.0 + 0.2 * i, 77.0,
            )  # fmt: skip
            self.chips.append(chip)
            rows.append({"chip_id": chip.chip_id, "region": chip.region, "year": 2022, "lat": chip.lat, "lon": 77.0,
                         "water_frac": chip.water_frac})  # fmt: skip
        self.index = pd.DataFrame(rows)

    def __getitem__(self, row: int) -> Chip:
        return self.chips[row]


@dataclass
class Green:
    """Probability from one band; counts the chips it was asked for, and can be stopped after some."""

    stop_after: int | None = None
    settings: dict = field(default_factory=dict)
    seen: int = 0

    def __call__(self, batch):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(batch["row"])
        return (batch["S2L2A"][:, 2] / 16_000).numpy()


def truth(chip: Chip) -> np.ndarray:
    return np.roll(chip.mask, 1, axis=0)


def run(out, predict=None, store=None, **options):
    store = store or MemoryStore()
    rows = {"val": list(range(11)), "test": list(range(11, len(store.chips)))}
    options = {"digest": "d1", "batch_size": 4, "progress": False} | options
    return evaluate(predict or Green(), store, rows, out, {"truth": truth}, **options)


def test_tables_equal_a_plain_loop(tmp_path):
    store = MemoryStore()
    found = run(tmp_path, store=store)
    for reference, mask in (("label", lambda c: c.mask), ("truth", truth)):
        table = found.table("test", reference)
        assert list(table["chip_id"]) == [f"chip{i:03d}" for i in range(11, 23)]
        tp = fp = fn = 0
        for chip in store.chips[11:]:
            water = chip.s2[2].astype(np.float32) / np.float32(16_000) >= np.float32(0.35)
            y, v = mask(chip) > 0, chip.valid
            tp, fp, fn = tp + (water & y & v).sum(), fp + (water & ~y & v).sum(), fn + (~water & y & v).sum()
        assert metrics.chip_counts(table, 0.35)[:, :3].sum(axis=0).tolist() == [tp, fp, fn]
        assert list(table["n_valid"]) == [int(c.valid.sum()) for c in store.chips[11:]]
    assert found.table("val")["block"][0] == "280|513"


def test_files_follow_the_published_layout(tmp_path):
    run(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "per_chip_val.parquet", "per_chip_test.parquet", "per_chip_val_truth.parquet", "per_chip_test_truth.parquet",
        "per_region_breakdown.json", "threshold_sweep.json", "probability_val.npy", "probability_val.json",
        "probability_test.npy", "probability_test.json",
    }  # fmt: skip
    sweep = json.loads((tmp_path / "threshold_sweep.json").read_text())
    table = read_scores(table_path(tmp_path, "test"))
    assert sweep["0.30"]["test"] == metrics.score(table, "iou", 0.3)
    assert set(sweep["0.50"]) == {"val", "test", "val_truth", "test_truth"}
    regions = json.loads((tmp_path / "per_region_breakdown.json").read_text())
    assert list(regions) == ["ile_alatau", "tien_shan_full"]
    assert sum(r["n"] for r in regions.values()) == 12 and "20 are needed" in regions["ile_alatau"]["reason"]
    assert {"raw", "val", "raw_truth", "val_truth"} <= set(regions["ile_alatau"])


def test_maps_give_the_same_thresholds_as_the_probabilities(tmp_path):
    store = MemoryStore()
    maps = run(tmp_path, store=store).maps("test")
    for i, chip in enumerate(store.chips[11:]):
        probability = chip.s2[2].astype(np.float32) / np.float32(16_000)
        assert ((maps.bins[i] == INVALID) == ~chip.valid).all()
        for threshold in (0.05, 0.3, 0.7):
            expected = (probability >= np.float32(threshold)) & chip.valid
            np.testing.assert_array_equal(maps.water(i, threshold), expected)
        assert np.nanmax(np.abs(maps.probability(i) - probability)) <= 0.00251
        assert np.isnan(maps.probability(i)[~chip.valid]).all()


def test_what_is_there_is_not_predicted_again(tmp_path):
    first = run(tmp_path)
    again = Green()
    second = run(tmp_path, again)
    assert again.seen == 0
    assert (
        second.table("test")
        .drop(columns=["lake", "background"])
        .equals(first.table("test").drop(columns=["lake", "background"]))
    )
    changes = ({"digest": "d2"}, {"predict": Green(settings={"flips": 1})}, {"store": MemoryStore(seed=1)})
    for number, change in enumerate(changes):
        out, fresh = tmp_path / str(number), change.pop("predict", Green())
        run(out)
        run(out, fresh, **change)
        assert fresh.seen == 23, number


def test_a_lost_table_is_scored_from_the_maps(tmp_path):
    before = run(tmp_path).table("test", "truth")
    table_path(tmp_path, "test", "truth").unlink()
    table_path(tmp_path, "val").write_bytes(b"PAR1 broken")
    again = Green()
    after = run(tmp_path, again).table("test", "truth")
    assert again.seen == 0
    np.testing.assert_array_equal(np.stack(after["lake"]), np.stack(before["lake"]))


@pytest.mark.parametrize("cut", [0, 100])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path, cut):
    whole = run(tmp_path / "whole")
    stopping = Green(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stopping)
    (part,) = (tmp_path / "cut").glob(".probability_val.*.part.npy")
    if cut:  # killed in the middle of a write: the last map is not whole
        part.write_bytes(part.read_bytes()[:-cut])
    rest = Green()
    found = run(tmp_path / "cut", rest)
    assert rest.seen == 23 - (3 if cut else 4)
    assert not list((tmp_path / "cut").glob(".*"))
    for key, table in whole.tables.items():
        np.testing.assert_array_equal(np.stack(table["background"]), np.stack(found.tables[key]["background"]))
    np.testing.assert_array_equal(whole.maps("val").bins, found.maps("val").bins)


def test_parts_of_other_weights_are_not_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Green(stop_after=4))
    other = Green()
    run(tmp_path, other, digest="d2")
    assert other.seen == 23


def test_corrected_masks_get_new_histograms_without_a_model(tmp_path):
    store = MemoryStore()
    found = run(tmp_path, store=store)
    table = score_maps(found.maps("test"), store, {"truth": truth})["truth"]
    np.testing.assert_array_equal(np.stack(table["lake"]), np.stack(found.table("test", "truth")["lake"]))


@pytest.mark.parametrize("value, text", [(np.nan, "not probabilities"), (1.5, "not probabilities")])
def test_a_bad_prediction_names_the_chip(tmp_path, value, text):
    def bad(batch):
        out = Green()(batch)
        out[2, 5, 5] = value
        return out

    with pytest.raises(InputError, match=f"chip002.*{text}"):
        run(tmp_path, bad)


def test_a_prediction_of_another_shape_is_refused(tmp_path):
    with pytest.raises(InputError, match="shape"):
        run(tmp_path, lambda batch: np.zeros((len(batch["row"]), 4, 4), np.float32))


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="test split"):
        evaluate(Green(), MemoryStore(), {"test": []}, tmp_path, digest="d", progress=False)


def test_a_split_without_a_valid_pixel_is_refused(tmp_path):
    store, predict = MemoryStore(), Green()
    store.index["valid_frac"] = 0.0
    with pytest.raises(InputError, match=r"val split.*valid pixel"):
        run(tmp_path, predict, store)
    assert predict.seen == 0


def test_chips_of_one_name_are_refused_before_anything_is_predicted(tmp_path):
    store, predict = MemoryStore(), Green()
    store.index.loc[[3, 5], "chip_id"] = "twin"
    with pytest.raises(InputError, match=r"1 .*val split.*'twin'"):
        run(tmp_path, predict, store)
    assert predict.seen == 0


def test_damaged_maps_are_refused(tmp_path):
    run(tmp_path)
    path = tmp_path / "probability_test.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="probability_test"):
        ProbabilityMaps.open(tmp_path, "test")
    again = Green()
    run(tmp_path, again)
    assert again.seen == 12  # only the damaged split


def test_headline_names_and_values(tmp_path):
    found = run(tmp_path)
    entries = headline(found.tables, "simulated", "test")
    assert entries["test_iou@0.50_tta"]["value"] == metrics.score(found.table("test"))
    assert entries["test_iou@0.50_tta_truth"]["value"] == metrics.score(found.table("test", "truth"))
    assert entries["test_mean_chip_iou@0.50"]["value"] == metrics.score(found.table("test"), "mean_chip_iou")
    best = metrics.best_threshold(found.table("val"))
    assert entries["best_threshold"]["value"] == best
    assert entries["test_iou@best_tta"]["value"] == metrics.score(found.table("test"), "iou", best)
    assert all(e["low"] is not None or e["reason"] for e in entries.values())
    assert "mndwi_test_iou@0.50" in headline(found.tables, "simulated", "test", "mndwi_", tta=False)


class Brightness(torch.nn.Module):
    """Logits that are not symmetric under flips."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, SIZE))

    def forward(self, batch):
        return (batch["S2L2A"][:, 2] - 6000) / 2000 + self.weight


def test_the_model_predictor_averages_flips_in_logit_space():
    model = Brightness().train()
    batch = {"S2L2A": torch.rand(2, 12, SIZE, SIZE) * 12_000}
    plain = ModelPredictor(model, flips=1)(batch)
    np.testing.assert_allclose(plain, torch.sigmoid(model(batch)).detach().numpy(), atol=1e-6)
    flipped = ModelPredictor(model, flips=4)(batch)
    # The column weights cancel under a left-right flip.
    expected = torch.sigmoid((batch["S2L2A"][:, 2] - 6000) / 2000).numpy()
    np.testing.assert_allclose(flipped, expected, atol=1e-5)
    assert not model.training and flipped.dtype == np.float32
    assert ModelPredictor(model, 4, "bf16-mixed").settings == {"flips": 4, "precision": "bf16-mixed"}


def test_views_leave_how_far_they_disagree():
    model, batch = Brightness(), {"S2L2A": torch.rand(2, 12, SIZE, SIZE) * 12_000}
    flips, turns = ModelPredictor(model, 4), ModelPredictor(model, 4, turns=True)
    band, weight = (batch["S2L2A"][:, 2] - 6000) / 2000, model.weight.detach()
    flips(batch)
    # Left-right and both turn the columns' weights round, up-down and none do not.
    pair = torch.stack([torch.sigmoid(band + weight), torch.sigmoid(band + weight.flip(0))])
    np.testing.assert_allclose(flips.views["spread"], (pair[0] - pair[1]).abs(), atol=1e-5)
    np.testing.assert_array_equal(flips.views["first"], ModelPredictor(model, 1)(batch))
    four = torch.stack([band + weight, band + weight.flip(0), band + weight[:, None], band + weight.flip(0)[:, None]])
    np.testing.assert_allclose(turns(batch), torch.sigmoid(four.mean(0)), atol=1e-5)
    np.testing.assert_allclose(turns.views["spread"], 2 * torch.sigmoid(four).std(0, correction=0), atol=1e-5)
    assert turns.settings == {**flips.settings, "turns": True} and not ModelPredictor(model, 1).beside


def test_a_missing_modality_is_the_mean_of_the_statistics():
    model, data = toy().eval(), batch(2)
    means = {name: torch.tensor(model.statistics.means[name]).float() for name in ("S2L2A", "DEM")}
    filled = {**data, **{name: mean[None, :, None, None].expand_as(data[name]) for name, mean in means.items()}}
    lacking = ModelPredictor(model, 1, "32-true", without=("S2L2A", "DEM"))
    np.testing.assert_allclose(lacking(data), ModelPredictor(model, 1, "32-true")(filled), atol=1e-6)
    assert lacking.settings["without"] == ["S2L2A", "DEM"]


@dataclass
class Disagreeing(Green):
    """Says of every batch how far its views disagree."""

    beside: tuple = ("first", "spread")

    def __call__(self, batch):
        self.views = {
            "first": (batch["S2L2A"][:, 4] / 16_000).numpy(),
            "spread": (batch["S2L2A"][:, 3] / 16_000).numpy(),
        }
        return super().__call__(batch)


def test_the_spread_is_kept_beside_the_maps_and_goes_on_with_them(tmp_path):
    store = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Disagreeing(stop_after=4), store)
    (part,) = tmp_path.glob(".probability_val.*.part.npy")
    part.write_bytes(part.read_bytes()[:-1])  # killed between the two: the spread is a map ahead
    rest = Disagreeing()
    found = run(tmp_path, rest, store)
    assert rest.seen == 20
    for split, chips in (("val", store.chips[:11]), ("test", store.chips[11:])):
        spread = found.beside(split, "spread")
        assert spread.rows == found.maps(split).rows
        for i, chip in enumerate(chips):
            expected = np.where(chip.valid, chip.s2[3] / 16_000, np.nan)
            np.testing.assert_allclose(spread.probability(i), expected, atol=0.00251)
    some = found.maps("test").take([15, 12])
    assert some.rows == (15, 12) and np.array_equal(some.bins[0], found.maps("test").bins[4])
    with pytest.raises(InputError, match="row 3 "):
        found.maps("test").take([3])
    single = Green()
    first = run(tmp_path / "single", single, store, single_of=(tmp_path, {}))
    assert single.seen == 0 and first.maps("test").rows == found.maps("test").rows
    np.testing.assert_allclose(first.maps("val").probability(0)[5], store.chips[0].s2[4, 5] / 16_000, atol=0.00251)
    run(tmp_path / "other", single, store, single_of=(tmp_path, {"flips": 2}))
    assert single.seen == 23, "the first view of other predictions is not taken"
    (tmp_path / "probability_test_spread.json").unlink()
    again = Disagreeing()
    run(tmp_path, again, store)
    assert again.seen == 12
    with pytest.raises(InputError, match="spread"):
        run(tmp_path / "plain", store=store).beside("test", "spread")
