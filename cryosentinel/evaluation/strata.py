"""Where a prediction fails, by what is really there: lake size, surface material, cloud and shadow. Needs the truth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.evaluation.scores import INVALID
from cryosentinel.sensors import PIXEL_HA

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.evaluation.probability_maps import ProbabilityMaps

#: Hectares; the first edge is the published system's smallest trustworthy lake.
SIZE_EDGES_HA = (0.0, 0.5, 1.0, 2.0, 5.0, 20.0, np.inf)
CONDITIONS = ("clear", "cloud", "cloud shadow", "terrain shadow")


def by_lake_size(
    maps: ProbabilityMaps, chips: Sequence[str], truth: Mapping[str, Any], threshold: float = 0.5
) -> pd.DataFrame:
    """Recall by size of the true lake: connected pixels (8 neighbours) within a chip, cut at its edge.

    Args:
        maps: probability maps of a split.
        chips: the chip id of each map, in order.
        truth: chip id -> truth with ``lake``.
        threshold: a multiple of 1/200.

    Returns:
        One row a size class: size_ha, lakes, found (share with at least half of their valid pixels predicted),
        pixel_recall. A lake that several chips or years show counts in each.
    """
    import pandas as pd
    from scipy import ndimage

    areas, covered, pixels = [], [], []
    for i, chip in enumerate(chips):
        valid, water = np.asarray(maps.bins[i]) != INVALID, maps.water(i, threshold)
        lakes, count = ndimage.label(truth[chip].lake > 0, structure=np.ones((3, 3)))
        if not count:
            continue
        numbers = np.arange(1, count + 1)
        areas.append(ndimage.sum_labels(np.ones_like(lakes), lakes, numbers) * PIXEL_HA)
        pixels.append(ndimage.sum_labels(valid, lakes, numbers))
        covered.append(ndimage.sum_labels(valid & water, lakes, numbers))
    area, seen, hit = (np.concatenate(v) if v else np.zeros(0) for v in (areas, pixels, covered))
    area, seen, hit = area[seen > 0], seen[seen > 0], hit[seen > 0]
    rows = []
    for low, high in itertools.pairwise(SIZE_EDGES_HA):
        here = (area >= low) & (area < high)
        rows.append(
            {"size_ha": f"{low:g} to {high:g}" if np.isfinite(high) else f"above {low:g}", "lakes": int(here.sum()),
             "found": float((hit[here] >= seen[here] / 2).mean()) if here.any() else np.nan,
             "pixel_recall": float(hit[here].sum() / seen[here].sum()) if here.any() else np.nan}
        )  # fmt: skip
    return pd.DataFrame(rows)


def by_material(
    maps: ProbabilityMaps,
    chips: Sequence[str],
    truth: Mapping[str, Any],
    names: Mapping[int, str],
    threshold: float = 0.5,
) -> pd.DataFrame:
    """How much of each true surface material was predicted as glacial lake.

    Args:
        maps, chips, threshold: as for :func:`by_lake_size`.
        truth: chip id -> truth with ``material``.
        names: material code -> name.

    Returns:
        One row a material that occurs, most pixels called lake first: material, pixels, called_lake (pixels), share.
    """
    import pandas as pd

    seen, called = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for i, chip in enumerate(chips):
        valid, material = np.asarray(maps.bins[i]) != INVALID, truth[chip].material
        seen += np.bincount(material[valid], minlength=256)
        called += np.bincount(material[valid & maps.water(i, threshold)], minlength=256)
    codes = np.flatnonzero(seen)
    table = pd.DataFrame(
        {"material": [names.get(int(c), str(c)) for c in codes], "pixels": seen[codes], "called_lake": called[codes],
         "share": called[codes] / seen[codes]}
    )  # fmt: skip
    return table.sort_values("called_lake", ascending=False, ignore_index=True)


def by_condition(
    maps: ProbabilityMaps, chips: Sequence[str], truth: Mapping[str, Any], threshold: float = 0.5
) -> pd.DataFrame:
    """Scores under clear sky, cloud, cloud shadow and terrain shadow.

    Args:
        maps, chips, threshold: as for :func:`by_lake_size`.
        truth: chip id -> truth with ``lake``, ``cloud`` (0 clear, 1 cloud, 2 cloud shadow) and ``terrain_shadow``.

    Returns:
        One row a condition: condition, pixels, lake_pixels, iou, precision, recall (not a number where undefined).
        Terrain shadow is counted under a clear sky only, so that every pixel counts once.
    """
    import pandas as pd

    total = np.zeros((len(CONDITIONS), 4), np.int64)  # pixels, lake, predicted, both
    for i, chip in enumerate(chips):
        known = truth[chip]
        valid, water, lake = np.asarray(maps.bins[i]) != INVALID, maps.water(i, threshold), known.lake > 0
        condition = np.where(known.cloud > 0, known.cloud, np.where(known.terrain_shadow > 0, 3, 0))
        for k in range(len(CONDITIONS)):
            here = valid & (condition == k)
            total[k] += [here.sum(), (here & lake).sum(), (here & water).sum(), (here & lake & water).sum()]
    _, lake, predicted, both = total.T.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {"condition": CONDITIONS, "pixels": total[:, 0], "lake_pixels": total[:, 1],
             "iou": both / (lake + predicted - both), "precision": both / predicted, "recall": both / lake}
        )  # fmt: skip
