"""Tables that people read: signs, missing intervals, reasons once."""

import re

import numpy as np
import pandas as pd

from cryosentinel.evaluation import tables
from cryosentinel.evaluation.bootstrap import Estimate

SURE = Estimate(0.81234, 0.79, 0.84, 60, 30, 28)
UNSURE = Estimate(float("nan"), None, None, 8, 2, 2, "too few blocks")


def test_estimates() -> None:
    shown = tables.estimates({"soup": SURE, "tiny": UNSURE})
    assert shown.loc["soup"].tolist() == ["0.812", "0.790 to 0.840", 60, 28]
    assert shown.loc["tiny", "IoU"] == "nan" and shown.loc["tiny", "95 % interval"] == "none"
    assert tables.estimates({"gain": SURE}, "difference", signed=True).loc["gain", "difference"] == "+0.812"
    assert tables.reasons({"a": UNSURE, "b": UNSURE, "c": SURE}) == "No interval where none stands: too few blocks."
    assert tables.reasons({"c": SURE}) == ""
    few = {"a": Estimate(0.5, None, None, 8, 18, 17, "few"), "b": Estimate(0.4, None, None, 8, 18, 17, "few")}
    said = tables.reasons(few, "on validation")
    assert said == "No interval on validation: only 17 split blocks hold a lake and an interval needs 20."


def test_a_matrix_holds_scores_with_their_intervals() -> None:
    found = {
        "soup": {"val": SURE, "test": UNSURE},
        "mndwi": {"val": Estimate(0.5, None, None, 8, 2, 2, "few"), "test": SURE},
    }
    shown = tables.matrix(found)
    assert list(shown.columns) == ["val", "test"] and list(shown.index) == ["this study's network", "MNDWI"]
    assert shown.iloc[0].tolist() == ["0.812 (0.790 to 0.840)", "–"] and shown.loc["MNDWI", "val"] == "0.500"
    assert tables.matrix(found, signed=True).loc["MNDWI", "test"] == "+0.812 (+0.790 to +0.840)"


def test_entries() -> None:
    shown = tables.entries({"x": SURE.entry("simulated", "here"), "n": UNSURE.entry("simulated", "here"),
                            "count": {**SURE.entry("simulated", "here"), "value": 6_071_808}})  # fmt: skip
    assert shown.loc["x", "value"] == "0.8123" and shown.loc["n", "value"] == "none"
    assert shown.loc["n", "note"] == "too few blocks" and shown.loc["count", "value"] == "6,071,808"
    entry = SURE.entry("simulated", "here")
    small = tables.entries({"share": {**entry, "value": -3.14159e-6}, "zero": {**entry, "value": 0.0}})
    assert small["value"].tolist() == ["-3.14e-06", "0.0000"]


def test_a_table_for_people() -> None:
    frame = pd.DataFrame({"area_ha": [1.23456, np.nan], "first_year": [2017, 2021], "chips": [1234, 5],
                          "right": [True, False], "why": ["<b>", ""],
                          "score": ["0.812 (0.790 to 0.840)", "none"]})  # fmt: skip
    shown = tables.show(frame, "What it says", {"why": "reason"}, digits=2)
    page = shown._repr_html_()
    head = re.findall("<th>(.*?)</th>", page)
    assert head == ["area (ha)", "first year", "chips", "right", "reason", "score"], "no column of row numbers"
    cells = re.findall("<td[^>]*>(.*?)</td>", page)
    assert cells[:5] == ["1.23", "2017", "1,234", "yes", "&lt;b&gt;"] and cells[6:11] == ["–", "2021", "5", "no", "–"]
    assert cells[5] == '0.812 <span class="interval">(0.790 to 0.840)</span>' and cells[11] == "–"
    assert "<caption>What it says</caption>" in page and "1.23" in repr(shown) and "What it says" in repr(shown)
    indexed = tables.show(frame.set_index("area_ha"))._repr_html_()
    assert indexed.count("<th>area (ha)</th>") == 1 and "<caption>" not in indexed
    one = tables.show({"kept": "41%"})._repr_html_()
    assert "<th>kept</th>" in one and '<td class="number">41%</td>' in one


def test_a_sign_stands_only_where_there_is_a_difference() -> None:
    assert [tables.number(v, 3, signed=True) for v in (-0.0004, 0.0, 0.0006, -1.5)] == [
        "0.000",
        "0.000",
        "+0.001",
        "-1.500",
    ]
    assert tables.number(-0.0004, 4) == "-0.0004" and tables.number(1234.0, 0) == "1,234"


def test_sentences_leave_nothing_behind_where_nothing_is_said() -> None:
    assert tables.say("")._repr_html_() == "" and repr(tables.say("a < b", "", "c")) == "a < b\nc"
    assert tables.say("a < b")._repr_html_() == '<p class="said">a &lt; b</p>'
