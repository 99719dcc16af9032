"""In which number format a network computes: the one place that decides, for training, evaluation and prediction.

bfloat16 halves the time of a step where the hardware has it. Where it has not, torch emulates it, and a study of ten
minutes takes hours. So the choice is by default the device's.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cryosentinel.errors import ConfigError

if TYPE_CHECKING:
    import torch

#: What a configuration or a command may ask for; "auto" is bfloat16 where the device has it, else float32.
Choice = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
CHOICES: tuple[Choice, ...] = ("auto", "32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Precision:
    """A number format, and why it was taken.

    Attributes:
        name: in Lightning's words: 32-true (float32), bf16-mixed or 16-mixed (float32 weights, products in bfloat16 or
            float16 under autocast).
        reason: why.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"Precision: {self.name} ({self.reason})."

    def autocast(self, device: str) -> torch.autocast:
        """The context in which a forward pass computes in this format on a kind of device (cpu, cuda, ...)."""
        import torch

        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.name)
        return torch.autocast(device, mixed, enabled=mixed is not None)


def choose(wanted: str, device: str, why: str = "as set") -> Precision:
    """The precision for a kind of device: the device's own choice for "auto", else what is asked for.

    Args:
        wanted: one of :data:`CHOICES`.
        device: kind of device: cpu, cuda, mps, ...
        why: the reason to give where ``wanted`` is not "auto".

    Returns:
        The precision. Its reason carries a warning, with a factor measured on this machine, where bfloat16 is asked for
        and the device has to emulate it.

    Raises:
        ConfigError: an unknown precision, or float16 on a CPU, which torch's mixed precision does not offer there.
    """
    if wanted not in CHOICES:
        raise ConfigError(f"There is no precision {wanted!r}; take one of {', '.join(CHOICES)}.")
    this = "this CPU" if device == "cpu" else f"this device ({device})"
    if wanted == "16-mixed" and device == "cpu":
        raise ConfigError("The precision 16-mixed needs a GPU; on a CPU take auto, 32-true or bf16-mixed.")
    if wanted == "auto":
        if native_bfloat16(device):
            return Precision("bf16-mixed", f"auto: {this} computes in bfloat16 natively")
        return Precision("32-true", f"auto: {this} has no native bfloat16")
    if wanted == "bf16-mixed" and not native_bfloat16(device):
        return Precision(
            wanted,
            f"{why}. Warning: {this} emulates bfloat16; a convolution takes {bfloat16_slowdown(device):.0f} times as "
            "long as in float32, measured just now, and auto would take 32-true",
        )
    return Precision(wanted, why)


def native_bfloat16(device: str) -> bool:
    """Whether torch computes in bfloat16 on a kind of device without emulating it, by torch's own answer."""
    import torch

    if device == "cpu":
        asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # absent where oneDNN is
        return asked is not None and bool(asked())
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    asked = getattr(getattr(torch, device, None), "is_bf16_supported", None)
    return asked is not None and bool(asked())


@functools.cache
def bfloat16_slowdown(device: str) -> float:
    """Time of a convolution (64 channels, 56 x 56 px) in mixed bfloat16 over its time in float32, on this machine."""
    import torch

    layer = torch.nn.Conv2d(64, 64, 3, padding=1, device=device)
    image = torch.ones(1, 64, 56, 56, device=device)

    def seconds(name: str) -> float:
        fastest = float("inf")
        with torch.inference_mode(), Precision(name, "").autocast(device):
            for _ in range(4):
                begun = time.perf_counter()
                float(layer(image).sum())  # a number, so that a GPU has finished
                fastest = min(fastest, time.perf_counter() - begun)
        return fastest

    return seconds("bf16-mixed") / seconds("32-true")


def device_of(accelerator: str) -> str:
    """The kind of device that Lightning's ``accelerator`` (auto, cpu, gpu, cuda, mps, ...) stands for here."""
    import torch

    if accelerator not in ("auto", "gpu"):
        return accelerator
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type
