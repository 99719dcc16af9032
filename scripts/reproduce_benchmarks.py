"""Compare published or recorded figures with those that this machine computes; see reproduce_benchmarks.sh."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cryosentinel import paths
from cryosentinel.errors import CryoSentinelError, InputError
from cryosentinel.files import read_json, sha256

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "terramind_v3_finetune_almaty_v2"
THRESHOLDS = ("0.30", "0.40", "0.50", "0.60", "0.70", "0.80")
#: Published figures that the checkpoint and the chips give. Not the corrected scores: the card drops seven test chips
#: without naming them, so no one else can leave the same ones out.
COMPARED = re.compile(
    r"(val|test)_(iou@\d\.\d\d_tta(_\w+)?|mean_chip_iou@\d\.\d\d)|soup_(val|test)_chips_below_iou_0\.05|chips_(val|test)"
    r"|best_threshold"
)
CHIPS = "chips of "  # before the name of a region's score: how many it rests on
#: Beginning of a figure's name -> how far it may be from the record on another processor, absolute. Simulated chips and
#: what is counted on them are the same to the bit; scores of training-free baselines differ by single pixels at a
#: threshold; a short training run takes another path when float32 sums round differently.
TOLERANCES = {
    "n_chips": 0.0, "split_": 0.5, "water_share": 1e-4, "guard/": 1e-3, "mndwi_": 1e-3, "ndwi_": 1e-3,
    "val_iou": 0.03, "val_f1": 0.03, "test_iou": 0.03, "test_f1": 0.03, "test_precision": 0.05, "test_recall": 0.05,
}  # fmt: skip


def published_rows(tables: Mapping[str, Any]) -> dict[str, float]:
    """The rows of the published table from score tables: name, as in the published record -> figure.

    Args:
        tables: "val" and "test" -> score table.
    """
    from cryosentinel.evaluation.metrics import best_threshold, chip_iou, score

    rows: dict[str, float] = {}
    for split, table in tables.items():
        rows |= {f"{split}_iou@{t}_tta": score(table, "iou", float(t)) for t in THRESHOLDS}
        rows[f"{split}_mean_chip_iou@0.50"] = score(table, "mean_chip_iou", 0.5)
        rows |= {f"chips_{split}": len(table)}
        rows[f"soup_{split}_chips_below_iou_0.05"] = int((chip_iou(table, 0.5) < 0.05).sum())
        for region, of in table.groupby("region"):
            name = f"{split}_iou@0.50_tta_{region}"
            rows |= {name: score(of.reset_index(drop=True), "iou", 0.5), CHIPS + name: len(of)}
    rows["best_threshold"] = best_threshold(tables["val"], thresholds=[float(t) for t in THRESHOLDS])
    return rows


def against_published(found: Mapping[str, float], published: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare every published row of :data:`COMPARED` to its last decimal (four); one that was not found differs."""
    wanted = {name: of["value"] for name, of in published.items() if COMPARED.fullmatch(name)}
    wanted |= {CHIPS + name: published[name]["n"] for name in wanted if "_tta_" in name and published[name].get("n")}
    rows = []
    for name, recorded in wanted.items():
        value = found.get(name)
        agrees = value is not None and round(value, 4) == round(recorded, 4)
        rows.append({"row": name, "recorded": recorded, "found": value, "agrees": agrees})
    return rows


def against_record(found: Mapping[str, Any], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compare a study's metrics with recorded ones, each within its tolerance (:data:`TOLERANCES`)."""
    rows = []
    for name, of in record.items():
        tolerance = next((t for start, t in TOLERANCES.items() if name.startswith(start)), None)
        if tolerance is None or of.get("value") is None or "minus" in name:
            continue
        value = (found.get(name) or {}).get("value")
        agrees = value is not None and abs(value - of["value"]) <= tolerance
        rows.append({"row": name, "recorded": of["value"], "found": value, "agrees": agrees, "within": tolerance})
    return rows


def evaluate_published(ckpt: str, data: str, out: Path) -> dict[str, Any]:
    """Score tables of the published checkpoint by the configuration of its own stage."""
    from cryosentinel.evaluation.evaluate import evaluate
    from cryosentinel.evaluation.predictors import ModelPredictor
    from cryosentinel.hub import download_dataset
    from cryosentinel.models.checkpoint import load_segmenter, resolve_checkpoint
    from cryosentinel.training.config import parse
    from cryosentinel.training.fit import build

    config = paths.config(CONFIG)
    path = resolve_checkpoint(ckpt, paths.runs())
    root = Path(data)
    if not root.is_dir():  # a name on the hub: only the regions of this stage are fetched
        root = download_dataset(data, regions=yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["regions"])
    module = build(*parse(config, {"data.root": str(root)}))[1]
    module.setup()
    predict = ModelPredictor(load_segmenter(path, config, root / paths.STATISTICS_FILE), 4)
    rows = {split: module.rows[split].tolist() for split in ("val", "test")}
    done = evaluate(predict, module.store, rows, out, digest=sha256(path), block_size=module.block_size)
    return {split: done.table(split) for split in rows}


def record_of(preset: str, given: Path | None) -> tuple[dict[str, Any], str]:
    """The recorded metrics of a preset, and where they come from.

    Raises:
        InputError: none is committed for it, and none was given.
    """
    if given is not None:
        record = read_json(given)
        return record.get("metrics", record), str(given)
    whole, seeds = ROOT / "book" / f"{preset}_metrics.json", ROOT / "book" / "seeds.json"
    if whole.is_file():  # also what no seed of the training moves
        record = read_json(whole)
        return record["metrics"], f"{whole.name}, commit {record['commit'][:10]}"
    if seeds.is_file() and (record := read_json(seeds))["preset"] == preset:
        own = str(_seed_of(preset))
        metrics = {name: {"value": of["values"].get(own)} for name, of in record["figures"].items()}
        return metrics, f"{seeds.name}, seed {own}, commit {record['commit'][:10]}"
    raise InputError(f"No record of preset {preset} is committed; give one: --record METRICS.json.")


def refuse_another_preset(study: Path, preset: str) -> None:
    """Refuse a study of another preset than the record's: its figures differ because its chips do.

    Raises:
        InputError: it is one.
    """
    timings = study / "timings.json"
    presets = {stage["preset"] for stage in read_json(timings).values()} if timings.is_file() else set()
    if presets - {preset}:
        raise InputError(
            f"{study} holds a study of preset {', '.join(sorted(presets))}, not of {preset}; give its --preset, or "
            "another --study."
        )


def _seed_of(preset: str) -> int:
    return int(yaml.safe_load(paths.config(preset).read_text(encoding="utf-8"))["seed"])


def show(rows: list[dict[str, Any]]) -> int:
    """Print the rows; 0 if all agree."""
    for row in rows:
        found = "missing" if row["found"] is None else f"{row['found']:.4f}"
        within = f" (within {row['within']:g})" if "within" in row else ""
        said = "agrees" if row["agrees"] else "DIFFERS"
        print(f"{said:<8} {row['row']:<48} recorded {row['recorded']:.4f}  found {found}{within}")
    differing = sum(not row["agrees"] for row in rows)
    print(f"{len(rows) - differing} of {len(rows)} rows agree.")
    return 1 if differing or not rows else 0


def main(words: list[str]) -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(prog="reproduce_benchmarks.sh", description=__doc__)
    parser.add_argument("--ckpt", help="the published checkpoint (converted): a path, or hf://owner/repo/path")
    parser.add_argument("--data", help="the published chips: a folder, or owner/name on the hub")
    parser.add_argument("--preset", default="quick", help="of the embedded benchmark: quick, standard or tiny")
    parser.add_argument("--study", type=Path, help="folder of the study's metrics.json; the last study by default")
    parser.add_argument("--record", type=Path, help="metrics to compare it with; the committed record by default")
    given = parser.parse_args(words)
    try:
        if bool(given.ckpt) != bool(given.data):
            raise InputError("The published table needs both the checkpoint and the chips: give --ckpt and --data.")
        if given.ckpt:
            published = read_json(paths.PUBLISHED)
            tables = evaluate_published(given.ckpt, given.data, paths.evaluations() / "published")
            status = show(against_published(published_rows(tables), published))
            left = [name for name in published if not COMPARED.fullmatch(name)]
            print(f"Not compared, as these two files do not give them: {', '.join(left)}.")
            return status
        print("The published checkpoint and chips were not given (--ckpt, --data): no published row is compared.")
        print("Compared instead: the embedded benchmark, simulated chips, with its committed record.")
        record, source = record_of(given.preset, given.record)
        metrics = (given.study or paths.study()) / "metrics.json"
        if not metrics.is_file():
            if given.study:
                raise InputError(f"There is no file {metrics}; check --study.")
            command = [sys.executable, "-m", "cryosentinel", "study", "--preset", given.preset]
            if status := subprocess.run(command, cwd=ROOT, check=False).returncode:
                return status
        refuse_another_preset(metrics.parent, given.preset)
        print(f"record: {source}; study: {metrics}")
        return show(against_record(read_json(metrics), record))
    except CryoSentinelError as error:
        print(f"reproduce_benchmarks: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
