"""The executable study: its stages, its metrics file, its notebooks and what its network is compared with."""
