"""The check of a split: which chips of different splits overlap, and how near the nearest ones are.

A split is only as honest as its distances, so they are measured rather than derived from the rule. A KD-tree over the
chip centres answers in milliseconds what comparing all pairs takes most of a minute for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.sensors import CHIP_SIZE, PIXEL_SIZE_M

SIDE_M = CHIP_SIZE * PIXEL_SIZE_M
#: Chips that share a strip narrower than this do not share pixels: half a pixel, which also takes up the 0.04 to
#: 0.1 % by which metres on a UTM grid differ from metres on the ground.
TOLERANCE_M = PIXEL_SIZE_M / 2
BUFFER = "buffer"  # the "split" of chips that a buffer drops
_A, _F = 6_378_137.0, 1 / 298.257_223_563  # WGS 84
_E2 = _F * (2 - _F)


@dataclass(frozen=True)
class SplitCheck:
    """What was measured between the chips of different splits.

    Attributes:
        chips: split -> number of chips (the buffer's are counted, not compared).
        overlapping_pairs: pairs of chips of different splits that share pixels.
        overlapping_by_splits: "train-val" -> number of those pairs.
        smallest_distance_m: between the centres of two chips of different splits; None with fewer than two splits.
        nearest: positions of those two chips.
        per_year: year -> the same counts among the chips of one year, {"overlapping_pairs", "smallest_distance_m"}.
    """

    chips: dict[str, int]
    overlapping_pairs: int
    overlapping_by_splits: dict[str, int]
    smallest_distance_m: float | None
    nearest: tuple[int, int] | None
    per_year: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No two chips of different splits share a pixel, in any years."""
        return self.overlapping_pairs == 0

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; years become strings."""
        return {
            **asdict(self),
            "nearest": list(self.nearest) if self.nearest else None,
            "per_year": {str(year): value for year, value in self.per_year.items()},
            "passed": self.passed,
        }

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
    phi, lam = np.radians(lat), np.radians(lon)
    normal = _A / np.sqrt(1 - _E2 * np.sin(phi) ** 2)
    return np.stack(
        [normal * np.cos(phi) * np.cos(lam), normal * np.cos(phi) * np.sin(lam), normal * (1 - _E2) * np.sin(phi)], 1
    )


def chips_overlap(lat: np.ndarray, lon: np.ndarray, a: np.ndarray, b: np.ndarray, side: float = SIDE_M) -> np.ndarray:
    """Whether chips ``a[k]`` and ``b[k]`` share pixels, each a square on the UTM grid of its own centre's zone.

    Two squares are apart when a line along one of their four sides separates them; squares of neighbouring zones are
    turned against each other by the difference of their meridian convergences.

    Args:
        lat, lon: (n,) centres, degrees.
        a, b: (m,) positions of the chips, close to each other (a few kilometres).
        side: of a chip, metres.

    Returns:
        (m,) bool.
    """
    phi = np.radians((lat[a] + lat[b]) / 2)
    root = np.sqrt(1 - _E2 * np.sin(phi) ** 2)
    north = np.radians(lat[b] - lat[a]) * _A * (1 - _E2) / root**3
    east = np.radians(lon[b] - lon[a]) * _A / root * np.cos(phi)
    zone_centre = np.floor((lon + 180) / 6) * 6 - 177
    convergence = np.arctan(np.tan(np.radians(lon - zone_centre)) * np.sin(np.radians(lat)))
    turn = convergence[b] - convergence[a]
    # Half the width of both squares along a side of either: h of its own, h (|cos| + |sin|) of the other.
    reach = side / 2 * (1 + np.abs(np.cos(turn)) + np.abs(np.sin(turn))) - TOLERANCE_M
    together = np.ones(len(a), dtype=bool)
    for angle in (convergence[a], convergence[b]):
        along = east * np.cos(angle) - north * np.sin(angle)
        across = east * np.sin(angle) + north * np.cos(angle)
        together &= (np.abs(along) < reach) & (np.abs(across) < reach)
    return together


def _between(lat: np.ndarray, lon: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[int, float, tuple[int, int]]:
    """Overlapping pairs, smallest distance and its pair between two groups of chips (positions)."""
    from scipy.spatial import cKDTree

    if len(a) > len(b):  # a tree of the many, asked by the few
        pairs, distance, (i, j) = _between(lat, lon, b, a)
        return pairs, distance, (j, i)
    # Chips of several years stand on one place: places are compared, and pairs of chips counted.
    (a, count_a), (b, count_b) = _places(lat, lon, a), _places(lat, lon, b)
    points_a, points_b = earth_centred(lat[a], lon[a]), earth_centred(lat[b], lon[b])
    tree = cKDTree(points_b, balanced_tree=False, compact_nodes=False)  # built faster, and asked only once
    distances, at = tree.query(points_a)
    nearest = int(distances.argmin())
    pairs = 0
    reach = SIDE_M * np.sqrt(2)
    close = np.flatnonzero(distances < reach)  # only those can overlap anything
    if len(close):
        found = tree.query_ball_point(points_a[close], reach)
        left = np.repeat(close, [len(f) for f in found])
        right = np.concatenate(found).astype(np.int64)
        touch = chips_overlap(lat, lon, a[left], b[right])
        pairs = int((count_a[left] * count_b[right])[touch].sum())
    return pairs, float(distances[nearest]), (int(a[nearest]), int(b[at[nearest]]))


def _places(lat: np.ndarray, lon: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One chip of each place among ``at``, and how many chips stand there."""
    _, first, counts = np.unique(lat[at] + 1j * lon[at], return_index=True, return_counts=True)
    return at[first], counts


def _compare(lat: np.ndarray, lon: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, Any]:
    names = list(groups)
    by_splits: dict[str, int] = {}
    smallest: float | None = None
    nearest: tuple[int, int] | None = None
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            pairs, distance, positions = _between(lat, lon, groups[first], groups[second])
            by_splits[f"{first}-{second}"] = pairs
            if smallest is None or distance < smallest:
                smallest, nearest = distance, positions
    return {"by_splits": by_splits, "smallest": smallest, "nearest": nearest}


def check_split(lat: Any, lon: Any, splits: Any, years: Any = None) -> SplitCheck:
    """Measure a split: overlapping chips and the smallest distance across splits.

    Args:
        lat, lon: (n,) chip centres, degrees.
        splits: (n,) names; chips called "buffer" or "" are left out.
        years: (n,) of the images. Chips of different years on one place do overlap (the ground is the same), so the
            overall figures run across years; with ``years`` those within each year are given too.

    Raises:
        InputError: the lists differ in length, or a centre is missing.
    """
    lat, lon = checked_centres(lat, lon)
    splits = np.asarray(splits, dtype=str)
    years = None if years is None else np.asarray(years)
    if splits.shape != lat.shape or (years is not None and years.shape != lat.shape):
        raise InputError("The check needs one split (and one year) for each chip centre.")
    names = sorted(set(splits.tolist()) - {BUFFER, ""}, key=lambda name: ("train", "val", "test", name).index(name))
    groups = {name: np.flatnonzero(splits == name) for name in names}
    overall = _compare(lat, lon, groups)
    per_year: dict[int, dict[str, Any]] = {}
    for year in [] if years is None else np.unique(years).tolist():
        of_year = {name: at[years[at] == year] for name, at in groups.items()}
        result = _compare(lat, lon, {name: at for name, at in of_year.items() if len(at)})
        per_year[int(year)] = {
            "overlapping_pairs": sum(result["by_splits"].values()),
            "smallest_distance_m": result["smallest"],
        }
    counts = {name: len(at) for name, at in groups.items()}
    if (splits == BUFFER).any():
        counts[BUFFER] = int((splits == BUFFER).sum())
    return SplitCheck(
        counts, sum(overall["by_splits"].values()), overall["by_splits"], overall["smallest"], overall["nearest"],
        per_year,
    )  # fmt: skip


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
    from scipy.spatial import cKDTree

    lat_1, lon_1 = checked_centres(*earlier[:2])
    lat_2, lon_2 = checked_centres(*later[:2])
    trained = np.flatnonzero(np.asarray(earlier[2], dtype=str) == "train")
    trained = _places(lat_1, lon_1, trained)[0]
    lat, lon = np.concatenate([lat_1[trained], lat_2]), np.concatenate([lon_1[trained], lon_2])
    report: dict[str, dict[str, float | int | None]] = {}
    for name in ("val", "test"):
        at = np.flatnonzero(np.asarray(later[2], dtype=str) == name)
        if not len(at) or not len(trained):
            report[name] = {"chips": len(at), "seen": 0, "share": 0.0, "smallest_distance_m": None}
            continue
        tree = cKDTree(earth_centred(lat_1[trained], lon_1[trained]))
        points = earth_centred(lat_2[at], lon_2[at])
        found = tree.query_ball_point(points, SIDE_M * np.sqrt(2))
        lengths = [len(f) for f in found]
        left = np.repeat(np.arange(len(at)), lengths)
        right = np.concatenate([np.asarray(f, dtype=np.int64) for f in found])
        touch = chips_overlap(lat, lon, len(trained) + at[left], right)
        seen = len(np.unique(left[touch]))
        report[name] = {
            "chips": len(at),
            "seen": seen,
            "share": seen / len(at),
            "smallest_distance_m": float(tree.query(points)[0].min()),
        }
    return report
