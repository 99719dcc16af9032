"""A refiner that gives the shoreline back what 16-pixel patches lose."""

from __future__ import annotations

import torch
from torch import nn

from cryosentinel.indices import mndwi, ndwi


class IndexRefiner(nn.Module):
    """Water indices and base logits through a small conv stack to a gated residual on the logits.

    The indices come from physical reflectance at full resolution, so the residual can follow a shoreline that the
    encoder sees only in patches of 16 pixels. The last layer starts at zero: a fresh refiner changes nothing. The gate
    starts at one, so that the last layer has a gradient from the first step (a zero gate would starve it).
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stack = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, 1, 3, padding=1),
        )
        last = self.stack[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gate = nn.Parameter(torch.ones(()))

    def forward(self, reflectance: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Refine the logits.

        Args:
            reflectance: (B, 12, H, W), reflectance x 10,000, not normalised.
            logits: (B, H, W).

        Returns:
            (B, H, W) logits.
        """
        logits = logits.float()
        # tanh bounds what the stack sees of a confident base, whose logits grow without limit as training goes on.
        inputs = torch.stack([ndwi(reflectance), mndwi(reflectance), torch.tanh(logits / 4)], dim=1)
        return logits + self.gate * self.stack(inputs).squeeze(1).float()
