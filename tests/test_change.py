"""Lakes over years: identities survive growth, gaps, splits and merges; change is called only beyond the intervals."""

from __future__ import annotations

import os
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
from shapely import Polygon, box

from cryosentinel.errors import InputError
from cryosentinel.mapping.change import Changes, link_years, read_outlines, write_changes


def year(*squares: tuple[float, float, float, float], interval: float = 0.05, **columns: object) -> gpd.GeoDataFrame:
    """Boxes (left, bottom, width, height) in metres, with an interval of a share of their area."""
    geometry = [box(500_000 + x, 4_700_000 + y, 500_000 + x + w, 4_700_000 + y + h) for x, y, w, h in squares]
    area = pd.Series([g.area / 1e4 for g in geometry])
    values = {"area_ha": area, "area_low_ha": area * (1 - interval), "area_high_ha": area * (1 + interval), "flags": ""}
    return gpd.GeoDataFrame({**values, **columns}, geometry=geometry, crs=32643)


def events(found: Changes) -> set[tuple[int, str]]:
    return set(zip(found.events["year"], found.events["event"], strict=True))


def test_growth_beyond_the_interval_is_called_and_less_is_not() -> None:
    found = link_years({
        2017: year((0, 0, 200, 200), (1000, 0, 200, 200), (2000, 0, 200, 200)),
        2021: year((0, 0, 204, 200), (1000, 0, 260, 200), (2000, 0, 150, 200)),
        2023: year((5, 5, 206, 200), (1000, 0, 300, 200), (2000, 0, 120, 200)),
    })  # fmt: skip
    lakes = found.lakes.set_index("identity")
    assert lakes.loc[1, "call"] == "no change beyond the intervals" and lakes.loc[1, "change_percent"] > 2
    assert lakes.loc[2, "call"] == "grew" and lakes.loc[2, "rate_ha_a"] == pytest.approx(2 / 6)
    assert lakes.loc[3, "call"] == "shrank"
    assert found.lakes["identity"].iloc[0] == 2, "fastest growing first"
    assert (found.outlines.groupby("identity")["year"].nunique() == 3).all() and found.events.empty


def test_a_lake_missed_in_one_year_is_the_same_lake() -> None:
    found = link_years({2017: year((0, 0, 200, 200)), 2021: year((900, 0, 90, 90)), 2023: year((10, 0, 200, 200))})
    assert found.outlines.groupby("identity")["year"].apply(list).to_dict() == {1: [2017, 2023], 2: [2021]}
    assert events(found) == {(2021, "birth"), (2023, "gone")}


def test_splits_and_merges_keep_the_identity_of_the_largest_part_and_are_not_compared() -> None:
    whole, large, small = (0, 0, 400, 100), (0, 0, 250, 100), (300, 0, 100, 100)
    split = link_years({2017: year(whole), 2021: year(small, large)})
    by_area = split.outlines[split.outlines["year"] == 2021].sort_values("area_ha")["identity"].tolist()
    assert by_area == [2, 1] and events(split) == {(2021, "split")}
    assert set(split.lakes["call"]) == {"not compared", "seen once"}
    merge = link_years({2017: year(small, large), 2021: year(whole)})
    assert merge.outlines[merge.outlines["year"] == 2021]["identity"].tolist() == [2]
    assert events(merge) == {(2021, "merge")}, "the other one did not drain"
    assert merge.events["others"].tolist() == ["1 2"]


def test_a_touch_is_no_overlap() -> None:
    found = link_years({2017: year((0, 0, 200, 200)), 2021: year((195, 0, 200, 200))})
    assert found.outlines["identity"].nunique() == 2


def test_images_that_differ_and_outlines_that_are_cut_are_said() -> None:
    one = year((0, 0, 200, 200), date="2017-08-30", orbit="ascending", radar_product="GRD", cloud="0.0")
    two = year((0, 0, 300, 200), date="2023-06-10", orbit="descending", radar_product="RTC", cloud="0.4")
    (lake,) = link_years({2017: one, 2023: two}).lakes.itertuples()
    assert lake.call == "grew"
    for word in ("season", "orbit", "radar product", "40% cloud"):
        assert word in lake.note
    (lake,) = link_years({2017: one, 2023: two.assign(flags="edge")}).lakes.itertuples()
    assert lake.call == "not compared" and "edge" in lake.note
    cut = pd.concat([two.assign(flags="edge"), year((2000, 0, 90, 90), (4000, 0, 90, 90))], ignore_index=True)
    both = pd.concat([one, year((2000, 0, 90, 90))], ignore_index=True)
    calls = link_years({2017: both, 2023: cut}).lakes["call"].tolist()
    assert calls == ["no change beyond the intervals", "not compared", "seen once"], "a cut outline does not lead"


def test_what_is_not_known_of_the_images_is_said() -> None:
    one = year((0, 0, 200, 200), date="2017-08-30", orbit="ascending")
    assert link_years({2017: one, 2023: one}).lakes["note"].tolist() == [""]
    (bare,) = link_years({2017: one, 2023: year((0, 0, 300, 200))}).lakes.itertuples()
    assert "date" in bare.note and "radar" in bare.note
    (dated,) = link_years({2017: one, 2023: year((0, 0, 300, 200), date="2023-08-30")}).lakes.itertuples()
    assert "date" not in dated.note and "radar" in dated.note


def test_a_lake_outside_the_images_of_a_year_is_neither_born_nor_gone() -> None:
    west, east = (0, 0, 200, 200), (1000, 0, 200, 200)
    covered = {2017: box(500_000, 4_700_000, 500_500, 4_700_500), 2023: box(500_900, 4_700_000, 502_000, 4_700_500)}
    found = link_years({2017: year(west), 2021: year(), 2023: year(east)}, footprints=covered)
    assert events(found) == {(2021, "gone"), (2023, "birth")}, "2021 shows all"
    found = link_years({2017: year(west), 2023: year(east)}, footprints=covered)
    assert events(found) == {(2017, "not imaged"), (2023, "not imaged")}
    assert found.lakes["note"].str.contains("not imaged in").all()


def test_files_of_years_are_read_with_true_areas(tmp_path: Path) -> None:
    year((0, 0, 200, 200)).drop(columns=["area_ha", "area_low_ha", "area_high_ha", "flags"]).to_file(
        tmp_path / "lakes_2016.gpkg"
    )
    year((0, 0, 300, 200), year=2022).to_crs(3857).to_parquet(tmp_path / "b.parquet")
    years = read_outlines([tmp_path / "lakes_2016.gpkg", tmp_path / "b.parquet"])
    assert {y: round(f["area_ha"].iloc[0], 2) for y, f in years.items()} == {2016: 4.0, 2022: 6.0}
    found = link_years(years)
    write_changes(found, tmp_path / "o")
    assert pd.read_csv(tmp_path / "o" / "lakes.csv")["call"].tolist() == ["grew"]
    assert len(gpd.read_parquet(tmp_path / "o" / "outlines.parquet")) == 2
    year((0, 0, 9, 9)).to_file(tmp_path / "when.gpkg")
    (tmp_path / "x_2001.gpkg").write_text("no")
    for files, word in (
        ([tmp_path / "when.gpkg"], "year"), ([tmp_path / "x_2001.gpkg"], "x_2001"), ([tmp_path / "no"], "no file"),
        ([tmp_path / "b.parquet"], "two"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            read_outlines(files)


@pytest.mark.parametrize("said", ["2016", "2016-08-01", 2016, 2016.0, pd.Timestamp("2016-08-01"), 0])
def test_a_year_may_be_a_number_a_text_or_a_date(tmp_path: Path, said: object) -> None:
    year((0, 0, 200, 200), year=said).to_parquet(tmp_path / "lakes_2016.parquet")
    year((0, 0, 200, 200), year=2020).to_parquet(tmp_path / "b.parquet")
    assert list(read_outlines([tmp_path / "lakes_2016.parquet", tmp_path / "b.parquet"])) == [2016, 2020]


def test_an_outline_with_a_spike_keeps_its_polygon(tmp_path: Path) -> None:
    corners = [(0, 0), (100, 0), (100, 100), (50, 100), (50, 180), (50, 100), (0, 100)]
    spiked = gpd.GeoDataFrame(geometry=[Polygon([(500_000 + x, 4_700_000 + y) for x, y in corners])], crs=32643)
    spiked.to_file(tmp_path / "a_2016.gpkg")
    year((0, 0, 100, 100)).to_file(tmp_path / "b_2020.gpkg")
    found = read_outlines([tmp_path / "a_2016.gpkg", tmp_path / "b_2020.gpkg"])
    assert found[2016]["area_ha"].tolist() == pytest.approx([1.0], rel=1e-3)


def test_real_lakes_of_iceland_keep_their_identity() -> None:
    folder = os.environ.get("CRYOSENTINEL_REAL_DATA")
    if not folder:
        pytest.skip("CRYOSENTINEL_REAL_DATA is not set: no real outlines here")
    files = sorted((Path(folder) / "iceland_glacial_lakes").glob("glacial_lakes_*.gpkg"))
    found = link_years(read_outlines(files))
    years = found.outlines.groupby("identity")["year"].nunique()
    largest = found.outlines.sort_values("area_ha").groupby("year").tail(3)
    assert (years[largest["identity"].unique()] >= 4).all(), "the largest lakes are followed through the years"
    assert (found.lakes["call"] == "grew").sum() > (found.lakes["call"] == "shrank").sum() > 0
    assert not found.outlines.duplicated(["identity", "year"]).any()
