"""Report the audit's rule on simulated worlds that it was not tuned on, and write the record ``book/audit.json``.

``--tune`` learns the judges of the rule (``configs/audit.yaml``) on the world of seed ``tuned_on``, shows how they do
on blocks that they were not fitted on, and writes them; its thresholds are stated. The labels carry planted errors:
many more than in nature, so that rare kinds can be counted, each lake weighted back to its natural share
(:func:`cryosentinel.simulate.labels.planted`); and labels moved by 70 to 120 m, which the simulated inventory never
does and which therefore weigh nothing in precision. The probabilities are those of the weights in the package, which
were trained on another world. Chips, predictions and planted labels are kept in the outputs, so that a second run is
quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from cryosentinel import paths
from cryosentinel.data.chips import Chip
from cryosentinel.data.store import ChipStore
from cryosentinel.evaluation.audit import LABEL_VERDICTS, SHIFTED, Audit, audit
from cryosentinel.evaluation.audit_pieces import EVIDENCE, LESS, MORE, AuditRule, Judge, find_pieces, maps_of
from cryosentinel.evaluation.audit_truth import (
    HALF,
    KINDS,
    MOVED,
    Findings,
    against_truth,
    compare,
    comparison,
    label_ceiling,
    shown,
)
from cryosentinel.evaluation.bootstrap import Estimate, estimate
from cryosentinel.evaluation.evaluate import LABEL, evaluate, score_maps
from cryosentinel.evaluation.predictors import ModelPredictor
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import INVALID
from cryosentinel.files import replacing, sha256, write_json, write_text
from cryosentinel.mapping.product import default_weights
from cryosentinel.models.checkpoint import load_segmenter
from cryosentinel.sensors import CHIP_SIZE
from cryosentinel.simulate import Material, SimulationConfig, TruthStore, simulate
from cryosentinel.simulate.ground import Window
from cryosentinel.simulate.labels import Shares, planted
from cryosentinel.simulate.noise import Draw
from cryosentinel.simulate.water import overlap

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "book" / "audit.json"
REPORTED_ON = (3001, 3002, 3003)
PLACES = 50
PLANTED = Shares(missing=0.15, missing_small=0.3, undersized=0.15, oversized=0.15, false=0.25)
MOVED_SHARE = 0.08  # of lakes whose label has no other error
FARTHEST_PX = 12  # that a label is moved
FOLDS, LEAST_WEIGHT = 8, 0.05  # of learning: moved labels, which weigh nothing in precision, count a little
CONFIDENT = "confident learning (cleanlab)"


class PlantedStore:
    """Chips with planted label errors in the place of their labels.

    Args:
        store: simulated chips, cut from the world of ``seed``.
        seed: of the world.
        folder: that keeps what was planted.

    Attributes:
        planted: chip id -> label, weight of each pixel's lake, and pixels of moved labels, (H, W) each.
    """

    def __init__(self, store: ChipStore, seed: int, folder: Path) -> None:
        self.index, self._store = store.index, store
        path, ids = folder / "planted_errors.npz", store.index["chip_id"].tolist()
        if not path.is_file():
            found = [plant(chip_id, seed) for chip_id in tqdm(ids, desc="plant", unit="chip")]
            label, weight, moved = (np.stack(each) for each in zip(*found, strict=True))
            with replacing(path) as part:
                np.savez_compressed(part, label=label, weight=weight, moved=moved)
        with np.load(path) as kept:
            self.planted = dict(zip(ids, zip(kept["label"], kept["weight"], kept["moved"], strict=True), strict=True))

    def __getitem__(self, row: int) -> Chip:
        """The chip at a position of the index, its label planted."""
        chip = self._store[row]
        return dataclasses.replace(chip, mask=self.planted[chip.chip_id][0].astype(np.uint8))


def shifted(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A mask moved down and to the right by up to :data:`FARTHEST_PX`; what leaves the chip is gone. (H, W) bool."""
    height, width = mask.shape
    wide = np.pad(mask, FARTHEST_PX)
    return wide[FARTHEST_PX - rows :, FARTHEST_PX - columns :][:height, :width]


def plant(chip_id: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, weight of each pixel's lake, and pixels of moved labels of a simulated chip: (H, W) each."""
    *_, zone, easting, northing, year = chip_id.split("_")
    epsg = (32600 if zone[-1] == "N" else 32700) + int(zone[:-1])
    window = Window(-int(northing), int(easting), CHIP_SIZE, CHIP_SIZE)
    label, weight = np.zeros((CHIP_SIZE, CHIP_SIZE), bool), np.ones((CHIP_SIZE, CHIP_SIZE), np.float32)
    moved = np.zeros_like(label)
    for lake, own, error, times in planted(seed, epsg, window, int(year), PLANTED):
        here, there = overlap(lake, window.row, window.col, window.height, window.width)
        draw = Draw(seed, "moved", lake.lake_id, int(year))
        if error == "" and own.any() and draw.uniform() < MOVED_SHARE:
            distance, bearing = draw.uniform(7, FARTHEST_PX), draw.uniform(0, 2 * np.pi)
            step = round(distance * np.sin(bearing)), round(distance * np.cos(bearing))
            there_now = shifted(own, *step)
            moved |= there_now | own
            own, times = there_now, 0.0
        elif error == "":
            times /= 1 - MOVED_SHARE
        reach = own.copy()
        reach[here] |= lake.area_at[there] <= 2.6 * lake.area_ha
        weight[reach] = times
        label |= own
    return label, weight, moved


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An audit of one seed's cohort, matched with the truth; and what others accuse, (pieces,) bool each."""

    result: Audit
    findings: Findings
    others: dict[str, np.ndarray]
    truth: pd.DataFrame
    ceiling: Estimate


def cohort(seed: int, rule: AuditRule, places: int) -> Outcome:
    """Audit the cohort of a seed: places seen in two years, and so by both inventories, one chip each."""
    numbers, years = {"train": 0, "val": 0, "test": places}, {"train": 1, "val": 1, "test": 2}
    root, weights = paths.datasets() / f"audit_{seed}_{places}", default_weights()
    simulate(root, SimulationConfig(seed=seed, places=numbers, years_per_place=years, windows=1), workers=1)
    natural, truths = ChipStore(root), TruthStore(root)
    found = evaluate(
        ModelPredictor(load_segmenter(weights), precision="32-true"), natural, {"test": range(len(natural))},
        root / "predictions", {"truth": lambda chip: truths[chip.chip_id].lake}, digest=sha256(weights),
    )  # fmt: skip
    maps, store = found.maps("test"), PlantedStore(natural, seed, root)
    result = audit(maps, store, score_maps(maps, store, {LABEL: None})[LABEL], rule, progress=True)
    findings = against_truth(
        result, store, maps, lambda chip: truths[chip.chip_id].lake, lambda chip: store.planted[chip.chip_id][1:]
    )
    water = (Material.LAKE, Material.FROZEN_LAKE)
    lakes = [np.isin(truths[chip_id].material, water) for chip_id in natural.index["chip_id"]]
    others = {
        "oracle": over_pieces(result, store, maps, lambda i, label: lakes[i] != label),
        CONFIDENT: over_pieces(result, store, maps, confident(store, maps)),
    }
    # Of the labels that the scores are of: the planted ones.
    ceiling = label_ceiling(store, maps, lambda chip: truths[chip.chip_id].lake, found.table("test"))
    return Outcome(result, findings, others, found.table("test", "truth"), ceiling)


def over_pieces(result: Audit, store: PlantedStore, maps: ProbabilityMaps, wrong: Any) -> np.ndarray:
    """(pieces,) bool: where at least half of the pixels are called wrong.

    Args:
        result, store, maps: an audit.
        wrong: from the position of a chip and its label (H, W) to the pixels whose label is called wrong.
    """
    accused = []
    for i, row in enumerate(maps.rows):
        label, prediction, _ = maps_of(store[row], np.asarray(maps.bins[i]), result.rule)
        called = wrong(i, label)
        accused += [called[piece.mask].mean() >= HALF for piece in find_pieces(label, prediction, result.rule)]
    return np.array(accused, dtype=bool)


def confident(store: PlantedStore, maps: ProbabilityMaps) -> Any:
    """Confident learning (Northcutt et al. 2021) on pixels, as :func:`over_pieces` takes it.

    The confident joint of all pixels of the cohort, by cleanlab; a pixel's label is called wrong where the joint
    counts it under the other class.
    """
    from cleanlab.filter import find_label_issues

    bins, shape = np.asarray(maps.bins), maps.bins.shape
    valid = bins != INVALID
    labels = np.stack([store[row].mask > 0 for row in maps.rows])[valid].astype(int)
    water = ((bins[valid] + 0.5) / 200).astype(np.float32)
    issues = np.zeros(shape, bool)
    issues[valid] = find_label_issues(labels, np.stack([1 - water, water], 1), filter_by="confident_learning", n_jobs=1)
    return lambda i, label: issues[i]


def learn(rule: AuditRule, findings: Findings) -> tuple[dict[str, Judge], np.ndarray]:
    """A judge for each direction: logistic regressions on standardised evidence, weighted to natural shares.

    Returns:
        The judges, and each piece's probability by judges that were fitted on other blocks: (pieces,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    judges, held_out = {}, np.full(len(findings.pieces), 0.5)
    for direction in (MORE, LESS):
        at = np.flatnonzero((findings.pieces["direction"] == direction).to_numpy())
        of = findings.pieces.iloc[at]
        values = of[list(EVIDENCE)].to_numpy(dtype=float)
        mean, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
        scale[scale == 0] = 1.0
        x, y = np.nan_to_num((values - mean) / scale), of["right"].to_numpy(dtype=int)
        weight = np.maximum(of["weight"].to_numpy(dtype=float), LEAST_WEIGHT)

        def fitted(rows: np.ndarray, x: Any = x, y: Any = y, weight: Any = weight) -> LogisticRegression:
            return LogisticRegression(C=0.5, max_iter=1000).fit(x[rows], y[rows], sample_weight=weight[rows])

        for train, test in GroupKFold(FOLDS).split(x, groups=of["block"]):
            held_out[at[test]] = fitted(train).predict_proba(x[test])[:, 1]
        model = fitted(np.arange(len(x)))
        terms = [[round(float(v), 3) for v in of_one] for of_one in zip(mean, scale, model.coef_[0], strict=True)]
        named = {name: (m, s, w) for name, (m, s, w) in zip(EVIDENCE, terms, strict=True)}
        judges[direction] = Judge(round(float(model.intercept_[0]), 3), named)
    return judges, held_out


def tune(rule: AuditRule, places: int) -> None:
    """Learn the judges, show what they say of blocks that they have not seen, and write them into the rule."""
    outcome = cohort(rule.tuned_on, rule, places)
    judges, held_out = learn(rule, outcome.findings)
    wrong, undecided = held_out >= rule.accuse, (held_out < rule.accuse) & (held_out > rule.acquit)
    for name, said in (("accused", wrong), ("undecidable", undecided), ("acquitted", ~wrong & ~undecided)):
        print(f"{name}: {said.sum()} pieces, label wrong on {shown(outcome.findings.precision(said))}")
    print(f"errors found: {shown(outcome.findings.recall(wrong))}")
    path = paths.config("audit")
    head, kept = path.read_text(encoding="utf-8").partition("threshold:")[0], yaml.safe_load(path.read_text("utf-8"))
    plain = {
        d: {"intercept": j.intercept, "terms": {k: list(v) for k, v in j.terms.items()}} for d, j in judges.items()
    }
    write_text(
        path, head + yaml.safe_dump({**kept, "judges": plain}, sort_keys=False, default_flow_style=None, width=110)
    )


def pooled(outcomes: dict[int, Outcome]) -> tuple[Findings, pd.DataFrame, dict[str, np.ndarray]]:
    """The findings, verdicts and others' accusations of several seeds as one; blocks of two seeds stay apart."""
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
    others = {name: np.concatenate([o.others[name] for o in outcomes.values()]) for name in ("oracle", CONFIDENT)}
    return found, pd.concat(chips, ignore_index=True), others


def _plain(found: Estimate) -> dict[str, Any]:
    kept = {name: found.as_dict()[name] for name in ("value", "low", "high", "n", "reason")}
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in kept.items()}


def report(findings: Findings, chips: pd.DataFrame, others: dict[str, np.ndarray]) -> dict[str, Any]:
    """Everything that chapter 04 shows of a cohort."""
    from sklearn.metrics import roc_auc_score

    pieces, verdict = findings.pieces, findings.pieces["verdict"].to_numpy()
    own, right = np.isin(verdict, LABEL_VERDICTS), pieces["right"].to_numpy(dtype=int)
    weight = pieces["weight"].to_numpy(dtype=float)
    compared = {
        name: {"accused": of["accused"], **{k: _plain(of[k]) for k in ("precision", "recall")}}
        for name, of in compare(findings, chips, others).items()
    }
    auc: dict[str, dict[str, float | None]] = {}
    for direction in (MORE, LESS):
        here = (pieces["direction"] == direction).to_numpy() & (weight > 0)
        values = pieces[[*EVIDENCE, "label_wrong"]][here].astype(float)
        both = 0 < right[here].mean() < 1
        auc[direction] = {
            name: round(float(roc_auc_score(right[here], column, sample_weight=weight[here])), 3) if both else None
            for name, column in values.fillna(values.mean()).fillna(0).items()
        }
    bins = np.minimum((pieces["label_wrong"].to_numpy() * 5).astype(int), 4)
    reliability = [
        {"from": k / 5, "pieces": int((bins == k).sum()),
         "said": round(float(np.average(pieces["label_wrong"][bins == k], weights=weight[bins == k])), 3),
         "right": round(float(np.average(right[bins == k], weights=weight[bins == k])), 3)}
        for k in range(5) if weight[bins == k].sum()
    ]  # fmt: skip
    return {
        "chips": len(chips), "errors": len(findings.errors), "pieces": len(pieces), "compared": compared,
        "ceiling_of_disagreement": _plain(findings.recall(pieces["right"].to_numpy(dtype=bool))),
        "precision": {d: _plain(findings.precision(own, d)) for d in (MORE, LESS)},
        "recall": {k: _plain(findings.recall(own, k)) for k in (*KINDS, MOVED)},
        # Moved labels weigh nothing, so that of the verdict on them every piece counts alike.
        "verdicts": {
            str(v): _plain(findings.precision(verdict == v, weighted=v != SHIFTED)) for v in np.unique(verdict)
        },
        "reliability": reliability, "evidence_auc": auc,
    }  # fmt: skip


def scores(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Global IoU of the network against the planted labels, as they are and as corrected, and against the truth.

    Returns:
        Name -> estimate; ``noise_ceiling`` is that of a perfect map against the planted labels.
    """
    tables = {**outcome.result.variants(), "truth": outcome.truth}
    found = {name: estimate(table, "iou", outcome.result.rule.threshold) for name, table in tables.items()}
    return {name: _plain(each) for name, each in {**found, "noise_ceiling": outcome.ceiling}.items()}


def show(record: dict[str, Any]) -> None:
    """Print a report."""
    print(comparison(record["compared"]).to_string())
    for name in ("precision", "verdicts", "recall"):
        print(pd.DataFrame(record[name]).T.to_string())
    print(pd.DataFrame(record["reliability"]).to_string(), pd.DataFrame(record["evidence_auc"]).T.to_string(), sep="\n")


def main(words: list[str]) -> int:
    """Tune the rule, or report it and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="learn the judges and write them; report nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED_ON), help="worlds to report on")
    parser.add_argument("--places", type=int, default=PLACES, help="places of each world, two chips each")
    parser.add_argument("--out", type=Path, default=RECORD, help="record to write; %(default)s")
    given = parser.parse_args(words)
    rule = AuditRule.read()
    print(rule)
    if given.tune:
        tune(rule, given.places)
        return 0
    if rule.tuned_on in given.seeds:
        parser.error(f"the rule was tuned on seed {rule.tuned_on}; report it on others")
    outcomes = {seed: cohort(seed, rule, given.places) for seed in given.seeds}
    command = f"python scripts/audit_record.py --seeds {' '.join(map(str, given.seeds))} --places {given.places}"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    record = {
        "command": command, "commit": commit.strip(),
        "date": datetime.now(UTC).date().isoformat(), "data": "simulated",
        "probabilities": default_weights().name, "digest": sha256(default_weights()), "tuned_on": rule.tuned_on,
        "reported_on": given.seeds, "planted": {**dataclasses.asdict(PLANTED), "moved": MOVED_SHARE},
        "seeds": {str(seed): {**report(o.findings, o.result.verdicts, o.others), "scores": scores(o)}
                  for seed, o in outcomes.items()},
        "all": report(*pooled(outcomes)),
    }  # fmt: skip
    write_json(given.out, record)
    show(record["all"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
