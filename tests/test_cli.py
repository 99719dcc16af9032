"""The command line: quick help, typed options, one sentence for bad input."""

import subprocess
import sys
from pathlib import Path

import pytest

from cryosentinel import cli, commands


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cryosentinel", *words], capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cryosentinel.cli import main; main(['--help']);"
        "print(sorted({'torch', 'numpy', 'pandas', 'jsonargparse', 'rasterio'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("[]\n")
    for name in cli.COMMANDS:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize("name", [n for n in cli.COMMANDS if n != "fit"])
def test_every_command_has_a_documented_function(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert getattr(commands, name).__doc__
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: cryosentinel {name}" in shown and "--config" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["maps"], "there is no command 'maps'"),
        (["simulate", "x", "--presett", "quick"], "--presett"),
        (["simulate", "x", "--workers", "many"], "many"),
        (["predict", "a.tif", "b.tif", "--ckpt", "nowhere/none.ckpt"], "nowhere/none.ckpt"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(words: list[str], sentence: str, tmp_path: Path) -> None:
    result = run(*words)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_simulated_chips_of_chosen_regions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr("cryosentinel.simulate.simulate", lambda root, config, workers: asked.append(config))
    assert cli.main(["simulate", "x", "--chips", "240", "--regions", "[ile_alatau,zhetysu_alatau]"]) == 0
    assert asked[0].regions == ("ile_alatau", "zhetysu_alatau") and abs(asked[0].expected_chips - 240) < 40
    assert cli.main(["simulate", "x", "--regions", "[atlantis]"]) == 2
    assert "There is no region ['atlantis']; known are hindu_kush" in capsys.readouterr().err


def test_unknown_key_of_a_config_file_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "simulate.yaml"
    config.write_text(f"root: {tmp_path / 'chips'}\npresets: quick\n")
    result = run("simulate", "--config", str(config))
    assert result.returncode == 2
    assert "presets" in result.stderr
    assert not (tmp_path / "chips").exists()
