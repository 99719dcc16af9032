"""Where the error is: score tables split by what is really at a pixel. Needs the known truth of simulated chips.

Every pixel has one cause, the first of :data:`CAUSES` that applies to it. What is asked of a cause, at any threshold:
how much of all error lies there (missed lake and false alarm), which share of its lake is found, which share of its
background is called lake. All come from histograms as those of the score table, one row for each chip and cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.evaluation.bootstrap import Estimate, ratio_of_sums
from cryosentinel.evaluation.metrics import chip_counts
from cryosentinel.evaluation.scores import INVALID, ScoreBuilder

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.evaluation.evaluate import Store
    from cryosentinel.evaluation.probability_maps import ProbabilityMaps

#: Cause -> what it is, in the order in which a pixel is asked.
CAUSES: dict[str, str] = {
    "cloud": "under a cloud",
    "shadow": "in the shadow of a cloud or of the terrain",
    "shore": "within a pixel of a lake's true outline, on either side",
    "frozen": "a glacial lake under ice",
    "open": "a glacial lake's open water",
    "other water": "standing or flowing water that is no glacial lake, open or frozen",
    "ice and snow": "bare ice, firn and snow",
    "vegetation": "meadow, shrub and wet ground",
    "rock": "all else: rock, scree, moraine, gravel, soil, debris-covered ice",
}


def cause_map(truth: Any) -> np.ndarray:
    """The cause of each pixel.

    Args:
        truth: of a chip: (H, W) ``lake``, ``material``, ``cloud`` (0 clear, 1 cloud, 2 its shadow), ``terrain_shadow``.

    Returns:
        (H, W) uint8, positions in :data:`CAUSES`.
    """
    from scipy.ndimage import binary_dilation

    from cryosentinel.simulate.materials import WATER, Material

    lake, material = truth.lake > 0, truth.material
    around = np.ones((3, 3))
    applies = (
        truth.cloud == 1,
        (truth.cloud == 2) | (truth.terrain_shadow > 0),
        binary_dilation(lake, around) & binary_dilation(~lake, around),
        lake & (material == Material.FROZEN_LAKE),
        lake,
        np.isin(material, WATER),
        np.isin(material, (Material.ICE, Material.SNOW, Material.WET_SNOW)),
        np.isin(material, (Material.MEADOW, Material.SHRUB, Material.WET_GROUND)),
    )
    return np.select(applies, range(len(applies)), len(applies)).astype(np.uint8)


def cause_table(
    maps: ProbabilityMaps, store: Store, truth: Mapping[str, Any], block_size: float = 0.15, progress: bool = False
) -> pd.DataFrame:
    """A score table against the truth for each cause.

    Args:
        maps: stored predictions of a split.
        store: its chips.
        truth: chip id -> truth, see :func:`cause_map`.
        block_size: of the split blocks, degrees.
        progress: show a bar.

    Returns:
        A score table with the column ``cause``: one row for each chip and each cause that it shows.
    """
    import pandas as pd
    from tqdm import tqdm

    from cryosentinel.data.split import block_ids

    index = store.index
    blocks = np.empty(len(index), dtype=object)
    rows = list(maps.rows)
    blocks[rows] = block_ids(index["lat"].to_numpy()[rows], index["lon"].to_numpy()[rows], block_size)
    builders = {name: ScoreBuilder(index, blocks) for name in CAUSES}
    for i, row in enumerate(tqdm(rows, desc="causes", unit="chip", disable=not progress)):
        known, bins = truth[index["chip_id"].iloc[row]], np.asarray(maps.bins[i])
        causes, valid = cause_map(known), bins != INVALID
        for code in np.unique(causes[valid]):
            builders[list(CAUSES)[code]].add(row, bins, known.lake, valid & (causes == code))
    return pd.concat([b.table().assign(cause=name) for name, b in builders.items() if len(b)], ignore_index=True)


def by_cause(table: pd.DataFrame, threshold: float = 0.5) -> pd.DataFrame:
    """Where the error is at a threshold.

    Args:
        table: from :func:`cause_table`.
        threshold: a multiple of 1/200.

    Returns:
        One row a cause, in their order: pixels, lake (pixels), missed and false (erring pixels), share (of all error
        that lies there). All causes are there; their shares add up to 1, or are not a number where nothing errs.
    """
    import pandas as pd

    tp, fp, fn, tn = chip_counts(table, threshold).T
    counts = pd.DataFrame({"pixels": tp + fp + fn + tn, "lake": tp + fn, "missed": fn, "false": fp})
    found = counts.groupby(table["cause"].to_numpy()).sum().reindex(list(CAUSES), fill_value=0)
    error = found["missed"] + found["false"]
    return found.assign(share=error / error.sum() if error.sum() else np.nan).rename_axis("cause")


def rates(table: pd.DataFrame, threshold: float = 0.5) -> dict[str, dict[str, Estimate]]:
    """How a predictor does within each cause, with block-bootstrap intervals.

    Args:
        table: from :func:`cause_table`.
        threshold: a multiple of 1/200.

    Returns:
        Cause -> "found" (share of its lake pixels), "false" (share of its background that is called lake) and "iou"
        (of lake and prediction among its pixels, where it holds lake), each only where there are such pixels; ``n``
        counts chips.
    """
    out: dict[str, dict[str, Estimate]] = {}
    for cause in CAUSES:
        here = table[table["cause"] == cause]
        tp, fp, fn, tn = chip_counts(here, threshold).T.astype(float)
        sums = [("found", tp, tp + fn), ("false", fp, fp + tn)]
        sums += [("iou", tp, tp + fp + fn)] if (tp + fn).any() else []
        for name, part, whole in sums:
            kept = whole > 0
            if kept.any():
                blocks = here["block"].to_numpy()[kept]
                out.setdefault(cause, {})[name] = ratio_of_sums(part[kept], whole[kept], blocks, whole[kept])
    return out
