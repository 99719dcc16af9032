"""The metrics file, which every number of the book is read from, and the wall times of the stages beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosentinel.errors import ConfigError
from cryosentinel.files import read_json, write_json
from cryosentinel.study.machine import machine

if TYPE_CHECKING:
    import pandas as pd
    from filelock import BaseFileLock

    from cryosentinel.evaluation.bootstrap import Estimate

LABEL = "label"
#: Reasons why a figure has no interval.
COUNT = "a count has no interval"
NOT_COMPUTED = "no interval is computed"


@dataclass
class MetricsFile:
    """Figures by name, each with interval, count, kind of data, source, and a reason where one of these is missing.

    Attributes:
        folder: of ``metrics.json`` and ``timings.json``.
        data: what the figures were computed from: simulated or real.
        preset: of the study; figures of two presets never stand in one file.
        source: what computes the figures that are added.
        added: the figures that :meth:`write` will merge into the file.
    """

    folder: Path
    data: str
    preset: str
    source: str
    added: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file of the figures."""
        return self.folder / "metrics.json"

    @property
    def timings_path(self) -> Path:
        """The file of the wall times."""
        return self.folder / "timings.json"

    def of(self, detail: str) -> MetricsFile:
        """The same file, for figures whose source is named more exactly, e.g. with the checkpoint they come from."""
        return replace(self, source=f"{self.source}, {detail}", added={})

    def add(
        self,
        name: str,
        value: float | Estimate | None,
        n: int = 1,
        *,
        reference: str = LABEL,
        reason: str = NOT_COMPUTED,
        data: str | None = None,
    ) -> None:
        """Add a figure.

        Args:
            name: of the figure; a group within it stands behind a slash (``test_iou/cloud``).
            value: an estimate with its interval, a plain number, or None.
            n: chips, lakes or pixels that a plain number rests on; an estimate knows its own.
            reference: what predictions were compared with: label, or truth, which the name then says.
            reason: why a plain number has no interval, or None stands in its place.
            data: kind of the data where it is not the study's.
        """
        from cryosentinel.evaluation.metrics import metric_entry

        if reference != LABEL:
            name, slash, group = name.partition("/")
            name = f"{name}_{reference}{slash}{group}"
        kind = data or self.data
        if value is None or isinstance(value, int | float):
            self.added[name] = metric_entry(value, None, None, n, kind, self.source, reason)
        else:
            self.added[name] = value.entry(kind, self.source)

    def read(self) -> dict[str, dict[str, Any]]:
        """Every figure of the file."""
        return read_json(self.path) if self.path.is_file() else {}

    def write(self, entries: Mapping[str, Mapping[str, Any]] | None = None) -> pd.DataFrame:
        """Merge what was added into the file.

        Args:
            entries: further figures, in the file's own form (:func:`cryosentinel.evaluation.metrics.metric_entry`).

        Returns:
            The new figures as a table that people read.

        Raises:
            ConfigError: the folder holds a study of another preset.
        """
        from cryosentinel.evaluation import tables

        self._refuse_another_preset()
        new = {**self.added, **(entries or {})}
        with self._lock():
            write_json(self.path, dict(sorted({**self.read(), **new}.items())))
        return tables.entries(new)

    # --- wall times --------------------------------------------------------------------------------------------

    def times(self) -> dict[str, dict[str, Any]]:
        """Stage -> seconds, preset, date, and the machine that took them."""
        return read_json(self.timings_path) if self.timings_path.is_file() else {}

    def note_time(self, stage: str, seconds: float) -> None:
        """Add the wall time of a stage that was made."""
        day = datetime.now().date().isoformat()
        entry = {"seconds": round(seconds, 1), "preset": self.preset, "date": day, "machine": machine()}
        with self._lock():
            write_json(self.timings_path, {**self.times(), stage: entry})

    def _lock(self) -> BaseFileLock:
        """Held while a file is read, changed and written: two notebooks may have the same folder."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".metrics.lock")

    @contextlib.contextmanager
    def timed(self, stage: str, sentence: str) -> Iterator[None]:
        """Announce a stage that has to be made, and note how long it took."""
        self._refuse_another_preset()
        print(sentence, flush=True)
        begun = time.monotonic()
        yield
        self.note_time(stage, time.monotonic() - begun)

    def begin(self) -> None:
        """Make room for this study: what the folder holds of another preset goes."""
        if self._other_presets():
            self.timings_path.unlink()
            self.path.unlink(missing_ok=True)

    def _other_presets(self) -> set[str]:
        return {entry["preset"] for entry in self.times().values()} - {self.preset}

    def _refuse_another_preset(self) -> None:
        if others := self._other_presets():
            raise ConfigError(
                f"{self.folder} holds the figures of preset {', '.join(sorted(others))}, not of {self.preset}; give "
                "another folder: out."
            )
