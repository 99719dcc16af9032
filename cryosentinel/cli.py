"""The command ``cryosentinel``: one subcommand a stage of the study, each a typed function of the package.

The list of subcommands is plain text here and every import waits until its command runs, so that ``--help`` answers at
once. Options, types and help of a subcommand come from the signature and docstring of its function in
:mod:`cryosentinel.commands`.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence

from cryosentinel import __version__
from cryosentinel.errors import CryoSentinelError

#: Subcommand -> one line of help. The functions of cryosentinel.commands carry the same names.
COMMANDS = {
    "study": "run the whole study: chips, training, evaluation, audit, limitations, as executed notebooks",
    "simulate": "write the embedded benchmark: simulated chips with known truth, in the published format",
    "fit": "train a network (options as in LightningCLI: --config FILE --data.root DIR ...)",
    "soup": "average snapshots of a run into one checkpoint",
    "evaluate": "score a checkpoint on the validation and test splits",
    "score": "score saved tables again: thresholds, regions, calibration, intervals and differences, without a network",
    "audit": "compare labels, MNDWI and predictions, and score the corrected labels",
    "predict": "map water over 15-band GeoTIFF scenes of any size",
    "stack": "build a 15-band GeoTIFF from aligned Sentinel-2, Sentinel-1 and elevation rasters",
    "split": "assign chips to split blocks and certify that no split sees another's pixels",
    "ingest": "build chips of any region and year from a STAC service and a lake inventory",
    "download": "fetch published chips from the hub, by region and year",
    "convert": "turn a checkpoint with a foreign pickle into safetensors, without running what it holds",
}

#: What a path that cannot be written or read raises; other errors of the system are bugs until shown otherwise.
_PLACE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cryosentinel [--help] [--version] COMMAND [OPTIONS]",
            "",
            "Glacial-lake segmentation from Sentinel-1, Sentinel-2 and a DEM: the whole chain, as an executable study.",
            "",
            "commands:",
            *lines,
            "",
            "'cryosentinel COMMAND --help' lists a command's options; they can also come from --config FILE (YAML).",
        ]
    )


def _as_list(words: list[str]) -> list[str]:
    """Leading paths as the one list that jsonargparse takes: ``a.tif b.tif --ckpt x`` as a shell expands it."""
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words if not count or words[0].startswith("[") else [json.dumps(words[:count]), *words[count:]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: words after the program's name; ``sys.argv`` where left out.

    Returns:
        Exit status: 0 done, 2 input or options cannot be used (one sentence on standard error), 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"cryosentinel {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"cryosentinel: error: there is no command {name!r}; known are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        if name == "fit":
            from cryosentinel.training.fit import main as fit

            fit(rest)
            return 0
        from jsonargparse import auto_cli

        from cryosentinel import commands

        if name in ("predict", "score"):
            rest = _as_list(rest)
        # Five required values are easier to read with their names.
        positional = name != "ingest"
        auto_cli(getattr(commands, name), args=rest, prog=f"cryosentinel {name}", as_positional=positional)
    except CryoSentinelError as error:
        print(f"cryosentinel: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not (isinstance(error, _PLACE) or error.errno in _FULL):
            raise
        text = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        print(f"cryosentinel: error: {text}; check the path, its rights and the free space.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cryosentinel: interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
