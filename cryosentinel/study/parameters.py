"""The parameters of the notebooks: what they may be, checked before anything slow is imported.

Each notebook calls :func:`check` in the cell behind its parameters, and ``cryosentinel study`` checks the values that
it hands on by the same rules, so that a wrong one ends in a sentence within a second.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cryosentinel import paths
from cryosentinel.errors import ConfigError, CryoSentinelError
from cryosentinel.evaluation.scores import threshold_bin
from cryosentinel.sensors import REGIONS
from cryosentinel.study.comparison import chosen
from cryosentinel.study.study import PRESET_NAMES

#: Papermill's comment on the cell that it puts behind the parameters.
_INJECTED = "# Parameters\n"


def _one_of(*known: Any) -> Callable[[Any], str]:
    return lambda value: "" if value in known else f"it is one of {', '.join(map(str, known))}"


def _from(least: int) -> Callable[[Any], str]:
    return lambda value: "" if value >= least else f"it is {least} or more"


def _accepted_by(refuse: Callable[[Any], Any]) -> Callable[[Any], str]:
    """The rule of a function that raises its own sentence at what it cannot use."""

    def wrong(value: Any) -> str:
        refuse(value)
        return ""

    return wrong


def _regions(value: str) -> str:
    unknown = [name for name in value.split(",") if value and name not in REGIONS]
    if unknown:
        return f"{unknown[0]!r} is no region; known are {', '.join(REGIONS)}"
    return "that is every region, and some are needed to train on" if set(REGIONS) <= set(value.split(",")) else ""


def _checkpoint(value: str) -> str:
    if value.startswith("hf://"):
        from cryosentinel.hub import parse_hub_uri

        parse_hub_uri(value)
    elif value != paths.SOUP:  # the soup is made where it is missing
        value = str(paths.checkpoint(value))
    known = (".ckpt", ".pt", ".pth", ".safetensors")
    return "" if value.partition("@")[0].endswith(known) else f"a checkpoint ends in {', '.join(known)}"


def _chips(value: str) -> str:
    if value:
        paths.dataset(value)
    return ""


def _real_chips(value: str) -> str:
    folder = paths.real_chips(value)
    return "no S2L2A/*.tif lie there" if value and folder and not any(folder.glob("S2L2A/*.tif")) else ""


def _saved(value: str) -> str:
    wanted = "give the folder tables that chapter 3 wrote beside its metrics.json"
    return "" if not value or Path(value, "soup").is_dir() else f"no saved tables lie there; {wanted}"


def _folder(value: str) -> str:
    return "it is a file, where a folder is needed" if value and Path(value).is_file() else ""


#: Every parameter of every notebook: type, and what is wrong with a value of that type (a sentence's end, or an error).
RULES: dict[str, tuple[type, Callable[[Any], str]]] = {
    "preset": (str, _one_of(*PRESET_NAMES)),
    "ckpt": (str, _checkpoint),
    "data": (str, _chips),
    "real_data": (str, _real_chips),
    "saved": (str, _saved),
    "out": (str, _folder),
    "leave_out": (str, _regions),
    "flips": (int, _one_of(1, 2, 4)),
    "threshold": (float, _accepted_by(threshold_bin)),
    "seed": (int, _from(0)),
    "max_epochs": (int, _from(0)),
    "networks": (str, _accepted_by(chosen)),
    "examples": (int, _from(1)),
    "worst": (int, _from(1)),
    "control": (int, _from(0)),
    "panels": (int, _from(1)),
    "stressed": (int, _from(0)),
    "places": (int, _from(1)),
    "steps": (int, _from(1)),
}


def check(namespace: Mapping[str, Any]) -> None:
    """Check the parameters of the notebook that runs: call it with ``globals()`` in the cell behind them.

    Args:
        namespace: the notebook's names. Its parameters are those that are declared with a type; what papermill was
            given stands in the cell that it put behind them (of a name that nobody declared it would only warn).

    Raises:
        ConfigError: a name that the notebook does not know, or a value that it cannot use.
        InputError, CheckpointError: a folder or a file that is not there.
    """
    declared = list(namespace["__annotations__"])
    given: list[str] = []
    for cell in namespace.get("In", ()):
        if cell.startswith(_INJECTED):
            names = [node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name)]
            given = [node.id for node in names if isinstance(node.ctx, ast.Store)]  # not the float of float('nan')
    check_names(given, declared)
    check_values({name: namespace[name] for name in declared})


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that no parameter has.

    Raises:
        ConfigError: with the nearest known name.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? Known" if near else "known"
            raise ConfigError(f"There is no parameter {name!r}; {hint} are {', '.join(known)}.")


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse values that a notebook cannot use.

    Raises:
        ConfigError: a name without a rule, a value of another type, or one that is out of range.
        InputError, CheckpointError: a folder or a file that is not there.
    """
    check_names(values, RULES)
    for name, value in values.items():
        kind, wrong = RULES[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            as_text = f"; papermill takes text as it stands with -r {name} TEXT" if kind is str else ""
            raise ConfigError(f"The parameter {name} is {value!r}, which is not of type {kind.__name__}{as_text}.")
        try:
            sentence = wrong(value)
        except CryoSentinelError as error:
            raise type(error)(f"The parameter {name} is {value!r}. {error}") from None
        if sentence:
            raise ConfigError(f"The parameter {name} is {value!r}; {sentence}.")
