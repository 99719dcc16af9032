"""The physics gate: windows where no glacial lake can be are not predicted."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cryosentinel.errors import ConfigError
from cryosentinel.indices import mndwi, ndwi, slope
from cryosentinel.mapping.lakes import label_lakes


@dataclass(frozen=True)
class Gate:
    """Rules that a pixel must pass to be a possible lake; enough of them together let their windows through.

    A pixel passes when it looks like water, ice or snow in the optical bands and lies on ground that is level enough;
    or when it is plainly open water, in the index and to the radar, whatever the slope: a lake that is younger than the
    elevation model lies on what were steep slopes. Elevation has no rule: a model may be asked about water anywhere.

    Attributes:
        ndwi: a pixel above this looks like open water.
        mndwi: a pixel above this looks like water, or like the ice on it.
        slope: degrees; steeper ground holds no lake, unless it is plainly open water.
        open_ndwi: a pixel above this is open water if the radar agrees.
        open_vv: dB; the radar agrees where the mean of VV over 5 x 5 pixels (speckle) is below this: water reflects it
            away, snow-free slopes that face the radar do not.
        min_pixels: connected pixels (8 neighbours) that a possible lake has; fewer are noise.
    """

    ndwi: float
    mndwi: float
    slope: float
    open_ndwi: float
    open_vv: float
    min_pixels: int

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None = None) -> Gate:
        """The rules of a YAML file, or the package's own (``configs/gate.yaml``).

        Raises:
            ConfigError: the file is missing, or a rule is missing, unknown or not a number.
        """
        import yaml

        from cryosentinel import paths

        path = paths.config("gate" if path is None else path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML ({error}); write NAME: NUMBER lines.") from None
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ConfigError(f"{path} must hold exactly the rules {', '.join(sorted(names))}.")
        numbers: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
                raise ConfigError(f"{name} in {path} is {value!r}; give a number.")
            numbers[name] = value
        return cls(**numbers)

    def possible(self, s2: np.ndarray, s1: np.ndarray, dem: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Pixels of possible lakes.

        Args:
            s2: (12, H, W) reflectance x 10,000.
            s1: (2, H, W) dB. It only lets pixels through: wind and wet snow let it say anything.
            dem: (1, H, W) m.
            valid: (H, W) bool, pixels that hold data.

        Returns:
            (H, W) bool.
        """
        from scipy import ndimage

        if min(valid.shape) < 2:
            return valid.copy()
        # Where there is no elevation nothing is known of the slope, and the steps around it are none.
        elevation = np.where(valid, dem[0], np.median(dem[0][valid]) if valid.any() else 0).astype(np.float32)
        steep = slope(ndimage.uniform_filter(elevation, 5, mode="nearest"))
        index, vv = ndwi(s2), ndimage.uniform_filter(np.where(valid, s1[0], 0).astype(np.float32), 5, mode="nearest")
        level = ((index > self.ndwi) | (mndwi(s2) > self.mndwi)) & (steep <= self.slope)
        passes = valid & (level | ((index > self.open_ndwi) & (vv < self.open_vv)))
        # Noise and threads of a pixel or two are no lakes.
        passes = ndimage.binary_opening(passes, np.ones((3, 3), bool))
        return label_lakes(passes, self.min_pixels)[0] > 0
