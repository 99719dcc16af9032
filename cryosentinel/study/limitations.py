"""What chapter 5 measures beside chapter 3: the soup under stress, on one test chip of every place.

Neighbouring chips and years of a place say much the same, and intervals resample places; so one chip of each is nearly
as sharp as all, at a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel import paths
from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.bootstrap import Estimate, difference
from cryosentinel.evaluation.evaluate import Evaluation
from cryosentinel.evaluation.metrics import chip_keys
from cryosentinel.evaluation.objects import lake_table, scores
from cryosentinel.evaluation.uncertainty import closeness, disagreement, error_table
from cryosentinel.study.stages import Chips, simulated

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.study.study import Study

#: What is left -> the modalities that are replaced by their means.
MISSING: dict[str, tuple[str, ...]] = {
    "Sentinel-1 alone": ("S2L2A", "DEM"),
    "without Sentinel-1": ("S1GRD",),
    "without elevation": ("DEM",),
}
WHOLE = "as trained"


def one_a_place(study: Study, places: int = 0) -> Chips:
    """The first chip of each block of the test split: places lie in blocks of their own.

    Args:
        study: its chips.
        places: at most so many, evenly spread over all; 0 for all.
    """
    from cryosentinel.data.split import block_ids

    whole = Chips.of(study, ("test",))
    at = whole.store.index.iloc[list(whole.rows["test"])]
    blocks = block_ids(at["lat"].to_numpy(), at["lon"].to_numpy(), whole.block_size)
    first = np.sort(np.unique(blocks, return_index=True)[1])
    if 0 < places < len(first):
        first = first[np.arange(places) * len(first) // places]
    return replace(whole, rows={"test": [whole.rows["test"][i] for i in first]})


def among(table: pd.DataFrame, of: pd.DataFrame) -> pd.DataFrame:
    """The rows of a score table whose chips another one holds."""
    wanted = set(chip_keys(of))
    return table[[key in wanted for key in chip_keys(table)]].reset_index(drop=True)


def passes(study: Study, checkpoint: Path, on: Chips) -> dict[str, Evaluation]:
    """The soup in one pass, over four flips and over four quarter turns, and its snapshots in one pass each.

    Args:
        study: the chips; the flips are those of chapter 3.
        checkpoint: the soup; snapshots are looked for beside it.
        on: the chips of the rest.
    """
    found = {"soup, one pass": study.evaluate(checkpoint, 1), "soup, four flips": study.evaluate(checkpoint)}
    found["soup, four turns"] = study.evaluate(checkpoint, 4, on=on, turns=True)
    try:
        snapshots = paths.snapshots(checkpoint.parent.parent)
    except InputError:
        snapshots = []  # a checkpoint from elsewhere has none
    for number, path in enumerate(snapshots, start=1):
        found[f"snapshot {number}, one pass"] = study.evaluate(path, 1, on=on)
    return found


def missing(study: Study, checkpoint: Path, on: Chips) -> dict[str, Evaluation]:
    """The soup in one pass with each set of modalities of :data:`MISSING` replaced by their means."""
    found = {WHOLE: study.evaluate(checkpoint, 1)}
    return found | {name: study.evaluate(checkpoint, 1, on=on, without=lost) for name, lost in MISSING.items()}


def differences(
    found: dict[str, Evaluation], base: str, threshold: float, reference: str = "truth"
) -> dict[str, Estimate]:
    """Global IoU of each evaluation less that of one of them, on the chips that both hold."""
    out = {}
    for name, evaluation in found.items():
        if name != base:
            table = evaluation.table("test", reference)
            whole = found[base].table("test", reference)
            table = among(table, whole)
            out[name] = difference(among(whole, table), table, "iou", threshold)
    return out


def uncertainties(found: dict[str, Evaluation], on: Chips, threshold: float) -> dict[str, pd.DataFrame]:
    """Measures of uncertainty against the errors of the soup over four flips, on the same chips.

    Args:
        found: from :func:`passes`.
        on: the chips.
        threshold: of the soup.

    Returns:
        Measure -> its table, see :func:`cryosentinel.evaluation.uncertainty.error_table`.
    """
    soup = found["soup, four flips"]
    rows = on.rows["test"]
    maps = soup.maps("test").take(rows)
    measures = {
        "closeness of the probability to the threshold": closeness(maps, threshold),
        "disagreement of four flips": soup.beside("test", "spread").take(rows),
    }
    snapshots = [each.maps("test") for name, each in found.items() if name.startswith("snapshot")]
    if len(snapshots) > 1:
        measures[f"disagreement of {len(snapshots)} snapshots"] = disagreement(snapshots)
    reference = on.references.get("truth")
    return {
        name: error_table(measure, maps, on.store, reference, threshold, on.block_size)
        for name, measure in measures.items()
    }


def reservoirs(study: Study) -> Chips:
    """The enriched stratum: places around reservoirs and ponds of a world of its own; made where missing."""
    from cryosentinel.data.store import ChipStore
    from cryosentinel.simulate import PRESETS, TruthStore

    places = {"tiny": 2, "quick": 24}.get(study.preset, PRESETS["reservoirs"].places["test"])
    config = replace(PRESETS["reservoirs"], windows=1, places={"train": 0, "val": 0, "test": places})
    root = paths.datasets() / f"reservoirs_{study.preset}"
    simulated(study, "simulate_reservoirs", root, config, "The chips around reservoirs", 1 if places < 10 else 0)
    store = ChipStore(root)
    return Chips(root, store, TruthStore(root), {"test": list(range(len(store)))}, config.block_size)


def suppression(study: Study, checkpoint: Path, threshold: float) -> dict[str, Estimate]:
    """How many bodies of other standing water the soup calls a lake, and how many lakes beside them it finds.

    A body is called a lake when at least half of its pixels are predicted: the rule by which a lake is found.

    Args:
        study: whose soup.
        checkpoint: the soup.
        threshold: from which a pixel is water.
    """
    on = reservoirs(study)
    maps, truth = study.evaluate(checkpoint, 1, on=on).maps("test"), on.truth
    assert truth is not None

    def of_kind(*kinds: str) -> Any:
        def mask(chip: Any) -> np.ndarray:
            known = truth[chip.chip_id]
            numbers = [number for number, body in enumerate(known.bodies, start=1) if body.kind in kinds]
            return np.isin(known.body, numbers)

        return mask

    references = {
        "reservoirs called a lake": of_kind("reservoir"),
        "ponds called a lake": of_kind("pond"),
        "glacial lakes found beside them": on.references["truth"],
    }
    tables = {n: lake_table(maps, on.store, mask, threshold, on.block_size) for n, mask in references.items()}
    return {name: scores(table)["detected"] for name, table in tables.items()}


def conditions(lakes: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """Scores of lakes by what makes them hard, see :func:`cryosentinel.study.scoring.lake_layers`.

    Args:
        lakes: against the truth, from :func:`cryosentinel.study.scoring.scored`.

    Returns:
        Condition -> scores. Turbid and clear lakes are those above and below the median turbidity of the lakes that are
        open, sunlit and unclouded, half of their area or more.
    """
    frozen, cloud, shadow = (lakes[name] >= 0.5 for name in ("frozen", "cloud", "shadow"))
    seen = ~(frozen | cloud | shadow)
    middle = lakes.loc[seen & lakes["lake"], "turbidity"].median()
    groups = {
        "open, clear": seen & (lakes["turbidity"] <= middle), "open, turbid": seen & (lakes["turbidity"] > middle),
        "frozen": frozen & ~cloud, "in shadow": shadow & ~cloud & ~frozen, "under cloud": cloud,
    }  # fmt: skip
    return {name: scores(lakes[chosen]) for name, chosen in groups.items()}


def held_out(study: Study, regions: Sequence[str]) -> dict[str, Evaluation]:
    """The soup, and one that was trained in the same way without some regions, on the test chips of those regions.

    Raises:
        ConfigError: a region that the chips do not have, or all of them.
    """
    index = study.datamodule.store.index
    known = sorted(index["region"].unique())
    if not set(regions) < set(known) or not regions:
        raise ConfigError(
            f"The regions to leave out are {', '.join(regions)}; name some, not all, of {', '.join(known)}."
        )
    whole = Chips.of(study, ("test",))
    inside = [row for row in whole.rows["test"] if index["region"].iloc[row] in regions]
    on = replace(whole, rows={"test": inside})
    without = study.soup(data__regions=[name for name in known if name not in regions])
    return {
        "trained with them": study.evaluate(study.soup(), 1, on=on),
        "trained without": study.evaluate(without, 1, on=on),
    }
