"""Run folders and checkpoints: where they lie, what they hold, how they open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cryosentinel.errors import InputError

if TYPE_CHECKING:
    from cryosentinel.models.segmenter import Segmenter

SOUP = "soup.ckpt"


def snapshots(run: str | os.PathLike[str]) -> list[Path]:
    """The snapshots of a run folder, in order of their steps.

    Raises:
        InputError: there are none.
    """
    found = sorted((Path(run) / "checkpoints").glob("step*-iou*.ckpt"))
    if not found:
        raise InputError(f"{run} holds no snapshots (checkpoints/step*-iou*.ckpt); train first: cryosentinel fit.")
    return found


def make_soup(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """The uniform soup of a run's snapshots.

    Args:
        run: run folder.
        out: checkpoint to write; ``<run>/checkpoints/soup.ckpt`` by default.
    """
    from cryosentinel.models.soup import uniform_soup

    out = Path(out) if out is not None else Path(run) / "checkpoints" / SOUP
    uniform_soup(snapshots(run), out)
    return out


def open_segmenter(
    ckpt: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Segmenter:
    """The segmenter of a checkpoint, in evaluation mode.

    Args:
        ckpt: the file.
        model: configuration of a run (``configs/<name>.yaml``), for a checkpoint that does not say what model it holds,
            as the published ones.
        statistics: ``dataset_stats_v3.json``, for a checkpoint that holds none.
        device: where the model goes.
    """
    from cryosentinel.models.checkpoint import load_segmenter
    from cryosentinel.sensors import Statistics

    config = None
    if model is not None:
        from cryosentinel.training.config import parse
        from cryosentinel.training.fit import build

        config = build(*parse(str(model)))[0].model
    return load_segmenter(ckpt, config, Statistics.read(statistics) if statistics is not None else None, device)
