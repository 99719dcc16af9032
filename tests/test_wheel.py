"""An installed wheel, and nothing else, runs a notebook: no clone is needed, and none is looked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, TinyStudy

from cryosentinel.files import read_json


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip would install it; dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build leaves its own folders beside the sources.
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cryosentinel", folder / "source" / "cryosentinel", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    words = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    built = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = folder.glob("cryosentinel-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _run(installed: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CRYOSENTINEL_")}
    environment |= {"PYTHONPATH": str(installed), **variables}
    command = [sys.executable, "-P", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_carries_configurations_and_figures_and_no_tests(installed: Path) -> None:
    there = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {"cryosentinel/configs/quick.yaml", "cryosentinel/published.json"} <= there
    assert any(name.startswith("cryosentinel/mapping/leaflet/") for name in there)
    assert not [name for name in there if "test" in name or name.startswith(("notebooks", "book", "benchmarks"))]


def test_outputs_lie_in_the_working_folder_and_the_whole_study_asks_for_a_clone(
    installed: Path, tmp_path: Path
) -> None:
    code = "from cryosentinel import paths; print(paths.__file__, paths.outputs(), paths.config('configs/quick.yaml'))"
    done = _run(installed, tmp_path, "-c", code)
    module, outputs, config = done.stdout.split()
    assert module.startswith(str(installed)) and config.startswith(str(installed)), done.stderr
    assert outputs == str(tmp_path / "outputs")
    done = _run(installed, tmp_path, "-m", "cryosentinel", "study", "--preset", "tiny")
    assert done.returncode == 2 and "clone" in done.stderr


@pytest.mark.slow
def test_a_notebook_runs_in_an_empty_folder(installed: Path, tiny_study: TinyStudy, tmp_path: Path) -> None:
    shutil.copy(ROOT / "notebooks" / "02_train.ipynb", tmp_path)
    # What the tiny study made is taken, so that this takes seconds; without it the notebook would make it.
    words = ["-m", "papermill", "02_train.ipynb", "out.ipynb", "-p", "preset", "tiny"]
    done = _run(installed, tmp_path, *words, CRYOSENTINEL_OUTPUTS=str(tiny_study.outputs))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tiny_study.outputs / "runs").glob("02_train_tiny_*")
    assert read_json(folder / "metrics.json")["val_iou@0.50_soup"]["data"] == "simulated"
    executed = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "No comparison is recorded" in executed, "the record lies in a clone, and there is none here"
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("02_train.ipynb", "out.ipynb")] == []
