"""CryoSentinel: an executable study of glacial-lake segmentation from Sentinel-1, Sentinel-2 and a DEM.

What a reader needs is here, and each name is imported when it is first used: ``import cryosentinel`` is instant
and never loads torch. ``simulate``, ``ingest`` and ``study`` are subpackages; the functions that one would look for
under these names are :func:`simulate_dataset`, :func:`ingest_region` and :func:`run_study`.
"""

# ruff: noqa: F401
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# torch gets the memory of large tensors from Linux in pages of 4 kB and gives it back after each use; with pages of
# 2 MB a step on a CPU takes three quarters of the time (benchmark huge_pages). It is read at the first large tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:  # what editors and type checkers see; the table below is the same, and a test compares the two
    from cryosentinel.data.chips import Chip
    from cryosentinel.data.dataset import ChipDataModule
    from cryosentinel.data.split import assign_splits
    from cryosentinel.data.store import ChipStore
    from cryosentinel.evaluation.audit import audit
    from cryosentinel.evaluation.bootstrap import difference, estimate
    from cryosentinel.evaluation.evaluate import evaluate
    from cryosentinel.hub import download_dataset
    from cryosentinel.ingest import ingest as ingest_region
    from cryosentinel.mapping.lakes import vectorise
    from cryosentinel.mapping.scene import predict_scene
    from cryosentinel.models.checkpoint import load_segmenter
    from cryosentinel.models.convert import convert
    from cryosentinel.models.segmenter import Segmenter, SegmenterConfig, add_architecture, build_segmenter
    from cryosentinel.models.soup import uniform_soup
    from cryosentinel.simulate import TruthStore, render_scene
    from cryosentinel.simulate import simulate as simulate_dataset
    from cryosentinel.study.chapters import run_study
    from cryosentinel.study.study import Study
    from cryosentinel.training.fit import fit

#: Name -> the module that holds it, with the name there after a colon where it differs.
_PLACES = {
    "Chip": "data.chips",
    "ChipDataModule": "data.dataset",
    "ChipStore": "data.store",
    "Segmenter": "models.segmenter",
    "SegmenterConfig": "models.segmenter",
    "Study": "study.study",
    "TruthStore": "simulate",
    "add_architecture": "models.segmenter",
    "assign_splits": "data.split",
    "audit": "evaluation.audit",
    "build_segmenter": "models.segmenter",
    "convert": "models.convert",
    "difference": "evaluation.bootstrap",
    "download_dataset": "hub",
    "estimate": "evaluation.bootstrap",
    "evaluate": "evaluation.evaluate",
    "fit": "training.fit",
    "ingest_region": "ingest:ingest",
    "load_segmenter": "models.checkpoint",
    "predict_scene": "mapping.scene",
    "render_scene": "simulate",
    "run_study": "study.chapters",
    "simulate_dataset": "simulate:simulate",
    "uniform_soup": "models.soup",
    "vectorise": "mapping.lakes",
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _PLACES[name].partition(":")
    globals()[name] = found = getattr(import_module(f"{__name__}.{module}"), there or name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
