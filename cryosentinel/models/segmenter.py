"""The segmenter: a batch of chips in physical units to one water logit a pixel."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import yaml
from torch import nn

from cryosentinel import paths
from cryosentinel.errors import ConfigError, HubError, InputError
from cryosentinel.models.reading import load_checkpoint
from cryosentinel.models.refiner import IndexRefiner
from cryosentinel.models.statedict import is_backbone, load_backbone, load_state, segmenter_state
from cryosentinel.models.terramind import (
    BACKBONES,
    DECODERS,
    MERGE_METHODS,
    TERRAMIND_STATISTICS,
    build_terramind,
    published_weights,
)
from cryosentinel.sensors import MODALITIES, Statistics

ARCHITECTURES = ("terramind", "smp_unet")
SIZE_RANGE = (128, 512)  # pixels a side
_BLOCK = re.compile(r"(?:^|\.)net\.(?:_orig_mod\.)?encoder\.(?:_orig_mod\.)?encoder\.(\d+)\.")


@dataclass(frozen=True)
class SegmenterConfig:
    """What to build: plain values, so that YAML files and checkpoints can hold it.

    Attributes:
        architecture: "terramind" (TerraMind encoder, TerraTorch necks, decoder and head) or "smp_unet" (U-Net from
            segmentation_models_pytorch, the literature's baseline).
        backbone: TerraMind size, one of :data:`cryosentinel.models.terramind.BACKBONES`.
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
        refiner: add the :class:`~cryosentinel.models.refiner.IndexRefiner` (needs S2L2A).
        refiner_channels: its width.
        encoder_name: encoder of smp_unet, a name of segmentation_models_pytorch.
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

    def __post_init__(self) -> None:
        for name in ("modalities", "decoder_channels", "head_channels"):
            if isinstance(value := getattr(self, name), list):  # YAML and JSON know lists only
                object.__setattr__(self, name, tuple(value))
        _one_of("architecture", self.architecture, ARCHITECTURES)
        _one_of("backbone", self.backbone, BACKBONES)
        _one_of("merge_method", self.merge_method, MERGE_METHODS)
        _one_of("standardisation", self.standardisation, ("dataset", "terramind"))
        _one_of("decoder", self.decoder, DECODERS)
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ConfigError(
                f"The modalities are {list(self.modalities)}; give one or more of {', '.join(MODALITIES)}, each once."
            )
        for modality in self.modalities:
            _one_of("modalities", modality, MODALITIES)
        if self.refiner and "S2L2A" not in self.modalities:
            raise ConfigError(
                "The refiner works on water indices and so needs S2L2A among the modalities; add it or "
                "set refiner to false."
            )
        if self.architecture == "terramind":
            self._check_channels()
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}; it is a rate from 0 to below 1.")
        if self.refiner_channels < 1:
            raise ConfigError(f"refiner_channels is {self.refiner_channels}; it must be at least 1.")

    def _check_channels(self) -> None:
        channels = self.decoder_channels
        wanted = "one number" if self.decoder == "UperNetDecoder" else "a list of four numbers"
        fits = (
            isinstance(channels, int)
            if self.decoder == "UperNetDecoder"
            else (isinstance(channels, tuple) and len(channels) == 4)
        )
        numbers = channels if isinstance(channels, tuple) else (channels,)
        if not fits or not all(isinstance(c, int) and c > 0 for c in (*numbers, *self.head_channels)):
            shown = list(channels) if isinstance(channels, tuple) else channels
            raise ConfigError(
                f"{self.decoder} takes {wanted} above 0 as decoder_channels, not {shown}, and a list of "
                f"numbers above 0 as head_channels, not {list(self.head_channels)}."
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
        if unknown := set(value) - {f.name for f in fields(cls)}:
            raise ConfigError(
                f"The model configuration has no {', '.join(sorted(unknown))}; known are "
                f"{', '.join(f.name for f in fields(cls))}."
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
        return 16 if self.architecture == "terramind" else 32


def _one_of(name: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise ConfigError(f"{name} {value!r} is unknown; known are {', '.join(known)}.")


class Segmenter(nn.Module):
    """A network with its statistics: takes chips in physical units, normalises, and gives water logits.

    Its state dict has the names ``net.*`` and ``refiner.*``. The statistics are buffers outside the state dict: they
    are saved beside it, as plain values.
    """

    def __init__(self, config: SegmenterConfig, statistics: Statistics, net: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.net = net
        self.refiner = IndexRefiner(config.refiner_channels) if config.refiner else None
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
        inputs = {m: (batch[m].float() - getattr(self, f"mean_{m}")) / getattr(self, f"std_{m}") for m in used}
        output = self.net(inputs)
        logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.output
        # A refiner whose indices are withheld has nothing to refine with.
        if self.refiner is not None and "S2L2A" in used:
            return self.refiner(batch["S2L2A"], logits)
        return logits.float()

    def _used(self, modalities: Sequence[str] | None) -> tuple[str, ...]:
        if modalities is None:
            return self.config.modalities
        if not modalities or not set(modalities) <= set(self.config.modalities):
            raise InputError(
                f"The model takes {', '.join(self.config.modalities)}; give one or more of these, not "
                f"{', '.join(modalities) or 'none'}."
            )
        if len(modalities) < len(self.config.modalities) and (
            self.config.architecture != "terramind" or self.config.merge_method == "concat"
        ):
            raise InputError(
                "Only a TerraMind model that merges by mean or max can leave a modality out; give all of "
                f"{', '.join(self.config.modalities)}."
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

        try:
            unet = smp.Unet(
                config.encoder_name,
                encoder_weights="imagenet" if config.pretrained and config.weights is None else None,
                in_channels=sum(len(MODALITIES[m]) for m in config.modalities),
                classes=1,
            )
        except KeyError:
            raise ConfigError(
                f"encoder_name {config.encoder_name!r} is unknown to segmentation_models_pytorch; its "
                "documentation lists them, for example efficientnet-b3."
            ) from None
        self.encoder, self.decoder, self.segmentation_head = unet.encoder, unet.decoder, unet.segmentation_head

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (B, bands, H, W)} to logits (B, H, W)."""
        features = self.encoder(torch.cat(list(inputs.values()), dim=1))
        return self.segmentation_head(self.decoder(features)).squeeze(1)


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
    net = build_terramind(config) if config.architecture == "terramind" else SmpUNet(config)
    segmenter = Segmenter(config, statistics, net)
    if config.weights is not None or (config.pretrained and config.architecture == "terramind"):
        _load_initial(segmenter, config.weights or published_weights(config.backbone))
    return segmenter


def without_weights(config: SegmenterConfig) -> SegmenterConfig:
    """The same configuration for a model whose weights come from elsewhere."""
    return replace(config, pretrained=False, weights=None)


def _load_initial(segmenter: Segmenter, source: str) -> None:
    path = source
    if source.startswith("hf://"):
        from cryosentinel.hub import download_file

        try:
            path = str(download_file(source))
        except HubError as error:
            raise HubError(f"{str(error).rstrip('.')}, or name a local file of weights (model.weights).") from None
    checkpoint = load_checkpoint(path)
    if is_backbone(checkpoint["state_dict"]):
        load_backbone(segmenter.net, checkpoint["state_dict"], source)
    else:
        load_state(segmenter, segmenter_state(checkpoint, source=source), source)


def parameter_counts(segmenter: Segmenter) -> dict[str, int]:
    """Trainable and frozen parameters by part: encoder, decoder (necks and head included), refiner, and their total."""
    counts = {"encoder": 0, "decoder": 0, "refiner": 0}
    for name, parameter in segmenter.named_parameters():
        if name.startswith("refiner."):
            counts["refiner"] += parameter.numel()
        else:
            counts["decoder" if Segmenter.block_of(name) is None else "encoder"] += parameter.numel()
    return {**counts, "total": sum(counts.values())}
