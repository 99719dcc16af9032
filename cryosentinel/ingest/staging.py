"""What a run has done so far: finished groups of chips wait in a folder until all are there, and then become shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryosentinel.data.chips import Chip, iter_shard, write_shard
from cryosentinel.errors import InputError
from cryosentinel.files import read_json, write_json
from cryosentinel.ingest.group import Result
from cryosentinel.paths import SHARDS

RECORD_FILE = "ingest.json"
PART = 32  # chips a file: a file is put together in memory


class Staging:
    """Finished groups of a region and year, ``<out>/.ingest/<region>-<year>/group_NNNNN{_PPP.parquet,.json}``.

    A group's chips are written before its JSON, and the JSON says that it is done: a kill in between costs one group.
    """

    def __init__(self, out: Path, region: str, year: int, identity: str) -> None:
        self.region, self.year = region, year
        self.folder = out / ".ingest" / f"{region}-{year}"
        self.target = out / region / str(year)
        self.record = self.target / RECORD_FILE
        self.identity = identity

    def check(self) -> bool:
        """Whether the region and year are built already, in just this way.

        Raises:
            InputError: they were built, or begun, in another way or by something else.
        """
        for record, what in ((self.record, "holds"), (self.folder / RECORD_FILE, "holds a part of")):
            if record.exists():
                found = read_json(record)
                if not isinstance(found, dict) or found.get("identity") != self.identity:
                    raise InputError(
                        f"{record.parent} {what} an ingest with other settings, inventory or service; use another "
                        "output folder, or remove this one first."
                    )
                if found.get("complete") is True:
                    return True
        if not self.record.exists() and any(self.target.glob(Path(SHARDS).name)) and not self.folder.exists():
            raise InputError(f"{self.target} holds shards of another origin; ingest into another folder.")
        return False

    def begin(self, settings: dict[str, Any]) -> None:
        """Say what is being built here."""
        write_json(self.folder / RECORD_FILE, {"identity": self.identity, "complete": False, **settings})

    def done(self, number: int) -> bool:
        """Whether a window is finished."""
        return self._record(number).exists()

    def put(self, number: int, result: Result) -> None:
        """Keep a finished group."""
        parts = range(0, len(result.chips), PART)
        for part, begin in enumerate(parts):
            write_shard(self._part(number, part), result.chips[begin : begin + PART])
        write_json(
            self._record(number),
            {"rows": result.rows, "broken": result.broken, "notes": result.notes, "parts": len(parts)},
        )

    def get(self, number: int) -> dict[str, Any]:
        """A finished group's rows, what could not be read in it ("broken"), and its notes."""
        return read_json(self._record(number))

    def chips(self, numbers: list[int]) -> Iterator[Chip]:
        """The chips of finished groups, one after the other."""
        for number in numbers:
            for part in range(self.get(number)["parts"]):
                yield from iter_shard(self._part(number, part))

    def finish(self, summary: dict[str, Any]) -> None:
        """Say that the shards are complete, and drop the groups."""
        begun = json.loads((self.folder / RECORD_FILE).read_text(encoding="utf-8"))
        write_json(self.record, {**begun, **summary, "complete": True})
        shutil.rmtree(self.folder, ignore_errors=True)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _record(self, number: int) -> Path:
        return self.folder / f"group_{number:05d}.json"

    def _part(self, number: int, part: int) -> Path:
        return self.folder / f"group_{number:05d}_{part:03d}.parquet"
