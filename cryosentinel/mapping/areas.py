"""Areas with an interval: conformal where lakes with known areas were set aside, else from the outline's length.

Split conformal prediction in size classes of the mapped area (Vovk et al. 2005; classes as in Mondrian prediction): of
lakes that neither training, selection, threshold nor calibration has seen, the ratios of reference to mapped area are
ranked; the interval of a new lake of that class is its mapped area times the ratios of the ranks that leave half of
``1 - coverage`` on either side. If the new lake is drawn like those, the interval holds its reference area with at
least that probability, whatever the errors look like.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.objects import MIN_COVER, SIZE_EDGES_HA
from cryosentinel.files import read_json, write_json
from cryosentinel.mapping.lakes import CUT
from cryosentinel.sensors import HECTARE_M2, PIXEL_HA

if TYPE_CHECKING:
    import pandas as pd

COVERAGE = 0.9


@dataclass(frozen=True)
class SizeClass:
    """Ratios of one class.

    Attributes:
        low_ha, high_ha: mapped area from, and below; None for no upper end.
        lakes: number of lakes that the ratios come from.
        low, high: reference area over mapped area.
        pooled: names of the classes that share these ratios, because one alone held too few lakes; empty for none.
    """

    low_ha: float
    high_ha: float | None
    lakes: int
    low: float
    high: float
    pooled: str = ""


@dataclass(frozen=True)
class Intervals:
    """Ratios by size class.

    Attributes:
        classes: in order of size, without a gap.
        coverage: the probability that was asked for.
        reference: what the areas were held against: "label" or "truth".
        source: where the lakes came from, in words.
    """

    classes: tuple[SizeClass, ...]
    coverage: float
    reference: str
    source: str

    def bounds(self, area_ha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper area, ha, of lakes by their mapped area."""
        area = np.asarray(area_ha, dtype=float)
        edges = [c.low_ha for c in self.classes]
        which = np.clip(np.searchsorted(edges, area, side="right") - 1, 0, len(edges) - 1)
        low, high = (np.array([getattr(c, name) for c in self.classes])[which] for name in ("low", "high"))
        return area * low, area * high

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Intervals:
        """Read what :meth:`write` wrote.

        Raises:
            InputError: the file is missing or holds something else.
        """
        value = read_json(path)
        try:
            classes = tuple(SizeClass(**c) for c in value["classes"])
            found = cls(classes, float(value["coverage"]), str(value["reference"]), str(value["source"]))
            whole = classes[0].low_ha == 0 and classes[-1].high_ha is None
            whole &= all(a.high_ha == b.low_ha for a, b in itertools.pairwise(classes))
            whole &= all(0 < c.low <= c.high < np.inf for c in classes)
        except (KeyError, TypeError, ValueError, IndexError):
            whole = False
        if not whole:
            raise InputError(f"{path} holds no area intervals; make them with cryosentinel.mapping.areas.calibrate.")
        return found


def calibrate(
    mapped_ha: np.ndarray,
    reference_ha: np.ndarray,
    reference: str,
    source: str,
    coverage: float = COVERAGE,
    edges: Sequence[float] = SIZE_EDGES_HA,
) -> Intervals:
    """Intervals from lakes whose reference area is known.

    Args:
        mapped_ha, reference_ha: (n,) areas of the same lakes, each lake once.
        reference: "label" or "truth".
        source: where the lakes come from.
        coverage: of the intervals, above 0 and below 1.
        edges: of the size classes by mapped area, ha.

    Raises:
        ConfigError: the coverage is not between 0 and 1.
        InputError: there are too few lakes for the coverage even when all classes are pooled.
    """
    if not 0 < coverage < 1:
        raise ConfigError(f"The coverage is {coverage}; it is a probability between 0 and 1.")
    mapped, known = np.asarray(mapped_ha, float), np.asarray(reference_ha, float)
    usable = (mapped > 0) & (known > 0)
    mapped, ratio = mapped[usable], (known / np.where(mapped_ha, mapped_ha, 1))[usable]
    # The outermost ranks exist from so many lakes on: ceil((n + 1) (1 - alpha / 2)) <= n.
    least = int(np.ceil(2 / (1 - coverage) - 1 - 1e-9))
    if len(mapped) < least:
        raise InputError(
            f"{len(mapped)} lakes are too few for intervals of {coverage:.0%}, which need {least}; give more chips."
        )
    counts = np.histogram(mapped, edges)[0]
    groups: list[list[int]] = []
    for number, count in enumerate(counts):
        if groups and (count < least or sum(counts[i] for i in groups[-1]) < least):
            groups[-1].append(number)
        else:
            groups.append([number])
    if len(groups) > 1 and sum(counts[i] for i in groups[0]) < least:
        groups[:2] = [groups[0] + groups[1]]
    classes = []
    for group in groups:
        low, high = edges[group[0]], edges[group[-1] + 1]
        ratios = np.sort(ratio[(mapped >= low) & (mapped < high)])
        n = len(ratios)
        rank = int(np.ceil((n + 1) * (1 + coverage) / 2 - 1e-9))
        pooled = f"{low:g} to {high:g} ha" if len(group) > 1 else ""
        for number in group:
            top = float(edges[number + 1])
            classes.append(
                SizeClass(float(edges[number]), top if np.isfinite(top) else None, n, float(ratios[n - rank]),
                          float(ratios[rank - 1]), pooled)
            )  # fmt: skip
    return Intervals(tuple(classes), coverage, reference, source)


def coverage_table(intervals: Intervals, mapped_ha: np.ndarray, reference_ha: np.ndarray) -> pd.DataFrame:
    """How often the intervals hold the reference areas of other lakes.

    Args:
        intervals: from :func:`calibrate`.
        mapped_ha, reference_ha: (n,) areas of lakes that :func:`calibrate` has not seen.

    Returns:
        One row a size class and one for "all": size_ha, lakes, covered (share), low and high (a 95 % Wilson interval of
        the share), width (median of upper over lower bound).
    """
    import pandas as pd

    mapped, known = np.asarray(mapped_ha, float), np.asarray(reference_ha, float)
    low, high = intervals.bounds(mapped)
    held = (known >= low) & (known <= high)
    rows = []
    for c in [*intervals.classes, None]:
        here = np.ones(len(mapped), bool)
        name = "all"
        if c is not None:
            here = (mapped >= c.low_ha) & (mapped < (c.high_ha or np.inf))
            name = f"{c.low_ha:g} to {c.high_ha:g}" if c.high_ha else f"above {c.low_ha:g}"
        n, k = int(here.sum()), int(held[here].sum())
        share, z = (k / n, 1.96) if n else (np.nan, 1.96)
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n) if n else np.nan
        half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n) if n else np.nan
        rows.append({"size_ha": name, "lakes": n, "covered": share, "low": middle - half, "high": middle + half,
                     "width": float(np.median(high[here] / low[here])) if n else np.nan})  # fmt: skip
    return pd.DataFrame(rows)


def outline_bounds(
    area_ha: np.ndarray, perimeter_m: np.ndarray, pixel_m: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper area, ha, from the outline alone, where no intervals were calibrated.

    The usual estimate for outlines digitised from pixels (Hanshaw and Bookhagen 2014, The Cryosphere 8): a pixel of the
    outline is off by half a pixel, one standard deviation is 0.6872 of that, so that 1.645 of them hold 90 % if errors
    are normal. It knows nothing of a network's mistakes.
    """
    error = 1.645 * 0.6872 * np.asarray(perimeter_m) * pixel_m / 2 / HECTARE_M2
    area = np.asarray(area_ha, float)
    return np.maximum(area - error, 0), area + error


def add_interval(lakes: Any, intervals: Intervals | None, pixel_m: float = 10.0) -> Any:
    """Lakes with columns ``area_low_ha``, ``area_high_ha`` and ``interval``, which says what the two are.

    A lake that the border of a scene or missing data cuts has no upper bound: its ``interval`` is "lower bound".
    """
    area, perimeter = lakes["area_ha"].to_numpy(), lakes["perimeter_m"].to_numpy()
    if intervals is None:
        (low, high), kind = outline_bounds(area, perimeter, pixel_m), "outline"
    else:
        (low, high), kind = intervals.bounds(area), f"conformal {intervals.coverage:.0%} of {intervals.reference}"
    cut = lakes["flags"].astype(str).str.contains(CUT).to_numpy()
    return lakes.assign(
        area_low_ha=low, area_high_ha=np.where(cut, np.nan, high), interval=np.where(cut, "lower bound", kind)
    )


def matched_areas(
    water: np.ndarray, reference: np.ndarray, valid: np.ndarray, pixel_ha: float = PIXEL_HA, min_area_ha: float = 0.1
) -> pd.DataFrame:
    """Areas of the lakes that a mapped and a reference mask of one chip both show, none of them cut.

    A mapped lake and the reference lakes that it touches belong together, and so on until nothing else touches; such
    a group counts as one lake, with the sum of its areas. Groups that touch the chip's border or a pixel without data
    are left out, and those of whose reference less than half is mapped: an interval is for detected lakes, by the rule
    of :mod:`cryosentinel.evaluation.objects`.

    Args:
        water: (H, W), mapped lake where 1.
        reference: (H, W), lake where non-zero.
        valid: (H, W) bool.
        pixel_ha: area of a pixel.
        min_area_ha: smaller mapped lakes are not looked at.

    Returns:
        One row a lake: mapped_ha, reference_ha, row and col of the reference's centroid, in pixels.
    """
    import pandas as pd
    from scipy import ndimage

    eight = np.ones((3, 3), np.uint8)
    wet, known = (water == 1) & valid, (reference > 0) & valid
    wet_labels, count = ndimage.label(wet, structure=eight)
    sizes = np.bincount(wet_labels.ravel(), minlength=count + 1) * pixel_ha
    wet &= (sizes >= min_area_ha)[wet_labels]
    either, count = ndimage.label(wet | known, structure=eight)
    if not count:
        return pd.DataFrame({name: [] for name in ("mapped_ha", "reference_ha", "row", "col")}, dtype=float)
    cut = np.zeros(count + 1, bool)
    for border in (either[0], either[-1], either[:, 0], either[:, -1]):
        cut[border] = True
    cut[either[ndimage.binary_dilation(~valid, structure=eight)]] = True
    mapped = np.bincount(either[wet], minlength=count + 1)
    there = np.bincount(either[known], minlength=count + 1)
    both = np.bincount(either[wet & known], minlength=count + 1)
    kept = np.flatnonzero(~cut & (both > 0) & (both >= MIN_COVER * there))
    kept = kept[kept > 0]
    centres = np.array(ndimage.center_of_mass(known, either, kept)).reshape(-1, 2)
    return pd.DataFrame({
        "mapped_ha": mapped[kept] * pixel_ha, "reference_ha": there[kept] * pixel_ha,
        "row": centres[:, 0], "col": centres[:, 1],
    })  # fmt: skip
