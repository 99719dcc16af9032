"""Chips of any region and year from a STAC service, in the published format."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cryosentinel.ingest.settings import Settings

if TYPE_CHECKING:
    from cryosentinel.ingest.grid import parse_box
    from cryosentinel.ingest.pipeline import ingest
    from cryosentinel.ingest.report import IngestResult

__all__ = ["IngestResult", "Settings", "ingest", "parse_box"]


def __getattr__(name: str) -> Any:
    """Import what takes a second (geopandas, scipy) when it is first used: a command asks for the settings alone."""
    places = {"IngestResult": "report", "ingest": "pipeline", "parse_box": "grid"}
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{places[name]}"), name)
