"""The all-band stem: every band at full resolution, where a transformer's tokens are 16 pixels wide.

A pixel's spectrum, indices and slope go through 1x1 convolutions to hidden features and a logit of their own; the
features of a network that sees context are fused with them before the head, as a residual that starts at zero. So the
stem can be warmed up on single pixels in seconds, and the context is learned on top of what the pixel says.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from cryosentinel.indices import mndwi, ndwi
from cryosentinel.sensors import MODALITIES, PIXEL_SIZE_M

_LOG_CENTRE, _LOG_SPREAD = 7.3, 0.8  # of log(reflectance x 10,000 + 100) over land, ice and water


def slope(dem: torch.Tensor) -> torch.Tensor:
    """Slope by central differences, the edge repeated.

    Args:
        dem: (B, 1, H, W) metres at 10 m.

    Returns:
        (B, 1, H, W) radians.
    """
    padded = F.pad(dem, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return torch.atan(torch.hypot(across, down) / (2 * PIXEL_SIZE_M))


def feature_count(modalities: Sequence[str]) -> int:
    """Channels of :func:`pixel_features`."""
    return sum(len(MODALITIES[m]) for m in modalities) + len(MODALITIES["S2L2A"]) + 2 + ("DEM" in modalities)


def pixel_features(normalised: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the stem is given of each pixel.

    Args:
        normalised: modality -> (B, bands, H, W) normalised.
        batch: the same in physical units.

    Returns:
        (B, F, H, W): normalised bands, log reflectance, NDWI, MNDWI and, where there is a DEM, slope; each within a few
        units of zero.
    """
    s2 = batch["S2L2A"].float()
    logs = (torch.log(s2.clamp_min(0) + 100) - _LOG_CENTRE) / _LOG_SPREAD
    planes = [*normalised.values(), logs, ndwi(s2)[:, None], mndwi(s2)[:, None]]
    if "DEM" in normalised:
        planes.append(2 * slope(batch["DEM"].float()) - 0.8)
    # Channels last: 1x1 convolutions over many small channels are several times faster so on a CPU.
    return torch.cat(planes, dim=1).contiguous(memory_format=torch.channels_last)


class AllBandStem(nn.Module):
    """Pixels to hidden features and a logit, and the fusion with a network that sees context.

    Args:
        inputs: channels of :func:`pixel_features`.
        channels: of the hidden layers, the last of which is fused.
        context: channels of the network's features; 0 for the stem alone.
    """

    def __init__(self, inputs: int, channels: Sequence[int], context: int) -> None:
        super().__init__()
        widths = [inputs, *channels]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 1, 1)
        self.fusion: nn.Sequential | None = None
        if context:
            hidden = widths[-1]
            last = nn.Conv2d(hidden, 1, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            self.fusion = nn.Sequential(
                nn.Conv2d(hidden + context, hidden, 1),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
                nn.ReLU(),
                last,
            )
        self.to(memory_format=torch.channels_last)

    def hidden(self, features: torch.Tensor) -> torch.Tensor:
        """(B, F, H, W) features to (B, C, H, W)."""
        for layer in self.layers:
            features = F.relu(layer(features))
        return features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The pixels' own logits, (B, H, W) from (B, F, H, W)."""
        return self.head(self.hidden(features)).squeeze(1)

    def fused(self, hidden: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """Logits of hidden features and of the context beside them.

        Args:
            hidden: (B, C, H, W) from :meth:`hidden`.
            context: (B, K, h, w) features of a network at any resolution, or None.

        Returns:
            (B, H, W).
        """
        logits = self.head(hidden)
        if self.fusion is not None and context is not None:
            context = F.interpolate(context.to(hidden.dtype), size=hidden.shape[-2:], mode="bilinear")
            logits = logits + self.fusion(torch.cat([hidden, context], dim=1))
        return logits.squeeze(1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions. GroupNorm: it holds for any batch, and a soup needs no statistics estimated anew."""
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class ContextUNet(nn.Module):
    """A small U-Net at a quarter of the resolution, for the context of a stem (Ronneberger et al. 2015).

    Args:
        inputs: channels of what it sees, averaged over 4 x 4 pixels.
        channels: of its levels, each at half the resolution of the one before.
        outputs: channels of its features.
    """

    def __init__(self, inputs: int, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, channels[0], 1)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((channels[0], *channels[:-1]), channels, strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.last = nn.Conv2d(channels[0], outputs, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), sides multiples of 4 x 2^(levels - 1), to (B, K, H / 4, W / 4)."""
        x, skips = self.first(F.avg_pool2d(pixels, 4)), []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            skip = skips.pop()
            x = up(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="bilinear"), skip], dim=1))
        return self.last(x)
