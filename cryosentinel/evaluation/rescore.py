"""Scores from saved tables alone, without chips or a network: what ``cryosentinel score`` prints and writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.bootstrap import Estimate, difference, estimate, estimate_by
from cryosentinel.evaluation.calibration import calibration_error, fit_temperature
from cryosentinel.evaluation.metrics import ALL_THRESHOLDS, METRICS, best_threshold, chip_iou, sweep
from cryosentinel.evaluation.scores import read_scores
from cryosentinel.files import replacing, write_json

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableScores:
    """The scores of one table.

    Attributes:
        table: the score table.
        threshold: of all scores but the sweep's.
        scores: metric -> estimate.
        regions, years: global IoU of each.
        sweep: every metric at every threshold k/200.
        calibration: expected calibration error, as predicted, and after the temperature if one was fitted.
        gain: global IoU less that of the first table, from the same resampled blocks; None for the first table.
    """

    table: pd.DataFrame
    threshold: float
    scores: dict[str, Estimate]
    regions: dict[str, Estimate]
    years: dict[str, Estimate]
    sweep: pd.DataFrame
    calibration: dict[str, float]
    gain: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; not a number as None."""
        groups = {"scores": self.scores, "regions": self.regions, "years": self.years}
        return {
            "made_from": dict(self.table.attrs), "threshold": self.threshold,
            **{name: {key: e.as_dict() for key, e in found.items()} for name, found in groups.items()},
            "calibration": {name: value if value == value else None for name, value in self.calibration.items()},
            "gain": None if self.gain is None else self.gain.as_dict(),
        }  # fmt: skip

    def chips(self) -> pd.DataFrame:
        """One row a chip: chip_id, region, year, block, n_valid, lake pixels, IoU at the threshold."""
        kept = self.table[["chip_id", "region", "year", "block", "n_valid"]]
        lake = [int(counts.sum()) for counts in self.table["lake"]]
        return kept.assign(lake_px=lake, iou=chip_iou(self.table, self.threshold))


def read_named(paths: Sequence[str | os.PathLike[str]]) -> dict[str, pd.DataFrame]:
    """Score tables by the shortest ends of their paths that tell them apart.

    Raises:
        ConfigError: no table, or the same one twice.
        InputError: a table cannot be read, or holds no valid pixel.
    """
    full = [Path(path).resolve() for path in paths]
    if not full or len(set(full)) < len(full):
        raise ConfigError("Give at least one score table, and each one once (per_chip_test.parquet of a run, ...).")
    depth = 1
    while len({path.parts[-depth:] for path in full}) < len(full):
        depth += 1
    tables = {Path(*path.parts[-depth:]).as_posix(): read_scores(path) for path in full}
    for name, table in tables.items():
        if not table["n_valid"].any():
            raise InputError(f"No chip of the score table {name} has a valid pixel; there is nothing to score.")
    return tables


def score_tables(
    tables: Mapping[str, pd.DataFrame], threshold: float | None = None, validation: pd.DataFrame | None = None
) -> dict[str, TableScores]:
    """Score tables, each for itself and against the first.

    Args:
        tables: name -> score table; where there are several, all hold the same chips.
        threshold: a multiple of 1/200. None takes the best on validation, 0.5 without a validation table.
        validation: score table on which the threshold is chosen and the temperature fitted.

    Raises:
        ConfigError: the threshold lies between two multiples of 1/200.
        InputError: the tables hold different chips; or no lake to choose or fit by.
    """
    if threshold is None:
        threshold = 0.5 if validation is None else best_threshold(validation)
    temperature = None if validation is None else fit_temperature(validation)
    first = next(iter(tables.values()))
    found = {}
    for name, table in tables.items():
        calibration = {"error": calibration_error(table)}
        if temperature is not None:
            calibration |= {"temperature": temperature, "error_tempered": calibration_error(table, 20, temperature)}
        found[name] = TableScores(
            table,
            threshold,
            {metric: estimate(table, metric, threshold) for metric in METRICS},
            estimate_by(table, "region", "iou", threshold),
            estimate_by(table, "year", "iou", threshold),
            sweep(table, ALL_THRESHOLDS),
            calibration,
            None if table is first else difference(first, table, "iou", threshold),
        )
    return found


def write_report(out: str | os.PathLike[str], found: Mapping[str, TableScores]) -> None:
    """Write ``scores.json``, ``sweep.csv`` (every threshold) and ``chips.csv`` into a folder.

    Args:
        out: the folder, made where it is missing.
        found: from :func:`score_tables`.
    """
    import pandas as pd

    write_json(Path(out, "scores.json"), {name: scores.as_dict() for name, scores in found.items()})
    frames = {
        "sweep.csv": {name: scores.sweep for name, scores in found.items()},
        "chips.csv": {name: scores.chips() for name, scores in found.items()},
    }
    for file, parts in frames.items():
        joined = pd.concat([frame.assign(table=name) for name, frame in parts.items()], ignore_index=True)
        with replacing(Path(out, file)) as part:
            joined.to_csv(part, index=False)


def as_text(found: Mapping[str, TableScores]) -> str:
    """What a terminal shows: scores, regions and years with their intervals, calibration, gains over the first."""
    from cryosentinel.evaluation.tables import estimates, reasons

    lines = []
    for name, scores in found.items():
        lines.append(f"{name}: {len(scores.table)} chips, threshold {scores.threshold:g}")
        rows = {**scores.scores, **{f"iou, {key}": e for key, e in {**scores.regions, **scores.years}.items()}}
        lines.append(estimates(rows, "score").to_string())
        if scores.gain is not None:
            lines.append(estimates({"iou less the first table's": scores.gain}, "difference", signed=True).to_string())
            rows["gain"] = scores.gain
        lines += [f"calibration {key.replace('_', ' ')}: {value:.4f}" for key, value in scores.calibration.items()]
        if why := reasons(rows):
            lines.append(f"no interval: {why}")
        lines.append("")
    return "\n".join(lines).rstrip()
