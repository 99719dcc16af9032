"""Claims about speed and memory, one file each, every one measured beside a peer: ``make bench``."""
