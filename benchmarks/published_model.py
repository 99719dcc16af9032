"""The published finetuning configuration with random weights, on made-up chips: what it costs, not how it scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from cryosentinel.training.config import RunConfig
    from cryosentinel.training.task import SegmentationTask

#: Stage 4b v2, whose soup is the published checkpoint.
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "terramind_v3_finetune_almaty_v2.yaml"
TINY = {"backbone": "terramind_v1_tiny"}


def published_run(model: Mapping[str, Any] | None = None) -> RunConfig:
    """The run of :data:`CONFIG`, its weights left random.

    Args:
        model: what to change of the model, by the names of ``SegmenterConfig``.
    """
    from cryosentinel.models.segmenter import without_weights
    from cryosentinel.training.config import parse
    from cryosentinel.training.fit import build

    run, _, _ = build(*parse(CONFIG))
    return replace(run, model=replace(without_weights(run.model), **(model or {})))


def model_name(run: RunConfig) -> str:
    """How rows call the model."""
    config = run.model
    return config.backbone if config.architecture == "terramind" else f"U-Net with {config.encoder_name}"


def synthetic_batch(count: int, size: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Chips of noise about the published means, each with a lake of its own size, 2 % of the pixels invalid.

    Args:
        count: chips.
        size: pixels a side.
        device: where the batch is to lie.

    Returns:
        a batch as the data module yields it: physical units, filled where invalid.
    """
    import torch

    from cryosentinel.sensors import DEM_RANGE, PUBLISHED_STATISTICS, S1_FILL_DB, S2_RANGE

    generator = torch.Generator().manual_seed(0)
    limits = {"S2L2A": S2_RANGE, "S1GRD": (S1_FILL_DB, 20.0), "DEM": DEM_RANGE}
    batch: dict[str, torch.Tensor] = {}
    valid = torch.rand(count, size, size, generator=generator) > 0.02
    for modality, (low, high) in limits.items():
        mean = torch.tensor(PUBLISHED_STATISTICS.means[modality])[:, None, None]
        std = torch.tensor(PUBLISHED_STATISTICS.stds[modality])[:, None, None]
        noise = torch.randn(count, len(mean), size, size, generator=generator)
        fill = S1_FILL_DB if modality == "S1GRD" else 0.0
        batch[modality] = torch.where(valid[:, None], (mean + std * noise).clamp(low, high), fill)
    yy, xx = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    lakes = []
    for index in range(count):
        radius = size * (0.03 + 0.02 * (index % 8))
        y, x = size * (0.3 + 0.05 * (index % 9)), size * (0.3 + 0.04 * (index % 11))
        lakes.append(((yy - y) ** 2 + (xx - x) ** 2 < radius**2).float())
    batch |= {"label": torch.stack(lakes), "valid": valid, "row": torch.arange(count)}
    return {name: value.to(device) for name, value in batch.items()}


class Training:
    """Training steps as the trainer takes them, without its loaders, callbacks and logs.

    A step is the task's own (six-term loss, distance maps from the cache, the check that the loss is a number) under
    the precision of the device, then the backward pass, the clip of the gradient and AdamW with layer-wise decay at the
    rates from which the schedule departs. The averaged copy of the weights is not kept.
    """

    def __init__(self, run: RunConfig, device: torch.device | str = "cpu") -> None:
        import torch

        from cryosentinel.models.segmenter import parameter_counts
        from cryosentinel.precision import choose
        from cryosentinel.sensors import PUBLISHED_STATISTICS
        from cryosentinel.training.optim import build_optimizer
        from cryosentinel.training.task import SegmentationTask

        self.run, self.device = run, device
        # The published runs are bf16-mixed; on a device that emulates bfloat16 that would measure the emulation.
        self.precision = choose("auto", torch.device(device).type)
        self.task: SegmentationTask = SegmentationTask(
            run.model.as_dict(), PUBLISHED_STATISTICS.as_dict(), run.loss, run.optim, seed=run.seed
        )
        self.task.configure_model()
        self.task.to(device).train()
        model: Any = self.task.model
        self.parameters = parameter_counts(model)["total"]
        self.optimizer = build_optimizer(model, self.task.depth, run.optim)

    def remember(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Keep the distance maps of a batch, as after its first epoch."""
        if self.run.loss.boundary:
            self.task.distances.remember(batch["row"], batch["label"])

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch, to call ``backward`` on."""
        import torch

        with warnings.catch_warnings(), self.precision.autocast(torch.device(self.device).type):
            # There is no trainer here whose log the loss could go to.
            warnings.filterwarnings("ignore", message=".*self.trainer.* reference is not registered.*")
            return self.task.training_step(batch, 0)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """One optimiser step.

        Returns:
            the loss before it.
        """
        import torch

        loss = self.forward(batch)
        self.optimizer.zero_grad()
        loss.backward()
        if self.run.trainer.gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.run.trainer.gradient_clip_val)
        self.optimizer.step()
        return float(loss.detach())

    def values(self) -> dict[str, torch.Tensor]:
        """Up to 64 values of every parameter, spread over it: enough to see that it moves, too few to weigh."""
        found = {}
        for name, parameter in self.task.model.named_parameters():
            flat = parameter.detach().flatten()
            found[name] = flat[:: math.ceil(len(flat) / 64)].cpu().clone()
        return found

    def parts_moved(self, before: Mapping[str, torch.Tensor]) -> dict[str, bool]:
        """Part of the network (decoder, encoder, block 00, ...) -> whether a weight of it differs from before."""
        import torch

        from cryosentinel.training.optim import part_of

        moved: dict[str, bool] = {}
        for name, values in self.values().items():
            part = part_of(name, self.task.depth)
            moved[part] = moved.get(part, False) or not torch.equal(values, before[name])
        return moved
