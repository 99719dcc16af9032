"""The subcommands as typed functions: jsonargparse reads options, types and help from signatures and docstrings.

Every import waits until its command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def study(
    preset: Literal["tiny", "quick", "standard"] = "quick",
    out: Path | None = None,
    chapters: Path | None = None,
    parameters: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Run the whole study on the embedded benchmark and write its notebooks, executed, into the book.

    Args:
        preset: size: tiny (seconds of training, for tests), quick (minutes) or standard (an hour and more).
        out: folder of metrics.json and the study's figures; outputs/study by default.
        chapters: folder of the executed notebooks; book/chapters by default.
        parameters: further parameters of the notebooks, as --parameters.NAME VALUE; unknown names are refused.
        force: run again what did not change.
    """
    from cryosentinel.study import run_study

    run_study(preset, out=out, chapters=chapters, parameters=parameters, force=force)


def simulate(
    root: Path,
    preset: Literal["tiny", "quick", "standard"] = "quick",
    seed: int | None = None,
    workers: int = 2,
) -> None:
    """Write the embedded benchmark: simulated chips in the published format, the known truth in a sibling folder.

    Args:
        root: folder of the shards; the truth goes to ROOT-truth.
        preset: number of places, windows and years.
        seed: another draw of the same kind; the preset's own by default.
        workers: processes; the chips do not depend on it.
    """
    from dataclasses import replace

    from cryosentinel.data.simulate import PRESETS
    from cryosentinel.data.simulate import simulate as run

    config = PRESETS[preset] if seed is None else replace(PRESETS[preset], seed=seed)
    print(run(root, config, workers=workers))


def soup(run: Path, out: Path | None = None) -> None:
    """Average the snapshots of a run, tensor by tensor, into one checkpoint.

    Args:
        run: run folder; its checkpoints/step*-iou*.ckpt go in.
        out: checkpoint to write; RUN/checkpoints/soup.ckpt by default.
    """
    from cryosentinel.stages import make_soup

    print(make_soup(run, out))


def evaluate(
    ckpt: str,
    data: Path,
    out: Path | None = None,
    splits: tuple[str, ...] = ("val", "test"),
    flips: Literal[1, 2, 4] = 4,
    runs: Path = Path("outputs/runs"),
) -> None:
    """Score a checkpoint against the labels, and against the known truth where there is one.

    Args:
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path.
        data: folder of shards in the published format.
        out: folder for diagnostics/; the checkpoint's run folder by default.
        splits: which splits.
        flips: test-time flips averaged in logit space.
        runs: where bare names are looked for.
    """
    from cryosentinel.stages import evaluate_checkpoint

    result = evaluate_checkpoint(ckpt, data, out=out, splits=splits, flips=flips, runs=runs)
    print(result.summary().to_string())


def audit(
    ckpt: str,
    data: Path,
    out: Path | None = None,
    split: str = "test",
    worst: int = 20,
    control: int = 20,
    runs: Path = Path("outputs/runs"),
) -> None:
    """Compare label, MNDWI and prediction of a split in both directions, and score the corrected labels.

    Args:
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path.
        data: folder of shards in the published format.
        out: folder for the verdict table and the figures; RUN/audit by default.
        split: which split.
        worst: number of chips with the largest disagreement to judge.
        control: number of chips drawn at random beside them.
        runs: where bare names are looked for.
    """
    from cryosentinel.stages import audit_checkpoint

    result = audit_checkpoint(ckpt, data, out=out, split=split, worst=worst, control=control, runs=runs)
    print(result.verdicts.to_string())


def predict(
    scenes: list[Path],
    ckpt: str = "soup.ckpt",
    out: Path = Path("outputs/predictions"),
    threshold: float = 0.5,
    flips: Literal[1, 2, 4] = 4,
    overlap: int = 112,
    batch_size: int = 8,
    device: str = "cpu",
    runs: Path = Path("outputs/runs"),
) -> None:
    """Map water over 15-band GeoTIFF scenes of any size.

    Args:
        scenes: GeoTIFFs of 12 Sentinel-2 bands, VV, VH and elevation, projected, 10 m (see: cryosentinel stack).
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path.
        out: folder for SCENE_probability.tif and SCENE_water.tif.
        threshold: probability from which a pixel is water.
        flips: test-time flips averaged in logit space.
        overlap: pixels that neighbouring windows share.
        batch_size: windows a forward pass.
        device: cpu or cuda.
        runs: where bare names are looked for.
    """
    from cryosentinel.mapping.scene import predict_scene
    from cryosentinel.models.checkpoint import load_segmenter, resolve_checkpoint

    segmenter = load_segmenter(resolve_checkpoint(ckpt, runs), device=device)
    for scene in scenes:
        result = predict_scene(
            segmenter, scene, out, threshold=threshold, flips=flips, overlap=overlap, batch_size=batch_size
        )
        share = result["water_pixels"] / max(1, result["valid_pixels"])
        print(f"{scene}: {result['water_ha']:.2f} ha of water, {share:.1%} of the valid pixels -> {result['water']}")


def stack(s2: Path, s1: Path, dem: Path, out: Path, s2_offset: int = 0, s1_linear: bool = False) -> None:
    """Build the 15-band GeoTIFF that predict takes from three rasters on one grid.

    Args:
        s2: 12 bands of Sentinel-2 L2A, reflectance x 10,000.
        s1: VV and VH.
        dem: elevation in metres.
        out: GeoTIFF to write.
        s2_offset: digital numbers to subtract: 1000 for raw L2A of processing baseline 04.00 and later.
        s1_linear: the radar is linear power rather than dB.
    """
    from cryosentinel.data.stack import stack_rasters

    print(stack_rasters(s2, s1, dem, out, s2_offset=s2_offset, s1_linear=s1_linear))
