"""The JavaScript that comes with book and package: its versions and checksums, and how to renew it.

``python scripts/vendor.py``                       compares every shipped file with its checksum.
``python scripts/vendor.py renew NAME [VERSION]``  fetches a package again with npm and writes the checksums anew.

What is shipped stands in scripts/vendored.json: per package its version, its folder, and per file its path inside the
npm package and its SHA-256.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from cryosentinel.files import read_json, replacing, sha256, write_json

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "scripts" / "vendored.json"


def differences(packages: dict[str, Any], root: Path = ROOT) -> list[str]:
    """What is not as the list says: files that differ, are missing, or are shipped without being listed."""
    found = []
    for name, package in packages.items():
        folder = root / package["folder"]
        for file, entry in package["files"].items():
            if not (folder / file).is_file():
                found.append(f"{name}: {file} is missing")
            elif sha256(folder / file) != entry["sha256"]:
                found.append(f"{name}: {file} differs from version {package['version']}")
        shipped = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        found += [f"{name}: {file} is not listed" for file in sorted(shipped - set(package["files"]))]
    return found


def renew(name: str, package: dict[str, Any], root: Path = ROOT) -> None:
    """Fetch a package with ``npm pack`` and put its files in their places, with their checksums in the list.

    Args:
        name: of the npm package.
        package: its entry in the list, whose version is fetched; its checksums are changed.
        root: of the repository.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"{name}@{package['version']}"
        done = subprocess.run(["npm", "pack", wanted], cwd=folder, capture_output=True, text=True, check=True)
        with tarfile.open(Path(folder) / done.stdout.split()[-1]) as archive:
            for file, entry in package["files"].items():
                member = archive.extractfile(f"package/{entry['from']}")
                assert member is not None, f"{wanted} holds no file {entry['from']}"
                target = root / package["folder"] / file
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target) as part:
                    part.write_bytes(member.read())
                entry["sha256"] = sha256(target)


def main(argv: list[str]) -> int:
    """Check, or renew one package."""
    packages = read_json(LIST)
    if argv[:1] == ["renew"]:
        if argv[1:2] == [] or argv[1] not in packages:
            print(f"vendor: say which to renew: {' or '.join(packages)}.", file=sys.stderr)
            return 2
        package = packages[argv[1]]
        package["version"] = (argv[2:] or [package["version"]])[0]
        renew(argv[1], package)
        write_json(LIST, packages)
    found = differences(packages)
    print("\n".join(found or [f"{name} {package['version']}: as listed" for name, package in packages.items()]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
