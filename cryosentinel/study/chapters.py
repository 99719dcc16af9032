"""The study runs the notebooks, in order, into the book. What they compute is in :mod:`cryosentinel.study.stages`."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryosentinel.errors import ConfigError, CryoSentinelError, InputError
from cryosentinel.files import read_json, replacing, sha256, write_json
from cryosentinel.paths import CONFIGS, PACKAGE, project_root
from cryosentinel.study import ledger
from cryosentinel.study.parameters import check_names, check_values
from cryosentinel.study.study import Study

NOTEBOOKS = (
    "01_data", "02_train", "03_evaluate", "04_label_noise_audit", "05_limitations", "07_lake_maps", "06_failed_finetune"
)  # fmt: skip


def notebook_parameters(name: str) -> dict[str, dict[str, Any]]:
    """Parameters of a notebook, from its tagged cell: name -> {default, help, inferred_type_name}."""
    import papermill

    path = project_root() / "notebooks" / f"{name}.ipynb"
    if not path.is_file():
        raise InputError(f"There is no notebook {path}; run from the repository's root.")
    return papermill.inspect_notebook(str(path))


def check_parameters(parameters: Mapping[str, Any], names: Sequence[str] = NOTEBOOKS) -> dict[str, dict[str, Any]]:
    """Give each notebook the parameters that it knows.

    Args:
        parameters: name -> value, for any of the notebooks.
        names: the notebooks that will run.

    Returns:
        notebook -> its share of ``parameters``.

    Raises:
        ConfigError: a parameter that no notebook knows (papermill alone would only warn), or a value out of range.
        InputError, CheckpointError: a folder or a file that is not there.
    """
    known = {name: notebook_parameters(name) for name in names}
    check_names(parameters, {parameter for of_one in known.values() for parameter in of_one})
    check_values(parameters)
    return {name: {k: v for k, v in parameters.items() if k in known[name]} for name in names}


def chapter_key(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """What an executed chapter depends on: notebook, parameters, package, configurations, the record that it may show.

    Data and weights follow from these: everything random is seeded.
    """
    root = project_root()
    sources = sorted([*PACKAGE.rglob("*.py"), *CONFIGS.glob("*.yaml"), notebook])
    records = [root / "book" / name for name in ("standard_metrics.json", "audit.json")]
    sources += [record for record in records if record.is_file()]
    digest = hashlib.sha256(json.dumps(dict(parameters), sort_keys=True).encode())
    for source in sources:  # the package need not lie in the clone
        name = source.relative_to(PACKAGE) if source.is_relative_to(PACKAGE) else source.name
        digest.update(str(name).encode() + bytes.fromhex(sha256(source)))
    return digest.hexdigest()


def _made_with(chapter: Path) -> str | None:
    try:
        return json.loads(chapter.read_text(encoding="utf-8"))["metadata"]["cryosentinel"]["key"]
    except (OSError, ValueError, KeyError):
        return None


def _as_chapter(executed: dict[str, Any], key: str) -> dict[str, Any]:
    """An executed notebook as a page: without progress bars, and without what papermill notes of this machine."""
    executed["metadata"].pop("papermill", None)
    executed["metadata"]["cryosentinel"] = {"key": key}
    for cell in executed["cells"]:
        cell["metadata"].pop("papermill", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    return executed


def run_study(
    preset: str = "quick",
    out: str | Path | None = None,
    chapters: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    notebooks: Sequence[str] = NOTEBOOKS,
    force: bool = False,
) -> Path:
    """Run the notebooks of the study in order; a chapter whose sources did not change is not run again.

    Args:
        preset: size of the embedded benchmark and of the training run: tiny, quick or standard.
        out: folder of the study's own files (metrics.json, timings.json, figures); ``outputs/study`` by default.
        chapters: folder of the executed notebooks; ``book/chapters`` by default.
        parameters: further parameters of the notebooks.
        notebooks: which of them to run.
        force: run every chapter again.

    Returns:
        The metrics file.

    Raises:
        ConfigError: an unknown preset or parameter.
        CryoSentinelError: a notebook failed; what was made before it is kept, and the next run goes on from there.
    """
    import papermill

    study = Study(preset, out=out)
    chapters = Path(chapters) if chapters is not None else project_root() / "book" / "chapters"
    for name in notebooks:
        if name not in NOTEBOOKS:
            raise ConfigError(f"There is no notebook {name!r}; known are {', '.join(NOTEBOOKS)}.")
    # Relative where it can be: the parameters stand on the page.
    common = {"preset": preset, "out": os.path.relpath(study.out, project_root())}
    given = check_parameters({**(parameters or {}), **common}, notebooks)
    study.metrics.begin()
    started = time.monotonic()
    for number, name in enumerate(notebooks, start=1):
        source, target = project_root() / "notebooks" / f"{name}.ipynb", chapters / f"{name}.ipynb"
        key = chapter_key(source, given[name])
        if not force and _made_with(target) == key and study.metrics.path.is_file():
            print(f"[{number}/{len(notebooks)}] {name}: unchanged, kept", flush=True)
            continue
        print(f"[{number}/{len(notebooks)}] {name}: running", flush=True)
        begun = time.monotonic()
        with replacing(target) as part:
            try:
                papermill.execute_notebook(
                    str(source), str(part), parameters=given[name], cwd=str(project_root()), progress_bar=False,
                    # The cells' own bars and announcements, as they come; the kernel's chatter stays out of them.
                    stdout_file=sys.stdout, stderr_file=sys.stderr, extra_arguments=["--log-level=CRITICAL"],
                )  # fmt: skip
            except papermill.exceptions.PapermillExecutionError as error:
                failed = study.out / "failed" / f"{name}.ipynb"
                failed.parent.mkdir(parents=True, exist_ok=True)
                part.replace(failed)
                raise CryoSentinelError(
                    f"Notebook {name} failed with {error.ename}: {error.evalue} (whole output in {failed}); "
                    "mend it and run the study again, it goes on from there."
                ) from None
            part.write_text(json.dumps(_as_chapter(json.loads(part.read_text("utf-8")), key), indent=1), "utf-8")
        study.metrics.note_time(f"notebook_{name}", time.monotonic() - begun)
    ledger.write(study.out, study.metrics.read(), study.kind)
    print(f"Study {preset}: {study.metrics.path} after {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return study.metrics.path


def run_seeds(
    seeds: Sequence[int],
    preset: str = "quick",
    out: str | Path | None = None,
    chapters: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Run the study once a seed of the training, and summarise every figure over the runs.

    The chips, their split and the baselines stay the same: what differs is initial weights, order and augmentation. The
    configuration's own seed is the study itself, with its chapters in the book; the others lie in ``OUT/seeds/<seed>``.

    Args:
        seeds: of the training runs, two or more.
        preset, out, chapters, parameters, force: as for :func:`run_study`.

    Returns:
        ``OUT/seeds.json``, see :func:`seed_summary`.

    Raises:
        ConfigError: fewer than two seeds, a seed twice, or one below 1.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 1:
        raise ConfigError(f"The seeds are {list(seeds)}; give two or more different ones from 1 on.")
    study = Study(preset, out=out)
    trained = [name for name in NOTEBOOKS if "seed" in notebook_parameters(name)]
    found = {}
    for number, seed in enumerate(seeds, start=1):
        print(f"Seed {seed} ({number} of {len(seeds)})", flush=True)
        if seed == study.own_seed:
            path = run_study(preset, out, chapters, parameters, force=force)
        else:
            folder = study.out / "seeds" / str(seed)
            given = {**(parameters or {}), "seed": seed}
            path = run_study(preset, folder, folder / "chapters", given, trained, force)
        found[seed] = read_json(path)
    path = study.out / "seeds.json"
    figures = seed_summary(found)
    write_json(path, {"preset": preset, "seeds": list(seeds), "figures": figures})
    width = max(map(len, figures), default=0)
    for name, entry in figures.items():
        print(f"{name:<{width}}  {entry['mean']:.4f} +- {entry['spread']:.4f}")
    return path


def seed_summary(found: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and spread over seeds of every figure that all runs have and that the seed moves.

    Args:
        found: seed -> metrics file.

    Returns:
        name -> ``mean``, ``spread`` (standard deviation over seeds, n - 1), ``values`` by seed, ``data``, and where the
        runs have an interval ``low`` and ``high`` by seed.
    """
    out = {}
    for name in sorted(set.intersection(*(set(metrics) for metrics in found.values()))):
        values = {str(seed): metrics[name]["value"] for seed, metrics in found.items()}
        if None in values.values() or len(set(values.values())) == 1:
            continue
        kind = next(iter(found.values()))[name]["data"]
        out[name] = {"mean": statistics.mean(values.values()), "spread": statistics.stdev(values.values()),
                     "values": values, "data": kind}  # fmt: skip
        ends = {end: {str(s): metrics[name].get(end) for s, metrics in found.items()} for end in ("low", "high")}
        if None not in (*ends["low"].values(), *ends["high"].values()):
            out[name] |= ends
    return out
