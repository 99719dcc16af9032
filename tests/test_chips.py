"""The chip's arrays and masks, and its two codecs: what is written comes back, and what is broken is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from chip_factory import make_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryosentinel.data.chips import (
    BAND_NAMES,
    LAYOUT,
    SHARD_SCHEMA,
    Chip,
    Raster,
    clean,
    iter_shard,
    read_geotiff,
    read_shard,
    read_shard_metadata,
    valid_mask,
    write_geotiff,
    write_shard,
)
from cryosentinel.errors import InputError
from cryosentinel.geo import chip_grid

FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
METADATA = ("chip_id", "region", "snapshot_year", "lat", "lon", "lake_id", "split", "water_frac")


@st.composite
def chips(draw) -> Chip:
    """Any chip that the format can hold, extreme values and nodata included."""
    size = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    decibels = st.floats(-100, 100, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])
    return Chip(
        s2=draw(hnp.arrays(np.uint16, (12, *size))),
        s1=draw(hnp.arrays(np.float32, (2, *size), elements=decibels)),
        dem=draw(hnp.arrays(np.int16, (1, *size))),
        mask=draw(hnp.arrays(np.uint8, size, elements=st.integers(0, 1))),
        chip_id=draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)),
        region=draw(st.sampled_from(["ile_alatau", "пик"])),
        snapshot_year=draw(st.integers(2014, 2100)),
        lat=draw(st.none() | st.floats(-90, 90)),
        lon=draw(st.none() | st.floats(-180, 180)),
        lake_id=draw(st.text(st.characters(codec="utf-8"), max_size=4)),
    )


def same(a: Chip, b: Chip) -> bool:
    return all(np.array_equal(getattr(a, k), getattr(b, k), equal_nan=k == "s1") for k in LAYOUT) and all(
        getattr(a, k) == getattr(b, k) for k in METADATA
    )


@FEW
@given(st.lists(chips(), min_size=1, max_size=4))
def test_a_shard_gives_back_what_was_written(tmp_path, some):
    write_shard(tmp_path / "shard_000.parquet", some)
    back = read_shard(tmp_path / "shard_000.parquet")
    assert len(back) == len(some)
    assert all(same(a, b) for a, b in zip(some, back, strict=True))


@FEW
@given(chips())
def test_a_geotiff_gives_back_what_was_written(tmp_path, chip):
    # Infinite backscatter and finite extremes are another test's; here it is about the numbers.
    chip = chip.replace(lat=43.0, lon=77.0, s2=np.maximum(chip.s2, 3), s1=np.minimum(chip.s1, -1.0))
    write_geotiff(tmp_path / "chip.tif", chip, "EPSG:32643", chip_grid(43.0, 77.0)[1])
    back = read_geotiff(tmp_path / "chip.tif")
    for name in ("s2", "s1", "dem"):
        array = getattr(chip, name)
        assert getattr(back, name).dtype == array.dtype
        np.testing.assert_array_equal(getattr(back, name), array)


def test_the_schema_is_the_published_one(tmp_path):
    chip = make_chip(1)
    write_shard(tmp_path / "shard_000.parquet", [chip, chip])
    file = pq.ParquetFile(tmp_path / "shard_000.parquet")
    names = ["s2", "s1", "dem", "mask"]
    assert file.schema_arrow.names == [
        "chip_id", "region", "lake_id", "split", "snapshot_year", "lat", "lon", "water_frac",
        *(f"{n}_bytes" for n in names), *(f"{n}_shape" for n in names),
    ]  # fmt: skip
    assert file.num_row_groups == 1
    row = file.read().to_pylist()[0]
    assert row["s2_bytes"] == chip.s2.astype("<u2").tobytes() and row["s2_shape"] == [12, 32, 32]
    assert row["s1_bytes"] == chip.s1.astype("<f4").tobytes() and row["dem_shape"] == [1, 32, 32]
    assert row["mask_bytes"] == chip.mask.tobytes() and row["mask_shape"] == [32, 32]
    assert row["water_frac"] == pytest.approx(1 / 8)


def test_equal_chips_give_equal_files(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}.parquet", [make_chip(k) for k in range(3)])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


# ---- valid mask and clipping ----------------------------------------------------------------------------------------


def test_each_kind_of_nodata_makes_a_pixel_invalid():
    chip = make_chip(2, size=4)
    s2, s1, dem = chip.s2.copy(), chip.s1.copy(), chip.dem.copy()
    s2[:, 0, 0] = 0  # version 2
    s2[:, 0, 1] = 16_000  # version 1
    s2[:, 0, 2] = 20_000  # version 1 before its clip
    s1[1, 1, 0], s1[0, 1, 1] = np.nan, -np.inf
    dem[0, 2, :] = [-32_000, 32_000, -32_768, 31_999]
    s2[0, 3, 0], s2[5, 3, 1] = 0, 16_000  # one dark, one saturated band: data
    expected = np.ones((4, 4), bool)
    expected[0, :3] = expected[1, :2] = expected[2, :3] = False
    np.testing.assert_array_equal(valid_mask(s2, s1, dem), expected)
    batch = valid_mask(np.stack([s2, chip.s2]), np.stack([s1, chip.s1]), np.stack([dem, chip.dem]))
    np.testing.assert_array_equal(batch, np.stack([expected, np.ones((4, 4), bool)]))
    floating = np.where(np.arange(12)[:, None, None] == 3, np.nan, s2.astype(np.float32))
    assert not valid_mask(floating, s1, dem).any()


def test_cleaning_clips_and_fills_copies():
    chip = make_chip(3, size=2)
    s2, s1, dem = chip.s2.copy(), chip.s1.copy(), chip.dem.copy()
    s2[0, 0, 0], s1[0, 0, 0], s1[1, 1, 1], dem[0, 0] = 60_000, np.nan, -np.inf, [-32_768, 32_767]
    before = s2.copy()
    out2, out1, out3 = clean(s2, s1, dem)
    assert out2[0, 0, 0] == 16_000 and out1[0, 0, 0] == -25 and out1[1, 1, 1] == -25
    assert out3[0, 0].tolist() == [-500, 9_000]
    assert (out2.dtype, out1.dtype, out3.dtype) == (np.uint16, np.float32, np.int16)
    np.testing.assert_array_equal(s2, before)
    floating = clean(np.full((12, 1, 1), np.nan), np.full((2, 1, 1), np.nan), np.full((1, 1, 1), np.nan))
    assert all(np.isfinite(array).all() for array in floating)


# ---- shards that are not as they should be --------------------------------------------------------------------------


def rewrite(path, out, change):
    """Write a shard again with its Arrow table changed."""
    table = change(pq.read_table(path))
    pq.write_table(table, out)
    return out


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard_000.parquet"
    write_shard(path, [make_chip(k, size=8) for k in range(5)])
    return path


def test_missing_optional_columns_are_read_and_said(shard, tmp_path):
    poor = rewrite(shard, tmp_path / "poor.parquet", lambda t: t.drop_columns(["lat", "lon", "water_frac"]))
    with pytest.warns(UserWarning, match=r"lacks lat, lon, water_frac"):
        back = read_shard(poor)
    assert back[0].lat is None and back[0].lon is None
    assert back[0].water_frac == pytest.approx(1 / 8)  # computed from the mask
    assert read_shard_metadata(poor)[0]["water_frac"] is None


def test_wider_types_and_missing_numbers_are_read(shard, tmp_path):
    def widen(table):
        schema = pa.schema(
            [pa.field(f.name, pa.large_string() if pa.types.is_string(f.type) else f.type) for f in table.schema]
        )
        table = table.cast(schema)
        at = table.schema.get_field_index("lat")
        table = table.set_column(at, "lat", pa.array([np.nan, None, 43.0, 43.0, 43.0], pa.float32()))
        at = table.schema.get_field_index("snapshot_year")
        return table.set_column(at, "snapshot_year", table["snapshot_year"].cast(pa.int32()))

    back = read_shard(rewrite(shard, tmp_path / "wide.parquet", widen))
    assert [chip.lat for chip in back] == [None, None, 43.0, 43.0, 43.0]


def put(column, value, row=3):
    """A change that puts a value into one cell."""

    def change(table):
        values = table[column].to_pylist()
        values[row] = value
        at = table.schema.get_field_index(column)
        return table.set_column(at, column, pa.array(values, table.schema.field(column).type))

    return change


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("s2_bytes", b"1234", r"4 bytes of s2"),
        ("s2_bytes", None, "s2"),
        ("s2_shape", [8, 8, 12], r"shape \[8, 8, 12\]"),
        ("s2_shape", [12, 8], r"shape \[12, 8\]"),
        ("mask_shape", [4, 16], "grid"),
        ("mask_shape", [-8, -8], r"shape \[-8, -8\]"),
        ("mask_bytes", bytes([7] * 64), "mask .*7"),
        ("s1_bytes", np.full(128, 5000, "<f4").tobytes(), "decibels"),
        ("lat", 543.0, r"lat 543.0"),
        ("lon", -181.0, r"lon -181.0"),
        ("water_frac", 1.5, "water_frac 1.5"),
        ("snapshot_year", 1850, "snapshot_year 1850"),
        ("chip_id", None, "chip_id"),
        ("region", "", "region"),
    ],
)
def test_an_impossible_row_is_named(shard, tmp_path, column, value, says):
    bad = rewrite(shard, tmp_path / "bad.parquet", put(column, value))
    with pytest.raises(InputError, match=says) as caught:
        read_shard(bad)
    assert "Row 3" in str(caught.value) and "bad.parquet" in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop_columns(["s1_bytes"]), "s1_bytes"),
        (lambda t: t.set_column(8, "s2_bytes", pa.array(range(5))), "s2_bytes.* int64"),
        (lambda t: t.set_column(5, "lat", pa.array(["43"] * 5)), "lat.* string"),
        (lambda t: t.set_column(12, "s2_shape", pa.array([12] * 5)), "s2_shape"),
    ],
)
def test_a_wrong_column_is_named(shard, tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        read_shard(rewrite(shard, tmp_path / "bad.parquet", change))


@FEW
@given(st.data())
def test_a_damaged_shard_is_refused_or_reads_as_chips(shard, tmp_path, data):
    """Cut or flip bytes anywhere: a sentence, or chips of the right shape, and never another exception."""
    raw = bytearray(shard.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "bad.parquet").write_bytes(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for chip in iter_shard(tmp_path / "bad.parquet"):
                assert chip.s2.shape[0] == 12
    except InputError as error:
        assert "bad.parquet" in str(error) and "\n" not in str(error)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet"):
        read_shard(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not a shard")
    with pytest.raises(InputError, match=r"text\.parquet"):
        read_shard(tmp_path / "text.parquet")


def test_nothing_is_written_of_an_impossible_chip(tmp_path):
    with pytest.raises(InputError, match="lat 91"):
        write_shard(tmp_path / "shard_000.parquet", [make_chip(0), make_chip(1, lat=91.0)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="float64"):
        make_chip(0, s2=np.zeros((12, 32, 32)))
    with pytest.raises(InputError, match="shape"):
        make_chip(0, dem=np.zeros((32, 32), np.int16))


def test_the_schema_constant_matches_what_is_read():
    assert set(SHARD_SCHEMA.names) == {*METADATA, *(f"{n}_{w}" for n in LAYOUT for w in ("bytes", "shape"))}


# ---- GeoTIFF --------------------------------------------------------------------------------------------------------


def test_a_geotiff_carries_its_grid_and_its_names(tmp_path):
    chip = make_chip(5)
    write_geotiff(tmp_path / "chip.tif", chip)
    epsg, transform = chip_grid(chip.lat, chip.lon, 32)
    with rasterio.open(tmp_path / "chip.tif") as source:
        assert source.descriptions == BAND_NAMES and source.count == 15
        assert source.crs.to_epsg() == epsg and source.transform == transform
        assert source.tags()["chip_id"] == chip.chip_id
    window = rasterio.windows.Window(4, 8, 10, 6)
    part = read_geotiff(tmp_path / "chip.tif", window)
    np.testing.assert_array_equal(part.s2, chip.s2[:, 8:14, 4:14])
    assert part.transform == transform @ transform.translation(4, 8)
    write_geotiff(tmp_path / "again.tif", part)
    np.testing.assert_array_equal(read_geotiff(tmp_path / "again.tif").s1, part.s1)


def test_nodata_of_a_geotiff_stays_invalid(tmp_path):
    chip = make_chip(6, size=8)
    bands = np.concatenate([chip.s2, chip.s1, chip.dem]).astype(np.float32)
    bands[:, 0, 0] = -9999
    bands[3, 1, 1] = np.nan
    profile = {"driver": "GTiff", "dtype": "float32", "count": 15, "height": 8, "width": 8, "nodata": -9999}
    with rasterio.open(tmp_path / "a.tif", "w", crs="EPSG:32643", transform=chip_grid(43, 77)[1], **profile) as target:
        target.write(bands)
    raster = read_geotiff(tmp_path / "a.tif")
    assert isinstance(raster, Raster)
    expected = np.ones((8, 8), bool)
    expected[0, 0] = expected[1, 1] = False
    np.testing.assert_array_equal(raster.valid, expected)


def test_unusable_geotiffs_are_refused_in_a_sentence(tmp_path):
    chip = make_chip(7, size=64)
    good = np.concatenate([chip.s2, chip.s1, chip.dem]).astype(np.float32)
    transform = chip_grid(43, 77)[1]

    def write(name, bands, crs="EPSG:32643", **extra):
        profile = {"driver": "GTiff", "dtype": "float32", "count": len(bands), "height": 64, "width": 64, "crs": crs}
        with rasterio.open(tmp_path / name, "w", **profile, **extra) as target:
            target.write(bands)
        return tmp_path / name

    cases = [
        (write("bands.tif", good[:13], transform=transform), "bands.tif has 13 bands"),
        (write("crs.tif", good, None, transform=transform), "crs.tif .*coordinate reference system"),
        (
            write("reflectance.tif", np.concatenate([good[:12] / 1e4, good[12:]]), transform=transform),
            "reflectance.tif .*10,000",
        ),
        (
            write("linear.tif", np.concatenate([good[:12], 10 ** (good[12:14] / 10), good[14:]]), transform=transform),
            "linear.tif .*dB",
        ),
        (tmp_path / "none.tif", "none.tif"),
    ]
    text = tmp_path / "text.tif"
    text.write_text("text.tif")
    cases.append((text, "text.tif"))
    cut = tmp_path / "cut.tif"
    write_geotiff(cut, chip)
    cut.write_bytes(cut.read_bytes()[:-5000])
    cases.append((cut, "cut.tif"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        cases.append((write("place.tif", good), "place.tif"))
        for path, says in cases:
            with pytest.raises(InputError, match=says):
                read_geotiff(path)
    with pytest.raises(InputError, match="lat"):
        write_geotiff(tmp_path / "x.tif", chip.replace(lat=None))
