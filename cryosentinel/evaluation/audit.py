"""Which is wrong where label, water index and prediction disagree? An audit in both directions, by a rule fixed before.

Three witnesses look at each valid pixel: the label L, the prediction P (probability at or above 0.5) and the water
index M (MNDWI at or above 0.3, the published code's threshold). Where exactly two of them agree against the third:

====  ====  ====  ==================  ==========================================================
 L     P     M     pixels count as     meaning
====  ====  ====  ==================  ==========================================================
 no    yes   yes   undersized          prediction and index see water that the label lacks
 yes   no    no    oversized           the label claims water that neither sees
 yes   no    yes   miss                label and index agree, the model missed it
 no    yes   no    false alarm         the model is alone
====  ====  ====  ==================  ==========================================================

The remaining two disagreements accuse nobody: M alone (shadow, wet snow, a reservoir), and L and P without M (a frozen
or turbid lake).

The inventory's outlines may be off by 30 m and are rasterised with all touched pixels: bands of disagreement up to four
pixels wide are explained by that. So only pixels that survive a morphological opening with a 5 x 5 square count, and a
chip is suspected of what has at least 50 such pixels (0.5 ha, the smallest area the published card trusts). The verdict
is the direction with the most of them. Small lakes whose outline is wrong by less than that are out of reach.

What this audit is not: blind or independent. Two of the verdicts accuse the label with the model as a witness, so every
corrected score leans towards the model; where a test set was already filtered by MNDWI agreement (as the published one
was), the index has removed the chips on which it would have disagreed, and an audit by MNDWI is not independent of the
filter. The known truth of simulated chips (:func:`against_truth`) says how often the verdicts are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import ConfigError
from cryosentinel.evaluation.evaluate import Reference, Store
from cryosentinel.evaluation.maps import ProbabilityMaps
from cryosentinel.evaluation.metrics import chip_iou, substitute
from cryosentinel.evaluation.scores import INVALID, ScoreBuilder
from cryosentinel.indices import mndwi

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.chips import Chip

UNDERSIZED, OVERSIZED, MISS, FALSE_ALARM, AGREE = (
    "label undersized", "label oversized", "model miss", "model false alarm", "agree",
)  # fmt: skip
#: Column of the verdict table -> verdict.
DIRECTIONS = {"undersized_px": UNDERSIZED, "oversized_px": OVERSIZED, "miss_px": MISS, "false_alarm_px": FALSE_ALARM}
LABEL_VERDICTS = (UNDERSIZED, OVERSIZED)
LABEL_ERRORS = (
    "undersized",
    "missing",
    "oversized",
)  # of the simulator; "shifted" lies within the inventory's accuracy
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
    "undersized_px": "core pixels: prediction and MNDWI against the label's no",
    "oversized_px": "core pixels: prediction and MNDWI against the label's yes",
    "miss_px": "core pixels: label and MNDWI against the prediction's no",
    "false_alarm_px": "core pixels: label and MNDWI against the prediction's yes",
    "disagreement": "all core pixels over the union of label and prediction (at least the smallest area)",
    "verdict": "the direction with the most core pixels, or agree",
    "rank": "1 = largest disagreement; 0 for chips that agree",
    "sample": "candidate (among the worst), control (seeded random draw of the others), or empty",
}


@dataclass(frozen=True)
class AuditRule:
    """The rule, fixed before a chip is looked at.

    Attributes:
        threshold: of the probability, a multiple of 1/200.
        mndwi_threshold: water where the index is at or above.
        tolerance_px: width of disagreement that the label's stated accuracy explains: 30 m and a touched pixel.
        min_px: smallest core area that a verdict needs.
        worst: candidates to show, the largest disagreements.
        control: chips drawn at random from the rest, to see what the ranking does not.
        seed: of the control draw.
    """

    threshold: float = 0.5
    mndwi_threshold: float = 0.3
    tolerance_px: int = 4
    min_px: int = 50
    worst: int = 20
    control: int = 20
    seed: int = 42

    def __post_init__(self) -> None:
        if self.tolerance_px < 0 or self.min_px < 1 or self.worst < 0 or self.control < 0:
            raise ConfigError("An audit rule needs tolerance_px, worst and control at or above 0, and min_px above 0.")


@dataclass(frozen=True)
class Witnesses:
    """The three masks of a chip, False where the chip has no valid data. Each (H, W) bool."""

    label: np.ndarray
    prediction: np.ndarray
    mndwi: np.ndarray

    def directions(self) -> dict[str, np.ndarray]:
        """Pixels of each direction, before the opening."""
        y, p, m = self.label, self.prediction, self.mndwi
        return {"undersized_px": ~y & p & m, "oversized_px": y & ~p & ~m, "miss_px": y & ~p & m,
                "false_alarm_px": ~y & p & ~m}  # fmt: skip


def core(mask: np.ndarray, tolerance_px: int) -> np.ndarray:
    """The parts of a mask that are wider than a tolerance: opened with a square of ``tolerance_px`` + 1 pixels.

    The opening sees nothing beyond the chip's edge, so that a lake cut by it is judged by what is inside.
    """
    from scipy import ndimage

    if tolerance_px < 1 or not mask.any():
        return mask
    size = tolerance_px + 1
    # Rank filters with a flat window are separable and several times faster than binary_opening.
    eroded = ndimage.minimum_filter(mask.astype(np.uint8), size, mode="nearest")
    # An even window is not symmetric: the dilation mirrors it, or the opening would shift.
    origin = -1 if size % 2 == 0 else 0
    return ndimage.maximum_filter(eroded, size, mode="constant", origin=origin).astype(bool) & mask


def witnesses(chip: Chip, bins: np.ndarray, rule: AuditRule) -> Witnesses:
    """The masks of a chip.

    Args:
        chip: with raw values: the index is taken before any clipping.
        bins: (H, W) uint8, its stored probability map.
        rule: thresholds.
    """
    from cryosentinel.evaluation.scores import threshold_bin

    valid = bins != INVALID
    return Witnesses(
        (chip.mask > 0) & valid,
        (bins >= threshold_bin(rule.threshold)) & valid,
        (mndwi(chip.s2) >= np.float32(rule.mndwi_threshold)) & valid,
    )


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
        rule: thresholds; the defaults are the ones fixed beforehand.
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
        seen = witnesses(chip, bins, rule)
        cores = {
            # A mask smaller than a verdict needs cannot carry one: no opening.
            name: core(mask, rule.tolerance_px) if mask.sum() >= rule.min_px else np.zeros_like(mask)
            for name, mask in seen.directions().items()
        }
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


def shown(verdicts: pd.DataFrame, sample: str = CANDIDATE) -> Sequence[int]:
    """Positions in the verdict table of a sample: candidates by rank, controls in table order."""
    chosen = verdicts[verdicts["sample"] == sample]
    return list((chosen.sort_values("rank") if sample == CANDIDATE else chosen).index)
