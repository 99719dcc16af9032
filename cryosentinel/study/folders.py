"""Where a study reads and writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryosentinel import __version__, paths


@dataclass(frozen=True)
class Folders:
    """The folders of one study.

    Attributes:
        chips: shards in the published format.
        run: run folder of the study's network.
        out: metrics file, wall times and figures.
        by_hand: whether ``out`` is a new folder of a notebook that somebody runs by hand.
    """

    chips: Path
    run: Path
    out: Path
    by_hand: bool

    @classmethod
    def of(cls, preset: str, data: str | Path, out: str | Path | None, notebook: str, seed: int | None) -> Folders:
        """The folders that the arguments of :class:`cryosentinel.study.study.Study` mean; ``seed`` if not its own."""
        chips = Path(data) if data else paths.datasets() / preset
        run = paths.runs() / (f"{chips.resolve().name}_{preset}" if data else preset)
        if seed is not None:
            # Within the run's folder, so that "the latest run" of a bare checkpoint name is never one of them.
            run = run / "seeds" / f"{run.name}_seed{seed}"
        if out == "":
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
            return cls(chips, run, paths.runs() / f"{notebook}_{preset}_{stamp}", True)
        return cls(chips, run, Path(out) if out is not None else paths.study(), False)

    def fit(self, network: str | None = None, overrides: Mapping[str, Any] | None = None) -> Path:
        """The run folder of another network, or of changed settings; the study's own run without either."""
        run = self.run if network is None else self.run / "networks" / f"{self.run.name}_{network}"
        if not overrides:
            return run
        digest = hashlib.sha256(repr(sorted(overrides.items())).encode()).hexdigest()[:8]
        # Within the run's folder, as seeds and networks are: a bare soup.ckpt must not mean one trained on less.
        return run / "variants" / f"{run.name}_{digest}"

    def predictions(self, name: str, made_from: Mapping[str, Any]) -> Path:
        """The folder of one predictor's maps and score tables, shared by all that ask for the same ones.

        Args:
            name: of the predictor, for people.
            made_from: digests and settings that fix the predictions.
        """
        text = json.dumps([__version__, str(self.chips.resolve()), dict(made_from)], sort_keys=True)
        return paths.evaluations() / f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
