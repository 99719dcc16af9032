"""The run's log: one CSV file that an interrupted run goes on writing."""

from __future__ import annotations

import csv
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from cryosentinel.files import read_json, replacing
from cryosentinel.training.callbacks import describe_ema
from cryosentinel.training.optim import OptimConfig, SWAConfig, plot_schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rows_until(path: Path, step: int) -> None:
    """Keep the rows of a metrics file up to a step; what came after it is about to be written again.

    Args:
        path: ``metrics.csv``; nothing happens where there is none.
        step: last step to keep, as in the column ``step``.
    """
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        names = list(reader.fieldnames or [])
        # A kill may have cut the last line short.
        rows = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) <= step]
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def plot_rates(run: str | os.PathLike[str], ax: Axes | None = None) -> Axes:
    """Draw the schedule of a run, and the rates that its log says were used.

    Args:
        run: the run folder.
        ax: where to draw; a new figure by default.
    """
    config = yaml.safe_load((Path(run) / "logs" / "config.yaml").read_text(encoding="utf-8"))
    with open(Path(run) / "logs" / "metrics.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    optim = OptimConfig(**{**config["optim"], "swa": SWAConfig(**config["optim"]["swa"])})
    used = {int(row["step"]): float(row["lr"]) for row in rows}
    steps_per_epoch = int(rows[0]["step"]) // int(rows[0]["epoch"])
    return plot_schedule(optim, steps_per_epoch, config["trainer"]["max_epochs"], used, ax)


def average_of(run: str | os.PathLike[str]) -> str:
    """What the moving average (EMA) of a finished run did: where its decay's warm-up ends, and how far the run came.

    Args:
        run: the run folder.
    """
    logs = Path(run) / "logs"
    config = yaml.safe_load((logs / "config.yaml").read_text(encoding="utf-8"))
    return describe_ema(config["ema_decay"], read_json(logs / "summary.json")["steps"])


class _Writer(ExperimentWriter):
    """Lightning's writer deletes the file it finds; this one goes on with it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as handle:
                self.metrics_keys = list(csv.DictReader(handle).fieldnames or [])


class RunLogger(CSVLogger):
    """Lightning's CSV logger, writing ``<run>/logs/metrics.csv`` and nothing else, after every epoch.

    Args:
        run_dir: the run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="logs", flush_logs_every_n_steps=1)

    @property
    def experiment(self) -> Any:
        """The writer."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return super().experiment  # a stand-in that does nothing
        if self._experiment is None:
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Nothing: the whole configuration is in ``config.yaml``."""

    @rank_zero_only
    def save(self) -> None:
        """Flush, if anything was logged."""
        if self._experiment is not None:
            self._experiment.save()


class ProgressBar(TQDMProgressBar):
    """Lightning's bars as plain text on standard error.

    In a notebook its own are widgets, which neither a log nor a static page can show.
    """

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """What stands behind the bar; the logger's version is the same in every run."""
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}

    def _plain(self, description: str) -> Any:
        return tqdm(
            desc=description, disable=self.is_disabled, leave=False, dynamic_ncols=True, smoothing=0, file=sys.stderr,
            bar_format=self.BAR_FORMAT,
        )  # fmt: skip

    def init_train_tqdm(self) -> Any:
        """The bar of an epoch's training."""
        return self._plain(self.train_description)

    def init_validation_tqdm(self) -> Any:
        """The bar of an epoch's validation."""
        return self._plain(self.validation_description)
