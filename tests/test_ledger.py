"""The ledger: claims checked by arithmetic, by rules and by a study's figures; nothing is decided without a figure."""

from __future__ import annotations

import json

import pytest

from cryosentinel.files import read_json
from cryosentinel.study import ledger
from cryosentinel.study.ledger import FAILS, HOLDS, OPEN


def record(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


STUDY = {
    "published_parameters_encoder": record(305.9e6),
    "split_smallest_distance_m": record(10_300.0),
    "val_iou_soup_minus_best_snapshot": record(0.02, 0.01, 0.03),
    "other_water_truth/reservoirs called a lake": record(0.1),
    "other_water_truth/glacial lakes found beside them": record(0.9),
}


@pytest.fixture(scope="module")
def bare():
    return ledger.entries({})


@pytest.fixture(scope="module")
def studied():
    return ledger.entries(STUDY)


def test_every_entry_is_whole(bare):
    assert len(bare) >= 16 and {e.status for e in bare.values()} == {HOLDS, FAILS, OPEN}
    for name, entry in bare.items():
        assert entry.claim and entry.source and entry.checked and entry.found, name
        assert entry.data in ("published", "code", "simulated"), name


def test_claims_about_a_study_wait_for_its_figures(bare, studied):
    assert bare["encoder_size"].status == bare["soup_gain"].status == bare["other_water"].status == OPEN
    assert studied["encoder_size"].status == FAILS and "305.9 million" in studied["encoder_size"].found
    assert studied["soup_gain"].status == studied["other_water"].status == HOLDS


@pytest.mark.parametrize(("low", "high", "status"), [(0.01, 0.03, HOLDS), (-0.03, -0.01, FAILS), (-0.01, 0.03, OPEN)])
def test_a_gain_is_judged_by_its_interval(low, high, status):
    name = "val_iou_soup_minus_best_snapshot"
    assert ledger.entries({name: record((low + high) / 2, low, high)})["soup_gain"].status == status


def test_a_gain_without_an_interval_is_shown_with_its_reason():
    name = "val_iou_soup_minus_best_snapshot"
    entry = ledger.entries({name: {**record(-0.0012), "reason": "16 of 40 blocks hold lake"}})["soup_gain"]
    assert entry.status == OPEN and "-0.0012" in entry.found and "16 of 40" in entry.found


def test_statuses_that_code_can_tell_follow_from_what_it_reads(monkeypatch):
    recipe = ledger._config(ledger._FINETUNE)
    fixed = {**recipe, "loss": {**recipe["loss"], "pos_weight": 100}}
    monkeypatch.setattr(ledger, "_config", lambda name: fixed)
    facts = ledger.Facts({})
    assert ledger._CLAIMS["positive_weight"](facts).status == HOLDS
    facts.published["sanity_mndwi_text"] = facts.published["sanity_mndwi_code"]
    assert ledger._CLAIMS["filter_table"](facts).status == HOLDS


def test_rules_are_measured_not_assumed(bare):
    # Twice the buffer of 0.02 degrees, in longitude at 45 degrees north, is 3.1 km; in latitude 4.4 km.
    assert 3.1 < bare["separation"].figures["rule_km"] < 4.5 and bare["separation"].status == FAILS
    # At 43 degrees 1 / cos(43 degrees) squared, less what the ellipsoid differs from the sphere.
    assert bare["area"].figures["least"] < 1.87 < bare["area"].figures["most"] and bare["area"].status == FAILS
    assert bare["leakage_within_a_stage"].figures["overlapping_pairs"] == 0
    assert 0.5 < bare["leakage_between_stages"].figures["share_seen"] < 1
    # A square of 0.15 degrees loses 0.02 on each side.
    assert bare["buffer_drops"].figures["share"] == pytest.approx(1 - (0.11 / 0.15) ** 2, abs=0.02)


def test_arithmetic_on_published_figures(bare):
    assert sorted(map(round, bare["soup_epochs"].figures.values())) == [9, 10, 13, 16]
    assert bare["soup_epochs"].status == FAILS and bare["corrected_chips"].status == HOLDS
    assert bare["split_shares"].status == bare["regions"].status == bare["best_threshold"].status == HOLDS


def test_the_file_holds_every_entry(tmp_path, studied):
    path = ledger.write(tmp_path, STUDY)
    found = read_json(path)
    assert list(found) == list(studied) and found["separation"]["figures"] == dict(studied["separation"].figures)
    assert json.loads(path.read_text())["encoder_size"]["status"] == FAILS
