"""Learn the audit's judges on one simulated seed, report the audit on three others, and write both down.

``python scripts/audit_record.py`` writes the judges into cryosentinel/configs/audit.yaml and the report into
book/audit.json; ``--report`` leaves the rule as it is, ``--seeds`` names other worlds. Chips and predictions are kept
in the outputs, so that a second run is quick.

The labels carry planted errors: many more than in nature, so that rare kinds can be counted, each lake weighted back
to its natural share (:func:`cryosentinel.simulate.labels.planted`); and labels moved by 70 to 120 m, which the
simulated inventory never does and which therefore weigh nothing in precision. The probabilities are out of sample: a
small network on single pixels (the baseline ``mlp``), fitted to natural labels on two thirds of the blocks and asked
about the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from cryosentinel import paths
from cryosentinel.data.chips import Chip
from cryosentinel.data.split import block_ids
from cryosentinel.data.store import ChipStore
from cryosentinel.evaluation.audit import LABEL_VERDICTS, Audit, audit
from cryosentinel.evaluation.audit_pieces import EVIDENCE, LESS, MORE, AuditRule
from cryosentinel.evaluation.audit_truth import KINDS, MOVED, Findings, against_truth, compare, label_ceiling
from cryosentinel.evaluation.baselines import PixelClassifier
from cryosentinel.evaluation.bootstrap import Estimate, estimate
from cryosentinel.evaluation.evaluate import LABEL, chip_batches, score_maps
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import INVALID, probability_bins
from cryosentinel.files import replacing, write_json, write_text
from cryosentinel.sensors import CHIP_SIZE
from cryosentinel.simulate import Material, SimulationConfig, TruthStore, simulate
from cryosentinel.simulate.ground import Window
from cryosentinel.simulate.labels import Shares, planted
from cryosentinel.simulate.noise import Draw
from cryosentinel.simulate.water import overlap

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "book" / "audit.json"
LEARNED_ON, REPORTED_ON = 42, (3001, 3002, 3003)
PLANTED = Shares(missing=0.15, missing_small=0.3, undersized=0.15, oversized=0.15, false=0.25)
MOVED_SHARE = 0.08  # of lakes whose label has no other error
MODEL, FOLDS = "mlp", 3
LEARNING_THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the probability: judges are to meet worse predictions too
EVERY_PLACE = {LEARNED_ON: 3} | dict.fromkeys(REPORTED_ON, 6)  # one place in so many is audited
TRAIN_EVERY = 3  # one chip in so many trains the network: cheap on purpose
PIXELS, EPOCHS = 50, 15  # a class and chip, and of the network
WANTED_PRECISION = 0.9


def cohort_config(seed: int) -> SimulationConfig:
    """Places seen in two years, and so by both inventories, one chip each."""
    places = {"train": 0, "val": 0, "test": 130}
    return SimulationConfig(
        seed=seed, places=places, years_per_place={"train": 1, "val": 1, "test": 2}, windows=1
    )  # fmt: skip


class PlantedStore:
    """Chips with planted label errors in the place of their labels.

    Args:
        store: simulated chips, cut from the world of ``seed``.
        seed: of the world.
        rows: whose labels are needed.
        folder: that keeps them.
    """

    def __init__(self, store: ChipStore, seed: int, rows: Sequence[int], folder: Path) -> None:
        self.index, self._store, self._seed = store.index, store, seed
        self._kept: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        path = folder / f"planted_{len(rows)}.npz"
        ids = [store.index["chip_id"].iloc[row] for row in rows]
        if path.is_file():
            with np.load(path) as kept:
                self._kept = {i: (kept["label"][k], kept["weight"][k], kept["moved"][k])
                              for k, i in enumerate(kept["ids"].tolist())}  # fmt: skip
        if not set(ids) <= set(self._kept):
            found = [self.planted(store[row]) for row in tqdm(rows, desc="plant", unit="chip")]
            label, weight, moved = (np.stack(each) for each in zip(*found, strict=True))
            with replacing(path) as part:
                np.savez_compressed(part, ids=np.array(ids), label=label, weight=weight, moved=moved)

    def __getitem__(self, row: int) -> Chip:
        """The chip at a position of the index, its label planted."""
        chip = self._store[row]
        return dataclasses.replace(chip, mask=self.planted(chip)[0].astype(np.uint8))

    def planted(self, chip: Chip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Label, weight of each pixel's lake, and pixels of moved labels of a chip: (H, W) each."""
        if chip.chip_id not in self._kept:
            *_, zone, easting, northing, year = chip.chip_id.split("_")
            epsg = (32600 if zone[-1] == "N" else 32700) + int(zone[:-1])
            window = Window(-int(northing), int(easting), CHIP_SIZE, CHIP_SIZE)
            label, weight = np.zeros((CHIP_SIZE, CHIP_SIZE), bool), np.ones((CHIP_SIZE, CHIP_SIZE))
            moved = np.zeros_like(label)
            for lake, own, error, times in planted(self._seed, epsg, window, int(year), PLANTED):
                here, there = overlap(lake, window.row, window.col, window.height, window.width)
                draw = Draw(self._seed, "moved", lake.lake_id, int(year))
                if error == "" and own.any() and draw.uniform() < MOVED_SHARE:
                    distance, bearing = draw.uniform(7, 12), draw.uniform(0, 2 * np.pi)
                    step = round(distance * np.sin(bearing)), round(distance * np.cos(bearing))
                    shifted = np.roll(own, step, (0, 1))
                    moved |= shifted | own
                    own, times = shifted, 0.0
                elif error == "":
                    times /= 1 - MOVED_SHARE
                reach = own.copy()
                reach[here] |= lake.area_at[there] <= 2.6 * lake.area_ha
                weight[reach] = times
                label |= own
            self._kept[chip.chip_id] = label, weight, moved
        return self._kept[chip.chip_id]


def audited(store: ChipStore, every: int) -> tuple[int, ...]:
    """The chips that are audited, in every year of every so many-th place; the others only train."""
    place = store.index.groupby([store.index["lat"].round(5), store.index["lon"].round(5)]).ngroup()
    return tuple(np.flatnonzero(place.to_numpy() % every == 0).tolist())


def predictions(store: ChipStore, rows: tuple[int, ...], folder: Path) -> ProbabilityMaps:
    """Out-of-sample probabilities of the audited chips, made once."""
    from sklearn.model_selection import GroupKFold

    path = folder / f"bins_{len(rows)}.npy"
    if not path.is_file():
        blocks = block_ids(store.index["lat"].to_numpy(), store.index["lon"].to_numpy(), 0.15)
        place = {row: i for i, row in enumerate(rows)}
        bins = np.full((len(rows), CHIP_SIZE, CHIP_SIZE), INVALID, np.uint8)
        with tqdm(total=len(rows), desc="predict", unit="chip") as bar:
            for train, held_out in GroupKFold(FOLDS).split(blocks, groups=blocks):
                predict = PixelClassifier(store, train[::TRAIN_EVERY].tolist(), MODEL, PIXELS, rounds=EPOCHS)
                for chips, batch in chip_batches(store, [row for row in held_out.tolist() if row in place], 8):
                    found = probability_bins(np.asarray(predict(batch), np.float32))
                    found[~batch["valid"].numpy()] = INVALID
                    bins[[place[row] for row in batch["row"].tolist()]] = found
                    bar.update(len(chips))
        with replacing(path) as part:
            np.save(part, bins)
    return ProbabilityMaps(np.load(path, mmap_mode="r"), rows, str(path))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An audit of one seed's cohort, matched with the truth."""

    result: Audit
    findings: Findings
    oracle: np.ndarray
    truth: pd.DataFrame
    ceiling: Estimate


def cohort(seed: int, rule: AuditRule) -> Outcome:
    """Audit the cohort of a seed."""
    root = paths.datasets() / f"audit_{seed}"
    simulate(root, cohort_config(seed), workers=1)
    natural, truths = ChipStore(root), TruthStore(root)
    maps = predictions(natural, audited(natural, EVERY_PLACE.get(seed, 1)), root)
    store = PlantedStore(natural, seed, maps.rows, root)
    references = {LABEL: None, "truth": lambda chip: truths[chip.chip_id].lake}
    tables = score_maps(maps, store, references)
    result = audit(maps, store, tables[LABEL], rule, progress=True)
    findings = against_truth(
        result, store, maps, lambda chip: truths[chip.chip_id].lake, lambda chip: store.planted(chip)[1:]
    )
    water = (Material.LAKE, Material.FROZEN_LAKE)
    ids = natural.index["chip_id"]
    lakes = {row: np.isin(truths[ids.iloc[row]].material, water) for row in maps.rows}
    oracle = _by_material(result, store, maps, lakes)
    ceiling = label_ceiling(natural, maps, lambda chip: truths[chip.chip_id].lake, tables[LABEL])
    return Outcome(result, findings, oracle, tables["truth"], ceiling)


def _by_material(result: Audit, store: Any, maps: ProbabilityMaps, lakes: dict[int, np.ndarray]) -> np.ndarray:
    """What an oracle accuses that sees the material (lake or its ice, of whatever kind) of every pixel."""
    from cryosentinel.evaluation.audit_pieces import find_pieces, maps_of

    accused = []
    for i, row in enumerate(maps.rows):
        label, prediction, _ = maps_of(store[row], np.asarray(maps.bins[i]), result.rule)
        for piece in find_pieces(label, prediction, result.rule):
            share = lakes[row][piece.mask].mean()
            accused.append(share >= 0.5 if piece.direction == MORE else share < 0.5)
    return np.array(accused, dtype=bool)


# --- learning ----------------------------------------------------------------------------------------------------


def _standardised(pieces: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = pieces[list(EVIDENCE)].to_numpy(dtype=float)
    mean, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    scale[scale == 0] = 1.0
    return np.nan_to_num((values - mean) / scale), mean, scale


def learn(pieces: pd.DataFrame) -> tuple[dict[str, Any], np.ndarray]:
    """A judge for each direction, and every piece's probability by judges that did not see its block."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    judges, held_out = {}, np.full(len(pieces), 0.5)
    for direction in (MORE, LESS):
        at = np.flatnonzero((pieces["direction"] == direction).to_numpy())
        of = pieces.iloc[at]
        x, mean, scale = _standardised(of)
        y, weight = of["right"].to_numpy(dtype=int), np.maximum(of["weight"].to_numpy(dtype=float), 0.02)

        def fitted(rows: np.ndarray, x: Any = x, y: Any = y, weight: Any = weight) -> LogisticRegression:
            return LogisticRegression(C=0.5, max_iter=1000).fit(x[rows], y[rows], sample_weight=weight[rows])

        for train, test in GroupKFold(FOLDS).split(x, groups=of["block"]):
            held_out[at[test]] = fitted(train).predict_proba(x[test])[:, 1]
        model = fitted(np.arange(len(x)))
        terms = {
            name: [round(float(v), 4) for v in (mean[k], scale[k], model.coef_[0, k])]
            for k, name in enumerate(EVIDENCE)
        }
        judges[direction] = {"intercept": round(float(model.intercept_[0]), 4), "terms": terms}
    return judges, held_out


def thresholds(pieces: pd.DataFrame, probability: np.ndarray) -> dict[str, float]:
    """From which probability on accusations are right nine times in ten, and up to which acquittals are."""
    right, weight = (pieces[c].to_numpy(dtype=float) for c in ("right", "weight"))

    def share(chosen: np.ndarray) -> float:
        return float((right * weight)[chosen].sum() / weight[chosen].sum()) if weight[chosen].sum() else np.nan

    grid = np.arange(0.5, 0.96, 0.05)
    accuse = next((t for t in grid if share(probability >= t) >= WANTED_PRECISION), grid[-1])
    acquit = next((t for t in grid[::-1] - 0.45 if share(probability <= t) <= 1 - WANTED_PRECISION), 0.05)
    return {"accuse": round(float(accuse), 2), "acquit": round(float(min(acquit, accuse)), 2)}


# --- reporting ---------------------------------------------------------------------------------------------------


def pooled(outcomes: dict[int, Outcome]) -> tuple[Findings, pd.DataFrame, np.ndarray]:
    """The findings, verdicts and oracle's accusations of several seeds as one; blocks of two seeds stay apart."""
    pieces, errors, chips, first = [], [], [], 0
    for seed, outcome in outcomes.items():
        of = outcome.findings
        offset = seed * 1_000_000
        pieces.append(
            of.pieces.assign(block=f"{seed} " + of.pieces["block"].astype(str), row=of.pieces["row"] + offset)
        )
        covered = [[(at + first, px) for at, px in pairs] for pairs in of.errors["covered"]]
        errors.append(of.errors.assign(block=f"{seed} " + of.errors["block"].astype(str), covered=covered))
        chips.append(outcome.result.verdicts.assign(row=outcome.result.verdicts["row"] + offset))
        first += len(of.pieces)
    found = Findings(pd.concat(pieces, ignore_index=True), pd.concat(errors, ignore_index=True))
    return found, pd.concat(chips, ignore_index=True), np.concatenate([o.oracle for o in outcomes.values()])


def _json(value: Any) -> Any:
    """Plain values in which what is undefined (not a number) is None."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _plain(found: Estimate) -> dict[str, Any]:
    kept = {name: found.as_dict()[name] for name in ("value", "low", "high", "n", "reason")}
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in kept.items()}


def report(findings: Findings, chips: pd.DataFrame, oracle: np.ndarray) -> dict[str, Any]:
    """Everything that chapter 04 shows of a cohort."""
    from sklearn.metrics import roc_auc_score

    pieces, errors = findings.pieces, findings.errors
    own = pieces["verdict"].isin(LABEL_VERDICTS).to_numpy()
    compared = {
        name: {"accused": of["accused"], **{k: _plain(of[k]) for k in ("precision", "recall")}}
        for name, of in compare(findings, chips, oracle).items()
    }
    ceiling = findings.recall(pieces["right"].to_numpy(dtype=bool))
    weight = pieces["weight"].to_numpy(dtype=float)
    auc = {}
    for direction in (MORE, LESS):
        here = (pieces["direction"] == direction).to_numpy() & (weight > 0)
        right = pieces["right"].to_numpy(dtype=int)[here]
        auc[direction] = {
            name: round(float(roc_auc_score(right, np.nan_to_num(pieces[name].to_numpy(dtype=float)[here],
                                                                 nan=float(np.nanmean(pieces[name]))),
                                            sample_weight=weight[here])), 3)
            for name in [*EVIDENCE, "label_wrong"]
        }  # fmt: skip
    bins = np.minimum((pieces["label_wrong"].to_numpy() * 5).astype(int), 4)
    reliability = [
        {"from": k / 5, "pieces": int((bins == k).sum()),
         "said": round(float(np.average(pieces["label_wrong"][bins == k], weights=weight[bins == k])), 3),
         "right": round(float(np.average(pieces["right"][bins == k], weights=weight[bins == k])), 3)}
        for k in range(5) if weight[bins == k].sum()
    ]  # fmt: skip
    verdicts = {
        str(name): {"pieces": len(of), "label_wrong": round(float(np.average(of["right"], weights=of["weight"])), 3)}
        for name, of in pieces[weight > 0].groupby("verdict")
    }
    return {
        "chips": len(chips), "errors": len(errors), "pieces": len(pieces), "compared": compared,
        "ceiling_of_disagreement": _plain(ceiling),
        "precision": {d: _plain(findings.precision(own, d)) for d in (MORE, LESS)},
        "recall": {k: _plain(findings.recall(own, k)) for k in (*KINDS, MOVED)},
        "verdicts": verdicts, "reliability": reliability, "evidence_auc": auc,
    }  # fmt: skip


def scores(outcome: Outcome) -> dict[str, float]:
    """Global IoU of the pixel model against the labels as they are, as corrected, and against the truth."""
    tables = {**outcome.result.variants(), "truth": outcome.truth}
    found = {name: estimate(table, "iou", outcome.result.rule.threshold).value for name, table in tables.items()}
    found["noise_ceiling"] = outcome.ceiling.value
    return {name: round(value, 4) for name, value in found.items()}


def learn_rule(config: Path) -> None:
    """Learn the judges and write them into a configuration."""
    blank = dataclasses.replace(AuditRule.read(), judges={})
    found = {t: cohort(LEARNED_ON, dataclasses.replace(blank, threshold=t)) for t in LEARNING_THRESHOLDS}
    pieces = pd.concat([of.findings.pieces.assign(cut=t) for t, of in found.items()], ignore_index=True)
    judges, probability = learn(pieces)
    usual = (pieces["cut"] == blank.threshold).to_numpy()
    kept = yaml.safe_load(config.read_text(encoding="utf-8"))
    limits = thresholds(pieces[usual], probability[usual])
    head = (
        "# The rule of the label audit; see cryosentinel/evaluation/audit_pieces.py for what each field means.\n"
        "# Terms of a judge: evidence -> [mean, deviation, weight in log odds a deviation], learned by\n"
        f"# scripts/audit_record.py on simulated seed {LEARNED_ON}, which nothing is reported on.\n"
    )
    values = {**kept, **limits, "learned_on": LEARNED_ON, "judges": judges}
    write_text(config, head + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110))


def main(words: list[str]) -> int:
    """Learn (unless the rule is to stay), report, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="leave the rule as it is")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED_ON), help="simulated seeds to report on")
    given = parser.parse_args(words)
    if not given.report:
        learn_rule(paths.CONFIGS / "audit.yaml")
    rule = AuditRule.read()
    if rule.learned_on in given.seeds:
        parser.error(f"the rule was learned on seed {rule.learned_on}; report it on others")
    print(rule)
    outcomes = {seed: cohort(seed, rule) for seed in given.seeds}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = " ".join(["python scripts/audit_record.py", *words])
    record = {
        "command": command, "commit": commit.strip(), "date": datetime.now(UTC).date().isoformat(),
        "data": "simulated", "probabilities": f"{MODEL}, cross-fitted", "learned_on": rule.learned_on,
        "reported_on": given.seeds, "planted": {**dataclasses.asdict(PLANTED), "moved": MOVED_SHARE},
        "audited_places": {str(seed): f"one in {EVERY_PLACE.get(seed, 1)}" for seed in given.seeds},
        "seeds": {str(seed): {**report(o.findings, o.result.verdicts, o.oracle), "scores": scores(o)}
                  for seed, o in outcomes.items()},
        "all": report(*pooled(outcomes)),
    }  # fmt: skip
    write_json(RECORD, _json(record))
    compared: dict[str, Any] = record["all"]["compared"]  # type: ignore[index]
    for name, of in compared.items():
        print(f"{name:<50} {of['accused']:>5} precision {of['precision']['value']} recall {of['recall']['value']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
