"""The tables that chapter 3 is computed from: of every predictor, in one folder that needs neither chips nor a network.

``<study>/tables/<predictor>/`` holds score tables, lakes and causes of error of the predictors that chapter 3
compares. They are a few megabytes, can be sent to somebody, and give the same figures there: ``-p saved FOLDER``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.evaluation.causes import cause_table
from cryosentinel.evaluation.evaluate import LABEL, Evaluation, kept, table_path
from cryosentinel.evaluation.metrics import ALL_THRESHOLDS, best_threshold
from cryosentinel.evaluation.objects import SCORES, lake_table
from cryosentinel.evaluation.scores import write_scores
from cryosentinel.files import replacing
from cryosentinel.paths import SOUP
from cryosentinel.sensors import S2_BANDS
from cryosentinel.study.stages import Chips

if TYPE_CHECKING:
    import pandas as pd

    from cryosentinel.data.chips import Chip
    from cryosentinel.simulate import Truth
    from cryosentinel.study.study import Study

OWN, PLAIN = "soup", "soup_1_flip"
BASELINES = ("mndwi", "ndwi", "mlp", "mlp_context")  # the strongest of each kind; the comparison of chapter 2 has all
#: What no predictor is expected to pass: the labels themselves, and all standing water, glacial or not.
CEILINGS = ("label", "oracle")


@dataclass(frozen=True)
class Scored:
    """A predictor with everything that chapter 3 says of it.

    Attributes:
        evaluation: its score tables.
        threshold: from which a pixel is water: given for the network, the best on validation for all others.
        lakes: of the test split, see :func:`cryosentinel.evaluation.objects.lake_table`.
        causes: of the test split, see :func:`cryosentinel.evaluation.causes.cause_table`; None without a known truth.
    """

    evaluation: Evaluation
    threshold: float
    lakes: pd.DataFrame | None = None
    causes: pd.DataFrame | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What the tables say of themselves: kind of data, preset, checkpoint, flips, digest, ..."""
        return self.table("test").attrs

    def table(self, split: str, reference: str = LABEL) -> pd.DataFrame:
        """A score table."""
        return self.evaluation.table(split, reference)

    def write(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the tables, which say ``about`` themselves, for :meth:`read`."""
        for (split, reference), table in self.evaluation.tables.items():
            table.attrs.update(about, threshold=self.threshold)
            write_scores(table_path(folder, split, reference), table)
        for name, frame in (("lakes", self.lakes), ("causes", self.causes)):
            if frame is not None:
                with replacing(folder / f"{name}_test.parquet") as part:
                    frame.to_parquet(part)

    @classmethod
    def read(cls, folder: Path) -> Scored:
        """The tables of a folder that :meth:`write` made.

        Raises:
            InputError: they are missing or damaged, or were not written by a study.
        """
        import pandas as pd

        evaluation = Evaluation.open(folder)
        about = evaluation.table("test").attrs
        if lacks := [key for key in ("threshold", "data", "preset", "checkpoint") if key not in about]:
            raise InputError(
                f"The score tables in {folder} do not say their {', '.join(lacks)}; give the folder tables that "
                "chapter 3 wrote beside its metrics.json, or score single tables: cryosentinel score."
            )
        frames = {}
        for name in ("lakes", "causes"):
            path = folder / f"{name}_test.parquet"
            try:
                frames[name] = pd.read_parquet(path) if path.is_file() else None
            except (OSError, ValueError) as error:
                raise InputError(f"{path} cannot be read ({error}); run chapter 3 again where the chips are.") from None
        return cls(evaluation, about["threshold"], **frames)


class _Labels:
    """The labels as a prediction."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.settings = {"labels": True}

    def __call__(self, batch: Mapping[str, Any]) -> np.ndarray:
        return np.stack([(self._store[row].mask > 0).astype(np.float32) for row in batch["row"].tolist()])


def lake_layers(chip: Chip, truth: Truth) -> dict[str, np.ndarray]:
    """What is at a chip's pixels that may make a lake hard to find.

    Returns:
        (H, W) each: cloud, shadow (of clouds or terrain) and frozen are 0 or 1, turbidity is the normalised difference
        of red and green (NDTI: Lacaux et al. 2007).
    """
    from cryosentinel.simulate import Material

    green, red = (chip.s2[S2_BANDS.index(band)].astype(np.float32) for band in ("B03", "B04"))
    return {
        "cloud": truth.cloud == 1, "shadow": (truth.cloud == 2) | (truth.terrain_shadow > 0),
        "frozen": truth.material == Material.FROZEN_LAKE, "turbidity": (red - green) / np.maximum(red + green, 1),
    }  # fmt: skip


def scored(on: Chips, evaluation: Evaluation, threshold: float | None = None) -> Scored:
    """Add lakes and causes to an evaluation; they are made once and kept beside its score tables.

    Args:
        on: the chips of its test split.
        evaluation: of a predictor.
        threshold: from which a pixel is water; None for the best on validation.
    """
    at = best_threshold(evaluation.table("val"), thresholds=ALL_THRESHOLDS) if threshold is None else threshold
    truth, key = on.truth, evaluation.table("test").attrs["key"]
    maps, causes = evaluation.maps("test"), None

    def make_lakes() -> pd.DataFrame:
        layers = None if truth is None else lambda chip: lake_layers(chip, truth[chip.chip_id])
        return lake_table(maps, on.store, on.references.get("truth"), at, on.block_size, progress=True, layers=layers)

    lakes = kept(evaluation.folder / "lakes_test.parquet", f"{key}|{at}|{','.join(SCORES)}", make_lakes)
    if truth is not None:
        path = evaluation.folder / "causes_test.parquet"
        causes = kept(path, key, lambda: cause_table(maps, on.store, truth, on.block_size, progress=True))
    return Scored(evaluation, at, lakes, causes)


def score_all(
    study: Study, ckpt: str | os.PathLike[str] = SOUP, flips: int = 4, threshold: float = 0.5
) -> dict[str, Scored]:
    """Score the soup, the baselines and the ceilings of chapter 3, and keep their tables in the study's folder.

    Args:
        study: the chips.
        ckpt: as for :func:`cryosentinel.study.stages.checkpoint`.
        flips: test-time flips of the soup; it is scored without any, too.
        threshold: of the soup.

    Returns:
        Predictor -> what is known of it: :data:`OWN`, :data:`PLAIN` (score tables only), :data:`BASELINES`, and
        :data:`CEILINGS` where the truth is known.
    """
    path = study.checkpoint(os.fspath(ckpt))
    on = Chips.of(study, ("val", "test"))
    found = {OWN: scored(on, study.evaluate(path, flips), threshold), PLAIN: Scored(study.evaluate(path, 1), threshold)}
    found |= {name: scored(on, study.baseline(name)) for name in BASELINES}
    if study.truth is not None:
        labels = study.evaluate_predictor(_Labels(on.store), "label")
        found |= {"label": scored(on, labels), "oracle": scored(on, study.baseline("oracle"))}
    about = {"data": study.kind, "preset": study.preset, "checkpoint": f"{path.parent.parent.name}/{path.name}"}
    for name, one in found.items():
        one.write(study.out / "tables" / name, about)
    return found


def read_all(folder: str | os.PathLike[str]) -> dict[str, Scored]:
    """The tables that :func:`score_all` kept, read back.

    Args:
        folder: ``<study>/tables``.

    Raises:
        InputError: a predictor's tables are missing or damaged.
    """
    found = {name: Scored.read(Path(folder, name)) for name in (OWN, PLAIN, *BASELINES)}
    for name, one in found.items():
        if one.lakes is None and name != PLAIN:
            raise InputError(f"{Path(folder, name)} lacks lakes_test.parquet; run chapter 3 again where the chips are.")
    return found | {name: Scored.read(Path(folder, name)) for name in CEILINGS if Path(folder, name).is_dir()}
