"""What it would take to map a region, or all of High Mountain Asia: windows, hours and cost from measured rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryosentinel.sensors import CHIP_SIZE, PIXEL_SIZE_M, REGIONS

if TYPE_CHECKING:
    import pandas as pd

ALL = "all of High Mountain Asia"
#: Pixels that windows share where few are wanted (``map --gate --overlap 32``); ``seam_error`` measures what it costs.
GATE_OVERLAP = 32
_EQUAL_AREA = 6933  # cylindrical: boxes of degrees stay boxes, whose areas add up exactly


def region_areas() -> dict[str, float]:
    """Area in square kilometres of each region's box, and of all together, on the ellipsoid.

    Boxes overlap: a chip of an overlap may belong to either, so that regions add up to more than all together. The last
    region takes what no other one takes.
    """
    import shapely
    from pyproj import Transformer

    to_area = Transformer.from_crs(4326, _EQUAL_AREA, always_xy=True)
    boxes = {name: shapely.box(*to_area.transform_bounds(*box)) for name, box in REGIONS.items()}
    *named, last = boxes
    others = shapely.union_all([boxes[name] for name in named])
    boxes[last] = boxes[last].difference(others)
    boxes[ALL] = shapely.union_all([others, boxes[last]])
    return {name: float(shape.area) / 1e6 for name, shape in boxes.items()}


def plan_regions(
    ms_window: float, overlap: int = CHIP_SIZE // 2, gate: float = 1.0, passes: float = 1.0, core_hour: float = 0.0
) -> pd.DataFrame:
    """Windows, hours and cost of one year's map of every region.

    Args:
        ms_window: milliseconds a window and pass, measured on the machine that is to do it.
        overlap: pixels that neighbouring windows share.
        gate: times fewer windows with the physics gate, 1 without.
        passes: a window, 1 without test-time flips.
        core_hour: price of an hour of that machine.

    Returns:
        One row a region, and one for all: region, area_km2, windows (that cover the area), run (that the gate leaves),
        hours, cost.
    """
    import pandas as pd

    stride_km = (CHIP_SIZE - overlap) * PIXEL_SIZE_M / 1000
    rows = []
    for name, area in region_areas().items():
        windows = area / stride_km**2
        hours = windows / gate * passes * ms_window / 3.6e6
        rows.append({"region": name, "area_km2": area, "windows": windows, "run": windows / gate, "hours": hours,
                     "cost": hours * core_hour})  # fmt: skip
    return pd.DataFrame(rows)
