"""CryoSentinel: an executable study of glacial-lake segmentation from Sentinel-1, Sentinel-2 and a DEM."""

__version__ = "0.1.0"
