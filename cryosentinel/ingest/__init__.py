"""Chips of any region and year from a STAC service, in the published format."""

from cryosentinel.ingest.grid import parse_box
from cryosentinel.ingest.pipeline import ingest
from cryosentinel.ingest.report import IngestResult
from cryosentinel.ingest.settings import Settings

__all__ = ["IngestResult", "Settings", "ingest", "parse_box"]
