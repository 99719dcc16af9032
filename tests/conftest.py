"""One tiny study serves every test that looks at executed notebooks, the book or the run."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the files, which pytest-xdist hands out one by one (``--dist loadfile --no-loadscope-reorder``).

    The first one makes the tiny study, the longest of the others follow, and what looks at the study comes last: by
    then it is there, and no process waits for it.
    """

    def rank(item: pytest.Item) -> tuple[int, bool]:
        looks = item.path.name in studies
        return (0 if item.path.name == "test_golden.py" else 2 if looks else 1), item.path.name not in long

    studies = {item.path.name for item in items if "tiny_study" in getattr(item, "fixturenames", ())}
    long = {item.path.name for item in items if item.get_closest_marker("slow")}
    items.sort(key=rank)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """Made once, also where several processes of pytest-xdist ask for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny_study"
    study, log = TinyStudy(folder / "outputs", folder / "chapters", ""), folder / "log.txt"
    with FileLock(folder.with_suffix(".lock")):
        if not log.is_file():
            folder.mkdir()
            result = study.command("study", "--preset", "tiny", "--chapters", str(study.chapters))
            assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
            log.write_text(result.stdout, encoding="utf-8")
    return TinyStudy(study.outputs, study.chapters, log.read_text(encoding="utf-8"))


@pytest.fixture
def ckpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that opens as the index model."""
    from test_predict import PixelModel

    from cryosentinel.mapping import product

    path = tmp_path / "model.ckpt"
    path.write_bytes(b"weights")
    monkeypatch.setattr(product, "_load", lambda *_: PixelModel().eval())
    return path
