"""A blind review: what a person says about the audited chips without knowing which outline is the label.

:func:`write_review` leaves three files: ``review.html`` with the images, ``review.csv`` to fill in, and
``review_key.json``, which says what was A and what was B and is not to be opened before the answers are in.
:func:`read_review` reads the answers back.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.evaluation.audit import (
    CANDIDATE,
    CONTROL,
    LABEL_VERDICTS,
    UNDECIDABLE,
    Audit,
    sample_positions,
)
from cryosentinel.evaluation.audit_pieces import maps_of
from cryosentinel.evaluation.evaluate import Store
from cryosentinel.evaluation.probability_maps import ProbabilityMaps
from cryosentinel.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

SHEET, ANSWERS, KEY = "review.html", "review.csv", "review_key.json"
LABEL, PREDICTION = "label", "prediction"
#: Answer of a reviewer -> what it means.
CHOICES = {"A": "outline A fits the glacial lakes", "B": "outline B fits them", "both": "both fit as well",
           "neither": "neither fits", "?": "the images do not tell"}  # fmt: skip
_OUTLINE = (255, 210, 0)

_PAGE = """<!doctype html><meta charset="utf-8"><title>Blind review</title>
<style>body{{font:15px sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}img{{width:100%;height:auto}}</style>
<h1>Blind review of {count} chips</h1>
<p>One of the outlines A and B is a label, the other a prediction; which is which changes from chip to chip. Write into
the column <em>answer</em> of {answers}, in the row of the chip: {choices}. Glacial lakes count, reservoirs and rivers
do not. Panels: true colour; short-wave infrared, near infrared, red (water is dark, snow and ice are blue); A; B.</p>
{items}
"""


def _image(s2: np.ndarray, *bands: str) -> np.ndarray:
    """Bands as an image, (H, W, 3) uint8."""
    from cryosentinel.data.chip_plots import composite

    return (composite(s2, bands) * 255).astype(np.uint8)


def _png(panels: list[np.ndarray]) -> str:
    """Panels side by side as a data URI."""
    from matplotlib.image import imsave

    gap = np.full((panels[0].shape[0], 6, 3), 255, np.uint8)
    stream = io.BytesIO()
    imsave(stream, np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1), format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def answered(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a review with answers."""
    path = Path(folder, ANSWERS)
    return path.is_file() and any(entry.get("answer", "") for _, entry in _entries(path)[1])


def _entries(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a sheet of answers, and its lines with their numbers: column -> text.

    People type commas into the last column without quotes: what is beyond it belongs to it.
    """
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        columns = [name.strip() for name in next(reader, [])]
        last = len(columns) - 1
        lines = [(reader.line_num, [*words[:last], ",".join(words[last:])]) for words in reader if words and columns]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); save it as CSV in UTF-8.") from None
    return columns, [(n, {k: w.strip() for k, w in zip(columns, words, strict=False)}) for n, words in lines]


def write_review(result: Audit, store: Store, maps: ProbabilityMaps, folder: str | os.PathLike[str]) -> Path:
    """Write the review of an audit's candidates and random control, in an order that hides which is which.

    Args:
        result: an audit; its rule's seed shuffles.
        store: its chips.
        maps: the predictions that it was made from.
        folder: that receives the files; answers that are there are not overwritten.

    Returns:
        Path of the sheet.
    """
    from scipy import ndimage

    folder = Path(folder)
    if answered(folder):
        raise InputError(f"{folder / ANSWERS} holds answers; read them back or move them away before a new review.")
    rng = np.random.default_rng(result.rule.seed)
    positions = [p for sample in (CANDIDATE, CONTROL) for p in sample_positions(result.verdicts, sample)]
    items, key = [], {}
    for number, position in enumerate(rng.permutation(np.array(positions, dtype=int)).tolist(), start=1):
        row = result.verdicts.iloc[position]
        chip = store[int(row["row"])]
        label, prediction, _ = maps_of(chip, np.asarray(maps.bins[position]), result.rule)
        pair = [(LABEL, label), (PREDICTION, prediction)]
        if rng.random() < 0.5:
            pair.reverse()
        colour = _image(chip.s2, "B04", "B03", "B02")
        panels = [colour, _image(chip.s2, "B11", "B08", "B04")]
        for _, mask in pair:
            panel = colour.copy()
            panel[ndimage.binary_dilation(mask) & ~mask] = _OUTLINE
            panels.append(panel)
        name = f"{number:03d}"
        key[name] = {"chip_id": row["chip_id"], "A": pair[0][0], "B": pair[1][0], "sample": row["sample"],
                     "verdict": row["verdict"]}  # fmt: skip
        items.append(
            f'<h2>Chip {name}</h2><img alt="chip {name}: true colour, false colour, A, B" src="{_png(panels)}">'
        )
    choices = ", ".join(f"<b>{html.escape(c)}</b> ({what})" for c, what in CHOICES.items())
    page = _PAGE.format(count=len(items), answers=ANSWERS, choices=choices, items="\n".join(items))
    write_text(folder / SHEET, page)
    write_text(folder / ANSWERS, "chip,answer,note\n" + "".join(f"{name},,\n" for name in key))
    write_json(folder / KEY, key)
    return folder / SHEET


def read_review(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the answers back.

    Args:
        folder: with the filled ``review.csv`` and its key.

    Returns:
        One row an answered chip: chip, chip_id, sample, verdict (the audit's), answer, ``fits`` (label, prediction,
        both, neither or ?), ``agrees`` (with the audit: the label is wrong or not; missing where the answer or the
        audit does not decide), note.

    Raises:
        InputError: a file is missing or not text in UTF-8, a chip is not of this review or answered twice, or an answer
            is none of :data:`CHOICES`.
    """
    import pandas as pd

    folder = Path(folder)
    if not (folder / ANSWERS).is_file():
        raise InputError(f"There is no {folder / ANSWERS}; write a review first: cryosentinel audit --review.")
    key = read_json(folder / KEY)
    columns, entries = _entries(folder / ANSWERS)
    if missing := {"chip", "answer"} - set(columns):
        raise InputError(f"{folder / ANSWERS} has no column {', '.join(sorted(missing))}; keep its first line.")
    rows: list[dict[str, object]] = []
    first: dict[str, int] = {}
    for line, entry in entries:
        name, answer = entry["chip"].zfill(3), entry.get("answer", "")
        if not answer:
            continue
        if name in first:
            raise InputError(
                f"Line {line} of {folder / ANSWERS} answers chip {name} again (line {first[name]} does); keep one."
            )
        first[name] = line
        if name not in key:
            raise InputError(f"Line {line} of {folder / ANSWERS} names chip {name!r}, which is not of this review.")
        given = answer
        answer = answer.upper() if answer.upper() in CHOICES else answer.lower()
        if answer not in CHOICES:
            raise InputError(f"Line {line} of {folder / ANSWERS} answers {given!r}; choose {', '.join(CHOICES)}.")
        about = key[name]
        fits = about.get(answer, answer)
        wrong = {PREDICTION: True, "neither": True, LABEL: False, "both": False}.get(fits)
        decided = wrong is not None and about["verdict"] != UNDECIDABLE
        agrees = wrong == (about["verdict"] in LABEL_VERDICTS) if decided else None
        rows.append(
            {"chip": name, **{k: about[k] for k in ("chip_id", "sample", "verdict")}, "answer": answer, "fits": fits,
             "agrees": agrees, "note": entry.get("note", "")}
        )  # fmt: skip
    names = ["chip", "chip_id", "sample", "verdict", "answer", "fits", "agrees", "note"]
    return pd.DataFrame(rows, columns=names)


def agreement(answers: pd.DataFrame) -> pd.DataFrame:
    """How often a reviewer agrees with the audit, by sample and verdict.

    Args:
        answers: from :func:`read_review`.

    Returns:
        A row for each sample and verdict, and for "all" verdicts of a sample that call the label wrong, which is the
        audit's precision there: answered, agree, differ, share (of those that decide; not a number without one), low
        and high (Wilson's 95 % interval: few chips, each its own place or nearly).
    """
    import pandas as pd
    from scipy.stats import binomtest

    accused = answers[answers["verdict"].isin(LABEL_VERDICTS)]
    rows = []
    for of in (answers, accused.assign(verdict="all that call the label wrong")):
        for (sample, verdict), group in of.groupby(["sample", "verdict"]):
            said = group["agrees"].dropna().astype(bool)
            n, agree = len(said), int(said.sum())
            low, high = binomtest(agree, n).proportion_ci(method="wilson") if n else (np.nan, np.nan)
            rows.append(
                {"sample": sample, "verdict": verdict, "answered": len(group), "agree": agree, "differ": n - agree,
                 "share": agree / n if n else np.nan, "low": low, "high": high}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["sample", "verdict", "answered", "agree", "differ", "share", "low", "high"])
