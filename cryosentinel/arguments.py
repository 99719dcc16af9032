"""Words of a command line to typed values: jsonargparse reads and refuses, and its refusals become one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from cryosentinel import paths
from cryosentinel.errors import ConfigError, CryoSentinelError

#: Options that stand alone.
_ALONE = ("-h", "--help", "--version", "--print_config")
_NUMBER = re.compile(r"-?\d+\.?\d*")
_TRUTH = ("true", "false", "yes", "no")


def as_options(
    words: Sequence[str],
    positions: Sequence[str] = (),
    lists: Collection[str] = (),
    alone: Mapping[str, str] | None = None,
) -> list[str]:
    """Every value with the name of its option (``--name=value``), configuration files first.

    So a value may begin with a minus, inputs can be given by name or by position, and options override files wherever
    they stand; of two files the later one overrides the earlier. Names may be written with dashes for underscores.

    Args:
        words: of a command line, after the command.
        positions: options that words without a name stand for, in this order; those given by name are left out.
        lists: options that are lists: they take all words up to the next option, and may be repeated. Where the first
            position is one, it takes all words without a name.
        alone: options that may stand without a value -> what they then mean, such as "true".

    Raises:
        ConfigError: an option lacks its value, a configuration file does not exist, or a word is one too many.
    """
    files: list[str] = []
    options: list[str] = []
    loose: list[str] = []
    several: dict[str, list[str]] = {}
    alone = alone or {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = f"--{name[2:].replace('-', '_')}"
        option = name.removeprefix("--")
        if not word.startswith("-"):
            loose.append(word)
        elif word in _ALONE or word.endswith(".help"):
            options.append(word)
        else:
            if not equals:
                ends = not left or left[0].startswith("--")
                if option in alone and (ends or (alone[option] == "true" and left[0].lower() not in _TRUTH)):
                    value = alone[option]
                elif ends:
                    raise ConfigError(f"The option {name} needs a value.")
                else:
                    value = left.pop(0)
            if name == "--bbox":  # four numbers, joined by commas or not
                while value.count(",") < 3 and left and _NUMBER.fullmatch(left[0]):
                    value += f",{left.pop(0)}"
            if name == "--config":
                files.append(f"--config={paths.config(value)}")
            elif option in lists and not value.startswith("[") and value != "null":
                several.setdefault(option, []).append(value)
                while not equals and left and not left[0].startswith("-"):
                    several[option].append(left.pop(0))
            else:
                options.append(f"{name}={value}")
    options += [f"--{option}={json.dumps(values)}" for option, values in several.items()]
    given = {option.partition("=")[0] for option in options}
    free = [position for position in positions if f"--{position}" not in given]
    if positions and positions[0] in free and positions[0] in lists and loose and not loose[0].startswith("["):
        loose = [json.dumps(loose)]
    if len(loose) > len(free):
        raise ConfigError(
            f"The word {loose[len(free)]!r} stands alone: options go as --NAME VALUE, a configuration as --config FILE."
        )
    return [*files, *options, *(f"--{name}={value}" for name, value in zip(free, loose, strict=False))]


@contextlib.contextmanager
def refusals(words: Sequence[str] = ()) -> Iterator[None]:
    """Turn what the parser raises into a ConfigError: our own sentence where one is behind it, else the parser's words.

    Args:
        words: that are parsed; the files among them are named.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except CryoSentinelError:
        raise
    except (ArgumentError, TypeError, ValueError, KeyError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, CryoSentinelError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        files = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        named = ", ".join(file for file in files if not file.startswith("{"))
        text = " ".join(str(error).split()).rstrip(".")
        where = f" (in {named} or the options)" if named else ""
        raise ConfigError(f"The options cannot be used: {text}{where}.") from None


def read(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse words.

    Raises:
        ConfigError: an unknown option or key, a value of the wrong type or out of range, a file that is not YAML.
    """
    with refusals(words):
        return parser.parse_args(list(words))


def instantiate(parser: ArgumentParser, namespace: Namespace) -> dict[str, Any]:
    """Make the objects that parsed values describe.

    Raises:
        ConfigError: a value is out of range.
    """
    with refusals():
        return parser.instantiate(namespace).as_dict()
