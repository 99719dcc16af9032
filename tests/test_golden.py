"""What the run of preset tiny gave when it was pinned, within a tolerance that other processors stay in."""

from __future__ import annotations

import csv

import pytest


def test_golden_figures_of_the_tiny_preset(tiny_study):
    """Whoever changes the simulated chips, the network, the loss or the schedule on purpose pins these anew."""
    with open(tiny_study.outputs / "runs" / "tiny" / "logs" / "metrics.csv", newline="", encoding="utf-8") as handle:
        first, last = csv.DictReader(handle)
    assert float(first["loss"]) == pytest.approx(1.506, rel=1e-2)
    assert float(last["loss"]) == pytest.approx(1.730, rel=2e-2)
    assert float(last["loss_lovasz"]) == pytest.approx(2.328, rel=5e-2)
    assert float(last["val_iou"]) == pytest.approx(0.492, abs=0.02)
