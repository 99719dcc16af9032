"""Tables that people read: signs, missing intervals, reasons once."""

from cryosentinel.evaluation import tables
from cryosentinel.evaluation.bootstrap import Estimate

SURE = Estimate(0.81234, 0.79, 0.84, 60, 30, 28)
UNSURE = Estimate(float("nan"), None, None, 8, 2, 2, "too few blocks")


def test_estimates() -> None:
    shown = tables.estimates({"soup": SURE, "tiny": UNSURE})
    assert shown.loc["soup"].tolist() == ["0.812", "0.790 to 0.840", 60, 28]
    assert shown.loc["tiny", "IoU"] == "nan" and shown.loc["tiny", "95 % interval"] == "none"
    assert tables.estimates({"gain": SURE}, "difference", signed=True).loc["gain", "difference"] == "+0.812"
    assert tables.reasons({"a": UNSURE, "b": UNSURE, "c": SURE}) == "too few blocks"


def test_a_matrix_holds_scores_with_their_intervals() -> None:
    found = {
        "soup": {"val": SURE, "test": UNSURE},
        "mndwi": {"val": Estimate(0.5, None, None, 8, 2, 2, "few"), "test": SURE},
    }
    shown = tables.matrix(found)
    assert list(shown.columns) == ["val", "test"] and list(shown.index) == ["soup", "mndwi"]
    assert shown.loc["soup"].tolist() == ["0.812 (0.790 to 0.840)", "–"] and shown.loc["mndwi", "val"] == "0.500"
    assert tables.matrix(found, signed=True).loc["mndwi", "test"] == "+0.812 (+0.790 to +0.840)"
    assert tables.reasons(found) == "too few blocks; few"


def test_entries() -> None:
    shown = tables.entries({"x": SURE.entry("simulated", "here"), "n": UNSURE.entry("simulated", "here"),
                            "count": {**SURE.entry("simulated", "here"), "value": 6_071_808}})  # fmt: skip
    assert shown.loc["x", "value"] == "0.8123" and shown.loc["n", "value"] == "none"
    assert shown.loc["n", "note"] == "too few blocks" and shown.loc["count", "value"] == "6,071,808"
    entry = SURE.entry("simulated", "here")
    small = tables.entries({"share": {**entry, "value": -3.14159e-6}, "zero": {**entry, "value": 0.0}})
    assert small["value"].tolist() == ["-3.14e-06", "0.0000"]
