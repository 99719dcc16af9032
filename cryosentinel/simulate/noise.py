"""Noise that knows where it is: every value is a hash of the absolute pixel, so any two windows agree on it.

Nothing here keeps a state. A value depends on (row, column) in world pixels and on a key made from words (seed,
zone, year, band, purpose), and on nothing else: not on the window, not on the order of evaluation, not on the number
of workers.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from cryosentinel.simulate.kernels import perlin


@lru_cache(maxsize=65536)
def key(*words: object) -> int:
    """A 32-bit key from any words, stable over processes and machines (SHA-1 of their text)."""
    text = "|".join(map(str, words))
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:4], "little")


def _mix(h: np.ndarray) -> np.ndarray:
    """lowbias32, an integer finaliser whose output bits all depend on all input bits (C. Wellons, 2018). In place."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def _axis(index: np.ndarray, salt: int) -> np.ndarray:
    """Hash of a one-dimensional integer index, uint32."""
    salted = index.astype(np.int64) * 0x9E3779B1 + salt
    return _mix((salted & 0xFFFFFFFF).astype(np.uint32))


def bits(rows: np.ndarray, cols: np.ndarray, k: int) -> np.ndarray:
    """Hash bits on a grid.

    Args:
        rows, cols: (H,) and (W,) integers, absolute.
        k: a key.

    Returns:
        (H, W) uint32.
    """
    return _mix(_axis(cols, k)[None, :] ^ _axis(rows, k ^ 0x5BD1E995)[:, None])


def uniform(rows: np.ndarray, cols: np.ndarray, k: int) -> np.ndarray:
    """(H, W) float32, uniform in the open interval (0, 1): 23 bits, so that neither end is ever reached."""
    return ((bits(rows, cols, k) >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def normal(rows: np.ndarray, cols: np.ndarray, k: int) -> np.ndarray:
    """(H, W) float32, standard normal (Box and Muller)."""
    radius = np.sqrt(-2 * np.log(uniform(rows, cols, k)))
    angle = uniform(rows, cols, k ^ 0x2C1B3C6D) * np.float32(2 * np.pi)
    return radius * np.cos(angle)


def exponential(rows: np.ndarray, cols: np.ndarray, k: int) -> np.ndarray:
    """(H, W) float32, exponential with mean 1: the intensity of fully developed single-look speckle."""
    return -np.log(uniform(rows, cols, k))


def gradient_noise(rows: np.ndarray, cols: np.ndarray, wavelength: float, k: int) -> np.ndarray:
    """Perlin's gradient noise (Perlin 2002), scaled to a standard deviation of about 0.85.

    Args:
        rows, cols: (H,) and (W,) positions in pixels, any real numbers, absolute.
        wavelength: lattice spacing in pixels.
        k: a key.

    Returns:
        (H, W) float32, smooth (two continuous derivatives), zero on the lattice's nodes.
    """
    y, x = np.asarray(rows, np.float64) / wavelength, np.asarray(cols, np.float64) / wavelength
    iy, ix = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    lattice_y, lattice_x = np.arange(iy.min(), iy.max() + 2), np.arange(ix.min(), ix.max() + 2)
    angle = uniform(lattice_y, lattice_x, k) * np.float32(2 * np.pi)
    fy, fx = (y - iy).astype(np.float32), (x - ix).astype(np.float32)
    total = perlin(np.sin(angle), np.cos(angle), iy - lattice_y[0], ix - lattice_x[0], fy, fx)
    total *= np.float32(3.9)  # unit gradients give a standard deviation of 0.22
    return total


def fractal(
    rows: np.ndarray, cols: np.ndarray, wavelength: float, k: int, octaves: int, gain: float = 0.5
) -> np.ndarray:
    """Sum of ``octaves`` gradient noises, each of half the wavelength and ``gain`` times the amplitude.

    Standardised as if the octaves were independent: std about 0.85.
    """
    total = gradient_noise(rows, cols, wavelength, k)
    power, amplitude = 1.0, 1.0
    for octave in range(1, octaves):
        amplitude *= gain
        power += amplitude * amplitude
        total += np.float32(amplitude) * gradient_noise(
            rows, cols, wavelength / 2**octave, k + 7919 * octave & 0xFFFFFFFF
        )
    total *= np.float32(power**-0.5)
    return total


class Draw:
    """A short stream of random numbers for one object (a lake, a cell), from its key.

    A counter-based generator seeded by the object's own key: the numbers do not depend on which other objects were
    looked at before.
    """

    def __init__(self, *words: object) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=[key(*words), key("draw", *words)]))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number, equally likely everywhere in ``low`` to ``high``."""
        return float(self._generator.uniform(low, high))

    def normal(self, mean: float = 0.0, std: float = 1.0) -> float:
        """One number of a normal distribution."""
        return float(self._generator.normal(mean, std))

    def poisson(self, mean: float) -> int:
        """One count of a Poisson distribution."""
        return int(self._generator.poisson(mean))

    def choice(self, weights: dict[str, float]) -> str:
        """One of the keys, with probability proportional to its weight."""
        at = self.uniform(0.0, sum(weights.values()))
        for name, weight in weights.items():
            at -= weight
            if at < 0:
                return name
        return name
