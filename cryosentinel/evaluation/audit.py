"""Which is wrong where label, water index and prediction disagree? An audit in both directions, by one stated rule.

Three maps of water are compared at each valid pixel: the label L, the prediction P (probability at or above 0.5) and
the water index M (MNDWI at or above 0.3, the published code's threshold). Where two of them agree against the third:

====  ====  ====  ==================  ==========================================================
 L     P     M     pixels count as     meaning
====  ====  ====  ==================  ==========================================================
 no    yes   yes   undersized          prediction and index see more of a lake than its label holds
 no    yes   yes   unlabelled          the same, but away from any labelled lake
 yes   no    no    oversized           the label claims water that neither sees
 yes   no    yes   miss                label and index agree, the model missed it
 no    yes   no    false alarm         the model is alone
====  ====  ====  ==================  ==========================================================

Unlabelled water accuses nobody: a lake that the inventory missed and a reservoir that it rightly left out look alike in
these maps. "Oversized" counts only where the ground is in sight: a pixel with red reflectance (B04) above 0.25,
the upper brightness threshold of Sen2Cor's scene classification, shows cloud, snow or ice, and a lake beneath it is
hidden, not absent. The remaining two disagreements accuse nobody either: M alone (shadow, wet snow, a reservoir), and
L and P without M (a frozen or turbid lake).

The inventory's outlines may be off by 30 m and are rasterised with all touched pixels: bands of disagreement up to four
pixels wide are explained by that. So only pixels that survive a morphological opening with a 5 x 5 square count, and a
chip is suspected of what has at least 50 such pixels (0.5 ha, the smallest area the published card trusts). The verdict
is the direction with the most of them. Small lakes whose outline is wrong by less than that are out of reach.

What this audit is not: blind or independent. Two of the verdicts accuse the label on the model's word, so every
corrected score leans towards the model; where a test set was already filtered by MNDWI agreement (as the published one
was), the index has removed the chips on which it would have disagreed, and an audit by MNDWI is not independent of the
filter. The known truth of simulated chips (:func:`against_truth`) says how often the verdicts are right; the conditions
on unlabelled water and on brightness were added after a look at one simulated draw (preset quick, its default seed), so
that precision and recall count on other seeds only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.evaluation.audit_masks import AuditRule, audit_masks, core, cores_of
from cryosentinel.evaluation.evaluate import Reference, Store
from cryosentinel.evaluation.metrics import chip_iou, substitute
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import INVALID, ScoreBuilder

if TYPE_CHECKING:
    import pandas as pd

UNDERSIZED, OVERSIZED, MISS, FALSE_ALARM, UNLABELLED, AGREE = (
    "label undersized", "label oversized", "model miss", "model false alarm", "unlabelled water", "agree",
)  # fmt: skip
#: Column of the verdict table -> verdict.
DIRECTIONS = {"undersized_px": UNDERSIZED, "oversized_px": OVERSIZED, "miss_px": MISS, "false_alarm_px": FALSE_ALARM,
              "unlabelled_px": UNLABELLED}  # fmt: skip
LABEL_VERDICTS = (UNDERSIZED, OVERSIZED)
#: Of the simulator; "shifted" lies within the inventory's accuracy.
LABEL_ERRORS = ("undersized", "missing", "oversized", "false")
CANDIDATE, CONTROL = "candidate", "control"
#: The card dropped label errors among its seven worst chips.
CARD_WORST = 7

VERDICT_COLUMNS: dict[str, str] = {
    "row": "position in the store's index",
    "chip_id": "identifier",
    "region": "region",
    "year": "of the images",
    "lat": "centre, degrees",
    "lon": "centre, degrees",
    "iou": "of the chip, prediction against label; 1 where both are empty",
    "label_px": "valid pixels labelled lake",
    "prediction_px": "valid pixels predicted water",
    "mndwi_px": "valid pixels with MNDWI at or above the threshold",
    "undersized_px": "core pixels: prediction and MNDWI against the label's no, beside a labelled lake",
    "oversized_px": "core pixels: prediction and MNDWI against the label's yes, ground in sight",
    "miss_px": "core pixels: label and MNDWI against the prediction's no",
    "false_alarm_px": "core pixels: the prediction alone, label and MNDWI against it",
    "unlabelled_px": "core pixels: prediction and MNDWI against the label's no, away from any labelled lake",
    "disagreement": "all core pixels over the union of label and prediction (at least the smallest area)",
    "verdict": "the direction with the most core pixels, or agree",
    "rank": "1 = largest disagreement; 0 for chips that agree",
    "sample": "candidate (among the worst), control (seeded random draw of the others), or empty",
}


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit of one split.

    Attributes:
        rule: by which it was made.
        verdicts: one row a chip, columns :data:`VERDICT_COLUMNS`, in the order of the score table.
        table: score table against the label.
        corrected: score table of the chips whose label was accused, against the corrected mask: core pixels of
            "undersized" added, of "oversized" removed.
    """

    rule: AuditRule
    verdicts: pd.DataFrame
    table: pd.DataFrame
    corrected: pd.DataFrame

    def accused(self) -> list[str]:
        """Chips whose label the rule calls wrong, in either direction."""
        return list(self.verdicts.loc[self.verdicts["verdict"].isin(LABEL_VERDICTS), "chip_id"])

    def _without(self, positions: pd.Index) -> pd.DataFrame:
        kept = self.table.drop(index=self.table.index[positions]).reset_index(drop=True)
        kept.attrs = dict(self.table.attrs)
        return kept

    def two_sided_drop(self) -> pd.DataFrame:
        """Score table without any chip whose label is called wrong, undersized or oversized, whatever its score."""
        return self._without(self.verdicts.index[self.verdicts["verdict"].isin(LABEL_VERDICTS)])

    def two_sided_corrected(self) -> pd.DataFrame:
        """Score table with the accused chips scored against their corrected masks; no chip is left out."""
        return substitute(self.table, self.corrected)

    def one_sided_drop(self, worst: int = CARD_WORST) -> pd.DataFrame:
        """The published card's variant, for comparison only: undersized labels go, among the worst chips by IoU.

        One-sided twice over: only chips that cost the model are looked at, and only errors that excuse it are sought.
        """
        lowest = self.verdicts[self.verdicts["label_px"] + self.verdicts["prediction_px"] > 0]
        lowest = lowest.sort_values("iou", kind="stable").head(worst)
        return self._without(lowest.index[lowest["verdict"] == UNDERSIZED])

    def variants(self) -> dict[str, pd.DataFrame]:
        """Name -> score table: raw, two_sided_corrected, two_sided_drop, one_sided_drop (the card's)."""
        return {
            "raw": self.table,
            "two_sided_corrected": self.two_sided_corrected(),
            "two_sided_drop": self.two_sided_drop(),
            "one_sided_drop": self.one_sided_drop(),
        }


def audit(
    maps: ProbabilityMaps,
    store: Store,
    table: pd.DataFrame,
    rule: AuditRule | None = None,
    progress: bool = False,
) -> Audit:
    """Audit one split.

    Args:
        maps: stored predictions of the split.
        store: its chips.
        table: its score table against the label; rows in the order of the maps.
        rule: thresholds.
        progress: show a bar.
    """
    import pandas as pd
    from tqdm import tqdm

    rule = rule or AuditRule()
    ious = chip_iou(table, rule.threshold)
    blocks = np.empty(len(store.index), dtype=object)
    blocks[list(maps.rows)] = table["block"].to_numpy()
    builder = ScoreBuilder(store.index, blocks)
    records = []
    for i, row in enumerate(tqdm(maps.rows, desc="audit", unit="chip", disable=not progress)):
        chip, bins = store[row], np.asarray(maps.bins[i])
        seen = audit_masks(chip, bins, rule)
        cores = cores_of(seen, rule)
        areas = {name: int(mask.sum()) for name, mask in cores.items()}
        largest = max(areas, key=lambda name: areas[name])
        verdict = DIRECTIONS[largest] if areas[largest] >= rule.min_px else AGREE
        union = max(int((seen.label | seen.prediction).sum()), rule.min_px)
        records.append(
            {
                "row": row, "chip_id": chip.chip_id, "region": chip.region, "year": chip.snapshot_year,
                "lat": chip.lat, "lon": chip.lon, "iou": ious[i], "label_px": int(seen.label.sum()),
                "prediction_px": int(seen.prediction.sum()), "mndwi_px": int(seen.mndwi.sum()), **areas,
                "disagreement": sum(areas.values()) / union, "verdict": verdict,
            }
        )  # fmt: skip
        if verdict in LABEL_VERDICTS:
            mask = (seen.label | cores["undersized_px"]) & ~cores["oversized_px"]
            builder.add(row, bins, mask, bins != INVALID)
    verdicts = pd.DataFrame(records, columns=[c for c in VERDICT_COLUMNS if c not in ("rank", "sample")])
    return Audit(rule, _sampled(verdicts, rule), table, builder.table())


def _sampled(verdicts: pd.DataFrame, rule: AuditRule) -> pd.DataFrame:
    """Rank the disagreements, and mark the candidates and the random control."""
    suspects = verdicts.index[verdicts["verdict"] != AGREE]
    order = verdicts.loc[suspects].sort_values("disagreement", ascending=False, kind="stable").index
    verdicts["rank"] = 0
    verdicts.loc[order, "rank"] = np.arange(1, len(order) + 1)
    verdicts["sample"] = ""
    verdicts.loc[order[: rule.worst], "sample"] = CANDIDATE
    rest = np.flatnonzero(verdicts["sample"].to_numpy() == "")
    drawn = np.random.default_rng(rule.seed).choice(rest, min(rule.control, len(rest)), replace=False)
    verdicts.loc[drawn, "sample"] = CONTROL
    return verdicts


def against_truth(
    result: Audit,
    store: Store,
    truth: Reference,
    label_errors: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """How often the audit's accusations of labels are right, where the truth is known.

    A label is truly wrong when it differs from the truth by what the rule calls an error: at least ``min_px`` core
    pixels on one side (so a shift within the inventory's accuracy does not count, and a lake that grew since the
    inventory does).

    Args:
        result: an audit.
        store: its chips.
        truth: from a chip to its true mask.
        label_errors: chip_id -> the simulator's word for what it did to the label; None leaves that comparison out.

    Returns:
        ``{"mask": {...}, "planted": {...}}`` with flagged, wrong, both (counts), precision and recall (None where
        undefined) of "label called wrong"; "mask" judges by the truth's pixels, "planted" by the simulator's word
        (undersized, missing or oversized). ``"control"`` repeats "mask" over the random control sample.
    """
    rule, verdicts = result.rule, result.verdicts
    flagged = verdicts["verdict"].isin(LABEL_VERDICTS).to_numpy()
    wrong = np.zeros(len(verdicts), dtype=bool)
    for i, row in enumerate(verdicts["row"]):
        chip = store[int(row)]
        label, real, valid = chip.mask > 0, truth(chip) > 0, chip.valid
        for difference in (real & ~label & valid, label & ~real & valid):
            if difference.sum() >= rule.min_px and core(difference, rule.tolerance_px).sum() >= rule.min_px:
                wrong[i] = True
    control = (verdicts["sample"] == CONTROL).to_numpy()
    out = {"mask": _agreement(flagged, wrong), "control": _agreement(flagged[control], wrong[control])}
    if label_errors is not None:
        planted = np.array([label_errors[chip] in LABEL_ERRORS for chip in verdicts["chip_id"]], dtype=bool)
        out["planted"] = _agreement(flagged, planted)
    return out


def _agreement(flagged: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    both = int((flagged & wrong).sum())
    return {
        "chips": len(flagged), "flagged": int(flagged.sum()), "wrong": int(wrong.sum()), "both": both,
        "precision": both / int(flagged.sum()) if flagged.any() else None,
        "recall": both / int(wrong.sum()) if wrong.any() else None,
    }  # fmt: skip


def sample_positions(verdicts: pd.DataFrame, sample: str = CANDIDATE) -> Sequence[int]:
    """Positions in the verdict table of a sample: candidates by rank, controls in table order."""
    chosen = verdicts[verdicts["sample"] == sample]
    return list((chosen.sort_values("rank") if sample == CANDIDATE else chosen).index)
