"""TerraMind through TerraTorch: names, published weights, and the network with the card's necks, decoder and head.

TerraMind 1.0: Jakubik et al. 2025, arXiv:2504.11171.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cryosentinel.errors import ConfigError
from cryosentinel.sensors import Statistics

if TYPE_CHECKING:
    from cryosentinel.models.segmenter import SegmenterConfig

#: Backbone -> number of transformer blocks.
BACKBONES = {"terramind_v1_tiny": 12, "terramind_v1_small": 12, "terramind_v1_base": 12, "terramind_v1_large": 24}
#: The blocks that feed the decoder, by depth: every third or sixth.
SELECTED_BLOCKS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23)}
DECODERS = ("UperNetDecoder", "UNetDecoder")
MERGE_METHODS = ("mean", "max", "concat")

#: The standardisation that TerraMind 1.0 was pretrained with, in the units of the chips.
TERRAMIND_STATISTICS = Statistics(
    means={
        "S2L2A": (1390.458, 1503.317, 1718.197, 1853.910, 2199.100, 2779.975,
                  2987.011, 3083.234, 3132.220, 3162.988, 2424.884, 1857.648),
        "S1GRD": (-12.599, -20.293),
        "DEM": (670.665,),
    },
    stds={
        "S2L2A": (2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926,
                  1820.257, 1871.918, 1753.829, 1797.379, 1434.261, 1334.311),
        "S1GRD": (5.195, 5.890),
        "DEM": (951.272,),
    },
)  # fmt: skip


def published_weights(backbone: str) -> str:
    """Where the authors keep the pretrained encoder, as an ``hf://`` address."""
    size = backbone.rpartition("_")[2]
    return f"hf://ibm-esa-geospatial/TerraMind-1.0-{size}/TerraMind_v1_{size}.pt"


def build_terramind(config: SegmenterConfig) -> nn.Module:
    """Build encoder, necks, decoder and head with random weights.

    Returns:
        A TerraTorch model that maps {modality: (B, bands, H, W)} to an object whose ``output`` is (B, H, W).

    Raises:
        ConfigError: TerraTorch cannot be imported.
    """
    channels = config.decoder_channels
    decoder_kwargs: dict[str, Any] = {"channels": list(channels) if isinstance(channels, tuple) else channels}
    if config.decoder_scale_modules:
        decoder_kwargs["scale_modules"] = True
    with _quiet():
        try:
            import terratorch  # noqa: F401 (fills the registries)
            from terratorch.models import EncoderDecoderFactory
        except ImportError as error:
            raise ConfigError(
                f"TerraMind needs TerraTorch, which cannot be imported ({error}); install it with `pip install "
                "terratorch`."
            ) from error
        warnings.simplefilter("ignore")  # again: importing all that may have put other filters first
        with _RatesOnCpu():
            net = EncoderDecoderFactory().build_model(
                task="segmentation",
                backbone=config.backbone,
                backbone_kwargs={
                    "pretrained": False,  # weights are loaded by us, with a check of every name
                    "modalities": list(config.modalities),
                    "merge_method": config.merge_method,
                    "drop_path_rate": config.drop_path,
                },
                necks=[
                    {"name": "SelectIndices", "indices": list(SELECTED_BLOCKS[BACKBONES[config.backbone]])},
                    {"name": "ReshapeTokensToImage", "remove_cls_token": False},
                    {"name": "LearnedInterpolateToPyramidal"},
                ],
                decoder=config.decoder,
                decoder_kwargs=decoder_kwargs,
                head_kwargs={"channel_list": list(config.head_channels)} if config.head_channels else {},
                num_classes=1,
            )
    _use_plain_attention(net)
    return net


def _use_plain_attention(net: nn.Module) -> None:
    """Let the encoder's attention use plain matrix products where they are faster: bfloat16 on a CPU.

    At 588 tokens torch's fused CPU kernel takes about twice as long as the same attention in three steps, and it is
    half of a training step of the tiny model. Everywhere else TerraTorch's own forward runs. Weights keep their names.
    """
    from terratorch.models.backbones.terramind.model.tm_utils import Attention

    class PlainAttention(Attention):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            half = x.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu")
            if x.device.type != "cpu" or not half or mask is not None:
                return super().forward(x, mask)
            batch, tokens, width = x.shape
            qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = qkv.unbind(0)  # (batch, heads, tokens, width / heads)
            scores = (query * self.scale) @ key.transpose(-2, -1)
            mixed = self.attn_drop(scores.softmax(dim=-1)) @ value
            return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))

    for module in net.modules():
        if type(module) is Attention:
            module.__class__ = PlainAttention


class _RatesOnCpu(TorchFunctionMode):
    """Let TerraMind be built on the meta device: it reads its drop-path rates back from a ``linspace``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the stack's deprecation warnings and log lines from the user; errors still raise."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
