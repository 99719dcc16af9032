"""The script for rented GPUs: the card's options, and the same function, through Modal's local call."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
from pathlib import Path
from types import ModuleType

import geopandas as gpd
import numpy as np
import pytest
from chip_factory import write_dataset
from test_predict import PixelModel

from cryosentinel.errors import ConfigError
from cryosentinel.mapping import product

modal = pytest.importorskip("modal", reason="the modal extra is not installed")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "predict_modal", Path(__file__).resolve().parents[1] / "scripts" / "predict_modal.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_card_s_options_are_those_of_the_entry_point(script: ModuleType) -> None:
    options = set(inspect.signature(script.predict.info.raw_f).parameters)
    assert {"hf_data_repo", "hf_ckpt_repo", "ckpt_uri", "config", "region", "year", "n_chips", "gpu"} <= options
    with pytest.raises(ConfigError, match="--ckpt-uri"):
        script.predict.info.raw_f("a/b", "ile_alatau", 2021)


def test_the_local_call_maps_chips(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level = np.full((1, 64, 64), 4000, np.int16)  # the gate lets no lake lie on a slope
    write_dataset(tmp_path / "hub", shards=1, chips=4, size=64, dem=level)
    asked = []

    def download(repo: str, regions: list[str], years: list[int], local_dir: Path) -> Path:
        asked.append((repo, regions, years))
        return Path(shutil.copytree(tmp_path / "hub", local_dir))

    monkeypatch.setattr("cryosentinel.hub.download_dataset", download)
    monkeypatch.setattr(product, "_load", lambda *_: PixelModel().eval())
    ckpt = tmp_path / "soup.ckpt"
    ckpt.write_bytes(b"weights")
    files = script.map_chips.local("a/b", str(ckpt), None, "ile_alatau", 2021, 3, folder=str(tmp_path / "work"))
    assert asked == [("a/b", ["ile_alatau"], [2021])]
    assert {"lakes.parquet", "lakes.gpkg", "lakes.html", "metrics.json"} <= set(files)
    assert sum(name.endswith("_water.tif") for name in files) == 3
    (tmp_path / "lakes.parquet").write_bytes(files["lakes.parquet"])
    assert len(gpd.read_parquet(tmp_path / "lakes.parquet")) >= 2
