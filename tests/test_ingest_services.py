"""Stand-ins of the three services, from --check to chips: paging, signing, S3 with keys, and failures told apart."""

from __future__ import annotations

import ingest_world as world
import numpy as np
import pytest

from cryosentinel.errors import ConfigError, HubError, InputError
from cryosentinel.ingest import SERVICES, check, ingest, reading
from cryosentinel.ingest.checking import Checked
from cryosentinel.ingest.reading import AccessDeniedError, BrokenAssetError, ServiceDownError, read
from cryosentinel.ingest.services import Service, find_service, find_services

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
KEY, BUCKET = "A-KEY", "eodata"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch, tmp_path):
    """A machine without S3 keys, and without waits."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE",
                 "AWS_REQUEST_PAYER", "AWS_NO_SIGN_REQUEST"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(reading, "FIRST_WAIT_S", 0.01)


def keys_in_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def keys_in_the_file(tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id={KEY}\naws_secret_access_key=secret\n"
    )


@pytest.fixture
def files(tmp_path):
    with world.serve(tmp_path / "files") as running:
        yield running


def signed_storage(monkeypatch, files):
    """The Planetary Computer at a stand-in: its storage wants signatures, which another address gives."""
    import planetary_computer.sas
    from planetary_computer.settings import Settings as Signing

    monkeypatch.setattr(planetary_computer.sas, "BLOB_STORAGE_DOMAIN", files.url.removeprefix("http://"))
    monkeypatch.setattr(planetary_computer.sas, "TOKEN_CACHE", {})
    monkeypatch.setattr(Signing.get(), "sas_url", f"{files.url}/sas")
    world.pretend(monkeypatch, "planetary-computer", files)
    files.protect({"prefix": f"/{files.unique}/", "sas": "token"})


def planetary_computer(monkeypatch, files):
    signed_storage(monkeypatch, files)
    # More items than a page holds, which are too cloudy to be sent.
    clear = world.s2_item(files, offset=1000)
    cloudy = {**clear["properties"], "eo:cloud_cover": 80.0, "s2:datastrip_id": None}
    days = [{"datetime": f"2023-08-0{n}T05:36:41Z"} for n in (1, 2, 3)]
    files.hold(*({**clear, "id": f"S2B_{n}", "properties": {**cloudy, **day}} for n, day in enumerate(days)))
    files.hold(clear, world.s1_item(files), world.dem_item(files))


def earth_search(monkeypatch, files, **changes):
    world.pretend(monkeypatch, "earth-search", files)
    files.hold(world.s2_item(files, kind="es-s2", **changes), world.dem_item(files))


def cdse(monkeypatch, files):
    world.pretend(monkeypatch, "cdse", files)
    files.protect({"prefix": f"/{BUCKET}/", "key": KEY})
    files.hold(
        world.s2_item(files, kind="cdse-s2", offset=1000, bucket=BUCKET),
        world.dem_item(files, kind="cdse-dem", collection="cop-dem-glo-30-dged-cog", bucket=BUCKET),
    )


def chips(tmp_path, service, settings=world.FAST, **options):
    lakes = world.inventory(tmp_path / "lakes.geojson")
    result = ingest(
        world.REGION, world.YEAR, service, tmp_path / "out", lakes, world.box(3), settings=settings, progress=False,
        **options,
    )  # fmt: skip
    return result, world.chips_of(tmp_path / "out")


def says(checked: list[Checked]) -> dict[str, str]:
    return {each.modality: str(each) for each in checked}


def test_planetary_computer_from_check_to_chips(tmp_path, monkeypatch, files):
    planetary_computer(monkeypatch, files)
    found = says(check(world.box(3), world.YEAR, "planetary-computer"))
    assert "offset 1000" in found["s2"] and "1 here" in found["s2"] and "RTC gamma0" in found["s1"]
    result, made = chips(tmp_path, "planetary-computer")
    assert result.chips == 4 and set(result.index["s2_offset"]) == {1000}
    assert set(result.index["s1_product"]) == {"RTC"}
    world.assert_equal(made)
    searches = [path for method, path, _ in files.log() if path == "/stac/search"]
    assert len(searches) == 2 * 3  # of check and ingest: three modalities; cloudy items are not sent
    assert sum(path == "/stac/collections" for _, path, _ in files.log()) == 2  # asked once a run, not once a modality
    assert all("sig=token" in path for _, path, _ in files.log() if path.endswith(".tif") or ".tif?" in path)


def test_earth_search_with_radar_from_elsewhere_from_check_to_chips(tmp_path, monkeypatch, files):
    planetary_computer(monkeypatch, files)
    with world.serve(tmp_path / "second") as second:
        earth_search(monkeypatch, second)
        services = {"service": "earth-search", "s1_service": "planetary-computer"}
        found = says(check(world.box(3), world.YEAR, **services))
        assert found["s2"].startswith("Sentinel-2: earth-search") and "planetary-computer" in found["s1"]
        result, made = chips(tmp_path, **services)
    assert result.chips == 4 and set(result.index["s2_offset"]) == {0}
    world.assert_equal(made)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "of earth-search" in card and "of planetary-computer" in card


def test_cdse_with_radar_from_elsewhere_from_check_to_chips(tmp_path, monkeypatch, files):
    """JPEG 2000 on S3, STAC 1.1; keys in ``~/.aws/credentials`` alone, never sent to the public service."""
    keys_in_the_file(tmp_path)
    planetary_computer(monkeypatch, files)
    files.protect({"prefix": f"/{files.unique}/", "sas": "token", "public": True})
    with world.serve(tmp_path / "second") as second:
        cdse(monkeypatch, second)
        services = {"service": "cdse", "s1_service": "planetary-computer"}
        found = says(check(world.box(3), world.YEAR, **services))
        assert "offset 1000" in found["s2"] and f"at {BUCKET}" in found["s2"]
        result, made = chips(tmp_path, **services)
    assert result.chips == 4 and set(result.index["s2_offset"]) == {1000}
    world.assert_equal(made)


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("carried", [0, 1000])
def test_what_earth_search_says_of_the_offset_is_held_against_the_pixels(
    tmp_path, monkeypatch, files, applied, carried
):
    """Its flag is wrong for some items of 2022 and 2025: false on corrected pixels."""
    stated = {"earthsearch:boa_offset_applied": applied}
    files.hold(world.s2_item(files, kind="es-s2", properties=stated, offset=carried))
    files.hold(world.s1_item(files), world.dem_item(files))
    stand_in = {"service": files.stac}
    if applied and carried:
        with pytest.raises(InputError, match=r"unreadable.*offset is removed, but"):
            chips(tmp_path, **stand_in)
        return
    result, made = chips(tmp_path, **stand_in)
    world.assert_equal(made)
    contradicted = not applied and not carried
    assert any("already" in note or "not there" in note for note in result.notes) == contradicted
    assert set(result.index["s2_offset"]) == {0 if contradicted else carried}


def test_the_command_checks_and_then_builds(tmp_path, monkeypatch, files, capsys):
    from cryosentinel.cli import main

    planetary_computer(monkeypatch, files)
    lakes = world.inventory(tmp_path / "lakes.geojson")
    words = ["ingest", "--region", world.REGION, "--year", str(world.YEAR), "--service", "planetary-computer"]
    words += ["--bbox", ",".join(map(str, world.box()))]
    assert main([*words, "--check"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "Sentinel-2: planetary-computer" in said and "linear power" in said and not (tmp_path / "out").exists()
    words += ["--inventory", str(lakes), "--settings.limit", "2", "--settings.background", "null"]
    assert main(words) == 2
    assert "--out" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "2 of 2 planned chips" in capsys.readouterr().out
    assert len(world.chips_of(tmp_path / "out")) == 2
    words[words.index("--year") + 1] = "1999"
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "1999" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/stac", "/stac/search"])
def test_a_catalogue_that_refuses_to_answer_is_no_passing_failure(tmp_path, files, path):
    files.hold(world.s2_item(files), world.s1_item(files), world.dem_item(files))
    files.fail(path, 403)
    with pytest.raises(AccessDeniedError, match="403") as caught:
        chips(tmp_path, files.stac)
    assert "same command" not in str(caught.value)


def test_radar_without_both_polarisations_or_a_grid_is_left_out(tmp_path, files):
    """Both sort before the good one, so that check would try them first."""
    single, nowhere = world.s1_item(files, "A_HH"), world.s1_item(files, "A_NOGRID")
    single["assets"] = {"hh": single["assets"]["vv"], "hv": single["assets"]["vh"]}
    nowhere["properties"].pop("proj:epsg", None)
    nowhere["properties"].pop("proj:code", None)
    files.hold(world.s2_item(files), single, nowhere, world.s1_item(files), world.dem_item(files))
    with pytest.warns(UserWarning, match="no map projection"):
        assert "S1A_RTC" in says(check(world.box(3), world.YEAR, files.stac))["s1"]
    with pytest.warns(UserWarning, match="no map projection"):
        result, _ = chips(tmp_path, files.stac)
    assert result.chips == 4 and not result.broken


def test_check_takes_the_next_item_and_names_a_place_without_data(files):
    gone = world.s2_item(files, "gone", "2023-08-20", properties={"eo:cloud_cover": 0.0})
    (files.root / files.unique / "sentinel-2-l2a" / "gone" / "B03.tif").unlink()
    empty = world.s1_item(files, s1=np.full((2, world.SIDE, world.SIDE), np.nan))
    files.hold(gone, world.s2_item(files), empty, world.dem_item(files))
    found = says(check(world.box(3), world.YEAR, files.stac))
    assert "S2B_43TFH" in found["s2"] and "no data" not in found["s2"]
    assert "no data there" in found["s1"] and "power" not in found["s1"]


def test_the_endpoint_of_another_service_does_not_lead_away(tmp_path, monkeypatch, files):
    """AWS_S3_ENDPOINT as Copernicus Data Space tells its users to set it, while Earth Search is read."""
    monkeypatch.setenv("AWS_S3_ENDPOINT", "127.0.0.1:9")
    world.pretend(monkeypatch, "earth-search", files)
    files.hold(world.s2_item(files, kind="es-s2", bucket=BUCKET), world.dem_item(files, bucket=BUCKET))
    with world.serve(tmp_path / "second") as second:
        second.hold(world.s1_item(second))
        result, _ = chips(tmp_path, "earth-search", s1_service=second.stac)
    assert result.chips == 4


def test_names_and_addresses_of_services():
    assert find_service("https://planetarycomputer.microsoft.com/api/stac/v1/") is SERVICES["planetary-computer"]
    assert find_service("https://example.org/stac/").url == "https://example.org/stac"
    with pytest.raises(ConfigError, match=r"no service 'sentinel-hub'.*earth-search"):
        find_service("sentinel-hub")
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        find_services("planetary-computer", {"s2": "cdse"}, {})


@pytest.mark.parametrize("where", ["environment", "file"])
def test_keys_are_taken_from_where_they_usually_lie(tmp_path, monkeypatch, where):
    if where == "file":
        keys_in_the_file(tmp_path)
    else:
        keys_in_the_environment(monkeypatch)
    assert find_services("planetary-computer", {"s2": "cdse"}, {})["s2"].name == "cdse"


# Failures told apart, over HTTP and over S3.


@pytest.fixture(params=["http", "s3"])
def stored(request, monkeypatch, files):
    """One elevation item and how to read it, with its path at the server."""
    keys_in_the_environment(monkeypatch)
    item = world.dem_item(files, bucket=BUCKET if request.param == "s3" else "")
    item["assets"] = {"DEM": item["assets"]["data"]}
    path = item["assets"]["DEM"]["href"].removeprefix(files.url).removeprefix("s3:/")
    service = Service("stand-in", files.stac, {}, s3_endpoint=files.url)

    def get(retries=1):
        from affine import Affine
        from odc.geo.geobox import GeoBox

        grid = GeoBox((448, 448), Affine(10, 0, world.LEFT, 0, -10, world.TOP), f"EPSG:{world.EPSG}")
        options = {"dtype": "float32", "nodata": float("nan"), "resampling": "nearest"}
        return read(item, ["DEM"], grid, service, retries, **options)["DEM"]

    get.path = path
    return get


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_passes_is_waited_out_by_gdal(stored, files, status, monkeypatch):
    loads, load = [], reading._load
    monkeypatch.setattr(reading, "_load", lambda *given: loads.append(given) or load(*given))
    files.fail(stored.path, status, times=3)
    np.testing.assert_array_equal(stored(retries=5), world.scene()["dem"][0])
    assert len(loads) == 1  # the request was repeated, not the load


def test_a_server_that_fails_for_good_is_down(stored, files):
    files.fail(stored.path, 503)
    with pytest.raises(ServiceDownError, match=r"DEM_N43_E077.*503"):
        stored()


@pytest.mark.parametrize("status", [503, 0])
def test_large_reads_that_fail_while_a_small_probe_succeeds_are_not_written_off(stored, files, status):
    files.fail(stored.path, status, over=33_000)
    with pytest.raises(ServiceDownError):
        stored()
    files.fail(stored.path, status, over=33_000, times=2)
    np.testing.assert_array_equal(stored(), world.scene()["dem"][0])


def test_a_file_without_its_last_blocks_is_the_items_fault(stored, files):
    path = files.root / stored.path.lstrip("/")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenAssetError, match="shorter"):
        stored()


def test_a_missing_file_is_the_items_fault_and_not_remembered(stored, files):
    path = files.root / stored.path.lstrip("/")
    away = path.rename(path.with_suffix(".away"))
    with pytest.raises(BrokenAssetError, match="DEM_N43_E077"):
        stored()
    away.rename(path)
    np.testing.assert_array_equal(stored(), world.scene()["dem"][0])


def test_refused_files_end_the_run_at_once(tmp_path, monkeypatch, files):
    """Keys that are not entitled: one sentence, and no other group is tried."""
    keys_in_the_environment(monkeypatch)
    files.hold(world.s2_item(files, bucket=BUCKET), world.s1_item(files), world.dem_item(files))
    files.protect({"prefix": f"/{BUCKET}/", "key": "ANOTHER"})
    monkeypatch.setenv("AWS_S3_ENDPOINT", files.url.removeprefix("http://"))
    monkeypatch.setenv("AWS_HTTPS", "NO")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
    with pytest.raises(AccessDeniedError, match=r"InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"):
        chips(tmp_path, files.stac, settings=world.Settings(background=None, group=1, retries=4), workers=1)
    asked = [path for _, path, _ in files.log() if path.endswith("SCL.tif")]
    assert 0 < len(asked) < 8  # two groups were begun, and each asks twice


@pytest.mark.parametrize("stored", ["s3"], indirect=True)
def test_a_bucket_that_charges_its_readers_is_read_when_that_is_accepted(monkeypatch, stored, files):
    files.protect({"prefix": stored.path, "payer": True})
    with pytest.raises(AccessDeniedError, match="AWS_REQUEST_PAYER=requester"):
        stored()
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    np.testing.assert_array_equal(stored(), world.scene()["dem"][0])


@pytest.mark.parametrize(("status", "kind"), [(403, AccessDeniedError), (404, HubError)])
def test_a_refusal_to_sign_is_no_full_disk(tmp_path, monkeypatch, files, status, kind):
    planetary_computer(monkeypatch, files)
    files.fail("/sas/", status)
    with pytest.raises(kind, match="sign") as caught:
        chips(tmp_path, "planetary-computer")
    assert "space" not in str(caught.value)
