"""Scores from saved tables alone, without chips or a network: what ``cryosentinel score`` prints and writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosentinel.errors import ConfigError, InputError
from cryosentinel.evaluation.bootstrap import Estimate, difference, estimate, estimate_by
from cryosentinel.evaluation.calibration import calibration_error, fit_temperature, reliability
from cryosentinel.evaluation.causes import rates
from cryosentinel.evaluation.metrics import ALL_THRESHOLDS, METRICS, best_threshold, chip_iou, sweep
from cryosentinel.evaluation.objects import by_size
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
        strata: cause of error, or size class of lakes -> score -> estimate; empty where no such table lies beside.
    """

    table: pd.DataFrame
    threshold: float
    scores: dict[str, Estimate]
    regions: dict[str, Estimate]
    years: dict[str, Estimate]
    sweep: pd.DataFrame
    calibration: dict[str, float]
    gain: Estimate | None
    strata: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; not a number as None."""
        groups = {"scores": self.scores, "regions": self.regions, "years": self.years}
        return {
            "made_from": dict(self.table.attrs), "threshold": self.threshold,
            **{name: {key: e.as_dict() for key, e in found.items()} for name, found in groups.items()},
            "calibration": {name: value if value == value else None for name, value in self.calibration.items()},
            "gain": None if self.gain is None else self.gain.as_dict(),
            "strata": {name: {key: e.as_dict() for key, e in of.items()} for name, of in self.strata.items()},
        }  # fmt: skip

    def chips(self) -> pd.DataFrame:
        """One row a chip: chip_id, region, year, block, n_valid, lake pixels, IoU at the threshold."""
        kept = self.table[["chip_id", "region", "year", "block", "n_valid"]]
        lake = [int(counts.sum()) for counts in self.table["lake"]]
        return kept.assign(lake_px=lake, iou=chip_iou(self.table, self.threshold))

    def chip_sweep(self) -> pd.DataFrame:
        """One row a chip: chip_id, region, year, and IoU at every threshold k/200, each its column."""
        import pandas as pd

        ious = {f"{t:g}": chip_iou(self.table, t) for t in ALL_THRESHOLDS}
        return pd.concat([self.table[["chip_id", "region", "year"]], pd.DataFrame(ious, self.table.index)], axis=1)

    def reliability(self) -> pd.DataFrame:
        """Observed lake share by predicted probability, as predicted (temperature 1) and tempered where fitted."""
        import pandas as pd

        temperatures = [1.0] + ([self.calibration["temperature"]] if "temperature" in self.calibration else [])
        return pd.concat([reliability(self.table, 20, t).assign(temperature=t) for t in temperatures])


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


def beside(path: str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
    """Tables of causes and lakes that belong to a score table: of its split, in its folder, against its reference.

    Returns:
        "causes" and "lakes" -> table, as :func:`cryosentinel.evaluation.causes.cause_table` and
        :func:`cryosentinel.evaluation.objects.lake_table` make them, where they are there.

    Raises:
        InputError: one cannot be read.
    """
    import pandas as pd

    folder, name = Path(path).parent, Path(path).stem.removeprefix("per_chip_")
    split, _, reference = name.partition("_")
    # Where the truth is known both are made against it.
    if not reference and (folder / f"per_chip_{split}_truth.parquet").is_file():
        return {}
    found = {}
    for kind in ("causes", "lakes"):
        file = folder / f"{kind}_{split}.parquet"
        if file.is_file():
            try:
                found[kind] = pd.read_parquet(file)
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{file} cannot be read ({reason}); move it away, or make it again.") from None
    return found


def score_tables(
    tables: Mapping[str, pd.DataFrame],
    threshold: float | None = None,
    validation: pd.DataFrame | None = None,
    others: Mapping[str, Mapping[str, pd.DataFrame]] | None = None,
) -> dict[str, TableScores]:
    """Score tables, each for itself and against the first.

    Args:
        tables: name -> score table; where there are several, all hold the same chips.
        threshold: a multiple of 1/200. None takes the best on validation, 0.5 without a validation table.
        validation: score table on which the threshold is chosen and the temperature fitted.
        others: name -> tables of causes and lakes (:func:`beside`). Lakes keep the threshold that they were found with.

    Raises:
        ConfigError: the threshold lies between two multiples of 1/200.
        InputError: the tables hold different chips, or are against different references; or no lake to choose or
            fit by.
    """
    if threshold is None:
        threshold = 0.5 if validation is None else best_threshold(validation)
    temperature = None if validation is None else fit_temperature(validation)
    first = next(iter(tables.values()))
    references = {name: str(table.attrs["reference"]) for name, table in tables.items() if "reference" in table.attrs}
    if len(set(references.values())) > 1:
        said = ", ".join(f"{name} against the {reference}" for name, reference in references.items())
        raise InputError(f"A difference needs one reference on both sides, not {said}; score them one by one.")
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
            _strata((others or {}).get(name, {}), threshold),
        )
    return found


def _strata(tables: Mapping[str, pd.DataFrame], threshold: float) -> dict[str, Mapping[str, Estimate]]:
    within = rates(tables["causes"], threshold) if "causes" in tables else {}
    lakes = by_size(tables["lakes"]) if "lakes" in tables else {}
    return {**within, **{f"lakes {size}": of for size, of in lakes.items()}}


def write_report(out: str | os.PathLike[str], found: Mapping[str, TableScores]) -> None:
    """Write what is known of the tables into a folder.

    ``scores.json``; ``sweep.csv`` and ``chip_sweep.csv``, every threshold in all and chip by chip; ``chips.csv``;
    ``reliability.csv``.

    Args:
        out: the folder, made where it is missing.
        found: from :func:`score_tables`.
    """
    import pandas as pd

    write_json(Path(out, "scores.json"), {name: scores.as_dict() for name, scores in found.items()})
    frames = {
        "sweep.csv": {name: scores.sweep for name, scores in found.items()},
        "chips.csv": {name: scores.chips() for name, scores in found.items()},
        "chip_sweep.csv": {name: scores.chip_sweep() for name, scores in found.items()},
        "reliability.csv": {name: scores.reliability() for name, scores in found.items()},
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
        within = {f"{stratum}: {key}": e for stratum, of in scores.strata.items() for key, e in of.items()}
        if within:
            lines.append(estimates(within, "score").to_string())
        if why := reasons(rows):
            lines.append(why)
        lines.append("")
    return "\n".join(lines).rstrip()
