"""The command ``cryosentinel``: one subcommand a stage of the study, each a typed function of the package.

The list of subcommands is plain text here, and a subcommand's own parser is built only when it is called, so that
``--help`` answers at once. Options, types and help of a subcommand come from the signature and docstring of its
function in :mod:`cryosentinel.commands`; those of ``fit`` from the configuration of a run.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

from cryosentinel import __version__
from cryosentinel.errors import CryoSentinelError

#: Subcommand -> one line of help. The functions of cryosentinel.commands carry the same names.
COMMANDS = {
    "study": "run the whole study: chips, training, evaluation, audit, limitations, as executed notebooks",
    "simulate": "write the embedded benchmark: simulated chips with known truth, in the published format",
    "fit": "train a network: --config FILE --data.root DIR, and any key of the file as an option",
    "soup": "average snapshots of a run into one checkpoint",
    "evaluate": "score a checkpoint on the validation and test splits",
    "score": "score saved tables again: thresholds, regions, calibration, intervals and differences, without a network",
    "audit": "judge where labels and predictions disagree, and score the corrected labels",
    "predict": "map water over 15-band GeoTIFF scenes of any size",
    "map": "map lakes: from scenes, chips, or a place and a year, to outlines with areas and an offline map",
    "change": "link the lakes of several years, and call change where it exceeds the intervals of their areas",
    "stack": "build a 15-band GeoTIFF from aligned Sentinel-2, Sentinel-1 and elevation rasters",
    "split": "assign chips to split blocks and certify that no split sees another's pixels",
    "ingest": "build chips of any region and year from STAC services, with or without a lake inventory",
    "download": "fetch published chips from the hub, by region and year",
    "card": "write a run's model card from the study's figures, and put the run on the hub (a dry run by default)",
    "convert": "turn a checkpoint with a foreign pickle into safetensors, without running what it holds",
}

#: What a path that cannot be written or read raises; other errors of the system are bugs until shown otherwise.
_PLACE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def parser_of(name: str = "", function: Callable[..., None] | None = None) -> Any:
    """The parser of all subcommands, in which only the called one knows its options.

    Args:
        name: the called subcommand.
        function: whose parameters are its options.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="cryosentinel",
        description="Glacial-lake segmentation from Sentinel-1, Sentinel-2 and a DEM, as an executable study.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(
        dest="command", title="commands", description="COMMAND --help lists a command's options.", metavar="COMMAND"
    )
    for command, text in COMMANDS.items():
        options = ArgumentParser(exit_on_error=False, allow_abbrev=False)
        if command == name and function is not None:
            # The parser looks for the shortest import path, and cryosentinel.convert would import torch.
            function.__qualname__ = f"{name}_"
            options.add_argument("--config", action="config", help="YAML file of options; others override it.")
            options.add_function_arguments(function, as_positional=False, sub_configs=True)
            words = " ".join(position.upper() for position in _required(function))
            options.description = f"Inputs go by name or by position: cryosentinel {name} {words}" if words else ""
        commands.add_subcommand(command, options, help=text)
        options.prog = f"cryosentinel {command}"
    return parser


def _required(function: Callable[..., None]) -> dict[str, Parameter]:
    """The parameters that have no default: name -> parameter."""
    return {name: p for name, p in signature(function).parameters.items() if p.default is p.empty}


def _run(words: Sequence[str]) -> None:
    """Read the words and call the command's function."""
    name, *rest = words
    if name == "fit":
        from cryosentinel.commands import look_for_run

        look_for_run(rest)
        from cryosentinel.training.fit import main as fit

        fit(rest)
        return
    if name not in COMMANDS:
        from cryosentinel.arguments import read

        read(parser_of(), words)
        return
    function, values = call_of(name, rest)
    function(**values)


def call_of(name: str, words: Sequence[str]) -> tuple[Callable[..., None], dict[str, Any]]:
    """The function of a subcommand, and the arguments that words stand for.

    Args:
        name: of the subcommand; any but ``fit``.
        words: after it.

    Raises:
        ConfigError: the words cannot be used.
    """
    from cryosentinel import commands
    from cryosentinel.arguments import as_options, instantiate, read

    function = getattr(commands, name)
    required, every = _required(function), signature(function).parameters
    # Inputs go by position where the first ones are required, or where the first is a list that may be left out.
    lists = [option for option, p in every.items() if "list" in str(p.annotation)]
    positions = [*required] or [option for option in [*every][:1] if option in lists]
    alone = {option: "true" for option, p in every.items() if p.annotation == "bool"} | {"scheduler": "local"}
    parser = parser_of(name, function)
    values = instantiate(parser, read(parser, [name, *as_options(words, positions, lists, alone)]))[name]
    return function, {option: values[option] for option in every}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: words after the program's name; ``sys.argv`` where left out.

    Returns:
        Exit status: 0 done, 2 input or options cannot be used (one sentence on standard error), 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words:
            parser_of().print_help()
            return 2
        _run(words)
        return 0
    except KeyboardInterrupt:
        print("cryosentinel: interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    except CryoSentinelError as error:
        text = str(error)
    except OSError as error:
        if not (isinstance(error, _PLACE) or error.errno in _FULL):
            raise
        text = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        text += "; check the path, its rights and the free space."
    print(f"cryosentinel: error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
