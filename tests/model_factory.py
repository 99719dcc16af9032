"""Small models and batches for the tests of models; the TerraMind model is built once a session."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from cryosentinel.models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from cryosentinel.sensors import PUBLISHED_STATISTICS

SLIM = SegmenterConfig(
    decoder="UNetDecoder", decoder_channels=(16, 8, 8, 8), head_channels=(), refiner=True, refiner_channels=4
)


@lru_cache
def slim() -> Segmenter:
    """TerraMind tiny with a slim decoder and a refiner whose last layer is no longer zero, in evaluation mode."""
    torch.manual_seed(0)
    segmenter = build_segmenter(SLIM, PUBLISHED_STATISTICS)
    assert segmenter.refiner is not None
    torch.nn.init.normal_(segmenter.refiner.stack[-1].weight, std=0.5)
    return segmenter.eval()


def batch(size: int = 1, height: int = 128, width: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random batch in physical units."""
    generator = torch.Generator().manual_seed(seed)
    shape = (height, width or height)
    return {
        "S2L2A": torch.rand(size, 12, *shape, generator=generator) * 8000,
        "S1GRD": torch.randn(size, 2, *shape, generator=generator) * 5 - 12,
        "DEM": torch.rand(size, 1, *shape, generator=generator) * 5000,
    }


class ToyNet(torch.nn.Module):
    """A network with BatchNorm in the place of TerraMind, for tests that need no encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Sequential(torch.nn.Conv2d(15, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.last = torch.nn.Conv2d(4, 1, 1)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.last(self.head(torch.cat(list(inputs.values()), 1))).squeeze(1)


def toy(seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(SegmenterConfig(decoder_channels=32), PUBLISHED_STATISTICS, ToyNet())


def write_toy(path: Path, seed: int, **entries: object) -> Path:
    from cryosentinel.models.checkpoint import save_checkpoint

    save_checkpoint(path, toy(seed), **entries)
    return path
