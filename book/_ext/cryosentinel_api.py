"""The reference of the public names, read from their source: signature, docstring, public methods. Nothing is imported.

Reading instead of importing keeps the book's build at seconds: the networks' libraries alone take longer to load.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
_ENTRY = re.compile(r"^(\*{0,2}\w[\w*., ]*?)(?: \([^)]*\))?: ?(.*)$")
Definition = ast.FunctionDef | ast.ClassDef


@dataclass
class Entry:
    """One public name.

    Attributes:
        name: under which it is offered.
        module: that defines it.
        signature: as source.
        text: paragraphs of the docstring.
        sections: heading -> lines, each a name and its text; the name is empty where the section has none.
        methods: public methods of a class: signature and first sentence.
    """

    name: str
    module: str
    signature: str
    text: list[str] = field(default_factory=list)
    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    methods: list[tuple[str, str]] = field(default_factory=list)


def places(package: Path) -> dict[str, tuple[str, str]]:
    """The public names of a package: name -> module and name there, from the table in its ``__init__``."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    tables = [
        node.value for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["_PLACES"]
    ]  # fmt: skip
    found = {}
    for name, place in ast.literal_eval(tables[0]).items():
        module, _, there = place.partition(":")
        found[name] = (f"{package.name}.{module}", there or name)
    return found


def definition(package: Path, module: str, name: str) -> tuple[str, Definition]:
    """Where a name is defined, imports followed.

    Raises:
        LookupError: neither the module nor what it imports defines it.
    """
    path = package.parent.joinpath(*module.split("."))
    path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package.name):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(package, node.module, alias.name)
    raise LookupError(f"{module} defines no {name}.")


def entry(package: Path, name: str) -> Entry:
    """What the reference says of a public name."""
    module, node = definition(package, *places(package)[name])
    made = Entry(name, module, _signature(node, name))
    made.text, made.sections = docstring(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and ast.get_docstring(each):
                text, _ = docstring(ast.get_docstring(each) or "")
                kind = {getattr(d, "id", getattr(d, "attr", "")) for d in each.decorator_list}
                shown = each.name if kind & {"property", "cached_property"} else _signature(each, each.name)
                made.methods.append((shown, text[0] if text else ""))
    return made


def _signature(node: Definition, name: str) -> str:
    if isinstance(node, ast.FunctionDef):
        arguments = ast.unparse(node.args)
        arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
        returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{name}({arguments}){returned}"
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return _signature(each, name).removesuffix(" -> None")
    fields = [
        ast.unparse(each) for each in node.body
        if isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_")
    ]  # fmt: skip
    return f"{name}({', '.join(fields)})"


def docstring(text: str) -> tuple[list[str], dict[str, list[tuple[str, str]]]]:
    """A Google docstring as paragraphs and sections."""
    paragraphs: list[str] = []
    sections: dict[str, list[tuple[str, str]]] = {}
    here = ""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        while lines and (match := _SECTION.match(lines[0])):
            here = match[1]
            stop = next((i for i, line in enumerate(lines[1:], 1) if _SECTION.match(line)), len(lines))
            body = inspect.cleandoc("\n".join(["", *lines[1:stop]])).splitlines()
            sections[here] = _entries(body, named=here not in ("Returns", "Yields"))
            lines = lines[stop:]
        if lines and block.startswith(" ") and here:
            sections[here] += _entries(
                inspect.cleandoc("\n" + block).splitlines(), named=here not in ("Returns", "Yields")
            )
        elif lines:
            paragraphs.append(" ".join(lines))
    return paragraphs, sections


def _entries(lines: list[str], named: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in lines:
        match = _ENTRY.match(line) if named else None
        if match:
            found.append((match[1], match[2]))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}".strip())
        else:
            found.append(("", line.strip()))
    return found
