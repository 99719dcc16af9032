"""Histograms against plain loops and searchsorted; the table's round trip and its refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation import scores
from cryosentinel.evaluation.scores import (
    BINS,
    EDGES,
    ScoreBuilder,
    chip_histograms,
    probability_bins,
    read_scores,
    threshold_bin,
    write_scores,
)


def index_of(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"chip_id": [f"c{i:03d}" for i in range(n)], "region": "ile_alatau", "year": 2022, "lat": 43.0, "lon": 77.0}
    )


def make_table(seed: int = 0, n: int = 4, size: int = 16) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = rng.random((n, size, size), dtype=np.float32)
    label, valid = rng.random((n, size, size)) < 0.2, rng.random((n, size, size)) < 0.9
    builder = ScoreBuilder(index_of(n), np.array([f"0|{i}" for i in range(n)]))
    for i in range(n):
        builder.add(i, probability_bins(probability[i]), label[i].astype(np.uint8), valid[i])
    return builder.table(), probability, label, valid


def test_every_edge_is_exact():
    below = np.nextafter(EDGES[1:], np.float32(0))
    above = np.nextafter(EDGES[:-1], np.float32(1))
    assert (probability_bins(EDGES[:-1]) == np.arange(BINS)).all()
    assert (probability_bins(below) == np.arange(BINS)).all()
    assert (probability_bins(above) == np.arange(BINS)).all()
    assert probability_bins(np.float32(1)) == BINS - 1
    # The plain product is wrong at some of these, which is why the bins are not int(p * 200).
    assert ((below * np.float32(BINS)).astype(int) != np.arange(BINS)).any()


def test_bins_agree_with_comparisons_over_all_magnitudes():
    bits = np.random.default_rng(0).integers(0, int(np.float32(1).view(np.int32)) + 1, 200_000)
    probability = bits.astype(np.int32).view(np.float32)  # every exponent, subnormals too
    reference = np.minimum(np.searchsorted(EDGES, probability, side="right") - 1, BINS - 1)
    np.testing.assert_array_equal(probability_bins(probability), reference)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1, width=32), st.integers(0, BINS - 1))
def test_a_threshold_splits_bins_as_it_splits_probabilities(p: float, k: int):
    probability = np.float32(p)
    assert (probability_bins(probability) >= k) == bool(probability >= np.float32(k / BINS))


@pytest.mark.parametrize("bad", [np.nan, -0.001, 1.001, np.inf])
def test_what_is_not_a_probability_is_refused(bad: float):
    with pytest.raises(InputError, match="not probabilities"):
        probability_bins(np.array([0.5, bad], np.float32))


@pytest.mark.parametrize("bad", [0.501, -0.005, 1.0, np.nan, np.inf])
def test_thresholds_between_edges_are_refused(bad: float):
    with pytest.raises(ConfigError, match="multiple"):
        threshold_bin(bad)


def test_histograms_equal_a_loop():
    table, probability, label, valid = make_table()
    for i in range(len(table)):
        lake, background = np.zeros(BINS, int), np.zeros(BINS, int)
        for p, y, v in zip(probability[i].flat, label[i].flat, valid[i].flat, strict=True):
            if v:
                k = max(k for k in range(BINS) if p >= np.float32(k / BINS))
                (lake if y else background)[k] += 1
        np.testing.assert_array_equal(table["lake"][i], lake)
        np.testing.assert_array_equal(table["background"][i], background)
        assert table["n_valid"][i] == valid[i].sum()


def test_shapes_must_agree():
    with pytest.raises(InputError, match="one shape"):
        chip_histograms(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), np.ones((4, 4), bool))


def test_round_trip_and_attributes(tmp_path):
    table, *_ = make_table()
    write_scores(tmp_path / "t.parquet", table, {"digest": "abc", "flips": 4})
    back = read_scores(tmp_path / "t.parquet")
    assert tuple(back.columns) == scores.COLUMNS
    assert back.attrs == {"version": 1, "bins": BINS, "digest": "abc", "flips": 4}
    for name in ("lake", "background"):
        np.testing.assert_array_equal(np.stack(back[name]), np.stack(table[name]))
    plain = ["chip_id", "region", "year", "lat", "lon", "block", "n_valid"]
    assert back[plain].astype(object).equals(table[plain].astype(object))


def test_an_empty_table_round_trips(tmp_path):
    write_scores(tmp_path / "t.parquet", make_table()[0].iloc[:0])
    assert len(read_scores(tmp_path / "t.parquet")) == 0


def test_a_plain_list_column_is_read_too(tmp_path):
    table, *_ = make_table()
    pq.write_table(pa.Table.from_pandas(table), tmp_path / "t.parquet")
    np.testing.assert_array_equal(np.stack(read_scores(tmp_path / "t.parquet")["lake"]), np.stack(table["lake"]))


@pytest.mark.parametrize(
    "harm", ["missing", "null", "truncated", "text", "columns", "short", "sum", "negative", "twice", "version"]
)
def test_damaged_tables_are_refused_in_one_sentence(tmp_path, harm: str):
    path = tmp_path / "t.parquet"
    table, *_ = make_table()
    if harm == "sum":
        table["n_valid"] += 1
    if harm == "twice":
        table = pd.concat([table, table.iloc[[0]]], ignore_index=True)
    write_scores(path, table)
    if harm == "version":
        arrow = pq.read_table(path)
        pq.write_table(arrow.replace_schema_metadata({scores._METADATA: b'{"version": 2}'}), path)
    if harm == "null":
        table.assign(block=None).to_parquet(path)
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "text":
        path.write_text("chip_id,region\n")
    elif harm == "columns":
        table[["chip_id", "region"]].to_parquet(path)
    elif harm in ("short", "negative"):
        table["lake"] = [a[:-1] if harm == "short" else a - 1000 for a in table["lake"]]
        table.to_parquet(path)
    with pytest.raises(InputError) as caught:
        read_scores(path)
    assert "t.parquet" in str(caught.value) and "\n" not in str(caught.value)
