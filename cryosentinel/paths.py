"""Where things lie: the clone, everything generated, what comes with the package, and the files of a dataset.

This is the only module that knows. Nothing else builds a path from ``__file__``, from the working folder, or from the
environment variable ``CRYOSENTINEL_OUTPUTS``.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryosentinel.errors import CheckpointError, ConfigError, InputError

PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE / "configs"
PUBLISHED = PACKAGE / "published.json"  # figures of the published system, read from its model card

OUTPUTS_VARIABLE = "CRYOSENTINEL_OUTPUTS"
#: The mean of a run's snapshots, among the run's checkpoints.
SOUP = "soup.ckpt"

#: Of a dataset, below its root: the shards as a pattern, and the statistics of its training split.
SHARDS = "*/*/shard_*.parquet"
STATISTICS_FILE = "dataset_stats_v3.json"


def clone() -> Path | None:
    """The root of the clone: the working folder where that is one, else where the package's source lies.

    None where there is neither, as beside an installed wheel: whatever runs without notebooks and book must not ask
    for more.
    """
    return next(
        (root for root in (Path.cwd(), PACKAGE.parent) if (root / "notebooks" / "01_data.ipynb").is_file()), None
    )


def project_root() -> Path:
    """The root of the clone, for what cannot do without one: the whole study and the book.

    Raises:
        InputError: there is no clone, see :func:`clone`.
    """
    root = clone()
    if root is None:
        raise InputError(f"The folder {Path.cwd()} holds no notebooks; run from the root of a clone of the repository.")
    return root


def outputs() -> Path:
    """The folder of everything generated: ``$CRYOSENTINEL_OUTPUTS``, else ``outputs`` in the clone.

    Outside a clone it is ``outputs`` in the working folder.
    """
    given = os.environ.get(OUTPUTS_VARIABLE)
    return Path(given).resolve() if given else (clone() or Path.cwd()) / "outputs"


def under_outputs(path: str | os.PathLike[str]) -> Path:
    """A path as configurations write it: ``outputs/...`` lies in :func:`outputs`, wherever that is."""
    first, *rest = Path(path).parts or (".",)
    return outputs().joinpath(*rest) if first == "outputs" else Path(path)


def datasets() -> Path:
    """The folder of simulated datasets, one a preset."""
    return outputs() / "data"


def runs() -> Path:
    """The folder of run folders."""
    return outputs() / "runs"


def snapshots(run: str | os.PathLike[str]) -> list[Path]:
    """The snapshots of a run folder, in order of their steps.

    Raises:
        InputError: there are none.
    """
    found = sorted((Path(run) / "checkpoints").glob("step*-iou*.ckpt"))
    if not found:
        raise InputError(f"{run} holds no snapshots (checkpoints/step*-iou*.ckpt); train first: cryosentinel fit.")
    return found


def predictions() -> Path:
    """The folder of mapped scenes."""
    return outputs() / "predictions"


def evaluations() -> Path:
    """The folder of predicted maps and score tables, one folder a checkpoint and setting."""
    return outputs() / "evaluations"


def study() -> Path:
    """The folder of the study's metrics file and figures."""
    return outputs() / "study"


def real_data() -> Path | None:
    """The folder of real reference data, ``$CRYOSENTINEL_REAL_DATA``; None where there is none."""
    root = os.environ.get("CRYOSENTINEL_REAL_DATA")
    return Path(root) if root and Path(root).is_dir() else None


def real_chips(folder: str | os.PathLike[str] = "") -> Path | None:
    """The folder of real chips laid out as TerraMesh; None where there is none.

    Args:
        folder: given explicitly; else ``$CRYOSENTINEL_REAL_DATA/terramesh_chips``.

    Raises:
        InputError: a folder was given and is not there.
    """
    if folder:
        if not Path(folder).is_dir():
            raise InputError(f"There is no folder {folder} of real chips; leave it out to skip them.")
        return Path(folder)
    root = real_data()
    return root / "terramesh_chips" if root is not None and (root / "terramesh_chips").is_dir() else None


def existing(path: str | os.PathLike[str], what: str = "file") -> Path:
    """A file that is to be read, looked for before anything slow begins.

    Args:
        path: its name. What only GDAL resolves (``/vsi...``, an address) is left to it.
        what: it is, in the message.

    Raises:
        InputError: there is no such file.
    """
    name = os.fspath(path)
    if not (Path(name).is_file() or name.startswith("/vsi") or "://" in name):
        raise InputError(f"There is no {what} {name}; check the path.")
    return Path(name)


def dataset(root: str | os.PathLike[str]) -> list[Path]:
    """The shards of a dataset, sorted.

    Raises:
        InputError: the folder is missing, or holds none.
    """
    if not Path(root).is_dir():
        raise InputError(f"There is no dataset folder {root}; simulate, ingest or download one, or check the path.")
    found = sorted(Path(root).glob(SHARDS))
    if not found:
        raise InputError(f"{root} holds no shards; they are expected at <region>/<year>/shard_NNN.parquet below it.")
    return found


def checkpoint(name: str | os.PathLike[str], runs_folder: str | os.PathLike[str] | None = None) -> Path:
    """A checkpoint by path, or by name in the latest run.

    Args:
        name: an existing path; or a bare name such as ``soup.ckpt``, looked for in the ``checkpoints`` folder of every
            run, the latest written wins.
        runs_folder: the folder of run folders; the outputs' own by default.

    Raises:
        CheckpointError: there is no such file.
    """
    path, folder = Path(name), runs() if runs_folder is None else Path(runs_folder)
    if path.is_file():
        return path
    if path.name != os.fspath(name):
        raise CheckpointError(f"There is no checkpoint {name}; check the path.")
    held = [each for each in folder.glob("*/checkpoints/*") if each.is_file()]
    if found := [each for each in held if each.name == path.name]:
        return max(found, key=lambda each: (each.stat().st_mtime_ns, each))
    others = sorted({each.name for each in held if each.suffix == ".ckpt"})
    there = f"the runs there hold {', '.join(others[:5])}" if others else "there are no finished runs there"
    raise CheckpointError(
        f"No run in {folder} holds a checkpoint {name} ({there}); run the training first, or give a path or an hf:// "
        "address."
    )


def start_weights(weights: str | None) -> None:
    """Look for the weights that a run is to start from, and say what to do where they are not there.

    Raises:
        CheckpointError: there is no such file. An address on the hub is left to the hub.
    """
    if weights is None or weights.startswith("hf://") or Path(weights).is_file():
        return
    path, advice = Path(weights), "check the path"
    if path.parts[-2:] == ("checkpoints", SOUP):
        run = path.parent.parent
        advice = f"it is the soup of an earlier run: make it with `cryosentinel soup {run}`"
        if not any(path.parent.glob("step*-iou*.ckpt")):
            advice += ", once that run is trained"
            name = Path("configs") / f"{run.name}.yaml"
            advice += f" (`cryosentinel fit --config {name}`)" if (CONFIGS / name.name).is_file() else ""
    raise CheckpointError(
        f"There is no file {weights} to start from; {advice}, or name other weights with --model.weights."
    )


def shard_path(root: str | os.PathLike[str], region: str, year: int, number: int) -> Path:
    """A shard of a dataset: ``<root>/<region>/<year>/shard_NNN.parquet``."""
    return Path(root, region, str(year), f"shard_{number:03d}.parquet")


def truth_folder(root: str | os.PathLike[str]) -> Path:
    """The folder beside a simulated dataset that holds what is true of its chips: ``<root>-truth``."""
    root = Path(root).absolute()
    return root.with_name(f"{root.name}-truth")


def config(name: str | os.PathLike[str]) -> Path:
    """A configuration by its path, or by the name of one that comes with the package.

    Args:
        name: a YAML file, or the name of one of ours (``quick``, also ``configs/quick.yaml``), which works in any
            folder.

    Raises:
        ConfigError: there is no such file, and no such name.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = CONFIGS / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    if Path(name).parent.as_posix() in (".", "configs") and packaged.is_file():
        return packaged
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise ConfigError(f"There is no configuration file {name}; give a YAML file, or one that comes along: {known}.")


def display_path(path: Path) -> str:
    """A path as pages show it: from the root of the clone where it lies inside, else its name alone."""
    root, full = clone(), path.resolve()
    return full.relative_to(root).as_posix() if root is not None and full.is_relative_to(root) else path.name
