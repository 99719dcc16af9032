"""The training task: a segmenter, its loss, its optimiser, and validation by global IoU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from cryosentinel.errors import InputError
from cryosentinel.models.segmenter import SegmenterConfig, build_segmenter, without_weights
from cryosentinel.models.tta import flip_logits
from cryosentinel.sensors import MODALITIES, Statistics
from cryosentinel.training.distance import DistanceCache
from cryosentinel.training.losses import TERMS, LossConfig, SixTermLoss
from cryosentinel.training.optim import OptimConfig, build_optimizer, build_schedule, freeze

Batch = dict[str, Tensor]


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """The seed of everything random in one training step.

    Every step starts its generators anew from its place in the run, so a resumed run draws what the uninterrupted one
    would have drawn, without any random state to restore. (Order of the chips and augmentation, which belong to the
    data module, follow from the epoch and the chip in the same way.)
    """
    return int(np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(1, np.uint64)[0] >> 1)


class SegmentationTask(pl.LightningModule):
    """Train a segmenter with the six-term loss and validate it by global IoU at probability 0.5.

    Args:
        segmenter: what to build, as plain values (:meth:`SegmenterConfig.as_dict`).
        statistics: of the training data, as plain values; None where the segmenter brings its own.
        loss: weights and constants of the loss.
        optim: learning rates and schedule.
        seed: of initial weights and dropout.
        val_flips: test-time flips in validation: 1, 2 or 4.
        steps_per_epoch: optimiser steps an epoch, for the schedule.
        compile_model: compile the network with torch.compile (in place: names in checkpoints do not change).
        model: a network to use instead of building one; it must map a batch to logits (B, H, W) and know its ``depth``.
        start_weights: load the weights that ``segmenter`` names; off where a checkpoint is about to bring them.
    """

    def __init__(
        self,
        segmenter: Mapping[str, Any],
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        optim: OptimConfig | None = None,
        seed: int = 42,
        val_flips: int = 4,
        steps_per_epoch: int = 1,
        compile_model: bool = False,
        model: nn.Module | None = None,
        start_weights: bool = True,
    ) -> None:
        super().__init__()
        self.hparams.update({"segmenter": dict(segmenter), "statistics": statistics, "seed": seed})
        self.model: nn.Module = model if model is not None else nn.Identity()
        self._built = model is not None
        self.loss = SixTermLoss(loss)
        self.optim = optim or OptimConfig()
        self.seed = seed
        self.val_flips = val_flips
        self.steps_per_epoch = steps_per_epoch
        self.compile_model = compile_model
        self.start_weights = start_weights
        self.distances = DistanceCache()
        self._sums: dict[str, Tensor] = {}
        self._confusion = torch.zeros(2, dtype=torch.long)
        self.val_iou: float | None = None  # of the latest validation

    def configure_model(self) -> None:
        """Build the network and freeze what is not to learn, once.

        Freezing comes here and not with the optimiser because distributed strategies look for the learning parameters
        before there is one.
        """
        if self._built:
            return
        statistics = self.hparams["statistics"]
        # Initial weights come from their own seed: they do not depend on what was drawn before.
        torch.manual_seed(self.seed)
        config = SegmenterConfig.from_dict(self.hparams["segmenter"])
        self.model = build_segmenter(
            config if self.start_weights else without_weights(config),
            None if statistics is None else Statistics.from_dict(statistics),
        )
        self.hparams["statistics"] = self.model.statistics.as_dict()
        freeze(self.model, self.depth, self.optim)
        if self.compile_model:
            self.model.compile()
        self._built = True

    @property
    def depth(self) -> int:
        """Number of encoder blocks."""
        return int(self.model.depth)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Tensor:
        """Water logits (B, H, W) of a batch in physical units."""
        return self.model(batch)

    def configure_optimizers(self) -> Any:
        """AdamW with layer-wise decay, stepped by its schedule after every optimiser step."""
        optimizer = build_optimizer(self.model, self.depth, self.optim)
        # Not trainer.estimated_stepping_batches: it opens the training loader before a resumed run has restored its
        # place in the epoch, and Lightning does not open it again.
        schedule = build_schedule(optimizer, self.optim, self.steps_per_epoch, self.trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Training

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """See the chips' own labels before the data module augments them: their distance maps are worth keeping."""
        if self.trainer.training and self.loss.config.boundary:
            self.distances.remember(batch["row"], batch["label"])
        return batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout for this step, and note its learning rate for the log."""
        self._sums["lr"] = torch.tensor(self.trainer.optimizers[0].param_groups[-1]["lr"], dtype=torch.float64)
        torch.manual_seed(step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of an augmented batch.

        Raises:
            InputError: the loss is not finite; the sentence names the chips.
        """
        distance = self.distances.lookup(batch["row"], batch["label"]) if self.loss.config.boundary else None
        logits = self.model(batch)
        total, terms = self.loss(logits, batch["label"], batch["valid"], distance)
        # The loss replaces logits that do not count, so NaN is looked for in all of them.
        if not torch.isfinite(total + 0.0 * logits.detach().sum()):
            self._refuse(batch, logits)
        self._add({"loss": total.detach(), **terms})
        self.log("train_loss", total.detach(), prog_bar=True, logger=False)
        return total

    def _refuse(self, batch: Batch, logits: Tensor) -> None:
        bad_input = torch.zeros(len(batch["row"]), dtype=torch.bool)
        for name in MODALITIES:
            if name in batch:
                bad_input |= ~torch.isfinite(batch[name]).flatten(1).all(1).cpu()
        bad_output = ~torch.isfinite(logits.detach()).flatten(1).all(1).cpu()
        where = f"at epoch {self.current_epoch + 1}, step {self.global_step}"
        if bad_input.any():
            raise InputError(
                f"The loss is not a number {where}: {self._names(batch, bad_input)} hold values that are not finite; "
                "look at these chips, or leave them out."
            )
        if not bad_output.any():
            bad_output[:] = True
        raise InputError(
            f"The loss is not a number {where}, on {self._names(batch, bad_output)} whose inputs are finite; "
            "lower optim.lr or lengthen the warm-up, or look at these chips."
        )

    def _names(self, batch: Batch, which: Tensor) -> str:
        rows = batch["row"].cpu()[which].tolist()
        store = getattr(getattr(self.trainer, "datamodule", None), "store", None)
        names = [str(store.index.chip_id.iloc[row]) if store is not None else f"row {row}" for row in rows]
        return f"chip{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def _add(self, values: Mapping[str, Tensor]) -> None:
        """Add to the epoch's sums, which travel in checkpoints so that a resumed epoch logs the same means."""
        for name, value in {**values, "batches": torch.ones(())}.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), dtype=torch.float64)) + value.cpu().double()

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row: mean loss and terms, the decoder's rate in the last step, validation IoU.

        The row goes to the log here, before the epoch's checkpoint is written, and not through ``self.log``, which
        would write it afterwards: a kill between the two would lose it.
        """
        batches = self._sums.get("batches", torch.ones(()))
        row: dict[str, float] = {"epoch": self.current_epoch + 1}
        for name in ("loss", *TERMS):
            if name in self._sums:
                row["loss" if name == "loss" else f"loss_{name}"] = float(self._sums[name] / batches)
        row["lr"] = float(self._sums["lr"])
        if self.val_iou is not None:
            row["val_iou"] = self.val_iou
        if self.logger is not None:
            self.logger.log_metrics(row, step=self.global_step)
            self.logger.save()
        self._sums = {}

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._confusion = torch.zeros(2, dtype=torch.long, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the pixels in the intersection and in the union of prediction and label.

        The ranks of a distributed run take the batches in turn.
        """
        if batch_idx % self.trainer.world_size != self.trainer.global_rank:
            return
        logits = flip_logits(self.model, batch, self.val_flips)
        valid = batch["valid"]
        water = (logits >= 0) & valid
        label = (batch["label"] > 0.5) & valid
        self._confusion += torch.stack([(water & label).sum(), (water | label).sum()])

    def on_validation_epoch_end(self) -> None:
        """Log the global IoU: intersection over union, both summed over all chips.

        Raises:
            InputError: there is no lake to score.
        """
        counts = self._confusion
        if self.trainer.world_size > 1:
            counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        intersection, union = counts.tolist()
        if union == 0:
            raise InputError(
                "The validation split holds no lake pixel and none is predicted, so its IoU is undefined; validate on "
                "more chips (another data.block_size, or more regions)."
            )
        self.val_iou = intersection / union
        self.log("val_iou", self.val_iou, prog_bar=True, logger=False)

    # State

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of the epoch under way."""
        checkpoint["epoch_sums"] = dict(self._sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the sums of the epoch under way."""
        self._sums = dict(checkpoint.get("epoch_sums", {}))
