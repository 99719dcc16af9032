"""The services that chips are built from: one table of addresses, collections, access and asset names."""

from __future__ import annotations

import configparser
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryosentinel.errors import ConfigError, HubError

SENSORS = {"s2": "Sentinel-2", "s1": "Sentinel-1", "dem": "elevation"}

#: Modality -> our name of an asset -> the services' names, in lower case: the band's own (Planetary Computer), its
#: common name (Earth Search), its own with the resolution (Copernicus Data Space).
ASSETS: dict[str, dict[str, tuple[str, ...]]] = {
    "s2": {
        "B01": ("b01", "coastal", "b01_60m", "b01_20m"),
        "B02": ("b02", "blue", "b02_10m"),
        "B03": ("b03", "green", "b03_10m"),
        "B04": ("b04", "red", "b04_10m"),
        "B05": ("b05", "rededge1", "b05_20m"),
        "B06": ("b06", "rededge2", "b06_20m"),
        "B07": ("b07", "rededge3", "b07_20m"),
        "B08": ("b08", "nir", "b08_10m"),
        "B8A": ("b8a", "nir08", "b8a_20m"),
        "B09": ("b09", "nir09", "b09_60m"),
        "B11": ("b11", "swir16", "b11_20m"),
        "B12": ("b12", "swir22", "b12_20m"),
        "SCL": ("scl", "scl_20m"),
    },
    "s1": {"VV": ("vv",), "VH": ("vh",)},
    "dem": {"DEM": ("data", "elevation", "dem")},
}


@dataclass(frozen=True)
class Service:
    """How to reach one STAC service and the files that its items name.

    Attributes:
        name: of the table, or the address of one that is not in it.
        url: of the STAC API.
        collections: modality ("s2", "s1", "dem") -> collections, the preferred one first; the others fill its gaps.
            None at all where the service has nothing that chips can be made of.
        signed: addresses of files are signed by the package planetary-computer just before they are read.
        s3_endpoint: of the files at ``s3://`` addresses; AWS itself, or what the environment says, where empty.
        keys: S3 access keys: "none" (public, requests are not signed), "needed", or "if there" (signed where this
            machine has keys).
        hint: where a user gets the keys.
    """

    name: str
    url: str
    collections: Mapping[str, tuple[str, ...]]
    signed: bool = False
    s3_endpoint: str = ""
    keys: str = "if there"
    hint: str = "from the operator of the service"


SERVICES: dict[str, Service] = {
    service.name: service
    for service in (
        Service(
            "planetary-computer",
            "https://planetarycomputer.microsoft.com/api/stac/v1",
            {"s2": ("sentinel-2-l2a",), "s1": ("sentinel-1-rtc",), "dem": ("cop-dem-glo-30",)},
            signed=True,
            keys="none",
        ),
        Service(
            "earth-search",
            "https://earth-search.aws.element84.com/v1",
            # Collection 1 is processed alike throughout; the older collection fills what is not reprocessed yet.
            {"s2": ("sentinel-2-c1-l2a", "sentinel-2-l2a"), "s1": (), "dem": ("cop-dem-glo-30",)},
            s3_endpoint="https://s3.amazonaws.com",  # said, lest AWS_S3_ENDPOINT of another service leads there
            keys="none",
        ),
        Service(
            "cdse",
            "https://stac.dataspace.copernicus.eu/v1",
            {"s2": ("sentinel-2-l2a",), "s1": (), "dem": ("cop-dem-glo-30-dged-cog",)},
            s3_endpoint="https://eodata.dataspace.copernicus.eu",
            keys="needed",
            hint="at https://eodata-s3keysmanager.dataspace.copernicus.eu",
        ),
    )
}
#: What a service that is not in the table may call its collections.
USUAL = {
    "s2": ("sentinel-2-c1-l2a", "sentinel-2-l2a"),
    "s1": ("sentinel-1-rtc",),
    "dem": ("cop-dem-glo-30", "cop-dem-glo-30-dged-cog"),
}


def find_service(text: str) -> Service:
    """The service of a name or an address.

    Raises:
        ConfigError: it is neither.
    """
    if text in SERVICES:
        return SERVICES[text]
    if not text.startswith(("http://", "https://")):
        raise ConfigError(f"There is no service {text!r}; give {', '.join(SERVICES)} or the address of a STAC API.")
    for service in SERVICES.values():
        if urlsplit(service.url).netloc == urlsplit(text).netloc:
            return service
    return Service(text, text.rstrip("/"), USUAL)


def find_services(
    service: str, own: Mapping[str, str | None], collections: Mapping[str, str | None]
) -> dict[str, Service]:
    """The service of each modality, checked as far as that is possible without asking it.

    Args:
        service: name or address for all modalities.
        own: modality -> name or address where it differs.
        collections: modality -> name of a collection chosen by hand.

    Raises:
        ConfigError: a service is unknown, has no usable collection of a modality, or its S3 keys are missing.
        HubError: a package that it needs is not installed.
    """
    found = {modality: find_service(own.get(modality) or service) for modality in SENSORS}
    for modality, each in found.items():
        if not each.collections[modality] and not collections.get(modality):
            raise ConfigError(
                f"{each.name} holds {SENSORS[modality]} only as GRD in the radar's own geometry, which mountains "
                "displace by kilometres; take terrain-corrected backscatter from another service: --s1_service "
                "planetary-computer."
            )
    for each in found.values():
        if each.keys == "needed" and not has_s3_keys():
            raise ConfigError(
                f"{each.name} gives its files only for S3 access keys, and none are set: get them {each.hint}, and put "
                "them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or into ~/.aws/credentials."
            )
        if each.signed and importlib.util.find_spec("planetary_computer") is None:
            raise HubError(f"{each.name} wants signed addresses: pip install planetary-computer.")
    return found


def keys_file() -> Path:
    """Where S3 access keys lie on this machine."""
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")


def has_s3_keys() -> bool:
    """Whether this machine has S3 access keys, in the environment or in ``~/.aws/credentials``."""
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):
        return False
    if any(
        os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    ):
        return True
    parser = configparser.ConfigParser()
    try:
        parser.read(keys_file(), encoding="utf-8")
    except configparser.Error:
        return False
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    return parser.has_option(profile, "aws_access_key_id")
