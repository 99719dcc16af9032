"""Lakes of published chips, mapped on a rented GPU: a thin wrapper of cryosentinel.mapping.product.map_lakes.

    pip install "cryosentinel[modal]" && modal setup
    modal run scripts/predict_modal.py::predict --hf-data-repo OWNER/DATA --hf-ckpt-repo OWNER/MODEL \
        --ckpt-uri hf://OWNER/MODEL/soup.ckpt --config terramind_v3_finetune_almaty_v2 \
        --region ile_alatau --year 2023 --n-chips 30 --gpu L4

The chips and the checkpoint are fetched where the GPU is; what comes back is what ``cryosentinel map`` writes.
"""

from __future__ import annotations

import os
from pathlib import Path

import modal

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 3600
#: Files of the result that come back; the chips themselves stay where they were fetched.
KEPT = (".tif", ".json", ".png", ".parquet", ".gpkg", ".html")

image = modal.Image.debian_slim(python_version="3.11")
if modal.is_local():  # inside the container the package is there already
    image = image.add_local_dir(ROOT, "/opt/cryosentinel", copy=True, ignore=[".git", "outputs", "**/__pycache__"])
    image = image.run_commands("pip install /opt/cryosentinel")
app = modal.App("cryosentinel-predict", image=image)


@app.function(timeout=TIMEOUT_S)
def map_chips(
    hf_data_repo: str,
    ckpt_uri: str,
    config: str | None,
    region: str,
    year: int,
    n_chips: int,
    folder: str = "/tmp/cryosentinel",
    token: str | None = None,
) -> dict[str, bytes]:
    """Fetch chips and checkpoint, map the lakes, and give the outputs back: name -> content.

    Args:
        hf_data_repo: dataset on the hub, owner/name.
        ckpt_uri: hf://owner/repo/path.
        config: of a checkpoint that does not say what model it holds.
        region, year, n_chips: which chips.
        folder: to work in.
        token: of the hub, for repositories that are not public.
    """
    import torch

    from cryosentinel.hub import download_dataset
    from cryosentinel.mapping.product import chip_scenes, map_lakes

    if token:
        os.environ["HF_TOKEN"] = token
    work = Path(folder)
    download_dataset(hf_data_repo, regions=[region], years=[year], local_dir=work / "data")
    scenes = chip_scenes(work / "data", region, year, work / "chips", n_chips)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    statistics = work / "data" / "dataset_stats_v3.json"
    result = map_lakes(
        scenes, work / "out", ckpt_uri, year=year, model=config, device=device,
        statistics=statistics if statistics.is_file() else None,
    )  # fmt: skip
    return {path.name: path.read_bytes() for path in sorted(result.folder.iterdir()) if path.suffix in KEPT}


@app.local_entrypoint()
def predict(
    hf_data_repo: str,
    region: str,
    year: int,
    hf_ckpt_repo: str = "",
    ckpt_uri: str = "",
    config: str = "",
    n_chips: int = 30,
    gpu: str = "L4",
    out: str = "outputs/predictions",
) -> None:
    """Map chips on a rented GPU and write the outputs into a folder here.

    Args:
        hf_data_repo: dataset on the hub, owner/name.
        region, year, n_chips: which chips.
        hf_ckpt_repo: model on the hub, whose soup.ckpt is taken where no --ckpt-uri is given.
        ckpt_uri: hf://owner/repo/path.
        config: of a checkpoint that does not say what model it holds.
        gpu: kind of GPU, in Modal's words.
        out: folder of the outputs.
    """
    from cryosentinel.errors import ConfigError
    from cryosentinel.files import replacing

    if not (ckpt_uri or hf_ckpt_repo):
        raise ConfigError("Name the checkpoint: --ckpt-uri hf://OWNER/REPO/PATH, or --hf-ckpt-repo OWNER/REPO.")
    uri = ckpt_uri or f"hf://{hf_ckpt_repo}/soup.ckpt"
    function = map_chips.with_options(gpu=gpu)
    files = function.remote(
        hf_data_repo, uri, config or None, region, year, n_chips, token=os.environ.get("HF_TOKEN")
    )  # fmt: skip
    for name, content in files.items():
        with replacing(Path(out) / name) as part:
            part.write_bytes(content)
    print(f"{len(files)} files in {out}; open {Path(out) / 'lakes.html'}")
