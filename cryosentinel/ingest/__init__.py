"""Chips of any region and year from STAC services, in the published format."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cryosentinel.ingest.services import SERVICES, Service
from cryosentinel.ingest.settings import Settings

if TYPE_CHECKING:
    from cryosentinel.ingest.checking import Checked, check
    from cryosentinel.ingest.grid import parse_box, region_box
    from cryosentinel.ingest.pipeline import ingest
    from cryosentinel.ingest.report import IngestResult

__all__ = [
    "SERVICES", "Checked", "IngestResult", "Service", "Settings", "check", "ingest", "parse_box", "region_box",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what takes a second (geopandas, scipy) when it is first used: a command asks for the settings alone."""
    places = {
        "Checked": "checking", "IngestResult": "report", "check": "checking", "ingest": "pipeline",
        "parse_box": "grid", "region_box": "grid",
    }  # fmt: skip
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{places[name]}"), name)
