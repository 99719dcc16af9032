"""Put the soup of a finished study into the package: bfloat16 weights, the model card and area intervals beside them.

``python scripts/ship_weights.py [STUDY [RUN]]``: STUDY is the folder with metrics.json (outputs/study by default), RUN
the run folder (that of the study's preset by default). What lies in cryosentinel/weights is replaced; ``cryosentinel
map`` and ``predict`` use it where no checkpoint is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cryosentinel import paths
from cryosentinel.errors import CryoSentinelError
from cryosentinel.files import read_json, replacing, write_text
from cryosentinel.mapping.areas import Intervals
from cryosentinel.models.convert import convert
from cryosentinel.study.model_card import write_model_card

FOLDER = paths.PACKAGE / "weights"
NAME = "glacial_lakes_simulated.safetensors"


def preset_of(study: Path) -> str:
    """The preset of a study, which is also the name of its run folder."""
    (preset,) = {stage["preset"] for stage in read_json(study / "timings.json").values()}
    return str(preset)


def ship(study: Path, run: Path, folder: Path = FOLDER) -> Path:
    """Write the weights and their card.

    Args:
        study: folder with metrics.json and timings.json.
        run: folder whose checkpoints hold the soup.
        folder: where to.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = convert(run / "checkpoints" / paths.SOUP, folder / NAME)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        # Half the bytes; rounding moves a weight by at most 0.4 %.
        tensors = {name: file.get_tensor(name).to(torch.bfloat16) for name in file.keys()}  # noqa: SIM118
    with replacing(path) as part:
        save_file(tensors, part, metadata)
    path.chmod(0o644)
    card = write_model_card(folder, read_json(study / "metrics.json"), f"CryoSentinel {run.name}", preset_of(study))
    text = (
        card.read_text(encoding="utf-8").replace(f"checkpoints/{paths.SOUP}", NAME).replace(f" --ckpt {paths.SOUP}", "")
    )
    write_text(card, text)
    # What chapter 7 calibrated for this network with the flips of `cryosentinel map`; those of another one are wrong.
    intervals, shipped = study / "lake_maps" / "intervals_four_flips.json", folder / "intervals.json"
    if intervals.is_file():
        Intervals.read(intervals).write(shipped)
        shipped.chmod(0o644)
    else:
        shipped.unlink(missing_ok=True)
        print(f"{intervals} is not there: area bounds will come from outlines; run the study's chapter 7 first.")
    return path


def main(words: list[str]) -> int:
    """Run the script; errors end in a sentence."""
    try:
        study = Path(words[0]) if words else paths.outputs() / "study"
        run = Path(words[1]) if len(words) > 1 else paths.runs() / preset_of(study)
        path = ship(study, run)
    except (CryoSentinelError, ValueError) as error:
        print(f"ship_weights: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
