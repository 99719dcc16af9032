"""A small network with the names of a segmenter, and a run of it that takes seconds, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chip_factory import write_dataset
from torch import nn

from cryosentinel.models.segmenter import SegmenterConfig
from cryosentinel.sensors import PUBLISHED_STATISTICS, Statistics


class SmallSegmenter(nn.Module):
    """Three "blocks" behind an embedding, then a decoder; has dropout and batch statistics, as a real one."""

    depth = 3

    def __init__(self, config: SegmenterConfig | None = None, statistics: Statistics | None = None) -> None:
        super().__init__()
        self.config = config or SegmenterConfig()
        self.statistics = statistics or PUBLISHED_STATISTICS
        encoder = nn.Module()
        encoder.embedding = nn.Conv2d(15, 6, 1)
        encoder.encoder = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(self.depth)])
        self.net = nn.Module()
        self.net.encoder = encoder
        self.net.decoder = nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.2), nn.Conv2d(6, 1, 1))
        mean = [v for m in ("S2L2A", "S1GRD", "DEM") for v in self.statistics.means[m]]
        std = [v for m in ("S2L2A", "S1GRD", "DEM") for v in self.statistics.stds[m]]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        x = torch.cat([batch["S2L2A"], batch["S1GRD"], batch["DEM"]], 1)
        x = self.net.encoder.embedding((x - self.mean) / self.std)
        for block in self.net.encoder.encoder:
            x = x + torch.relu(block(x))
        return self.net.decoder(x).squeeze(1)


def configuration(root: Path, **changes: Any) -> dict[str, Any]:
    """A run of four epochs on small chips; dotted keys change it."""
    config: dict[str, Any] = {
        "run_name": "small",
        "data": {"root": str(root), "batch_size": 3, "buffer": 0.0, "augment": {"scale_p": 0.5, "copy_paste_p": 0.3}},
        "model": {"backbone": "terramind_v1_tiny"},
        "loss": {"ohem_min": 64},
        "optim": {"lr": 1e-2, "warmup_epochs": 1, "swa": {"start": 0.5, "lr": 1e-3, "anneal_epochs": 1}},
        "validation": {"flips": 2},
        "checkpoints": {"snapshot_last": 2, "every_n_steps": 1},
        "trainer": {"max_epochs": 4, "limit_train_batches": 4, "accelerator": "cpu", "progress_bar": False},
    }
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return config


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "data"
    write_dataset(root, shards=2, chips=15, size=32)
    return root


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build :class:`SmallSegmenter` wherever training would build a segmenter."""
    monkeypatch.setattr("cryosentinel.training.task.build_segmenter", SmallSegmenter)
