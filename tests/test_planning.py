"""A plan adds up: regions to what they cover together, windows to the gate, hours to the cost."""

from __future__ import annotations

import pytest
from pyproj import Geod

from cryosentinel.mapping.planning import ALL, plan_regions, region_areas
from cryosentinel.sensors import REGIONS


def test_areas_are_those_of_the_ellipsoid_and_all_is_less_than_the_sum() -> None:
    areas = region_areas()
    west, south, east, north = REGIONS["ile_alatau"]
    # Parallels are no geodesics: a box of degrees is measured with many points along its edges.
    steps = [west + (east - west) * i / 200 for i in range(201)]
    lons, lats = [*steps, *steps[::-1]], [south] * 201 + [north] * 201
    assert areas["ile_alatau"] == pytest.approx(
        abs(Geod(ellps="WGS84").polygon_area_perimeter(lons, lats)[0]) / 1e6, rel=1e-4
    )
    assert set(areas) == {*REGIONS, ALL}
    assert areas[ALL] < sum(areas[name] for name in REGIONS) and areas[ALL] > max(areas[name] for name in REGIONS)
    assert 0 < areas["hma_other"] < areas[ALL] / 2, "what no other region takes"


def test_hours_follow_rate_overlap_gate_and_passes() -> None:
    plain = plan_regions(100, core_hour=0.5).set_index("region")
    one = plain.loc["ile_alatau"]
    assert one["windows"] == pytest.approx(one["area_km2"] / 1.12**2) and one["hours"] == pytest.approx(
        one["windows"] / 36_000
    )
    assert one["cost"] == pytest.approx(one["hours"] / 2)
    gated = plan_regions(100, overlap=32, gate=4, passes=2).set_index("region").loc["ile_alatau"]
    assert gated["run"] == pytest.approx(one["area_km2"] / 1.92**2 / 4) and gated["hours"] == pytest.approx(
        gated["run"] / 18_000
    )
