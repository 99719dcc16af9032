"""Checks a split: which chips of different splits overlap, and how near the nearest ones are.

Distances are measured, not derived from the rule. A KD-tree over the chip centres finds the few chips that lie near
each other; only those are compared as squares.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.sensors import CHIP_SIZE, PIXEL_SIZE_M

SIDE_M = CHIP_SIZE * PIXEL_SIZE_M
_REACH_M = SIDE_M * np.sqrt(2)  # chips whose centres lie further apart share no pixel
#: Chips that share a strip narrower than this do not share pixels: half a pixel, which also takes up the 0.04 to
#: 0.1 % by which metres on a UTM grid differ from metres on the ground.
TOLERANCE_M = PIXEL_SIZE_M / 2
BUFFER = "buffer"  # the "split" of chips that a buffer drops


@dataclass(frozen=True)
class SplitCheck:
    """What was measured between the chips of different splits.

    Attributes:
        chips: split -> number of chips (the buffer's are counted, not compared).
        overlapping_by_splits: "train-val" -> number of pairs of chips that share pixels, of whatever years.
        smallest_distance_m: between the centres of two chips of different splits; None with fewer than two splits.
        nearest: positions of those two chips.
    """

    chips: dict[str, int]
    overlapping_by_splits: dict[str, int]
    smallest_distance_m: float | None
    nearest: tuple[int, int] | None

    @property
    def overlapping_pairs(self) -> int:
        """Pairs of chips of different splits that share pixels."""
        return sum(self.overlapping_by_splits.values())

    @property
    def passed(self) -> bool:
        """No two chips of different splits share a pixel, in any years."""
        return self.overlapping_pairs == 0

    def __str__(self) -> str:
        counted = ", ".join(f"{n} {name}" for name, n in self.chips.items())
        if self.smallest_distance_m is None:
            return f"{counted}: fewer than two splits hold chips, so there is nothing to compare."
        verdict = "no two splits share a pixel" if self.passed else f"{self.overlapping_pairs} pairs share pixels"
        return f"{counted}: {verdict}; the nearest centres of two splits lie {self.smallest_distance_m:.0f} m apart."


def checked_centres(lat: Any, lon: Any) -> tuple[np.ndarray, np.ndarray]:
    """Chip centres as two (n,) float64 arrays.

    Raises:
        InputError: a centre is missing or off the globe.
    """
    lat, lon = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (lat, lon))
    if lat.ndim != 1 or lat.shape != lon.shape:
        raise InputError(f"The chips have latitudes of shape {lat.shape} and longitudes of shape {lon.shape}.")
    wrong = ~((np.abs(lat) <= 90) & (np.abs(lon) <= 180))
    if wrong.any():
        raise InputError(
            f"{int(wrong.sum())} of {len(lat)} chips have no usable lat and lon (the first is number "
            f"{int(wrong.argmax())}), so they belong to no block; leave them out or restore their centres."
        )
    return lat, lon


def earth_centred(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Earth-centred coordinates on the WGS 84 ellipsoid: (n, 3) in metres."""
    from pyproj import Transformer

    return np.stack(Transformer.from_crs(4979, 4978, always_xy=True).transform(lon, lat, np.zeros_like(lat)), axis=1)


def chips_overlap(lat: np.ndarray, lon: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether chips ``a[k]`` and ``b[k]`` share pixels, each a square on the UTM grid of its own centre's zone.

    Two squares are apart when a line along one of their four sides separates them; squares of neighbouring zones are
    turned against each other by the difference of their meridian convergences.

    Args:
        lat, lon: (n,) centres, degrees.
        a, b: (m,) positions of the chips, close to each other (a few kilometres).

    Returns:
        (m,) bool.
    """
    from pyproj import Geod

    azimuth, _, distance = Geod(ellps="WGS84").inv(lon[a], lat[a], lon[b], lat[b])
    zone_centre = np.floor((lon + 180) / 6) * 6 - 177
    convergence = np.arctan(np.tan(np.radians(lon - zone_centre)) * np.sin(np.radians(lat)))
    turn = convergence[b] - convergence[a]
    # Half the width of both squares along a side of either: h of its own, h (|cos| + |sin|) of the other.
    reach = SIDE_M / 2 * (1 + np.abs(np.cos(turn)) + np.abs(np.sin(turn))) - TOLERANCE_M
    together = np.ones(len(a), dtype=bool)
    for angle in (convergence[a], convergence[b]):  # between grid north and true north
        bearing = np.radians(azimuth) - angle
        together &= np.abs(distance * np.sin(bearing)) < reach
        together &= np.abs(distance * np.cos(bearing)) < reach
    return together


def _places(lat: np.ndarray, lon: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One chip of each place among ``at``, and how many chips (of several years) stand there."""
    _, first, counts = np.unique(lat[at] + 1j * lon[at], return_index=True, return_counts=True)
    return at[first], counts


def _neighbours(
    lat: np.ndarray, lon: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which chips of two groups (positions) share pixels, and how far each of the first is from the second.

    Returns:
        Pairs as indices into ``a`` and into ``b``; then for each of ``a`` the distance to the nearest of ``b`` in
        metres, and that one's index into ``b``.
    """
    from scipy.spatial import cKDTree

    points = earth_centred(lat[a], lon[a])
    # A tree that is built faster, and asked only once.
    tree = cKDTree(earth_centred(lat[b], lon[b]), balanced_tree=False, compact_nodes=False)
    distance, nearest = tree.query(points)
    close = np.flatnonzero(distance < _REACH_M)
    found = tree.query_ball_point(points[close], _REACH_M)
    left = np.repeat(close, [len(f) for f in found])
    right = np.concatenate([np.zeros(0, np.int64), *(np.asarray(f, np.int64) for f in found)])
    touch = chips_overlap(lat, lon, a[left], b[right])
    return left[touch], right[touch], distance, nearest


def check_split(lat: Any, lon: Any, splits: Any) -> SplitCheck:
    """Measure a split: overlapping chips and the smallest distance across splits.

    Chips of different years on one place do overlap: the ground is the same. So every pair of chips counts, and no
    year is told from another.

    Args:
        lat, lon: (n,) chip centres, degrees.
        splits: (n,) names; chips called "buffer" or "" are left out.

    Raises:
        InputError: the lists differ in length, or a centre is missing.
    """
    lat, lon = checked_centres(lat, lon)
    splits = np.asarray(splits, dtype=str)
    if splits.shape != lat.shape:
        raise InputError("The check needs one split for each chip centre.")
    names = sorted(set(splits.tolist()) - {BUFFER, ""}, key=lambda name: ("train", "val", "test", name).index(name))
    places = {name: _places(lat, lon, np.flatnonzero(splits == name)) for name in names}
    by_splits: dict[str, int] = {}
    gaps: list[tuple[float, tuple[int, int]]] = []
    for first, second in itertools.combinations(names, 2):
        # A tree of the many, asked by the few; places are compared, and pairs of chips counted.
        (a, count_a), (b, count_b) = sorted((places[first], places[second]), key=lambda of: len(of[0]))
        left, right, distance, nearest = _neighbours(lat, lon, a, b)
        by_splits[f"{first}-{second}"] = int((count_a[left] * count_b[right]).sum())
        k = int(distance.argmin())
        gaps.append((float(distance[k]), (int(a[k]), int(b[nearest[k]]))))
    smallest, pair = min(gaps) if gaps else (None, None)
    counts = {name: int((splits == name).sum()) for name in [*names, BUFFER] if (splits == name).any()}
    return SplitCheck(counts, by_splits, smallest, pair)


def check_stages(
    earlier: tuple[Any, Any, Any], later: tuple[Any, Any, Any]
) -> dict[str, dict[str, float | int | None]]:
    """How far a later stage's evaluation chips lie from what an earlier stage trained on.

    Args:
        earlier, later: (lat, lon, splits) of the chips of each stage, with each stage's own splits.

    Returns:
        "val" and "test" -> {"chips", "seen" (that share pixels with a training chip of the earlier stage),
        "share", "smallest_distance_m"}.
    """
    centres = [checked_centres(*stage[:2]) for stage in (earlier, later)]
    lat, lon = (np.concatenate(values) for values in zip(*centres, strict=True))
    trained = _places(lat, lon, np.flatnonzero(np.asarray(earlier[2], dtype=str) == "train"))[0]
    report: dict[str, dict[str, float | int | None]] = {}
    for name in ("val", "test"):
        at = len(centres[0][0]) + np.flatnonzero(np.asarray(later[2], dtype=str) == name)
        report[name] = {"chips": len(at), "seen": 0, "share": 0.0, "smallest_distance_m": None}
        if len(at) and len(trained):
            left, _, distance, _ = _neighbours(lat, lon, at, trained)
            seen = len(np.unique(left))
            report[name] |= {"seen": seen, "share": seen / len(at), "smallest_distance_m": float(distance.min())}
    return report
