"""The gate lets through what may be a lake, in any dress, and nothing else; its rules come from a file."""

import os
from pathlib import Path

import numpy as np
import pytest

from cryosentinel.errors import ConfigError
from cryosentinel.mapping.gate import Gate
from cryosentinel.mapping.scene import GATED, NO_DATA, RUN, Options, window_states


def world(*, level: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bare ground, level or steep, on which nothing may be a lake: s2, s1, dem, valid."""
    s2 = np.full((12, 224, 560), 2000, np.uint16)
    s2[10:] = 3000
    dem = 4000 + np.arange(224)[:, None] * (0 if level else 6) + np.zeros((224, 560))
    return s2, np.full((2, 224, 560), -12, np.float32), dem[None].astype(np.int16), np.ones((224, 560), bool)


LAKE = (slice(None), slice(100, 120), slice(300, 330))


def paint(s2: np.ndarray, kind: str) -> None:
    green_nir_swir = {"clear": (500, 100, 60), "turbid": (2000, 1300, 200), "frozen": (3200, 1950, 450),
                      "dark": (90, 70, 50)}[kind]  # fmt: skip
    for bands, value in zip((slice(0, 4), slice(4, 10), slice(10, 12)), green_nir_swir, strict=True):
        s2[(bands, *LAKE[1:])] = value


@pytest.mark.parametrize("kind", ["clear", "turbid", "frozen", "dark"])
def test_every_state_of_a_lake_passes_on_level_ground_and_none_on_a_slope(kind: str) -> None:
    gate = Gate.read()
    s2, s1, dem, valid = world()
    assert not gate.possible(s2, s1, dem, valid).any()
    paint(s2, kind)
    found = gate.possible(s2, s1, dem, valid)
    assert found[LAKE[1:]].all() and found.sum() == 600
    assert not gate.possible(s2, s1, world(level=False)[2], valid).any()


def test_open_water_that_the_radar_confirms_passes_on_any_slope() -> None:
    gate = Gate.read()
    s2, s1, dem, valid = world(level=False)
    paint(s2, "clear")
    s1[LAKE] = -18  # calm water
    found = gate.possible(s2, s1, dem, valid)
    assert found[LAKE[1:]].mean() > 0.8 and not found[:, :290].any()
    s1[LAKE] = -10  # a bright slope in the shade of a mountain
    assert not gate.possible(s2, s1, dem, valid).any()
    s1[LAKE] = np.nan
    assert not gate.possible(s2, s1, dem, valid).any()


def test_noise_and_places_without_data_do_not_pass() -> None:
    gate = Gate.read()
    s2, s1, dem, valid = world()
    s2[:, ::7, ::7] = 0  # single dark pixels
    s2[4:, 50:52, :] = 10  # a thread
    assert not gate.possible(s2, s1, dem, valid).any()
    paint(s2, "clear")
    valid[LAKE[1:]] = False
    assert not gate.possible(s2, s1, dem, valid).any()


def test_a_window_runs_for_what_lies_in_its_core() -> None:
    s2, s1, dem, valid = world()
    paint(s2, "clear")  # columns 300 to 330
    valid[:, :112] = False
    lefts = [0, 112, 224, 336]
    states = window_states((s2, s1, dem), valid, 0, 224, lefts, Options(gate=Gate.read()))
    assert states.tolist() == [GATED, GATED, RUN, GATED]
    valid[:, :224] = False
    assert window_states((s2, s1, dem), valid, 0, 224, lefts, Options(gate=Gate.read()))[0] == NO_DATA
    # Whatever the place, one window takes it: cores leave no gap.
    everywhere = np.zeros(560, int)
    for x in range(2, 557, 3):
        s2, s1, dem, valid = world()
        s2[4:, 100:120, max(0, x - 4) : x + 5] = 100
        run = window_states((s2, s1, dem), valid, 0, 224, lefts, Options(gate=Gate.read())) == RUN
        everywhere[x] = run.sum()
        assert run.any(), x
    assert everywhere.max() <= 2


def test_rules_come_from_a_file_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("ndwi: 0.1\nmndwi: 0.2\nslope: 10\nopen_ndwi: 0.4\nopen_vv: -15\nmin_pixels: 5\n")
    assert Gate.read(path) == Gate(0.1, 0.2, 10, 0.4, -15, 5)
    for text in ("ndwi: 0.1\n", path.read_text().replace("0.1", "a"), "[", "x: 1\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"g\.yaml"):
            Gate.read(path)


def test_the_real_estuary_is_not_gated() -> None:
    import rasterio

    folder = os.environ.get("CRYOSENTINEL_REAL_DATA")
    if not folder:
        pytest.skip("CRYOSENTINEL_REAL_DATA is not set: no real chips here")
    arrays = []
    for name in ("S2L2A", "S1RTC", "DEM"):
        with rasterio.open(next((Path(folder) / "terramesh_chips" / name).glob("282D*"))) as source:
            arrays.append(source.read())
    with rasterio.open(next((Path(folder) / "terramesh_chips" / "LULC").glob("282D*"))) as source:
        water = source.read(1) == 1
    valid = np.ones(water.shape, bool)
    assert Gate.read().possible(*arrays, valid)[water].mean() > 0.5  # turbid water passes in part
    assert window_states(tuple(arrays), valid, 0, 224, [0], Options(gate=Gate.read())).tolist() == [RUN]
