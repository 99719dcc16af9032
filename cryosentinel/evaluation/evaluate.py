"""Runs a predictor over the chips of a split once, and writes everything that scores are computed from.

Per split: the probability maps, a score table against the label, one against each further reference (the known truth of
simulated chips), then the sweep and the regions. What is there for the same weights, settings and chips is kept; a
killed run goes on at the chip where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.evaluation.predictors import Predictor
from cryosentinel.evaluation.probability_maps import MapWriter, ProbabilityMaps, has_maps, take_maps
from cryosentinel.evaluation.scores import INVALID, ScoreBuilder, probability_bins, read_scores, write_scores
from cryosentinel.files import replacing

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cryosentinel.data.chips import Chip

LABEL = "label"


class Store(Protocol):
    """Random access to chips; :class:`cryosentinel.data.dataset.ChipStore` is one."""

    index: pd.DataFrame

    def __getitem__(self, row: int) -> Chip:
        """The chip at a position of the index."""
        ...


class Reference(Protocol):
    """From a chip to its reference mask: (H, W), lake where non-zero."""

    def __call__(self, chip: Chip, /) -> np.ndarray:
        """(H, W), lake where non-zero."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left.

    Attributes:
        folder: where the files are.
        tables: (split, reference) -> score table.
    """

    folder: Path
    tables: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Evaluation:
        """The score tables of a folder, which need neither chips nor a network.

        Raises:
            InputError: it holds none, or one that cannot be read.
        """
        names = {path: path.stem.split("_", 3) for path in sorted(Path(folder).glob("per_chip_*.parquet"))}
        if not names:
            raise InputError(f"{folder} holds no score tables (per_chip_test.parquet, ...); evaluate first.")
        return cls(Path(folder), {(w[2], w[3] if w[3:] else LABEL): read_scores(path) for path, w in names.items()})

    def table(self, split: str, reference: str = LABEL) -> pd.DataFrame:
        """The score table of a split.

        Raises:
            InputError: it was not evaluated against this reference.
        """
        try:
            return self.tables[split, reference]
        except KeyError:
            raise InputError(
                f"{self.folder} holds no scores of the {split} split against the {reference}; evaluate them."
            ) from None

    def maps(self, split: str) -> ProbabilityMaps:
        """The probability maps of a split."""
        return ProbabilityMaps.open(self.folder, split)

    def beside(self, split: str, name: str) -> ProbabilityMaps:
        """What averaging views leaves beside the probability, as maps.

        Args:
            split: which.
            name: first or spread, see :class:`cryosentinel.evaluation.predictors.ModelPredictor`.

        Raises:
            InputError: the predictor averaged no views.
        """
        return ProbabilityMaps.open(self.folder, f"{split}_{name}")

    def summary(self, threshold: float = 0.5) -> pd.DataFrame:
        """Global IoU with its interval, and the mean per-chip IoU, by split and reference."""
        import pandas as pd

        from cryosentinel.evaluation.bootstrap import estimate
        from cryosentinel.evaluation.metrics import score

        rows = []
        for (split, reference), table in self.tables.items():
            found = estimate(table, "iou", threshold)
            rows.append(
                {"split": split, "reference": reference, "chips": found.n, "threshold": threshold, "iou": found.value,
                 "low": found.low, "high": found.high, "mean_chip_iou": score(table, "mean_chip_iou", threshold),
                 "reason": found.reason}
            )  # fmt: skip
        return pd.DataFrame(rows).set_index(["split", "reference"])


def kept(path: Path, key: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table that is made once for what it depends on, which ``key`` names, and then read from its Parquet file."""
    import pandas as pd

    try:
        table = pd.read_parquet(path)
        if table.attrs.get("key") == key:
            return table
    except (OSError, ValueError):
        pass  # missing, damaged or older: made again
    table = make()
    table.attrs["key"] = key
    with replacing(path) as part:
        table.to_parquet(part)
    return table


def table_path(folder: str | os.PathLike[str], split: str, reference: str = LABEL) -> Path:
    """``per_chip_<split>.parquet`` against the label, ``per_chip_<split>_<reference>.parquet`` against another."""
    return Path(folder) / f"per_chip_{split}{'' if reference == LABEL else f'_{reference}'}.parquet"


def chip_batches(store: Store, rows: Sequence[int], batch_size: int) -> Iterator[tuple[list[Chip], dict[str, Any]]]:
    """Chips with their batch as the network takes it: clipped and filled, physical units, not normalised."""
    import torch

    from cryosentinel.data.chips import clean

    for start in range(0, len(rows), batch_size):
        chosen = [int(r) for r in rows[start : start + batch_size]]
        chips = [store[row] for row in chosen]
        try:
            arrays = [np.stack(parts) for parts in zip(*(clean(c.s2, c.s1, c.dem) for c in chips), strict=True)]
        except ValueError:
            raise InputError(
                f"The chips {chips[0].chip_id!r} to {chips[-1].chip_id!r} differ in size; evaluate them separately."
            ) from None
        batch: dict[str, torch.Tensor] = {
            name: torch.from_numpy(array.astype(np.float32))
            for name, array in zip(("S2L2A", "S1GRD", "DEM"), arrays, strict=True)
        }
        batch["valid"] = torch.from_numpy(np.stack([c.valid for c in chips]))
        batch["row"] = torch.tensor(chosen)
        yield chips, batch


def _key(digest: str, settings: Mapping[str, Any], index: pd.DataFrame, rows: Sequence[int]) -> str:
    """Digest of everything the probability maps depend on, as far as the index tells chips apart.

    All numbers of the index enter: a store's shares of water, valid pixels and MNDWI follow the images, so that chips
    made again under the same names are not taken for the old ones.
    """
    import pandas as pd

    chosen = index.iloc[list(rows)]
    columns = ["chip_id", "region", *sorted(chosen.select_dtypes("number").columns)]
    text = json.dumps([digest, dict(settings), [int(r) for r in rows]], sort_keys=True, default=str)
    hashes = pd.util.hash_pandas_object(chosen[columns], index=False).to_numpy()
    return hashlib.sha256(text.encode() + hashes.tobytes()).hexdigest()


def _chip_bins(probability: np.ndarray, chips: Sequence[Chip], valid: np.ndarray) -> np.ndarray:
    if probability.shape[0] != len(chips) or probability.shape[1:] != chips[0].mask.shape:
        raise InputError(
            f"The prediction has shape {probability.shape} for {len(chips)} chips of {chips[0].mask.shape} pixels; "
            "the model must give one probability a pixel."
        )
    bins = np.empty(probability.shape, np.uint8)
    for i, chip in enumerate(chips):
        try:
            bins[i] = probability_bins(probability[i])
        except InputError as error:
            raise InputError(f"Chip {chip.chip_id!r}: {error}") from None
    bins[~valid] = INVALID
    return bins


def _predict(
    predict: Predictor,
    store: Store,
    rows: Sequence[int],
    folder: Path,
    split: str,
    key: str,
    batch_size: int,
    progress: bool,
) -> None:
    from tqdm import tqdm

    names = {name: f"{split}_{name}" for name in getattr(predict, "beside", ())} | {"": split}
    writers = {name: MapWriter(folder, file, rows, key) for name, file in names.items()}
    done = min(writer.done for writer in writers.values())
    for writer in writers.values():
        writer.rewind(done)
    bar = tqdm(total=len(rows), initial=done, desc=f"predict {split}", unit="chip", disable=not progress)
    with bar:
        for chips, batch in chip_batches(store, rows[done:], batch_size):
            probability, valid = np.asarray(predict(batch), dtype=np.float32), batch["valid"].numpy()
            for name, writer in writers.items():
                values = predict.views[name] if name else probability  # type: ignore[attr-defined]
                writer.append(_chip_bins(values, chips, valid))
            bar.update(len(chips))
    for writer in writers.values():
        writer.finish()


def score_maps(
    maps: ProbabilityMaps,
    store: Store,
    references: Mapping[str, Reference | None],
    block_size: float = 0.15,
    progress: bool = False,
    desc: str = "score",
) -> dict[str, pd.DataFrame]:
    """Score tables of stored maps, against any references, without a model.

    Args:
        maps: of one split.
        store: the chips they were predicted on.
        references: name -> function from a chip to its mask; None stands for the chip's own label.
        block_size: of the split blocks, degrees: what a bootstrap resamples.
        progress: show a bar.
        desc: its text.

    Returns:
        name -> score table, rows in the order of the maps.
    """
    from tqdm import tqdm

    from cryosentinel.data.split import block_ids

    index = store.index
    blocks = np.empty(len(index), dtype=object)
    rows = list(maps.rows)
    blocks[rows] = block_ids(index["lat"].to_numpy()[rows], index["lon"].to_numpy()[rows], block_size)
    builders = {name: ScoreBuilder(index, blocks) for name in references}
    for i, row in enumerate(tqdm(rows, desc=desc, unit="chip", disable=not progress)):
        chip, bins = store[row], np.asarray(maps.bins[i])
        valid = bins != INVALID
        for name, reference in references.items():
            builders[name].add(row, bins, chip.mask if reference is None else reference(chip), valid)
    return {name: builder.table() for name, builder in builders.items()}


def _ready(path: Path, key: str) -> pd.DataFrame | None:
    try:
        table = read_scores(path)
    except InputError:
        return None
    return table if table.attrs.get("key") == key else None


def evaluate(
    predict: Predictor,
    store: Store,
    rows: Mapping[str, Sequence[int]],
    out: str | os.PathLike[str],
    references: Mapping[str, Reference] | None = None,
    *,
    digest: str,
    batch_size: int = 8,
    block_size: float = 0.15,
    threshold: float = 0.5,
    progress: bool = True,
    single_of: tuple[Path, Mapping[str, Any]] | None = None,
) -> Evaluation:
    """Evaluate a predictor on splits, or take what is already there for the same digest, settings and chips.

    Args:
        predict: from a batch to probabilities, see :class:`cryosentinel.evaluation.predictors.Predictor`.
        store: random access to chips.
        rows: split ("val", "test") -> positions in the store's index.
        out: folder of the outputs, ``<run>/diagnostics`` for a run.
        references: name -> function from a chip to a mask, scored beside the label, e.g. ``{"truth": truth.mask}``;
            a reference added later is scored from the stored maps.
        digest: of the weights (the checkpoint's SHA-256), or of whatever else fixes the predictor.
        batch_size: chips a batch.
        block_size: of the split blocks, degrees.
        threshold: of the breakdown by region.
        progress: show bars.
        single_of: folder and settings of an evaluation that averages views; where it is there, its first view is taken
            for this one, and nothing is predicted.

    Returns:
        The tables; the files are ``per_chip_<split>[_<reference>].parquet``, ``per_region_breakdown.json``,
        ``threshold_sweep.json``, and ``probability_<split>.{npy,json}``, and ``..._first`` and ``..._spread`` of views.

    Raises:
        InputError: an empty split, two chips of one name, chips of several sizes, or predictions that are not
            probabilities.
    """
    from cryosentinel.evaluation.summary import write_summaries

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, Reference | None] = {LABEL: None, **(references or {})}
    settings = dict(getattr(predict, "settings", {}))
    tables: dict[tuple[str, str], pd.DataFrame] = {}
    for split, chosen in rows.items():
        if not len(chosen):
            raise InputError(f"The {split} split holds no chip; take more data or a smaller buffer.")
        if "valid_frac" in store.index and not store.index["valid_frac"].iloc[list(chosen)].any():
            raise InputError(
                f"None of the {len(chosen)} chips of the {split} split has a valid pixel; check the bands' fill."
            )
        names = store.index.iloc[list(chosen)][["chip_id", "region", "year"]]
        if (twice := names.duplicated()).any():
            chip = names.loc[twice, "chip_id"].iloc[0]
            raise InputError(
                f"{int(twice.sum())} chips of the {split} split carry the name of another of their region and year "
                f"(the first is {chip!r}), so their scores cannot be told apart; set drop_duplicates or rename them."
            )
        key = _key(digest, settings, store.index, chosen)
        scored = f"{key}|{block_size}"
        wanted_maps = [split, *(f"{split}_{name}" for name in getattr(predict, "beside", ()))]
        if single_of is not None:
            averaged, others = single_of
            take_maps(averaged, f"{split}_first", _key(digest, others, store.index, chosen), folder, split, key)
        if not all(has_maps(folder, name, key) for name in wanted_maps):
            _predict(predict, store, chosen, folder, split, key, batch_size, progress)
        missing = {}
        for name, reference in wanted.items():
            table = _ready(table_path(folder, split, name), scored)
            if table is None:
                missing[name] = reference
            else:
                tables[split, name] = table
        if missing:
            maps = ProbabilityMaps.open(folder, split)
            made = score_maps(maps, store, missing, block_size, progress, f"score {split}")
            about = {"key": scored, "digest": digest, "split": split, "block_size": block_size, **settings}
            for name, table in made.items():
                table.attrs.update(about, reference=name)
                write_scores(table_path(folder, split, name), table)
                tables[split, name] = table
    evaluation = Evaluation(folder, tables)
    write_summaries(evaluation, threshold)
    return evaluation
