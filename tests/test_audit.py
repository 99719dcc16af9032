"""The audit on handmade chips, each with one known fault, and its corrected scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from cryosentinel.data.chips import Chip
from cryosentinel.errors import ConfigError
from cryosentinel.evaluation import audit as audits
from cryosentinel.evaluation import metrics
from cryosentinel.evaluation.audit import against_truth, audit
from cryosentinel.evaluation.audit_masks import AuditRule, core
from cryosentinel.evaluation.evaluate import evaluate

SIZE = 48
BIG, SMALL, NOTHING = (slice(8, 32), slice(8, 32)), (slice(8, 32), slice(8, 18)), (slice(0, 0), slice(0, 0))

CORNER, BOTH = (slice(36, 46), slice(36, 46)), ("corner", "big")


def square(where) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    for part in (CORNER, (slice(4, 28), slice(4, 28))) if where is BOTH else (where,):
        mask[part] = True
    return mask


@dataclass
class Case:
    label: np.ndarray
    mndwi: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray
    verdict: str
    error: str = ""


CASES = {
    "agree": Case(square(BIG), square(BIG), square(BIG), square(BIG), "agree"),
    "undersized": Case(square(SMALL), square(BIG), square(BIG), square(BIG), "label undersized", "undersized"),
    "missing": Case(square(NOTHING), square(BIG), square(BIG), square(BIG), "unlabelled water", "missing"),
    "oversized": Case(square(BIG), square(SMALL), square(SMALL), square(SMALL), "label oversized", "oversized"),
    "miss": Case(square(BIG), square(BIG), square(SMALL), square(BIG), "model miss"),
    "alarm": Case(square(SMALL), square(SMALL), square(BIG), square(SMALL), "model false alarm"),
    # A shift of four pixels is within the inventory's accuracy.
    "shifted": Case(np.roll(square(BIG), 4, 0), square(BIG), square(BIG), square(BIG), "agree", "shifted"),
    "reservoir": Case(square(NOTHING), square(BIG), square(NOTHING), square(NOTHING), "agree"),
    "frozen": Case(square(BIG), square(NOTHING), square(BIG), square(BIG), "agree"),
    # The index and the model are fooled together: the accusation is wrong.
    "fooled": Case(square(SMALL), square(BIG), square(BIG), square(SMALL), "label undersized"),
    # A lake that the label has, and a second one far from it: nothing says that it is glacial.
    "elsewhere": Case(square(CORNER), square(BOTH), square(BOTH), square(CORNER), "unlabelled water"),
    # Both eyes look at a cloud.
    "cloudy": Case(square(BIG), square(NOTHING), square(NOTHING), square(BIG), "agree"),
    "empty": Case(square(NOTHING), square(NOTHING), square(NOTHING), square(NOTHING), "agree"),
}


class CaseStore:
    def __init__(self, cases: dict[str, Case], nodata=None) -> None:
        self.cases, self.chips = cases, []
        for name, case in cases.items():
            s2 = np.full((12, SIZE, SIZE), 1000, np.uint16)
            s2[2], s2[10] = 2000, np.where(case.mndwi, 500, 2000)  # MNDWI 0.6 or 0
            if name == "cloudy":
                s2[:] = 5000
            if nodata is not None:
                s2[:, nodata] = 0
            self.chips.append(
                Chip(s2, np.full((2, SIZE, SIZE), -12, np.float32), np.full((1, SIZE, SIZE), 3500, np.int16),
                     case.label.astype(np.uint8), name, "ile_alatau", 2022, 43.0, 77.0)
            )  # fmt: skip
        self.index = pd.DataFrame(
            [{"chip_id": c.chip_id, "region": c.region, "year": 2022, "lat": 43.0, "lon": 77.0} for c in self.chips]
        )

    def __getitem__(self, row: int) -> Chip:
        return self.chips[row]


@dataclass
class Oracle:
    store: CaseStore
    settings: dict = field(default_factory=dict)

    def __call__(self, batch):
        masks = [self.store.cases[self.store.chips[r].chip_id].prediction for r in batch["row"].tolist()]
        return np.stack(masks).astype(np.float32) * 0.8 + 0.1


@pytest.fixture
def run(tmp_path):
    def make(cases=CASES, rule=None, nodata=None):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        store = CaseStore(cases, nodata)
        found = evaluate(Oracle(store), store, {"test": list(range(len(cases)))}, out, digest="x", progress=False)
        return store, audit(found.maps("test"), store, found.table("test"), rule)

    return make


def test_each_fault_gets_its_verdict(run):
    _, result = run()
    verdicts = dict(zip(result.verdicts["chip_id"], result.verdicts["verdict"], strict=True))
    assert verdicts == {name: case.verdict for name, case in CASES.items()}
    assert set(result.verdicts.columns) == set(audits.VERDICT_COLUMNS)
    missing = result.verdicts.set_index("chip_id").loc["missing"]
    assert missing["unlabelled_px"] == missing["mndwi_px"] == 24 * 24 and missing["label_px"] == 0


def test_areas_below_the_smallest_are_not_judged(run):
    dot = (slice(8, 15), slice(8, 15))  # 49 pixels
    _, result = run({"dot": Case(square(NOTHING), square(dot), square(dot), square(dot), "agree")})
    assert result.verdicts["verdict"].tolist() == ["agree"]
    larger = (slice(8, 15), slice(8, 16))  # 56
    _, result = run({"dot": Case(square(NOTHING), square(larger), square(larger), square(larger), "x")})
    assert result.verdicts["verdict"].tolist() == ["unlabelled water"]


def test_pixels_without_data_do_not_testify(run):
    _, result = run(nodata=square(BIG))
    assert set(result.verdicts["verdict"]) == {"agree"}


def test_opening_equals_scipy_and_keeps_only_wide_parts():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    for tolerance in (1, 2, 3, 4, 5):
        mask = ndimage.gaussian_filter(rng.random((40, 40)), 2) > 0.5
        padded = np.pad(mask, 20, mode="edge")
        reference = ndimage.binary_opening(padded, np.ones((tolerance + 1,) * 2))[20:-20, 20:-20]
        np.testing.assert_array_equal(core(mask, tolerance)[6:-6, 6:-6], reference[6:-6, 6:-6])
        assert not (core(mask, tolerance) & ~mask).any()
    band = square((slice(10, 14), slice(0, SIZE)))
    assert not core(band, 4).any() and core(band, 3).sum() == band.sum()
    assert core(square((slice(0, 4), slice(0, 40))), 3).sum() == 160  # at the chip's edge, too


def test_candidates_are_ranked_and_the_control_is_seeded(run):
    rule = AuditRule(worst=2, control=3, seed=1)
    _, result = run(rule=rule)
    _, again = run(rule=rule)
    pd.testing.assert_frame_equal(result.verdicts, again.verdicts)
    verdicts = result.verdicts
    ranked = verdicts[verdicts["rank"] > 0].sort_values("rank")
    assert ranked["disagreement"].is_monotonic_decreasing and len(ranked) == 7
    assert (verdicts.loc[verdicts["verdict"] == "agree", "rank"] == 0).all()
    assert verdicts["sample"].value_counts().to_dict() == {"": 8, "control": 3, "candidate": 2}
    _, rest = run(rule=AuditRule(worst=2, control=11))  # all that are no candidates
    assert rest.verdicts["sample"].value_counts().to_dict() == {"control": 11, "candidate": 2}
    assert list(verdicts.loc[audits.sample_positions(verdicts), "rank"]) == [1, 2]
    assert len(audits.sample_positions(verdicts, "control")) == 3


def test_corrected_scores_two_sided_and_the_cards_variant(run):
    _, result = run()
    assert sorted(result.accused()) == ["fooled", "oversized", "undersized"]
    raw, variants = metrics.score(result.table), result.variants()
    assert variants["raw"] is result.table
    dropped = set(result.table["chip_id"]) - set(variants["two_sided_drop"]["chip_id"])
    assert dropped == set(result.accused())
    assert len(variants["two_sided_corrected"]) == len(result.table)
    # Corrected masks of the accused chips equal what the two other maps hold.
    for chip in result.accused():
        (row,) = np.flatnonzero(variants["two_sided_corrected"]["chip_id"] == chip)
        assert metrics.chip_iou(variants["two_sided_corrected"], 0.5)[row] == 1.0
    # The card's variant keeps the oversized label, though it costs the model as much.
    card = set(result.table["chip_id"]) - set(result.one_sided_drop(worst=8)["chip_id"])
    assert card == {"undersized", "fooled"}
    # The worst chip of all is missed altogether, so the label keeps its word there.
    assert len(result.one_sided_drop(worst=1)) == len(result.table)
    for name in ("two_sided_drop", "two_sided_corrected", "one_sided_drop"):
        assert metrics.score(variants[name]) > raw


def test_nothing_accused_leaves_the_scores_alone(run):
    _, result = run({name: CASES[name] for name in ("agree", "miss", "empty")})
    for table in result.variants().values():
        assert metrics.score(table) == metrics.score(result.table)


def test_precision_and_recall_against_the_known_truth(run):
    store, result = run()
    found = against_truth(
        result, store, lambda chip: CASES[chip.chip_id].truth, {name: case.error for name, case in CASES.items()}
    )
    # Three accused, two of them truly wrong; the missing lake escapes, as it must.
    expected = {"chips": 13, "flagged": 3, "wrong": 3, "both": 2, "precision": 2 / 3, "recall": 2 / 3}
    assert found["mask"] == found["planted"] == expected
    assert found["control"]["chips"] == 6  # 13 chips less 7 candidates
    without = against_truth(result, store, lambda chip: chip.mask)
    assert without["mask"]["recall"] is None and without["mask"]["precision"] == 0.0 and "planted" not in without


def test_the_rule_is_the_stated_one():
    assert AuditRule() == AuditRule(
        threshold=0.5, mndwi_threshold=0.3, bright_red=0.25, tolerance_px=4, min_px=50, worst=20, control=20, seed=42
    )


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({}, "label undersized"),
        ({"mndwi_threshold": 0.65}, "model false alarm"),  # the water's index is 0.6
        ({"threshold": 0.95}, "model miss"),  # the prediction's probability is 0.9
        ({"min_px": 400}, "agree"),  # 336 pixels disagree
        ({"tolerance_px": 14}, "agree"),  # in a band 14 pixels wide
    ],
)
def test_thresholds_of_the_rule_are_obeyed(run, rule, verdict):
    _, result = run({"undersized": CASES["undersized"]}, AuditRule(**rule))
    assert result.verdicts["verdict"].tolist() == [verdict]


def test_a_lake_that_hangs_together_by_a_corner_is_one(run):
    label, lake = np.zeros((2, SIZE, SIZE), bool)
    label[8:16, 8:16] = True
    lake[8:16, 8:24] = lake[16:32, 24:40] = True  # the second part touches the first by a corner only
    _, result = run({"chain": Case(label, lake, lake, lake, "label undersized")})
    assert result.verdicts["undersized_px"].tolist() == [8 * 8 + 16 * 16]
    assert result.verdicts["unlabelled_px"].tolist() == [0]


def test_a_rule_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="min_px above 0"):
        AuditRule(min_px=0)
