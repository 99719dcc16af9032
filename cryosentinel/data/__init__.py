"""What a chip is and where it comes from: codecs, splits, statistics, the simulator, ingest."""
