"""The spatial split: hash blocks with a buffer, so that no training chip shares a pixel with an evaluation chip.

Two rules drop the chips in between. Both guarantee that the centres of any two kept chips of different splits lie at
least ``2 x buffer`` degrees apart in latitude or in longitude (the larger of the two differences, a Chebyshev
distance; nothing is promised about the other axis). At 0.02 degrees and 45.5 degrees north that is 3.1 km, and chips
are 2.24 km wide. No larger distance is guaranteed: :mod:`cryosentinel.data.split_check` measures the one there is.

- ``edge``, as published: a chip nearer than ``buffer`` to any edge of its block is dropped. Between two blocks that
  differ in an axis lies an edge in that axis, and both chips keep ``buffer`` from it.
- ``foreign``: only edges to a block of another split count. Side by side, both chips keep ``buffer`` from the common
  edge. Corner to corner they share no edge, so a chip is dropped when its distances to the corner in latitude and in
  longitude add up to less than ``2 x buffer``; then the differences of two kept chips add up to ``4 x buffer`` or
  more, and one of them is at least half of that. Blocks further apart are a whole block apart, which is why the
  buffer may not exceed half a block.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from cryosentinel.data.split_check import BUFFER, SplitCheck, check_split, check_stages, checked_centres
from cryosentinel.errors import ConfigError

SALT = "cryosentinel-blocks-v1"
SPLITS = ("train", "val", "test")
RULES = ("edge", "foreign")
TRAIN_BELOW, VAL_BELOW, BUCKETS = 80, 90, 100  # of 100 buckets: 0..79 train, 80..89 val, the rest test
FINETUNE_BLOCK_SIZE, PRETRAIN_BLOCK_SIZE, BUFFER_DEGREES = 0.15, 0.25, 0.02  # published, degrees

_NAMES = np.array([*SPLITS, BUFFER])


@functools.lru_cache(maxsize=1 << 18)
def block_bucket(lat_index: int, lon_index: int, salt: str = SALT) -> int:
    """The bucket (0..99) of a block: the first 8 hexadecimal digits of sha1("salt|lat_index|lon_index"), modulo 100."""
    digest = hashlib.sha1(f"{salt}|{lat_index}|{lon_index}".encode(), usedforsecurity=False).hexdigest()
    return int(digest[:8], 16) % BUCKETS


def _block_codes(lat_index: np.ndarray, lon_index: np.ndarray, salt: str) -> np.ndarray:
    """Position in :data:`SPLITS` of each block, hashed once a block: (n,) int8."""
    keys, inverse = np.unique(lat_index << 32 | lon_index & 0xFFFFFFFF, return_inverse=True)
    # The lower half comes back as a signed 32-bit number: longitudes west of Greenwich have negative indices.
    pairs = zip((keys >> 32).tolist(), keys.astype(np.int32).tolist(), strict=True)
    buckets = np.array([block_bucket(i, j, salt) for i, j in pairs], dtype=np.int64)
    return ((buckets >= TRAIN_BELOW).astype(np.int8) + (buckets >= VAL_BELOW).astype(np.int8))[inverse]


def _check_blocks(block_size: float, buffer: float) -> None:
    if not 0 < block_size <= 90:
        raise ConfigError(f"The block size is {block_size} degrees; it must be above 0 and at most 90.")
    if not 0 <= buffer < block_size / 2:
        raise ConfigError(
            f"The buffer is {buffer} degrees and the blocks measure {block_size}; the buffer must be below half a "
            "block, or no chip is left."
        )


def block_indices(lat: Any, lon: Any, block_size: float) -> tuple[np.ndarray, np.ndarray]:
    """floor(lat / size) and floor(lon / size): (n,) int64 each.

    Raises:
        InputError: a centre is missing or off the globe.
    """
    lat, lon = checked_centres(lat, lon)
    return np.floor(lat / block_size).astype(np.int64), np.floor(lon / block_size).astype(np.int64)


def block_ids(lat: Any, lon: Any, block_size: float = FINETUNE_BLOCK_SIZE) -> np.ndarray:
    """The block of each chip as ``"lat_index|lon_index"``: (n,) of strings."""
    i, j = block_indices(lat, lon, block_size)
    keys, inverse = np.unique(np.stack([i, j]), axis=1, return_inverse=True)
    names = [f"{a}|{b}" for a, b in keys.T.tolist()]
    return np.array(names, dtype=object if not names else None)[inverse.reshape(-1)]


def assign_splits(
    lat: Any,
    lon: Any,
    block_size: float = FINETUNE_BLOCK_SIZE,
    buffer: float = BUFFER_DEGREES,
    salt: str = SALT,
    rule: str = "edge",
) -> np.ndarray:
    """The split of each chip from its centre alone.

    Args:
        lat, lon: (n,) chip centres in degrees.
        block_size: of a block, degrees; published 0.15 for the finetune, 0.25 for the pretraining.
        buffer: degrees; published 0.02.
        salt: of the hash.
        rule: "edge" (published) or "foreign" (see the module's text).

    Returns:
        (n,) of "train", "val", "test" or "buffer" (dropped).

    Raises:
        ConfigError: unknown rule, or a buffer of half a block or more.
        InputError: a centre is missing or off the globe.
    """
    _check_blocks(block_size, buffer)
    if rule not in RULES:
        raise ConfigError(f"There is no buffer rule {rule!r}; choose one of {', '.join(RULES)}.")
    lat, lon = checked_centres(lat, lon)
    i, j = block_indices(lat, lon, block_size)
    codes = _block_codes(i, j, salt)
    # Distance to the edge in the direction of a step; 0 for a step that stays in the row (or column).
    nothing = np.zeros_like(lat)
    to_lat = {-1: lat - i * block_size, 0: nothing, 1: (i + 1) * block_size - lat}
    to_lon = {-1: lon - j * block_size, 0: nothing, 1: (j + 1) * block_size - lon}
    dropped = np.zeros(len(lat), dtype=bool)
    for step_lat in (-1, 0, 1):
        for step_lon in (-1, 0, 1):
            corner = bool(step_lat and step_lon)
            if not (step_lat or step_lon) or (corner and rule == "edge"):
                continue
            near = to_lat[step_lat] + to_lon[step_lon] < (2 * buffer if corner else buffer)
            if rule == "foreign":
                at = np.flatnonzero(near)
                near[at] = _block_codes(i[at] + step_lat, j[at] + step_lon, salt) != codes[at]
            dropped |= near
    return _NAMES[np.where(dropped, len(SPLITS), codes)]


def exclude_stage(
    lat: Any,
    lon: Any,
    block_size: float = FINETUNE_BLOCK_SIZE,
    buffer: float = BUFFER_DEGREES,
    salt: str = SALT,
) -> np.ndarray:
    """Chips to keep out of an earlier stage, so that a later stage's validation and test places stay unseen.

    The two stages' blocks hash differently, so a place that the finetune tests on may be one that the pretraining
    trained on. A chip may stay in the earlier stage only where the later stage would train on it under the "foreign"
    rule, whichever rule the later stage uses itself: then its centre keeps ``2 x buffer`` from each validation and
    test chip of the later stage, exactly as a training chip of that stage does.

    Args:
        lat, lon: (n,) chip centres of the earlier stage, degrees.
        block_size, buffer, salt: of the later stage.

    Returns:
        (n,) bool, True for a chip to leave out.
    """
    return assign_splits(lat, lon, block_size, buffer, salt, rule="foreign") != "train"


__all__ = [
    "BUFFER",
    "RULES",
    "SALT",
    "SPLITS",
    "SplitCheck",
    "assign_splits",
    "block_bucket",
    "block_ids",
    "block_indices",
    "check_split",
    "check_stages",
    "exclude_stage",
]
