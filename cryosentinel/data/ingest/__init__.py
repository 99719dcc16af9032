"""Chips of any region and year from a STAC service, in the published format."""

from cryosentinel.data.ingest.build import ingest
from cryosentinel.data.ingest.grid import parse_box
from cryosentinel.data.ingest.report import IngestResult
from cryosentinel.data.ingest.settings import Settings

__all__ = ["IngestResult", "Settings", "ingest", "parse_box"]
