"""What the large published model costs on a GPU, against the card's own matrix rate, measured in the same run.

    python -m benchmarks.gpu [--out FILE] [--device auto|cuda|cpu] [--quick]

The model is that of the published finetuning with random weights, on chips that already lie on the device. Inference
averages the logits of four flips. Every row is written as soon as it is measured, the important ones first, so that a
run that is cut off keeps what it had; ten minutes of an H100 are meant to be enough. Where there is no GPU the same
code measures TerraMind tiny on the CPU, which shows that it works and nothing about the large model.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accelerator import Device, largest_batch
from benchmarks.gpu_record import RESULTS, Results, refuse_to_replace
from benchmarks.harness import BenchmarkError
from benchmarks.published_model import (
    TINY,
    Training,
    count_operations,
    model_name,
    published_run,
    settle,
    synthetic_batch,
)
from cryosentinel.sensors import CHIP_SIZE

if TYPE_CHECKING:
    import torch

    from cryosentinel.models.segmenter import Segmenter

#: Aim of inference with four flips, a chip.
GOAL_MS = 4.0
#: bfloat16 weights are taken where they change the logits at most so many times as much as autocast does.
EQUAL_ENOUGH = 2.0
MODES = {"autocast": "float32 weights under bf16 autocast", "weights": "bf16 weights"}


@dataclass(frozen=True)
class Plan:
    """What is measured, and how large.

    Attributes:
        model: what differs from the published model.
        size: pixels a side.
        batches: of inference, the most important one first.
        train_batch: of training.
        limit: the largest training batch that is tried.
        sides: of the matrices.
        rounds: timings a row.
        compiled: whether torch.compile is tried as well.
        goal: of inference.
        minutes: no part begins later.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    size: int = CHIP_SIZE
    batches: Sequence[int] = (32, 16, 8, 1)
    train_batch: int = 8
    limit: int = 512
    sides: Sequence[int] = (8192, 16384)
    rounds: int = 20
    compiled: bool = True
    goal: str | None = f"at most {GOAL_MS:g} ms on an H100 (published: 30 ms)"
    minutes: float = 9.0

    def quick(self) -> Plan:
        """Just enough to see that the script works."""
        return replace(
            self, batches=self.batches[:1], limit=2 * self.train_batch, sides=self.sides[:1], rounds=2, compiled=False
        )


PLANS = {
    "cuda": Plan(),
    "cpu": Plan(TINY, 128, (2, 1), train_batch=2, limit=4, sides=(1024, 2048, 4096), rounds=3, goal=None, minutes=60.0),
}


class Measurement:
    """The parts of the measurement, and what the later ones need of the earlier ones."""

    def __init__(self, plan: Plan, device: Device, out: Path | None) -> None:
        import torch

        from cryosentinel.models.segmenter import build_segmenter, parameter_counts
        from cryosentinel.sensors import PUBLISHED_STATISTICS

        self.plan, self.device = plan, device
        self.run = published_run(plan.model)
        self.results = Results(out, device, model_name(self.run), plan.size)
        self.results.say(f"{self.results.record['model']} on {device.name}")
        torch.manual_seed(self.run.seed)
        self.model = build_segmenter(self.run.model, PUBLISHED_STATISTICS).eval()  # stays on the CPU, to be copied
        self.results.add("parameters", "parameters", parameter_counts(self.model)["total"] / 1e6, "million")
        self.rate: float | None = None  # operations a second
        self.forward_operations: int | None = None  # a chip, one pass
        self.step_operations: int | None = None  # a chip, forward and backward
        self.mode = "autocast"
        self.largest: int | None = None

    def measure(self) -> bool:
        """Carry out every part, the important ones first; one that fails leaves its reason in the results.

        Returns:
            whether all of them were carried out without failure.
        """
        parts: dict[str, Callable[[], None]] = {
            "matrix_rate": self.matrix_rate,
            "operations": self.operations,
            "inference": self.inference,
            "training": self.training,
        }
        if self.plan.compiled:
            # An order by importance: every compilation of the large model takes a minute or more.
            parts["compiled_inference"] = lambda: self.compiled_inference(self.plan.batches[:1])
            parts["compiled_training"] = self.compiled_training
            parts["compiled_inference_more"] = lambda: self.compiled_inference(self.plan.batches[1:])
        failed = []
        for name, part in parts.items():
            if time.monotonic() - self.results.began > 60 * self.plan.minutes:
                self.results.say(f"{name} and what follows is left out: {self.plan.minutes:g} minutes are over")
                return False
            self.results.say(f"{name} ...")
            try:
                part()
            except Exception as error:  # one part's failure must not cost the others, on a card lent for minutes
                failed.append(name)
                lines = str(error).strip().splitlines() or [""]
                reason = f"{type(error).__name__}: {lines[0]}"
                self.results.add(name, name.replace("_", " "), None, "", reason=reason)
            self.device.release()
        self.results.record["complete"] = not failed
        self.results.write()
        return not failed

    def _share(self, operations: float | None, seconds: float) -> float | None:
        return None if operations is None or self.rate is None else operations / seconds / self.rate

    # ------------------------------------------------------------------------------------------------------- the card

    def matrix_rate(self) -> None:
        """What the card reaches in the best case."""
        rates = {side: self.device.matrix_rate(side, self.plan.rounds) for side in self.plan.sides}
        side = max(rates, key=lambda s: rates[s])
        self.rate = rates[side]
        what = f"bf16 matrix rate of the device, {side} x {side}, best of {self.plan.rounds}"
        self.results.add("matrix_rate", what, self.rate / 1e12, "TFLOP/s")

    def operations(self) -> None:
        """What one chip needs, and what the goal asks of the card for the model as published."""
        self.forward_operations = count_operations(self.run, self.plan.size)
        what = "operations of one pass of one chip"
        self.results.add("forward_operations", what, self.forward_operations / 1e9, "GFLOP")
        published = published_run()
        operations = count_operations(published, CHIP_SIZE)
        name = f"{model_name(published)}, {CHIP_SIZE} px, counted without running it"
        if self.plan.model:
            self.results.add("published_operations", f"{what}, {name}", operations / 1e9, "GFLOP")
        what = f"rate at which four passes of {name}, would take {GOAL_MS:g} ms a chip"
        self.results.add("goal_rate", what, 4 * operations / GOAL_MS / 1e9, "TFLOP/s")

    def _chips(self, count: int) -> dict[str, torch.Tensor]:
        batch = synthetic_batch(count, self.plan.size, self.device.kind)
        return {modality: batch[modality] for modality in self.run.model.modalities}

    # ------------------------------------------------------------------------------------------------------ inference

    def _autocast(self, mode: str) -> torch.autocast:
        import torch

        return torch.autocast(self.device.kind, torch.bfloat16, enabled=mode == "autocast")

    def _prepared(self, mode: str) -> Segmenter:
        """A copy of the model on the device; the statistics, and so the normalisation, stay in float32."""
        import torch

        model = copy.deepcopy(self.model).to(self.device.kind)
        if mode == "weights":
            model.net.to(torch.bfloat16).register_forward_pre_hook(_in_bfloat16)
        return model

    def _logits(self, model: Segmenter, batch: dict[str, torch.Tensor], mode: str) -> torch.Tensor:
        import torch

        from cryosentinel.models.tta import flip_logits

        with torch.inference_mode(), self._autocast(mode):
            return flip_logits(model, batch, 4)

    def _infer(self, model: Segmenter, count: int, mode: str, compiled: bool = False) -> float:
        """Time a batch, add its row and return the seconds a chip."""
        batch = self._chips(count)
        times = self.device.seconds(lambda: self._logits(model, batch, mode), self.plan.rounds)
        seconds = statistics.median(times) / count
        operations = None if self.forward_operations is None else 4 * self.forward_operations
        name = f"infer_{'compiled_' if compiled else ''}{mode}_b{count}"
        what = f"inference, four flips, {MODES[mode]}, {'torch.compile, ' if compiled else ''}batch {count}"
        share = self._share(operations, seconds)
        self.results.add(name, what, 1e3 * seconds, "ms a chip", goal=self.plan.goal, share=share)
        return seconds

    def inference(self) -> None:
        """Both ways to compute in bfloat16, how far each is from float32, and the better one at every batch size."""
        first, *others = self.plan.batches
        batch = self._chips(max(2, min(first, 8)))
        settled = self._prepared("float32")
        settle(settled, batch)
        self.model = settled.cpu()
        exact = self._logits(self._prepared("float32"), batch, "float32")
        changes, seconds = {}, {}
        for mode, words in MODES.items():
            model = self._prepared(mode)
            change = (self._logits(model, batch, mode) - exact).square().mean().sqrt() / exact.std()
            changes[mode] = 100 * float(change)
            what = f"what {words} change in the logits, root mean square, as a share of their spread in float32"
            self.results.add(f"change_{mode}", what, changes[mode], "%")
            seconds[mode] = self._infer(model, first, mode)
            del model
            self.device.release()
        equal = changes["weights"] <= EQUAL_ENOUGH * changes["autocast"]
        self.mode = "weights" if equal and seconds["weights"] < seconds["autocast"] else "autocast"
        self.results.say(f"going on with {MODES[self.mode]}: the faster of those equal enough to float32")
        model = self._prepared(self.mode)
        for count in others:
            self._infer(model, count, self.mode)

    def compiled_inference(self, batches: Sequence[int]) -> None:
        """The same under torch.compile, which compiles anew for every batch size."""
        import torch

        torch.compiler.reset()
        model = self._prepared(self.mode)
        model.compile(dynamic=False)
        for count in batches:
            self._infer(model, count, self.mode, compiled=True)

    # ------------------------------------------------------------------------------------------------------- training

    def _steps(self, training: Training, count: int, name: str, compiled: bool = False) -> None:
        """Time steps at a batch size and add its rows."""
        batch = synthetic_batch(count, self.plan.size, self.device.kind)
        training.remember(batch)
        for _ in range(self.device.warmup):
            training.step(batch)
        self.device.watch_memory()
        times = self.device.seconds(lambda: training.step(batch), max(2, self.plan.rounds // 2), warmup=0)
        seconds, peak = statistics.median(times), self.device.peak_gib()
        operations = None if self.step_operations is None else count * self.step_operations
        what = f"training, {training.precision.name}, {'torch.compile, ' if compiled else ''}batch {count}"
        self.results.add(name, what, 1 / seconds, "steps/s", share=self._share(operations, seconds))
        of = "of the tensors" if self.device.kind == "cuda" else "of the process so far"
        self.results.add(f"{name}_memory", f"{what}: peak memory {of}", peak, "GiB")

    def training(self) -> None:
        """Steps at the published batch size, and at the largest that fits."""
        from torch.utils.flop_counter import FlopCounterMode

        training, first = Training(self.run, self.device.kind), self.plan.train_batch
        with FlopCounterMode(display=False) as counter:
            training.forward(synthetic_batch(2, self.plan.size, self.device.kind)).backward()
        self.step_operations = counter.get_total_flops() // 2
        what = "operations of the forward and backward pass of one chip"
        self.results.add("training_operations", what, self.step_operations / 1e9, "GFLOP")
        self._steps(training, first, f"train_b{first}")

        def attempt(count: int) -> None:
            self.results.say(f"does a batch of {count} fit?")
            training.optimizer.zero_grad()
            batch = synthetic_batch(count, self.plan.size, self.device.kind)
            for _ in range(self.device.warmup):
                training.step(batch)

        self.largest = largest_batch(attempt, 2 * first, self.plan.limit, self.device.release)
        what = f"largest training batch that fits (none above {self.plan.limit} was tried)"
        self.results.add("train_largest", what, self.largest, "chips")
        if self.largest != first:
            self._steps(training, self.largest, "train_at_largest")

    def compiled_training(self) -> None:
        """Both batch sizes under torch.compile."""
        import torch

        torch.compiler.reset()
        training, first = Training(self.run, self.device.kind), self.plan.train_batch
        training.task.model.compile(dynamic=False)
        self._steps(training, first, f"train_compiled_b{first}", compiled=True)
        if self.largest not in (None, first):
            self._steps(training, self.largest, "train_compiled_at_largest", compiled=True)


def _in_bfloat16(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    return ({name: value.to(torch.bfloat16) for name, value in inputs[0].items()},)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; see the module's first lines."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file of the results; benchmarks/gpu_results.json by default")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--quick", action="store_true", help="small and rough; kept only where --out says so")
    options = parser.parse_args(argv)
    out = options.out or (None if options.quick else RESULTS)
    try:
        device = Device(options.device)
        if out is not None:
            refuse_to_replace(out, device.kind)
    except BenchmarkError as error:
        sys.exit(f"gpu: {error}")
    plan = PLANS[device.kind]
    return 0 if Measurement(plan.quick() if options.quick else plan, device, out).measure() else 1


if __name__ == "__main__":
    sys.exit(main())
