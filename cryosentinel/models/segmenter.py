"""The segmenter: a batch of chips in physical units to one water logit a pixel.

TerraMind (Jakubik et al. 2025, arXiv:2504.11171) through TerraTorch with the card's necks, decoder and head, an index
refiner behind it; the literature's baseline, a U-Net; and either of them, or a small U-Net, as the context of a stem
that sees every band of every pixel (:mod:`cryosentinel.models.stem`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import yaml
from torch import nn
from torch.overrides import TorchFunctionMode

from cryosentinel import paths
from cryosentinel.errors import ConfigError, HubError, InputError
from cryosentinel.indices import mndwi, ndwi
from cryosentinel.models.archive import listed, load_checkpoint
from cryosentinel.models.statedict import is_backbone, load_backbone, load_state, segmenter_state
from cryosentinel.models.stem import AllBandStem, ContextUNet, feature_count, pixel_features
from cryosentinel.sensors import MODALITIES, Statistics

ARCHITECTURES = ("terramind", "smp_unet", "unet", "pixel")
#: TerraMind backbone -> number of transformer blocks.
BACKBONES = {"terramind_v1_tiny": 12, "terramind_v1_small": 12, "terramind_v1_base": 12, "terramind_v1_large": 24}
#: The blocks that feed the decoder, by depth: every third or sixth.
SELECTED_BLOCKS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23)}
DECODERS = ("UperNetDecoder", "UNetDecoder")
MERGE_METHODS = ("mean", "max", "concat")

#: The standardisation that TerraMind 1.0 was pretrained with, in the units of the chips.
TERRAMIND_STATISTICS = Statistics(
    means={
        "S2L2A": (
            1390.458,
            1503.317,
            1718.197,
            1853.910,
            2199.100,
            2779.975,
            2987.011,
            3083.234,
            3132.220,
            3162.988,
            2424.884,
            1857.648,
        ),
        "S1GRD": (-12.599, -20.293),
        "DEM": (670.665,),
    },
    stds={
        "S2L2A": (
            2106.761,
            2141.107,
            2038.973,
            2134.138,
            2085.321,
            1889.926,
            1820.257,
            1871.918,
            1753.829,
            1797.379,
            1434.261,
            1334.311,
        ),
        "S1GRD": (5.195, 5.890),
        "DEM": (951.272,),
    },
)  # fmt: skip
#: Encoders of smp_unet. Only these are built: segmentation_models_pytorch takes further names to mean models of timm,
#: some of which it would look for on a hub, and the name may come from a checkpoint.
ENCODERS = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnext{name}" for name in ("50_32x4d", "101_32x8d")),
    *(f"se_resnet{depth}" for depth in (50, 101, 152)),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *(f"vgg{depth}_bn" for depth in (11, 13, 16, 19)),
    *(f"efficientnet-b{size}" for size in range(8)),
    *(f"mit_b{size}" for size in range(6)),
    "mobilenet_v2",
)
#: What :func:`add_architecture` has added in this process: name -> what builds it, and its multiple of pixels.
_ADDED: dict[str, tuple[Callable[[SegmenterConfig], nn.Module], int]] = {}
SIZE_RANGE = (128, 512)  # pixels a side
_WIDEST = 4096  # channels of one layer
_BLOCK = re.compile(r"(?:^|\.)net\.(?:_orig_mod\.)?encoder\.(?:_orig_mod\.)?encoder\.(\d+)\.")


@dataclass(frozen=True)
class SegmenterConfig:
    """What to build: plain values, so that YAML files and checkpoints can hold it.

    Attributes:
        architecture: "terramind" (TerraMind encoder, TerraTorch necks, decoder and head), "smp_unet" (U-Net from
            segmentation_models_pytorch, the literature's baseline), "unet" (a small U-Net on what the stem sees, at a
            quarter of the resolution), "pixel" (the stem alone), or a name of your own (:func:`add_architecture`).
        backbone: TerraMind size, one of :data:`BACKBONES`.
        modalities: the inputs, any non-empty part of S2L2A, S1GRD, DEM.
        merge_method: how the modalities' tokens become one map: "mean", "max" or "concat".
        pretrained: start from published weights (TerraMind's own; ImageNet for smp_unet) instead of random ones.
        weights: a local file or hf:// address to start from instead of the published one: a TerraMind encoder, or a
            whole checkpoint of this configuration. No network is touched for a local file.
        standardisation: normalise by the statistics of the "dataset", or by those "terramind" was pretrained with.
        decoder: "UperNetDecoder" or "UNetDecoder".
        decoder_channels: one number for UperNet, four for U-Net.
        decoder_scale_modules: UperNet's own pyramid, on top of the learned neck, as in the published configuration.
        head_channels: 3x3 convolutions between decoder and logit; empty for a single 1x1 convolution.
        drop_path: stochastic depth rate of the encoder, rising linearly to this value in the last block.
        refiner: add the :class:`IndexRefiner` (needs S2L2A).
        refiner_channels: its width.
        encoder_name: encoder of smp_unet, one of :data:`ENCODERS`.
        stem_channels: hidden layers of the all-band stem, as [64, 32] (needs S2L2A); empty for none.
        context_channels: features of the network that are fused with the stem's.
        unet_channels: levels of "unet", multiples of 8, each at half the resolution of the one before.
    """

    architecture: str = "terramind"
    backbone: str = "terramind_v1_tiny"
    modalities: tuple[str, ...] = ("S2L2A", "S1GRD", "DEM")
    merge_method: str = "mean"
    pretrained: bool = False
    weights: str | None = None
    standardisation: str = "dataset"
    decoder: str = "UperNetDecoder"
    decoder_channels: int | tuple[int, ...] = 256
    decoder_scale_modules: bool = False
    head_channels: tuple[int, ...] = (128, 64, 32)
    drop_path: float = 0.0
    refiner: bool = False
    refiner_channels: int = 16
    encoder_name: str = "efficientnet-b3"
    stem_channels: tuple[int, ...] = ()
    context_channels: int = 32
    unet_channels: tuple[int, ...] = (48, 64, 96, 128)

    def __post_init__(self) -> None:
        for name in ("modalities", "decoder_channels", "head_channels", "stem_channels", "unet_channels"):
            if isinstance(value := getattr(self, name), list):  # YAML and JSON know lists only
                object.__setattr__(self, name, tuple(value))
        for field in fields(self):
            if not _KINDS[str(field.type)](getattr(self, field.name)):
                raise ConfigError(f"{field.name} is {_shown(getattr(self, field.name))}, not of type {field.type}.")
        _one_of("architecture", self.architecture, (*ARCHITECTURES, *_ADDED))
        _one_of("backbone", self.backbone, BACKBONES)
        _one_of("merge_method", self.merge_method, MERGE_METHODS)
        _one_of("standardisation", self.standardisation, ("dataset", "terramind"))
        _one_of("decoder", self.decoder, DECODERS)
        _one_of("encoder_name", self.encoder_name, ENCODERS)
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ConfigError(
                f"The modalities are {list(self.modalities)}; give one or more of {', '.join(MODALITIES)}, each once."
            )
        for modality in self.modalities:
            _one_of("modalities", modality, MODALITIES)
        for name, wanted in (("refiner", self.refiner), ("stem_channels", bool(self.stem_channels))):
            if wanted and "S2L2A" not in self.modalities:
                raise ConfigError(
                    f"What {name} asks for works on water indices and so needs S2L2A among the modalities; add it, or "
                    f"leave {name} out."
                )
        if self.architecture == "terramind":
            self._check_channels()
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}; it is a rate from 0 to below 1.")
        for name in ("refiner_channels", "context_channels"):
            if not 1 <= getattr(self, name) <= _WIDEST:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is a number from 1 to {_WIDEST}.")
        self._check_stem()

    def _check_stem(self) -> None:
        if self.refiner and self.stem_channels:
            raise ConfigError(
                "The stem sees all that the refiner does; set refiner to false or leave stem_channels out."
            )
        if self.architecture in ("unet", "pixel") and not self.stem_channels:
            raise ConfigError(f"The architecture {self.architecture} stands on the stem; give stem_channels.")
        if self.architecture in _ADDED and self.stem_channels:
            raise ConfigError(
                f"A network of your own gives logits and no features for a stem; leave stem_channels out, or let "
                f"{self.architecture} hold a stem of its own."
            )
        if self.architecture in ("unet", "pixel") and self.pretrained:
            raise ConfigError(
                f"There are no published weights of the architecture {self.architecture}; set pretrained to false, or "
                "name weights."
            )
        if len(self.stem_channels) > 4 or not all(0 < c <= 512 for c in self.stem_channels):
            raise ConfigError(f"stem_channels is {_shown(self.stem_channels)}; give up to four numbers from 1 to 512.")
        levels = self.unet_channels
        if not 1 <= len(levels) <= 4 or any(c % 8 or not 8 <= c <= 1024 for c in levels):
            raise ConfigError(f"unet_channels is {_shown(levels)}; give one to four multiples of 8 up to 1024.")

    def _check_channels(self) -> None:
        channels = self.decoder_channels
        wanted = "one number" if self.decoder == "UperNetDecoder" else "a list of four numbers"
        numbers = (channels,) if isinstance(channels, int) else channels
        fits = isinstance(channels, int) if self.decoder == "UperNetDecoder" else len(numbers) == 4
        every = (*numbers, *self.head_channels)
        if not fits or len(self.head_channels) > 16 or not all(0 < c <= _WIDEST for c in every):
            raise ConfigError(
                f"{self.decoder} takes {wanted} from 1 to {_WIDEST} as decoder_channels, not {_shown(channels)}, "
                f"and up to 16 such numbers as head_channels, not {_shown(self.head_channels)}."
            )
        if self.decoder_scale_modules and self.decoder != "UperNetDecoder":
            raise ConfigError("decoder_scale_modules belongs to UperNetDecoder; set it to false.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SegmenterConfig:
        """The inverse of :meth:`as_dict`.

        Raises:
            ConfigError: a key is unknown or a value cannot be used.
        """
        if not isinstance(value, Mapping):
            raise ConfigError(f"The model configuration is {type(value).__name__}, where it holds keys and values.")
        if unknown := set(value) - {f.name for f in fields(cls)}:
            raise ConfigError(
                f"The model configuration has no {listed(unknown)}; known are {', '.join(f.name for f in fields(cls))}."
            )
        return cls(**value)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SegmenterConfig:
        """Read the section ``model:`` of a run's configuration; its other sections are not looked at.

        Args:
            path: a YAML file, or the name of a configuration that comes with the package.

        Raises:
            ConfigError: the file is missing or not YAML, has no such section, or the section cannot be used.
        """
        path = paths.config(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path} is not a YAML file that can be read ({reason}); mend it.") from None
        section = content.get("model") if isinstance(content, Mapping) else None
        if not isinstance(section, Mapping):
            raise ConfigError(f"{path} has no section model:; give the YAML file of a run.")
        try:
            return cls.from_dict(section)
        except ConfigError as error:
            raise ConfigError(f"The section model of {path} cannot be used: {error}") from None

    @property
    def size_multiple(self) -> int:
        """Image sides are multiples of this: TerraMind's patch, or U-Net's deepest stride."""
        if self.architecture in _ADDED:
            return _ADDED[self.architecture][1]
        return {"terramind": 16, "smp_unet": 32, "pixel": 4}.get(
            self.architecture, 4 * 2 ** (len(self.unet_channels) - 1)
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _tuple_of(kind: type, value: object) -> bool:
    return isinstance(value, tuple) and all(type(entry) is kind for entry in value)


#: What each type of a field takes; checked by hand because the values may come from a checkpoint.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str),
    "str | None": lambda v: v is None or isinstance(v, str),
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: type(v) is int,
    "float": lambda v: type(v) in (int, float),
    "tuple[str, ...]": lambda v: _tuple_of(str, v),
    "tuple[int, ...]": lambda v: _tuple_of(int, v),
    "int | tuple[int, ...]": lambda v: type(v) is int or _tuple_of(int, v),
}


def _one_of(name: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise ConfigError(f"{name} {_shown(value)} is unknown; known are {', '.join(known)}.")


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


class Segmenter(nn.Module):
    """A network with its statistics: takes chips in physical units, normalises, and gives water logits.

    Its state dict has the names ``net.*``, ``refiner.*`` and ``stem.*``. The statistics are buffers outside the state
    dict: they are saved beside it, as plain values.
    """

    def __init__(self, config: SegmenterConfig, statistics: Statistics, net: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.net = net
        self.started_whole = False  # whether a whole checkpoint gave the first weights, those of the stem among them
        self.refiner = IndexRefiner(config.refiner_channels) if config.refiner else None
        self.stem: AllBandStem | None = None
        if config.stem_channels:
            context = 0 if config.architecture == "pixel" else config.context_channels
            self.stem = AllBandStem(feature_count(config.modalities), config.stem_channels, context)
        self.set_statistics(statistics)

    def set_statistics(self, statistics: Statistics) -> None:
        """Normalise by these from now on; they must cover the modalities."""
        self.statistics = statistics
        for modality in self.config.modalities:
            for name, values in (("mean", statistics.means[modality]), ("std", statistics.stds[modality])):
                tensor = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
                self.register_buffer(f"{name}_{modality}", tensor, persistent=False)

    @property
    def depth(self) -> int:
        """Number of transformer blocks; 0 where the encoder has none."""
        return BACKBONES[self.config.backbone] if self.config.architecture == "terramind" else 0

    @staticmethod
    def block_of(name: str) -> int | None:
        """The transformer block that a parameter belongs to, by its name in the segmenter or a module around it.

        Returns:
            0 and up for a block, -1 for the rest of the encoder (embeddings, last norm), None outside the encoder.
        """
        if match := _BLOCK.search(name):
            return int(match.group(1))
        return -1 if re.search(r"(?:^|\.)net\.(?:_orig_mod\.)?encoder\.", name) else None

    def forward(self, batch: Mapping[str, torch.Tensor], modalities: Sequence[str] | None = None) -> torch.Tensor:
        """Segment a batch.

        Args:
            batch: modality -> float (B, bands, H, W) in physical units, clipped and filled; other keys are ignored.
                Sides are multiples of 16 (32 for smp_unet) from 128 to 512.
            modalities: use only these, of a model that merges its modalities by mean or max; by default all of the
                configuration's must be there.

        Returns:
            Water logits, float32 (B, H, W).

        Raises:
            InputError: a modality is missing, or its shape does not fit.
        """
        used = self._used(modalities)
        self._check(batch, used)
        inputs = {m: self._normalised(m, batch[m]) for m in used}
        if self.stem is not None:
            return self._with_stem(self.stem, inputs, batch)
        output = self.net(inputs)
        logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.output
        # A refiner whose indices are withheld has nothing to refine with.
        if self.refiner is not None and "S2L2A" in used:
            return self.refiner(batch["S2L2A"], logits)
        return logits.float()

    def _normalised(self, modality: str, values: torch.Tensor) -> torch.Tensor:
        return (values.float() - getattr(self, f"mean_{modality}")) / getattr(self, f"std_{modality}")

    def features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the stem is given: (B, F, H, W) of a batch in physical units, for its warm-up on single pixels."""
        return self._features({m: self._normalised(m, batch[m]) for m in self.config.modalities}, batch)

    def _features(self, inputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same of inputs that are normalised; what is withheld stands at the mean of the training data."""
        like = next(iter(inputs.values()))
        whole = {
            m: batch[m] if m in inputs else getattr(self, f"mean_{m}").expand(len(like), -1, *like.shape[-2:])
            for m in self.config.modalities
        }
        normalised = {m: inputs[m] if m in inputs else torch.zeros_like(whole[m]) for m in self.config.modalities}
        return pixel_features(normalised, whole)

    def _with_stem(
        self, stem: AllBandStem, inputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Logits of the stem, fused with what the network makes of the context."""
        features = self._features(inputs, batch)
        hidden = stem.hidden(features)
        context: torch.Tensor | None = None
        if self.config.architecture == "unet":
            context = self.net(torch.cat([hidden, features], dim=1))
        elif self.config.architecture != "pixel":
            output = self.net(inputs)
            context = output if isinstance(output, torch.Tensor) else output.output
            if context.ndim == 3:  # one channel of context comes without its axis, as a logit does
                context = context[:, None]
        return stem.fused(hidden, context).float()

    def _used(self, modalities: Sequence[str] | None) -> tuple[str, ...]:
        if modalities is None:
            return self.config.modalities
        if not modalities or not set(modalities) <= set(self.config.modalities):
            raise InputError(
                f"The model takes {', '.join(self.config.modalities)}; give one or more of these, not "
                f"{', '.join(modalities) or 'none'}."
            )
        fixed = self.config.architecture in ("smp_unet", *_ADDED) or (
            self.config.architecture == "terramind" and self.config.merge_method == "concat"
        )
        if len(modalities) < len(self.config.modalities) and fixed:
            raise InputError(
                "A U-Net on stacked bands, TerraMind merged by concat, and a network of your own leave no modality "
                f"out; give all of {', '.join(self.config.modalities)}."
            )
        return tuple(m for m in self.config.modalities if m in modalities)

    def _check(self, batch: Mapping[str, torch.Tensor], used: Sequence[str]) -> None:
        for modality in used:
            if modality not in batch:
                raise InputError(f"The batch has no {modality}; give it, or say which modalities to use.")
            shape, bands = tuple(batch[modality].shape), len(MODALITIES[modality])
            if len(shape) != 4 or shape[1] != bands:
                raise InputError(f"{modality} has shape {shape}; the model takes (batch, {bands}, height, width).")
            if shape[-2:] != tuple(batch[used[0]].shape[-2:]) or shape[0] != batch[used[0]].shape[0]:
                raise InputError(
                    f"{modality} has shape {shape} and {used[0]} {tuple(batch[used[0]].shape)}; all "
                    "modalities need the same batch, height and width."
                )
            step = self.config.size_multiple
            if any(side % step or not SIZE_RANGE[0] <= side <= SIZE_RANGE[1] for side in shape[-2:]):
                raise InputError(
                    f"The image is {shape[-2]} x {shape[-1]} pixels; the model takes sides that are "
                    f"multiples of {step} from {SIZE_RANGE[0]} to {SIZE_RANGE[1]}: crop or pad it."
                )
        if (
            self.training
            and shape[0] == 1
            and self.config.architecture == "terramind"
            and (self.config.decoder == "UperNetDecoder")
        ):
            raise InputError(
                "UperNet normalises one pooled value a channel over the batch, so a training step needs "
                "at least 2 chips; raise the batch size or drop the last incomplete batch."
            )


class SmpUNet(nn.Module):
    """U-Net from segmentation_models_pytorch on the stacked bands of its modalities."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        unet = smp.Unet(
            config.encoder_name,
            encoder_weights="imagenet" if config.pretrained and config.weights is None else None,
            in_channels=sum(len(MODALITIES[m]) for m in config.modalities),
            classes=config.context_channels if config.stem_channels else 1,
        )
        self.encoder, self.decoder, self.segmentation_head = unet.encoder, unet.decoder, unet.segmentation_head

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (B, bands, H, W)} to logits (B, H, W), or to features (B, C, H, W) for a stem."""
        features = self.encoder(torch.cat(list(inputs.values()), dim=1))
        return self.segmentation_head(self.decoder(features)).squeeze(1)


def build_terramind(config: SegmenterConfig) -> nn.Module:
    """Build encoder, necks, decoder and head with random weights.

    Returns:
        A TerraTorch model that maps {modality: (B, bands, H, W)} to an object whose ``output`` is (B, H, W), or
        (B, C, H, W) features for a stem.

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
                num_classes=config.context_channels if config.stem_channels else 1,
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


def build_segmenter(config: SegmenterConfig, statistics: Statistics | None = None) -> Segmenter:
    """Build a segmenter, with random weights or the ones that the configuration names.

    Args:
        config: what to build.
        statistics: of the dataset; not needed where ``config.standardisation`` is "terramind".

    Raises:
        ConfigError: the statistics do not cover the modalities.
        CheckpointError: the weights to start from cannot be read or do not fit.
        HubError: they are on a hub that cannot be reached.
    """
    if config.standardisation == "terramind":
        statistics = TERRAMIND_STATISTICS
    if statistics is None:
        raise ConfigError(
            "The model normalises by the dataset's statistics; give them, or set standardisation to 'terramind'."
        )
    if missing := [m for m in config.modalities if m not in statistics.means or m not in statistics.stds]:
        raise ConfigError(
            f"The statistics cover {', '.join(statistics.means)} but the model also takes "
            f"{', '.join(missing)}; compute the statistics with it, or leave it out of the modalities."
        )
    source, initial = config.weights, None
    if source is None and config.pretrained and config.architecture == "terramind":
        source = published_weights(config.backbone)
    if source is not None:
        initial = _initial(source)  # a file that cannot be used is named before anything is imported and built
    net = _build_net(config)
    segmenter = Segmenter(config, statistics, net)
    if initial is not None and source is not None:
        if is_backbone(initial):
            load_backbone(segmenter.net, initial, source)
        else:
            load_state(segmenter, initial, source)
            segmenter.started_whole = True
    return segmenter


def add_architecture(name: str, build: Callable[[SegmenterConfig], nn.Module], size_multiple: int = 1) -> None:
    """Let configurations name a network of your own, to be trained, scored and mapped with as the package's are.

    A checkpoint holds its weights and its name, never its code: it opens where the program has added the name before.

    Args:
        name: for ``architecture`` in a configuration.
        build: makes the network, with random weights, from its configuration: a module from {modality: float32
            (B, bands, H, W), normalised} to water logits (B, H, W). What lies in its attribute ``encoder`` learns at
            the backbone's rate, the rest at the decoder's.
        size_multiple: the sides of its images are multiples of this many pixels.

    Raises:
        ConfigError: the package has an architecture of that name.
    """
    if name in ARCHITECTURES:
        raise ConfigError(f"The package has an architecture {name} already; give your network another name.")
    _ADDED[name] = build, size_multiple


def _build_net(config: SegmenterConfig) -> nn.Module:
    if config.architecture in _ADDED:
        return _ADDED[config.architecture][0](config)
    if config.architecture == "terramind":
        return build_terramind(config)
    if config.architecture == "smp_unet":
        return SmpUNet(config)
    if config.architecture == "pixel":
        return nn.Identity()
    seen = feature_count(config.modalities) + config.stem_channels[-1]
    return ContextUNet(seen, config.unet_channels, config.context_channels)


def without_weights(config: SegmenterConfig) -> SegmenterConfig:
    """The same configuration for a model whose weights come from elsewhere."""
    return replace(config, pretrained=False, weights=None)


def published_weights(backbone: str) -> str:
    """Where the authors keep the pretrained encoder, as an ``hf://`` address."""
    size = backbone.rpartition("_")[2]
    return f"hf://ibm-esa-geospatial/TerraMind-1.0-{size}/TerraMind_v1_{size}.pt"


def _initial(source: str) -> dict[str, torch.Tensor]:
    """The weights of a local file or an hf:// address: of a TerraMind encoder, or of a whole checkpoint."""
    path = source
    if source.startswith("hf://"):
        from cryosentinel.hub import download_file

        try:
            path = str(download_file(source))
        except HubError as error:
            raise HubError(f"{str(error).rstrip('.')}, or name a local file of weights (model.weights).") from None
    return segmenter_state(load_checkpoint(path), source=source, verbose=True)


def parameter_counts(segmenter: Segmenter) -> dict[str, int]:
    """Parameters by part: encoder, decoder (necks and head included), refiner, stem, and their total."""
    counts = {"encoder": 0, "decoder": 0, "refiner": 0, "stem": 0}
    for name, parameter in segmenter.named_parameters():
        if (part := name.partition(".")[0]) in ("refiner", "stem"):
            counts[part] += parameter.numel()
        else:
            counts["decoder" if Segmenter.block_of(name) is None else "encoder"] += parameter.numel()
    return {**counts, "total": sum(counts.values())}
