"""Soups of five checkpoints: memory-mapped and averaged tensor by tensor, against loading all and averaging."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

IDS: tuple[str, ...] = ("soup_time", "soup_memory")

_COMMON = """
import json, re, sys, time
import torch

def resident(field):  # kB, of this program alone
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

paths, out = sys.argv[1:-1], sys.argv[-1]
"""

_OURS = """
from cryosentinel.models.soup import uniform_soup

before, start = resident("VmRSS"), time.perf_counter()
uniform_soup(paths, out, digests=False)
"""

#: What one writes without thinking of memory: the usual soup script.
_PEER = """
before, start = resident("VmRSS"), time.perf_counter()
states = [torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in paths]
mean = {
    name: torch.stack([state[name] for state in states]).mean(0) if states[0][name].is_floating_point()
    else states[0][name]
    for name in states[0]
}
torch.save({"state_dict": mean}, out)
"""

_REPORT = """
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": (resident("VmHWM") - before) * 1024}))
"""


def _write_members(folder: Path, megabytes: int, count: int = 5) -> list[Path]:
    """Checkpoints of transformer-like weights: matrices of 4 to 16 MB, vectors, one counter."""
    import torch

    paths = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        state: dict[str, torch.Tensor] = {"model.net.bn.num_batches_tracked": torch.tensor(index)}
        block = 0
        while sum(t.nbytes for t in state.values()) < megabytes * 1_000_000:
            for name, shape in (
                ("qkv", (3072, 1024)),
                ("fc1", (4096, 1024)),
                ("proj", (1024, 1024)),
                ("norm", (1024,)),
            ):
                state[f"model.net.encoder.encoder.{block}.{name}"] = torch.rand(shape, generator=generator)
            block += 1
        paths.append(folder / f"step{index:06d}.ckpt")
        torch.save({"state_dict": state, "epoch": index}, paths[-1])
    return paths


def _once(code: str, paths: list[Path], out: Path) -> dict[str, float]:
    program = _COMMON + code + _REPORT
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths), str(out)], capture_output=True, text=True, check=True
    )
    out.unlink()
    return json.loads(done.stdout.splitlines()[-1])  # ours says before it what it wrote


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure both, each in its own process, taking turns.

    Time is from the first byte read to the file written, after imports, the files being in the page cache; memory is
    the growth of the resident set at its peak over what the imports take.
    """
    megabytes, turns = (80, 2) if quick else (1600, 3)
    with tempfile.TemporaryDirectory(prefix="soup-") as name:
        folder = Path(name)
        paths = _write_members(folder, megabytes)
        size = paths[0].stat().st_size
        ours, peer = [], []
        for _ in range(turns):
            ours.append(_once(_OURS, paths, folder / "ours.ckpt"))
            peer.append(_once(_PEER, paths, folder / "peer.ckpt"))
    what = f"uniform soup of 5 checkpoints of {size / 1e9:.2f} GB"
    common = {"peer_name": "torch.load of all, torch.stack().mean(), torch.save"}
    seconds = [min(r["seconds"] for r in rows) for rows in (ours, peer)]
    models = [max(r["bytes"] for r in rows) / size for rows in (ours, peer)]
    return [
        {"id": "soup_time", "what": f"{what}, written to disk", "ours": seconds[0], "peer": seconds[1], **common,
         "unit": "s", "ratio": seconds[1] / seconds[0], "goal": "at least 3x"},
        {"id": "soup_memory", "what": f"{what}, peak resident memory over the imports", "ours": models[0],
         "peer": models[1], **common, "unit": "models", "ratio": models[1] / models[0],
         "goal": "at most 1.2 models"},
    ]  # fmt: skip


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(json.dumps(row))
