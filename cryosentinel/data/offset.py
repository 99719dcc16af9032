"""The +1000 offset of Sentinel-2 L2A: which scenes still carry it, judged from their values alone.

Since processing baseline 04.00 (2022-01-25) the digital numbers of an L2A product are reflectance x 10,000 **plus
1000**, so that slightly negative reflectances survive. Many services remove the offset again, and a file on disk rarely
says which kind it is. The values do: water, shadow and vegetation are darker than 0.09 in some band of nearly every
scene, which is below 900 without the offset and never far below 1000 with it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cryosentinel.errors import InputError
from cryosentinel.sensors import BASELINE_OFFSET

#: Digital numbers below this are dark without the offset; with it they would be reflectances below -0.01, which occur
#: only as noise of the atmospheric correction in deep shadow.
DARK = 900
#: A share of dark pixels above this, in any band, says that the offset is not there; one below the other, in every
#: band, that it may be. Measured: 0.11 and more in each of 384 simulated chips, 0.37 and more in each of three real
#: ones (of which one is snow throughout, dark in the short-wave infrared alone). With the offset: 0.
MANY, FEW = 0.05, 0.005
#: With the offset the darkest band begins near 1000. Where it begins above this, the whole scene is bright (cloud,
#: desert), and nothing can be said.
NEAR = 1600
#: Fewer pixels with data say nothing.
LEAST_PIXELS = 100

Offset = Literal["carried", "removed", "unknown"]


def offset_state(s2: np.ndarray) -> Offset:
    """Judge from the values whether a scene carries the offset.

    Args:
        s2: (12, ...) digital numbers of one acquisition, or a sample of its pixels: a mixture of acquisitions of both
            kinds cannot be told. Pixels that are 0 or not finite in all bands hold no data.

    Returns:
        "carried", "removed" (or never there), or "unknown": too few pixels, a scene that is bright in every band, or
        one between the two limits.
    """
    pixels = np.asarray(s2).reshape(len(s2), -1)
    pixels = pixels[:, np.isfinite(pixels).all(axis=0) & (pixels != 0).any(axis=0)]
    if pixels.shape[1] < LEAST_PIXELS:
        return "unknown"
    dark = float((pixels < DARK).mean(axis=1).max())
    if dark > MANY:
        return "removed"
    begins = float(np.quantile(pixels, 0.01, axis=1).min())
    return "carried" if dark < FEW and begins < NEAR else "unknown"


def check_offset(s2: np.ndarray, name: str, subtract: int | None, option: str = "--s2_offset") -> None:
    """Refuse a scene whose values contradict what is to be subtracted from them.

    Args:
        s2: see :func:`offset_state`.
        name: of the file, for the message.
        subtract: digital numbers that the caller subtracts; None where the user said nothing. An explicit 0 says that
            the offset is not there, and is believed.
        option: how the user says what to subtract.

    Raises:
        InputError: nothing was said and the scene carries the offset; or it is to be subtracted and is not there.
    """
    state = offset_state(s2)
    if subtract is None and state == "carried":
        raise InputError(
            f"The Sentinel-2 values of {name} begin near {BASELINE_OFFSET} in every band, so they carry the "
            f"+{BASELINE_OFFSET} offset of processing baseline 04.00 and later; subtract it with {option} "
            f"{BASELINE_OFFSET}, or say with {option} 0 that the scene is as bright as that."
        )
    if subtract and state == "removed":
        raise InputError(
            f"Many Sentinel-2 values of {name} are below {DARK}, so the +{BASELINE_OFFSET} offset is not in them or "
            f"already removed; leave {option} out."
        )
