"""Tables that people read: signs, missing intervals, reasons once."""

from cryosentinel.evaluation import tables
from cryosentinel.evaluation.bootstrap import Estimate

SURE = Estimate(0.81234, 0.79, 0.84, 60, 30, 28)
UNSURE = Estimate(float("nan"), None, None, 8, 2, 2, "too few blocks")


def test_estimates() -> None:
    shown = tables.estimates({"soup": SURE, "tiny": UNSURE})
    assert shown.loc["soup"].tolist() == ["0.8123", "0.7900 to 0.8400", 60, 28]
    assert shown.loc["tiny", "IoU"] == "nan" and shown.loc["tiny", "95 % interval"] == "none"
    assert tables.estimates({"gain": SURE}, "difference", signed=True).loc["gain", "difference"] == "+0.8123"
    assert tables.reasons({"a": UNSURE, "b": UNSURE, "c": SURE}) == "too few blocks"


def test_entries() -> None:
    shown = tables.entries({"x": SURE.entry("simulated", "here"), "n": UNSURE.entry("simulated", "here"),
                            "count": {**SURE.entry("simulated", "here"), "value": 6_071_808}})  # fmt: skip
    assert shown.loc["x", "value"] == "0.8123" and shown.loc["n", "value"] == "none"
    assert shown.loc["n", "note"] == "too few blocks" and shown.loc["count", "value"] == "6,071,808"
    entry = SURE.entry("simulated", "here")
    small = tables.entries({"share": {**entry, "value": -3.14159e-6}, "zero": {**entry, "value": 0.0}})
    assert small["value"].tolist() == ["-3.14e-06", "0.0000"]
