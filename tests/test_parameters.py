"""Parameters of the notebooks: a wrong name or value ends in one sentence, before anything slow is imported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import papermill
import pytest
from conftest import ROOT

from cryosentinel.errors import CheckpointError, ConfigError, CryoSentinelError, HubError, InputError
from cryosentinel.sensors import REGIONS
from cryosentinel.study.chapters import NOTEBOOKS, check_parameters
from cryosentinel.study.parameters import RULES, check, check_values


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("CRYOSENTINEL_REAL_DATA", raising=False)
    return tmp_path


def _cells(name: str) -> list[dict]:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def _namespace(name: str, injected: str = "") -> dict:
    """The names of a notebook behind its parameters, as a kernel has them."""
    (cell,) = (cell for cell in _cells(name) if "parameters" in cell["metadata"].get("tags", []))
    found: dict = {"In": ["", "".join(cell["source"])]}
    exec("".join(cell["source"]), found)
    if injected:
        found["In"].append(f"# Parameters\n{injected}\n")
        exec(injected, found)
    return found


def test_every_notebook_checks_its_parameters_before_it_imports_anything(outputs: Path) -> None:
    declared = set()
    for name in NOTEBOOKS:
        code = ["".join(cell["source"]) for cell in _cells(name) if cell["cell_type"] == "code"]
        assert code[1].startswith("preset: str") and code[2].startswith("from cryosentinel.study.parameters import")
        assert "check(globals())" in code[2]
        namespace = _namespace(name)
        check(namespace)  # the defaults pass, with nothing made yet
        declared |= set(namespace["__annotations__"])
    assert declared == set(RULES), "a rule for every parameter, and none too many"


@pytest.mark.parametrize(
    ("injected", "kind", "words"),
    [
        ("thresold = 0.4", ConfigError, "thresold.*did you mean threshold"),
        ("worst = 3", ConfigError, "worst"),  # a parameter, but of another notebook
        ("preset = 'huge'", ConfigError, "huge.*tiny, quick, standard"),
        ("threshold = 0.503", ConfigError, r"threshold is 0\.503.*0\.005"),
        ("threshold = 1.0", ConfigError, r"threshold is 1\.0"),
        ("threshold = True", ConfigError, "True.*float"),
        ("threshold = float('nan')", ConfigError, "threshold is nan"),
        ("ckpt = 'hf://owner'", HubError, "hf://owner"),
        ("ckpt = 'hf://owner/repo/README.md'", ConfigError, "README.md.*safetensors"),
        ("flips = 3", ConfigError, "3; it is one of 1, 2, 4"),
        ("flips = True", ConfigError, "True.*int"),
        ("seed = -1", ConfigError, "0 or more"),
        ("seed = 1.5", ConfigError, "int"),
        ("ckpt = 7", ConfigError, "-r ckpt"),
        ("ckpt = 'nowhere/soup.ckpt'", CheckpointError, "nowhere/soup.ckpt"),
        ("ckpt = 'last.ckpt'", CheckpointError, "last.ckpt"),
        ("data = 'nowhere'", InputError, "nowhere"),
        ("saved = 'nowhere'", ConfigError, "saved.*tables"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(outputs: Path, injected: str, kind: type, words: str) -> None:
    with pytest.raises(CryoSentinelError, match=words) as caught:
        check(_namespace("03_evaluate", injected))
    assert type(caught.value) is kind and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"leave_out": ",".join(REGIONS)}, "every region"),
        ({"real_data": "."}, "S2L2A"),
        ({"leave_out": "pamir,karakorum"}, "karakorum.*known are.*karakoram"),
        ({"real_data": "nowhere"}, "nowhere"),
        ({"panels": 0}, "1 or more"),
        ({"networks": True}, "type str"),
        ({"networks": "stem,steam"}, "steam.*rim_counted"),
        ({"out": __file__}, "folder is needed"),
    ],
)
def test_values_of_other_notebooks_are_checked_too(outputs: Path, values: dict, words: str) -> None:
    with pytest.raises(CryoSentinelError, match=words):
        check_values(values)


def test_what_is_there_passes(outputs: Path) -> None:
    for name in ("a.ckpt", "chips/pamir/2023/shard_000.parquet", "tables/soup/x"):
        (outputs / name).parent.mkdir(parents=True, exist_ok=True)
        (outputs / name).touch()
    check_values({
        "ckpt": str(outputs / "a.ckpt"), "data": str(outputs / "chips"), "saved": str(outputs / "tables"),
        "threshold": 0.305, "leave_out": "karakoram,pamir", "seed": 7, "out": str(outputs / "new"),
    })  # fmt: skip
    check_values({"ckpt": "hf://owner/repo/soup.ckpt", "threshold": 0})


def test_the_study_checks_what_it_hands_on() -> None:
    with pytest.raises(ConfigError, match="thresold"):
        check_parameters({"thresold": 0.4})
    with pytest.raises(ConfigError, match=r"0\.503"):
        check_parameters({"threshold": 0.503})
    assert check_parameters({"threshold": 0.4})["03_evaluate"] == {"threshold": 0.4}


def test_the_sweep_of_the_page_ends_in_a_table_and_a_figure(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(source: str, target: Path, parameters: dict, **_: object) -> None:
        assert (ROOT / source).is_file() and set(parameters) <= set(_namespace("03_evaluate")["__annotations__"])
        check_values(parameters)
        found = {
            f"lakes_detected_truth/{size}": {"value": parameters["threshold"]}
            for size in ("under 0.5 ha", "over 10 ha", "frozen")
        }
        target.with_name("metrics.json").write_text(json.dumps({**found, "lakes_detected": {"value": None}}))

    monkeypatch.setattr(papermill, "execute_notebook", run)
    monkeypatch.chdir(outputs)
    page = (ROOT / "book" / "papermill.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.DOTALL)
    exec(block, names := {})
    assert names["table"].shape == (5, 4) and names["table"].to_numpy()[0].tolist() == [0.3] * 4
    assert "over 10 ha" in capsys.readouterr().out and (outputs / "outputs/sweep/found.png").stat().st_size > 5000


def test_papermill_ends_with_the_sentence_and_without_torch(tmp_path: Path) -> None:
    """The first cells in a real kernel, with a name that nobody declared."""
    code = [cell for cell in _cells("03_evaluate") if cell["cell_type"] == "code"][:3]
    code[2]["source"].insert(1, "import sys; assert 'torch' not in sys.modules\n")
    metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    notebook = {"cells": code, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "in.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    quiet = {"progress_bar": False, "cwd": str(ROOT)}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"thresold": 0.4}, **quiet)
    assert caught.value.ename == "ConfigError" and "did you mean threshold" in caught.value.evalue
    assert caught.value.traceback == [f"ConfigError: {caught.value.evalue}"]
