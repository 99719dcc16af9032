"""One tiny study serves every test that looks at executed notebooks, the book or the run."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# Warnings about a missing hub would take half a minute of retries each; nothing in the tests needs a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class TinyStudy:
    """Where the study of preset tiny was made: ``outputs`` (data, runs, study) and the executed ``chapters``."""

    outputs: Path
    chapters: Path
    log: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which commands find these outputs."""
        return {**os.environ, "CRYOSENTINEL_OUTPUTS": str(self.outputs)}

    def command(self, *words: str, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run ``cryosentinel`` on these outputs from the repository's root."""
        return subprocess.run(
            [sys.executable, "-m", "cryosentinel", *words], cwd=ROOT, env=self.environment, text=True,
            capture_output=True, stdin=subprocess.DEVNULL, check=False, **options,
        )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups of pytest-xdist: a file each, but all tests of the tiny study in one process, so that it is made once.

    The longest groups come first (``--no-loadscope-reorder`` keeps them there), so that no process waits for them.
    """

    def group(item: pytest.Item) -> str:
        return "tiny_study" if "tiny_study" in getattr(item, "fixturenames", ()) else item.path.name

    long = {group(item) for item in items if item.get_closest_marker("slow")} - {"tiny_study"}
    items.sort(key=lambda item: (group(item) != "tiny_study", group(item) not in long))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    folder = tmp_path_factory.mktemp("tiny_study")
    study = TinyStudy(folder / "outputs", folder / "chapters", "")
    words = ["study", "--preset", "tiny", "--chapters", str(study.chapters)]
    result = study.command(*words)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return TinyStudy(study.outputs, study.chapters, result.stdout)
