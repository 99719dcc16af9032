"""Which is wrong where label and prediction disagree? An audit in both directions, by one stated rule.

Every connected piece of disagreement is judged by evidence from several sources
(:mod:`cryosentinel.evaluation.audit_pieces`); the judge's probability that the label is wrong gives a verdict:

===================  =============================================================================================
label too small      the prediction sees more of a labelled lake, and the evidence is with it
lake missing         the same, away from any labelled lake
label too large      the label claims more than the prediction sees of a lake, and the evidence is with the prediction
label without lake   the same, where the prediction sees none of the labelled lake
label shifted        a piece of each kind on one labelled lake, the smaller at least half the larger
model wrong          the evidence is with the label
undecidable          the evidence is with neither
===================  =============================================================================================

What this audit is not: independent of the model. It looks only where label and prediction disagree, so an error that
the model has learned from labels escapes it, and every corrected score leans towards the model. That is why scores are
also given as bounds, with the undecidable pieces as the label has them and as the prediction has them. Nor is MNDWI an
independent witness on chips that were filtered by it, as the published test set was: the filter has removed the chips
on which the index disagreed with the label. The known truth of simulated chips says how often verdicts are right
(:mod:`cryosentinel.evaluation.audit_truth`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.data.sanity import agreement
from cryosentinel.evaluation.audit_pieces import (
    EVIDENCE,
    LESS,
    MORE,
    AuditRule,
    Piece,
    evidence,
    find_pieces,
    maps_of,
)
from cryosentinel.evaluation.evaluate import Store
from cryosentinel.evaluation.metrics import chip_iou, substitute
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import ScoreBuilder

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.chips import Chip

TOO_SMALL, MISSING, TOO_LARGE, NO_LAKE, SHIFTED, MODEL, UNDECIDABLE, AGREE = (
    "label too small", "lake missing", "label too large", "label without lake", "label shifted", "model wrong",
    "undecidable", "agree",
)  # fmt: skip
LABEL_VERDICTS = (TOO_SMALL, MISSING, TOO_LARGE, NO_LAKE, SHIFTED)
CANDIDATE, CONTROL = "candidate", "control"
#: The card dropped label errors among its seven worst chips.
CARD_WORST = 7
PLACE_DIGITS = 5  # degrees: about a metre

PIECE_COLUMNS: dict[str, str] = {
    "row": "of the chip in the store's index",
    "chip_id": "of the chip",
    "block": "split block of the chip",
    "number": "of the piece within the chip, in the order of find_pieces",
    "direction": "more or less water in the prediction than in the label",
    "px": "pixels",
    "lake": "number of the chip's labelled lake that it lies on or next to, 0 for none",
    **EVIDENCE,
    "label_wrong": "probability that the label is wrong, by the rule's judge",
    "verdict": "see the module's text",
}
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
    "mndwi_iou": "IoU of the label and water by MNDWI above 0.3",
    "mndwi_ratio": "water by MNDWI above 0.3 over the label, pixels; infinite without a label",
    "more_px": "pixels of pieces where the prediction sees more",
    "less_px": "pixels of pieces where it sees less",
    "label_wrong": "largest probability of its pieces that the label is wrong, 0 without a piece",
    "verdict": "of its largest piece with a label's verdict; else undecidable, model wrong or agree",
    "rank": "1 = largest pieces, from the two tails in turn; 0 without a piece",
    "sample": "candidate (among the first ranks), control (seeded random draw of the others), or empty",
}


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit of one split.

    Attributes:
        rule: by which it was made.
        pieces: one row a piece of disagreement, columns :data:`PIECE_COLUMNS`.
        verdicts: one row a chip, columns :data:`VERDICT_COLUMNS`, in the order of the score table.
        table: score table against the label.
        corrected: score table of the chips whose label was accused, against the corrected label: pieces of "more"
            added, of "less" removed.
        favoured: score table of the chips with an accused or undecidable piece, with the undecidable ones too as the
            prediction has them.
    """

    rule: AuditRule
    pieces: pd.DataFrame
    verdicts: pd.DataFrame
    table: pd.DataFrame
    corrected: pd.DataFrame
    favoured: pd.DataFrame

    def accused(self) -> list[str]:
        """Chips whose label the rule calls wrong somewhere, in either direction."""
        return list(self.verdicts.loc[self.verdicts["verdict"].isin(LABEL_VERDICTS), "chip_id"])

    def _without(self, positions: pd.Index) -> pd.DataFrame:
        kept = self.table.drop(index=self.table.index[positions]).reset_index(drop=True)
        kept.attrs = dict(self.table.attrs)
        return kept

    def one_sided_drop(self, worst: int = CARD_WORST) -> pd.DataFrame:
        """The published card's variant, for comparison only: undersized labels go, among the worst chips by IoU.

        One-sided twice over: only chips that cost the model are looked at, and only errors that excuse it are sought.
        """
        lowest = worst_chips(self.verdicts, worst)
        small = set(self.pieces.loc[self.pieces["verdict"].isin((TOO_SMALL, MISSING)), "row"])
        return self._without(lowest[self.verdicts.loc[lowest, "row"].isin(small)])

    def variants(self) -> dict[str, pd.DataFrame]:
        """Name -> score table.

        raw; two_sided_corrected: accused pieces corrected, whatever they do to the score, and the undecidable as the
        label has them; undecidable_as_predicted: these too as the prediction has them, the upper bound;
        two_sided_drop: no chip with an accused label; one_sided_drop: the card's.
        """
        accused = self.verdicts["verdict"].isin(LABEL_VERDICTS)
        return {
            "raw": self.table,
            "two_sided_corrected": substitute(self.table, self.corrected),
            "undecidable_as_predicted": substitute(self.table, self.favoured),
            "two_sided_drop": self._without(self.verdicts.index[accused]),
            "one_sided_drop": self.one_sided_drop(),
        }


def card_correction(published: Mapping[str, Mapping[str, Any]]) -> tuple[pd.DataFrame, str]:
    """The published card's own correction: what dropping its worst chips did, region by region, and its arithmetic.

    Args:
        published: the published record (:data:`cryosentinel.paths.PUBLISHED`), name -> value and n.

    Returns:
        A row for all regions and one a region: chips, raw and corrected test IoU, gain. A sentence: how many chips were
        dropped, and which regions' scores moved.
    """
    import pandas as pd

    raw, corrected = "test_iou@0.50_tta", "test_iou@0.50_label_corrected"
    regions = [name.removeprefix(f"{raw}_") for name in published if name.startswith(f"{raw}_")]
    rows = {}
    for region in ("", *regions):
        before, after = (published[name + (region and f"_{region}")] for name in (raw, corrected))
        rows[region or "all regions"] = {
            "chips": before["n"], "raw": before["value"], "corrected": after["value"],
            "gain": after["value"] - before["value"],
        }  # fmt: skip
    chips, dropped, left = (
        published[name]["value"] for name in ("chips_test", "audited_test_chips", "chips_label_corrected")
    )
    moved = [region for region in regions if rows[region]["gain"]]
    right = "as the card says" if chips - dropped == left else f"and not {left}, as the card says"
    alone = " alone" if len(moved) < len(regions) else ""
    said = f"{chips} chips less the {dropped} dropped are {chips - dropped}, {right}; the score moves in "
    return pd.DataFrame(rows).T, f"{said}{', '.join(moved)}{alone}."


def worst_chips(verdicts: pd.DataFrame, count: int) -> pd.Index:
    """Positions of the chips with the lowest IoU in a verdict table, empty ones left out."""
    bearing = verdicts[verdicts["label_px"] + verdicts["prediction_px"] > 0]
    return bearing.sort_values("iou", kind="stable").head(count).index


def independence(sanity: float | None) -> str:
    """Whether MNDWI is an independent witness on chips of a split, in a sentence.

    Args:
        sanity: MNDWI threshold by which they were filtered; None for no filter.
    """
    if sanity is None:
        return "These chips were not filtered by MNDWI."
    return f"These chips were filtered by MNDWI above {sanity:g}: MNDWI is not independent evidence here."


class Places:
    """The images of other years of the same place.

    Args:
        store: of the chips; all its splits may be asked, since only images are looked at.
    """

    def __init__(self, store: Store) -> None:
        index, self._store = store.index, store
        keys = zip(index["lat"].round(PLACE_DIGITS), index["lon"].round(PLACE_DIGITS), strict=True)
        self._key = list(keys)
        self._rows: dict[tuple[float, float], list[int]] = {}
        for row, key in enumerate(self._key):
            self._rows.setdefault(key, []).append(row)
        self._year = index["year"].to_numpy()

    def others(self, row: int) -> list[Chip]:
        """The chips at the place of a row, of other years than its own."""
        rows = self._rows.get(self._key[row], [])
        return [self._store[other] for other in rows if self._year[other] != self._year[row]]


def judged(pieces: Sequence[Piece], found: pd.DataFrame, rule: AuditRule) -> tuple[np.ndarray, list[str]]:
    """Probability that the label is wrong, and verdict, of each piece of one chip.

    Args:
        pieces: of the chip.
        found: their evidence, a row each.
        rule: judges and thresholds. A direction without a judge is undecidable.
    """
    wrong = np.full(len(pieces), 0.5)
    for direction, judge in rule.judges.items():
        here = [i for i, piece in enumerate(pieces) if piece.direction == direction]
        wrong[here] = judge.probability(found.iloc[here])
    verdicts = []
    for piece, p in zip(pieces, wrong, strict=True):
        alone = not piece.joined.any()
        if rule.acquit < p < rule.accuse:
            verdicts.append(UNDECIDABLE)
        elif p <= rule.acquit:
            verdicts.append(MODEL)
        elif piece.direction == MORE:
            verdicts.append(MISSING if alone else TOO_SMALL)
        else:
            verdicts.append(NO_LAKE if alone else TOO_LARGE)
    for i, one in enumerate(pieces):
        for j, other in enumerate(pieces):
            pair = {verdicts[i], verdicts[j]} == {TOO_SMALL, TOO_LARGE} and one.lake == other.lake
            if pair and min(one.mask.sum(), other.mask.sum()) * 2 >= max(one.mask.sum(), other.mask.sum()):
                verdicts[i] = verdicts[j] = SHIFTED
    return wrong, verdicts


def corrected_label(label: np.ndarray, pieces: Sequence[Piece], wrong: Sequence[bool]) -> np.ndarray:
    """The label with some pieces as the prediction has them: (H, W) bool."""
    mask = label.copy()
    for piece, flip in zip(pieces, wrong, strict=True):
        if flip:
            mask[piece.mask] = piece.direction == MORE
    return mask


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
        rule: of ``configs/audit.yaml`` by default.
        progress: show a bar.
    """
    import pandas as pd
    from tqdm import tqdm

    rule = rule or AuditRule.read()
    ious, places = chip_iou(table, rule.threshold), Places(store)
    blocks = np.empty(len(store.index), dtype=object)
    blocks[list(maps.rows)] = table["block"].to_numpy()
    builders = {"corrected": ScoreBuilder(store.index, blocks), "favoured": ScoreBuilder(store.index, blocks)}
    chips, every = [], []
    for i, row in enumerate(tqdm(maps.rows, desc="audit", unit="chip", disable=not progress)):
        chip, bins = store[row], np.asarray(maps.bins[i])
        label, prediction, valid = maps_of(chip, bins, rule)
        pieces = find_pieces(label, prediction, rule)
        others = places.others(row) if pieces else []
        found = pd.DataFrame(evidence(chip, maps.probability(i), pieces, others), columns=list(EVIDENCE))
        wrong, verdicts = judged(pieces, found, rule)
        sizes = dict.fromkeys((MORE, LESS), 0)
        for number, (piece, p, verdict) in enumerate(zip(pieces, wrong, verdicts, strict=True)):
            px = int(piece.mask.sum())
            sizes[piece.direction] += px
            every.append(
                {"row": row, "chip_id": chip.chip_id, "block": blocks[row], "number": number,
                 "direction": piece.direction, "px": px, "lake": piece.lake, **found.iloc[number], "label_wrong": p,
                 "verdict": verdict}
            )  # fmt: skip
        for name, counted in (("corrected", LABEL_VERDICTS), ("favoured", (*LABEL_VERDICTS, UNDECIDABLE))):
            flips = [verdict in counted for verdict in verdicts]
            if any(flips):
                builders[name].add(row, bins, corrected_label(label, pieces, flips), valid)
        by_size = sorted(zip([int(p.mask.sum()) for p in pieces], verdicts, strict=True), reverse=True)
        accused = [v for _, v in by_size if v in LABEL_VERDICTS]
        verdict = [*accused, *(v for v in (UNDECIDABLE, MODEL) if v in verdicts), AGREE][0]
        ((index_iou, water),) = agreement(chip.s2, chip.mask, (0.3,))
        label_share = float((chip.mask > 0).mean())
        chips.append(
            {
                "row": row, "chip_id": chip.chip_id, "region": chip.region, "year": chip.snapshot_year,
                "lat": chip.lat, "lon": chip.lon, "iou": ious[i], "label_px": int(label.sum()),
                "prediction_px": int(prediction.sum()), "mndwi_iou": index_iou,
                "mndwi_ratio": water / label_share if label_share else np.inf, "more_px": sizes[MORE],
                "less_px": sizes[LESS], "label_wrong": max(wrong, default=0.0), "verdict": verdict,
            }
        )  # fmt: skip
    verdict_table = pd.DataFrame(chips, columns=[c for c in VERDICT_COLUMNS if c not in ("rank", "sample")])
    piece_table = pd.DataFrame(every, columns=list(PIECE_COLUMNS))
    tables = {name: builder.table() for name, builder in builders.items()}
    return Audit(rule, piece_table, _sampled(verdict_table, rule), table, **tables)


def _sampled(verdicts: pd.DataFrame, rule: AuditRule) -> pd.DataFrame:
    """Rank the chips by their pieces, from both tails in turn, and mark the candidates and the random control."""
    tails = [
        list(verdicts[verdicts[column] > 0].sort_values(column, ascending=False, kind="stable").index)
        for column in ("more_px", "less_px")
    ]
    order = list(
        dict.fromkeys(tail[i] for i in range(max(map(len, tails), default=0)) for tail in tails if i < len(tail))
    )
    verdicts["rank"] = 0
    verdicts.loc[order, "rank"] = np.arange(1, len(order) + 1)
    verdicts["sample"] = ""
    verdicts.loc[order[: rule.worst], "sample"] = CANDIDATE
    rest = np.flatnonzero(verdicts["sample"].to_numpy() == "")
    drawn = np.random.default_rng(rule.seed).choice(rest, min(rule.control, len(rest)), replace=False)
    verdicts.loc[drawn, "sample"] = CONTROL
    return verdicts


def sample_positions(verdicts: pd.DataFrame, sample: str = CANDIDATE) -> Sequence[int]:
    """Positions in the verdict table of a sample: candidates by rank, controls in table order."""
    chosen = verdicts[verdicts["sample"] == sample]
    return list((chosen.sort_values("rank") if sample == CANDIDATE else chosen).index)
