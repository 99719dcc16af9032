"""Where label and prediction disagree: connected pieces, the evidence on each, and the rule that judges it.

A piece is a connected part (8 neighbours) of the pixels that the prediction calls water and the label does not
("more"), or the other way round ("less"). The inventory's outlines may be off by 30 m and are rasterised with all
touched pixels, so bands of disagreement up to four pixels wide are explained by that: only what survives a
morphological opening with a 5 x 5 square counts, and a piece has at least 50 such pixels (0.5 ha, the smallest area
that the published card trusts).

The evidence on a piece comes from several sources (:data:`EVIDENCE`): the probability of a model that has not seen the
place, two water indices, near infrared, radar, the elevation model, the images of other years. A judge per direction, a
logistic function of the evidence, gives the probability that the *label* is wrong there; its coefficients stand in
``configs/audit.yaml`` beside the thresholds of the verdicts, learned on simulated chips with planted errors, of a seed
that no figure is reported on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from cryosentinel import paths
from cryosentinel.errors import ConfigError
from cryosentinel.evaluation.scores import INVALID, threshold_bin
from cryosentinel.indices import mndwi, ndwi, slope
from cryosentinel.sensors import REFLECTANCE_SCALE, S2_BANDS

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.chips import Chip

MORE, LESS = "more", "less"
#: Evidence -> what it is, over the pixels of a piece.
EVIDENCE: dict[str, str] = {
    "probability": "logit of the mean predicted probability",
    "ndwi": "mean NDWI",
    "mndwi": "mean MNDWI",
    "nir": "natural logarithm of the mean near-infrared reflectance (B08), at least 0.005",
    "vv": "mean VV backscatter, dB",
    "slope": "mean slope of the elevation model, degrees, at most 30",
    "level": "natural logarithm of 1 + the height in metres (at most 50) between the piece and the water it joins",
    "away": "1 where the piece joins no water that label (more) or prediction (less) agree on, else 0",
    "persistence": "share of the piece that the images of other years show as water, where they show the ground",
    "bright": "share of pixels with red reflectance (B04) above 0.25: cloud, snow or ice hides the ground",
    "size": "natural logarithm of the pixels",
}
#: The upper brightness threshold of Sen2Cor's scene classification.
BRIGHT_RED = 0.25
#: Water in another year's image, as the published code's sanity filter and a stricter NDWI call it.
WATER_MNDWI, WATER_NDWI = 0.3, 0.15


@dataclass(frozen=True)
class Judge:
    """A logistic function of the evidence.

    Attributes:
        intercept: log odds where all evidence is average.
        terms: evidence -> (mean, scale, weight); evidence that is missing counts as average.
    """

    intercept: float
    terms: Mapping[str, tuple[float, float, float]]

    def probability(self, evidence: pd.DataFrame) -> np.ndarray:
        """(n,) float64: that the label is wrong on each piece."""
        odds = np.full(len(evidence), float(self.intercept))
        for name, (mean, scale, weight) in self.terms.items():
            odds += weight * np.nan_to_num((evidence[name].to_numpy(dtype=float) - mean) / scale)
        return 1 / (1 + np.exp(-odds))


@dataclass(frozen=True)
class AuditRule:
    """The rule, fixed before a chip is looked at.

    Attributes:
        threshold: of the predicted probability, a multiple of 1/200.
        tolerance_px: width of disagreement that the label's stated accuracy explains: 30 m and a touched pixel.
        min_px: smallest piece.
        accuse: probability from which the label is called wrong.
        acquit: probability up to which the model is called wrong; between the two a piece is undecidable.
        worst: candidates, the chips with the largest pieces, taken from the two directions in turn.
        control: chips drawn at random from the rest, to see what the candidates do not show.
        seed: of the draw, and of the review sheet's shuffling.
        tuned_on: seed of the simulated world that the rule was tuned on, and that no figure is reported of.
        judges: direction -> judge.
    """

    threshold: float = 0.5
    tolerance_px: int = 4
    min_px: int = 50
    accuse: float = 0.6
    acquit: float = 0.3
    worst: int = 20
    control: int = 20
    seed: int = 42
    tuned_on: int = 42
    judges: Mapping[str, Judge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        threshold_bin(self.threshold)  # refused here where it lies between two bins
        if self.tolerance_px < 0 or self.min_px < 1 or self.worst < 0 or self.control < 0:
            raise ConfigError("An audit rule needs tolerance_px, worst and control at or above 0, and min_px above 0.")
        if not 0 <= self.acquit <= self.accuse <= 1:
            raise ConfigError(f"An audit rule needs 0 <= acquit <= accuse <= 1, not {self.acquit} and {self.accuse}.")
        if unknown := set(self.judges) - {MORE, LESS}:
            raise ConfigError(f"An audit rule has judges {MORE} and {LESS}, not {', '.join(map(str, unknown))}.")

    @classmethod
    def read(cls, name: str | os.PathLike[str] = "audit", **changes: Any) -> AuditRule:
        """The rule of a configuration.

        Args:
            name: as for :func:`cryosentinel.paths.config`.
            changes: fields that differ.

        Raises:
            ConfigError: it is no YAML of names and values, a key is unknown, a value is of another type, or a judge
                lacks a number or names evidence that does not exist.
        """
        path = paths.config(name)
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"The audit rule {path} is no YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(given, dict):
            raise ConfigError(f"The audit rule {path} must hold names and values (threshold: 0.5, ...).")
        values = {**given, **changes}
        if unknown := set(values) - set(cls.__dataclass_fields__):
            raise ConfigError(f"The audit rule {path} has no field {', '.join(sorted(unknown))}.")
        for key, value in values.items():
            whole = key not in ("threshold", "accuse", "acquit")
            if key != "judges" and not (_is_number(value) and (isinstance(value, int) or not whole)):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"The field {key} of the audit rule {path} is {value!r}; it must be {kind}.")
        judges = values.get("judges") or {}
        if not isinstance(judges, dict):
            raise ConfigError(f"The judges of the audit rule {path} must stand under {MORE} and {LESS}.")
        return cls(**{**values, "judges": {d: _judge(judge, f"{d!r} of {path}") for d, judge in judges.items()}})

    def __str__(self) -> str:
        lines = [f"{name} = {value}" for name, value in vars(self).items() if name != "judges"]
        for direction, judge in self.judges.items():
            weights = ", ".join(f"{name} {weight:+.2f}" for name, (_, _, weight) in judge.terms.items())
            lines.append(f"judge of pieces where the prediction sees {direction}: {judge.intercept:+.2f}, {weights}")
        return "\n".join(lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _judge(given: Any, name: str) -> Judge:
    """A judge from its part of a configuration; ``name`` is for the sentence that refuses another one."""
    terms = given.get("terms") if isinstance(given, dict) else None
    if not isinstance(terms, dict) or not set(terms) <= set(EVIDENCE) or not _is_number(given.get("intercept")):
        raise ConfigError(
            f"The judge {name} needs an intercept, and terms that weigh {', '.join(EVIDENCE)}, nothing else."
        )
    for term, numbers in terms.items():
        good = isinstance(numbers, list | tuple) and len(numbers) == 3 and all(map(_is_number, numbers))
        if not good or numbers[1] <= 0:
            raise ConfigError(
                f"The judge {name} gives {term} {numbers}; it takes three numbers: mean, scale above 0, weight."
            )
    return Judge(given["intercept"], {term: tuple(numbers) for term, numbers in terms.items()})


@dataclass(frozen=True, eq=False)
class Piece:
    """A connected piece of disagreement.

    Attributes:
        direction: :data:`MORE` or :data:`LESS`.
        mask: (H, W) bool.
        lake: number of the connected part of the label that it lies on or next to; 0 for none.
        joined: (H, W) bool, the water next to it: labelled for "more", labelled and predicted for "less".
    """

    direction: str
    mask: np.ndarray
    lake: int
    joined: np.ndarray


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


def large_parts(mask: np.ndarray, rule: AuditRule) -> Iterator[np.ndarray]:
    """The connected parts (8 neighbours) of a mask's core that are large enough: (H, W) bool each."""
    from scipy import ndimage

    if mask.sum() < rule.min_px:
        return
    parts, count = ndimage.label(core(mask, rule.tolerance_px), structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    for number in range(1, count + 1):
        if sizes[number] >= rule.min_px:
            yield parts == number


def near(mask: np.ndarray, rule: AuditRule) -> np.ndarray:
    """Within the tolerance of a mask (8 neighbours): the band in between is the outline's stated accuracy."""
    from scipy import ndimage

    return ndimage.maximum_filter(mask.astype(np.uint8), 2 * rule.tolerance_px + 3, mode="constant").astype(bool)


def find_pieces(label: np.ndarray, prediction: np.ndarray, rule: AuditRule) -> list[Piece]:
    """The pieces of a chip, "more" before "less", each in reading order.

    Args:
        label, prediction: (H, W) bool, False where there is no valid data.
        rule: tolerance and smallest piece.
    """
    from scipy import ndimage

    lakes, found = None, []
    for direction, difference in ((MORE, prediction & ~label), (LESS, label & ~prediction)):
        for mask in large_parts(difference, rule):
            if lakes is None:
                lakes, _ = ndimage.label(label, structure=np.ones((3, 3)))
            around = near(mask, rule)
            numbers = np.bincount(lakes[around])
            numbers[0] = 0
            lake = int(numbers.argmax())
            agreed = label if direction == MORE else label & prediction
            # All of the agreed water that hangs together with what lies around: its level is the lake's.
            joined = agreed & (lakes == lake) & bool((agreed & around).any())
            found.append(Piece(direction, mask, lake, joined))
    return found


def water_in_sight(chip: Chip) -> tuple[np.ndarray, np.ndarray]:
    """What another year's image shows: water by both indices, and where the ground is in sight. (H, W) bool each."""
    water = (mndwi(chip.s2) >= WATER_MNDWI) & (ndwi(chip.s2) >= WATER_NDWI)
    return water, chip.valid & (chip.s2[S2_BANDS.index("B04")] <= BRIGHT_RED * REFLECTANCE_SCALE)


def evidence(
    chip: Chip, probability: np.ndarray, pieces: Sequence[Piece], others: Sequence[Chip] = ()
) -> list[dict[str, float]]:
    """The evidence on each piece of a chip (:data:`EVIDENCE`).

    Args:
        chip: with raw values: indices are taken before any clipping.
        probability: (H, W), not a number where the chip is not valid.
        pieces: of the chip.
        others: chips of the same place in other years.
    """
    if not pieces:
        return []
    elevation = chip.dem[0].astype(np.float32)
    red, nir = (chip.s2[S2_BANDS.index(band)] / REFLECTANCE_SCALE for band in ("B04", "B08"))
    layers = {"ndwi": ndwi(chip.s2), "mndwi": mndwi(chip.s2), "vv": chip.s1[0], "slope": slope(elevation)}
    seen = [water_in_sight(other) for other in others]
    found = []
    for piece in pieces:
        at = piece.mask
        p = float(np.clip(np.nanmean(probability[at]), 0.005, 0.995))
        height = 0.0
        if piece.joined.any():
            height = min(abs(float(np.median(elevation[at]) - np.median(elevation[piece.joined]))), 50.0)
        sight = sum(int((visible & at).sum()) for _, visible in seen)
        water = sum(int((wet & visible & at).sum()) for wet, visible in seen)
        values = {name: float(layer[at].mean()) for name, layer in layers.items()}
        found.append(
            {**values, "slope": min(values["slope"], 30.0), "probability": float(np.log(p / (1 - p))),
             "nir": float(np.log(max(nir[at].mean(), 0.005))), "level": float(np.log1p(height)),
             "away": float(not piece.joined.any()), "persistence": water / sight if sight else np.nan,
             "bright": float((red[at] > BRIGHT_RED).mean()), "size": float(np.log(at.sum()))}
        )  # fmt: skip
    return found


def maps_of(chip: Chip, bins: np.ndarray, rule: AuditRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, prediction and valid pixels of a chip, the first two False where not valid. (H, W) bool each.

    Args:
        chip: whose label.
        bins: (H, W) uint8, its stored probability map.
        rule: threshold.
    """
    valid = bins != INVALID
    return (chip.mask > 0) & valid, (bins >= threshold_bin(rule.threshold)) & valid, valid
