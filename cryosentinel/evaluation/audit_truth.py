"""How often an audit is right, where the truth is known: precision and recall by direction and kind, beside others.

An error of a label is a connected part of the pixels where label and truth differ, of the same core and size as the
audit's pieces (:func:`cryosentinel.evaluation.audit_pieces.large_parts`). An accusation is right when at least half of
its pixels are wrong in the label *in the direction that it says*; an error is found when accusations of its direction
cover at least half of it. So a label accused of being too small counts as wrong accusation where it is too large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.evaluation.audit import CARD_WORST, LABEL_VERDICTS, Audit, worst_chips
from cryosentinel.evaluation.audit_pieces import (
    LESS,
    MORE,
    WATER_MNDWI,
    AuditRule,
    Piece,
    find_pieces,
    large_parts,
    maps_of,
    near,
)
from cryosentinel.evaluation.bootstrap import Estimate, ratio_of_sums
from cryosentinel.evaluation.evaluate import Reference, Store
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.evaluation.scores import INVALID

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.chips import Chip

#: Of an error, by what label and truth hold around it.
KINDS = ("too small", "missing", "too large", "no lake")
MOVED = "shifted"  # planted, beyond the inventory's accuracy
HALF = 0.5


def chip_errors(label: np.ndarray, lake: np.ndarray, valid: np.ndarray, rule: AuditRule) -> list[dict[str, Any]]:
    """The errors of a chip's label: direction, kind (:data:`KINDS`) and mask of each.

    Args:
        label, lake: (H, W) bool, the label and the truth.
        valid: (H, W) bool.
        rule: tolerance and smallest size.
    """
    found = []
    for direction, difference in ((MORE, lake & ~label & valid), (LESS, label & ~lake & valid)):
        for mask in large_parts(difference, rule):
            joins = bool(((label if direction == MORE else lake & label) & near(mask, rule)).any())
            kind = KINDS[(0 if joins else 1) + (0 if direction == MORE else 2)]
            found.append({"direction": direction, "kind": kind, "mask": mask})
    return found


@dataclass(frozen=True)
class Findings:
    """Pieces and errors of a split, matched.

    Attributes:
        pieces: one row a piece, as in the audit, and ``right`` (the label is wrong there), ``weight``.
        errors: one row an error: row, block, direction, kind, px, weight, and ``covered``, (positions of pieces of its
            direction in ``pieces``, pixels that each covers).
    """

    pieces: pd.DataFrame
    errors: pd.DataFrame

    def precision(self, accused: np.ndarray, direction: str | None = None, weighted: bool = True) -> Estimate:
        """Share of accusations that are right, with its interval over blocks.

        Args:
            accused: (pieces,) bool.
            direction: only of this one.
            weighted: to natural shares; else every piece counts alike, those of moved labels, which weigh nothing, too.
        """
        chosen = accused & self._is(self.pieces, direction)
        of = self.pieces[chosen]
        weight = of["weight"].to_numpy(dtype=float) if weighted else np.ones(len(of))
        return ratio_of_sums(of["right"].to_numpy(dtype=float) * weight, weight, of["block"].to_numpy(), weight)

    def found(self, accused: np.ndarray) -> np.ndarray:
        """(errors,) bool: accusations of its direction cover at least half of it."""
        return np.array(
            [sum(px for at, px in covered if accused[at]) >= HALF * size
             for covered, size in zip(self.errors["covered"], self.errors["px"], strict=True)], dtype=bool,
        )  # fmt: skip

    def recall(self, accused: np.ndarray, kind: str | None = None) -> Estimate:
        """Share of errors that are found, weighted, with its interval over blocks.

        Args:
            accused: (pieces,) bool.
            kind: only of this one.
        """
        here = np.ones(len(self.errors), bool) if kind is None else (self.errors["kind"] == kind).to_numpy()
        of = self.errors[here]
        # Within one kind every error counts alike: weights only set the kinds' shares.
        weight = np.ones(len(of)) if kind is not None else of["weight"].to_numpy(dtype=float)
        return ratio_of_sums(self.found(accused)[here] * weight, weight, of["block"].to_numpy(), np.ones(len(of)))

    @staticmethod
    def _is(table: pd.DataFrame, direction: str | None) -> np.ndarray:
        return np.ones(len(table), bool) if direction is None else (table["direction"] == direction).to_numpy()


def match(
    pieces: Sequence[Piece], errors: Sequence[Mapping[str, Any]], label: np.ndarray, lake: np.ndarray, first: int = 0
) -> tuple[list[bool], list[list[tuple[int, int]]]]:
    """Match the pieces and errors of one chip.

    Args:
        pieces, errors: of the chip.
        label, lake: (H, W) bool.
        first: position of the chip's first piece in the table of all.

    Returns:
        Whether the label is wrong on each piece; for each error (position of a piece, pixels that it covers).
    """
    differs = label != lake
    right = [bool(differs[piece.mask].mean() >= HALF) for piece in pieces]
    # Pieces of "more" lie outside the label and those of "less" inside: what overlaps is of one direction.
    covered = [
        [(first + i, px) for i, piece in enumerate(pieces) if (px := int((piece.mask & error["mask"]).sum()))]
        for error in errors
    ]
    return right, covered


def against_truth(
    result: Audit,
    store: Store,
    maps: ProbabilityMaps,
    truth: Reference,
    planted: Callable[[Chip], tuple[np.ndarray, np.ndarray]] | None = None,
) -> Findings:
    """Match an audit with the truth.

    Args:
        result: an audit.
        store: its chips.
        maps: the predictions that it was made from.
        truth: from a chip to its true mask.
        planted: of labels with planted errors: from a chip to the weight of each pixel's lake, and to the pixels of
            labels that were moved, (H, W) each.
    """
    import pandas as pd

    right: list[bool] = []
    weights: list[float] = []
    rows = []
    for i, row in enumerate(maps.rows):
        chip = store[row]
        label, prediction, valid = maps_of(chip, np.asarray(maps.bins[i]), result.rule)
        lake = (truth(chip) > 0) & valid
        pieces = find_pieces(label, prediction, result.rule)
        errors = chip_errors(label, lake, valid, result.rule)
        wrong, covered = match(pieces, errors, label, lake, len(right))
        right += wrong
        weight, moved = (np.ones(label.shape), np.zeros(label.shape, bool)) if planted is None else planted(chip)
        weights += [float(np.median(weight[piece.mask])) for piece in pieces]
        rows += [
            {"row": row, "block": result.table["block"].iloc[i], "direction": error["direction"],
             "kind": MOVED if moved[error["mask"]].mean() >= HALF else error["kind"], "px": int(error["mask"].sum()),
             "weight": float(np.median(weight[error["mask"]])), "covered": at}
            for error, at in zip(errors, covered, strict=True)
        ]  # fmt: skip
    columns = ["row", "block", "direction", "kind", "px", "weight", "covered"]
    return Findings(result.pieces.assign(right=right, weight=weights), pd.DataFrame(rows, columns=columns))


def rivals(pieces: pd.DataFrame, chips: pd.DataFrame) -> dict[str, np.ndarray]:
    """Audit -> which pieces it accuses, (pieces,) bool, this audit first.

    Args:
        pieces: of an audit.
        chips: its verdict table.
    """
    more = (pieces["direction"] == MORE).to_numpy()
    water = (pieces["mndwi"] >= WATER_MNDWI).to_numpy()
    odds = np.where(more, 1, -1) * pieces["probability"].to_numpy()
    ratio = pieces["row"].map(chips.set_index("row")["mndwi_ratio"]).to_numpy()
    own = pieces["verdict"].isin(LABEL_VERDICTS).to_numpy()

    def worst(count: int) -> np.ndarray:
        return pieces["row"].isin(chips.loc[worst_chips(chips, count), "row"]).to_numpy()

    return {
        "this audit": own,
        # MNDWI and prediction against the label
        "two against one": np.where(more, water, ~water & (pieces["bright"] < HALF).to_numpy()),
        "probability alone": odds >= np.log(9),
        "MNDWI ratio": np.where(more, ratio > 3, ratio < 1 / 3),
        "worst chips": worst(pieces.loc[own, "row"].nunique()),  # by IoU, as many as this audit accuses
        "the card's": worst(CARD_WORST) & more,
        "none": np.zeros(len(pieces), bool),
    }  # fmt: skip


def shown(found: Estimate | Mapping[str, Any] | float) -> str:
    """An estimate, the record of one, or a number, as text: the value and its interval where there is one."""
    if isinstance(found, float):
        return f"{found:.2f}"
    of = found.as_dict() if isinstance(found, Estimate) else found
    if of["value"] is None:
        return "undefined"
    interval = "" if of["low"] is None else f" ({of['low']:.2f} to {of['high']:.2f})"
    return f"{of['value']:.2f}{interval}"


def comparison(compared: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What :func:`compare` found, or the record of it, as a table that people read."""
    import pandas as pd

    return pd.DataFrame(
        {name: {"accused pieces": of["accused"], **{k: shown(of[k]) for k in ("precision", "recall")}}
         for name, of in compared.items()}
    ).T  # fmt: skip


def compare(
    findings: Findings, chips: pd.DataFrame, others: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict[str, Any]]:
    """This audit beside naive ones, and beside an oracle that judges the same pieces.

    Args:
        findings: pieces and errors, matched.
        chips: the audit's verdict table, for the rivals that look at whole chips.
        others: further name -> (pieces,) bool, what it accuses. Without an "oracle" among them, it is one that knows
            the truth, whose recall is the ceiling that looking at disagreements alone sets.

    Returns:
        Name -> ``accused`` (pieces), ``precision`` and ``recall`` (estimates).
    """
    judged = {
        **rivals(findings.pieces, chips),
        "oracle": findings.pieces["right"].to_numpy(dtype=bool),
        **(others or {}),
    }
    return {
        name: {"accused": int(accused.sum()), "precision": findings.precision(accused),
               "recall": findings.recall(accused)}
        for name, accused in judged.items()
    }  # fmt: skip


def label_ceiling(store: Store, maps: ProbabilityMaps, truth: Reference, table: pd.DataFrame) -> Estimate:
    """What the labels' errors leave of a perfect map: IoU of the true lakes against the labels, with its interval.

    Args:
        store: the chips.
        maps: of the split; only their valid pixels are asked for.
        truth: from a chip to its true mask.
        table: a score table of the split, for its blocks.
    """
    counts = []
    for i, row in enumerate(maps.rows):
        chip, valid = store[row], np.asarray(maps.bins[i]) != INVALID
        label, lake = (chip.mask > 0) & valid, (truth(chip) > 0) & valid
        counts.append(((label & lake).sum(), (label | lake).sum(), label.sum()))
    both, either, labelled = np.array(counts, dtype=float).T
    return ratio_of_sums(both, either, table["block"].to_numpy(), labelled)
