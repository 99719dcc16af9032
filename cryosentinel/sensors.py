"""What the sensors deliver: bands, modalities, nodata, regions, statistics. Constants of the published format.

Sources: the published dataset's description (band order, nodata, clipping, regions, statistics) and TerraMind 1.0's
pretraining statistics (Jakubik et al. 2025, arXiv:2504.11171).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryosentinel.errors import InputError
from cryosentinel.files import read_json, write_json

CHIP_SIZE = 224  # pixels a side
PIXEL_SIZE_M = 10.0
HECTARE_M2 = 10_000.0
PIXEL_HA = PIXEL_SIZE_M**2 / HECTARE_M2
CHIP_STRIDE = 112  # pixels between neighbouring chips of the published grid: half overlap

#: Modality -> band names, in the order of the arrays and of the 15-band GeoTIFF. The keys are TerraMind's.
MODALITIES: dict[str, tuple[str, ...]] = {
    "S2L2A": ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"),
    "S1GRD": ("VV", "VH"),
    "DEM": ("elevation",),
}
S2_BANDS = MODALITIES["S2L2A"]
BAND_COUNT = sum(map(len, MODALITIES.values()))  # 15

REFLECTANCE_SCALE = 10_000.0  # digital numbers per unit reflectance
BASELINE_OFFSET = 1000  # added to raw L2A digital numbers since processing baseline 04.00 (2022-01-25)
S2_NODATA = (0, 16_000)  # all twelve bands at one of these: v2 fills with 0, v1 clipped its fill to 16000
S2_RANGE = (0, 16_000)
S1_FILL_DB = -25.0
DEM_NODATA = (-32_000, 32_000)  # at or below, at or above
DEM_RANGE = (-500, 9_000)

SNAPSHOT_YEARS = (2017, 2021, 2022, 2023)
INVENTORY_YEARS = (2016, 2022)

#: (west, south, east, north) in degrees. The last one takes what no other region takes.
REGIONS: dict[str, tuple[float, float, float, float]] = {
    "hindu_kush": (67.0, 33.0, 72.0, 38.0),
    "pamir": (70.0, 36.0, 76.0, 40.0),
    "karakoram": (73.0, 34.0, 78.0, 37.0),
    "western_himalaya": (73.0, 30.0, 80.0, 35.0),
    "central_himalaya": (79.0, 26.0, 89.0, 32.0),
    "eastern_himalaya": (88.0, 26.0, 96.0, 30.5),
    "hengduan_nyainqentanglha": (94.0, 28.0, 104.0, 33.0),
    "tibetan_plateau": (79.0, 30.0, 94.0, 36.0),
    "tien_shan_full": (70.0, 38.0, 83.0, 45.5),
    "ile_alatau": (76.5, 42.7, 78.2, 43.55),
    "zhetysu_alatau": (78.0, 43.8, 81.5, 45.5),
    "hma_other": (67.46, 26.97, 103.87, 45.40),
}


def region_name(region: str) -> str:
    """A region's name as people write it: "Ile Alatau" for ile_alatau."""
    return {"hma_other": "Other High Asia", "tien_shan_full": "Tien Shan"}.get(region, region.replace("_", " ").title())


def inventory_year(snapshot_year: int) -> int:
    """The inventory that labels a snapshot: 2016 before 2019, 2022 from then on."""
    return INVENTORY_YEARS[0] if snapshot_year < 2019 else INVENTORY_YEARS[1]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every band, in the units of the chips (reflectance x 10,000, dB, m).

    Attributes:
        means: modality -> one mean a band, in the order of :data:`MODALITIES`.
        stds: modality -> one standard deviation a band, all above zero.
    """

    means: Mapping[str, Sequence[float]]
    stds: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        for modality in self.means:
            if modality not in MODALITIES:
                raise InputError(f"The statistics name a modality {modality!r}; known are {', '.join(MODALITIES)}.")
            for name, values in (("means", self.means[modality]), ("stds", self.stds.get(modality, ()))):
                if len(values) != len(MODALITIES[modality]):
                    raise InputError(
                        f"The statistics hold {len(values)} {name} for {modality}, which has "
                        f"{len(MODALITIES[modality])} bands; compute them again for these chips."
                    )
                if not all(math.isfinite(v) and (name == "means" or v > 0) for v in values):
                    raise InputError(
                        f"The {name} of {modality} must be finite, and standard deviations above zero; "
                        "compute the statistics again."
                    )

    def as_dict(self) -> dict[str, dict[str, list[float]]]:
        """The published JSON form: ``{"S2L2A": {"means": [12], "stds": [12]}, ...}``."""
        return {m: {"means": list(self.means[m]), "stds": list(self.stds[m])} for m in self.means}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Statistics:
        """The inverse of :meth:`as_dict`.

        Raises:
            InputError: a modality is unknown, or a list is missing or of the wrong length.
        """
        try:
            return cls(
                {m: tuple(v["means"]) for m, v in value.items()}, {m: tuple(v["stds"]) for m, v in value.items()}
            )
        except (AttributeError, KeyError, TypeError):
            raise InputError(
                'The statistics must have the form {"S2L2A": {"means": [...], "stds": [...]}, ...}; compute them again.'
            ) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read ``dataset_stats_v3.json``.

        Raises:
            InputError: the file is missing or not JSON, or holds no statistics of these bands.
        """
        value = read_json(path)
        try:
            return cls.from_dict(value)
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write ``dataset_stats_v3.json``, atomically."""
        write_json(path, self.as_dict())


#: Of the published dataset, over the Almaty corridor's training split.
PUBLISHED_STATISTICS = Statistics(
    means={
        "S2L2A": (857.6, 1044.0, 1356.7, 1574.4, 1786.2, 2076.5, 2215.2, 2277.8, 2348.5, 2243.7, 2665.0, 2217.2),
        "S1GRD": (-9.25, -18.00),
        "DEM": (4299.8,),
    },
    stds={
        "S2L2A": (626.3, 709.2, 748.7, 825.5, 773.5, 786.1, 810.8, 834.9, 833.6, 729.6, 875.7, 851.3),
        "S1GRD": (5.90, 5.92),
        "DEM": (901.0,),
    },
)
