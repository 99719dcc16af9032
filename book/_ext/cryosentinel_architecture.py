"""The package's architecture, read from its imports: rooms on floors, and a drawing of who imports whom.

Nothing here knows Sphinx. The floors are the plan; :func:`upward` says where the code leaves it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path

from cryosentinel_api import places

GROUND = "ground"
#: From the top down; a room may import from lower floors only. Rooms of one floor do not import each other.
FLOORS = (
    ("study", "cli"),
    ("mapping",),
    ("training",),
    ("simulate", "ingest", "evaluation"),
    ("data", "models"),
    (GROUND,),
)
#: What each room is for.
PURPOSE = {
    "cli": "commands and their options",
    "study": "stages, metrics file, chapters",
    "mapping": "scenes to lakes, areas, change",
    "training": "losses, optimiser, snapshots",
    "simulate": "chips with known truth",
    "ingest": "chips from image services",
    "evaluation": "scores, intervals, audit",
    "data": "chips, shards, split",
    "models": "networks, soups, checkpoints",
    GROUND: "paths, files, errors, sensors, grids",
}
_COMMAND_LINE = {"cli", "commands", "__main__"}
#: Imports within a floor that are meant: the command line runs the study, and errors are split by simulated material.
WITHIN = {("cli", "study"), ("evaluation", "simulate")}


def room_of(module: str) -> str:
    """The room of a dotted module of the package, ``cryosentinel.data.chips`` -> ``data``."""
    part = module.partition(".")[2].partition(".")[0]
    if part in _COMMAND_LINE:
        return "cli"
    return part if part in PURPOSE else GROUND


def imports(package: Path) -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another, those inside functions included.

    The package's own ``__init__``, which offers names of all rooms, is left out, as are imports for type checkers.

    Args:
        package: the folder ``cryosentinel``.
    """
    found: Counter[tuple[str, str]] = Counter()
    offered = places(package) if (package / "__init__.py").is_file() else {}
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        if relative == Path("__init__.py"):
            continue
        where = (package.name, *relative.with_suffix("").parts)
        here = room_of(".".join(where))
        for module in _imported(ast.parse(path.read_text(encoding="utf-8")), where):
            # A name that the package offers lies in the room that defines it.
            module = offered.get(module.removeprefix(f"{package.name}."), (module,))[0]
            if (there := room_of(module)) != here:
                found[here, there] += 1
    return found


def _imported(tree: ast.AST, where: tuple[str, ...]) -> list[str]:
    """Modules of the package that a module imports, given the parts of its own name; relative ones resolved."""
    package, modules = where[0], []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names if alias.name.startswith(f"{package}.")]
        elif isinstance(node, ast.ImportFrom):
            base = where[: len(where) - node.level] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            if module == package:  # from cryosentinel import paths
                modules += [f"{package}.{alias.name}" for alias in node.names]
            elif module.startswith(f"{package}."):
                modules.append(module)
        else:
            modules += _imported(node, where)
    return modules


def upward(found: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """Imports that lead to the same floor or a higher one."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    return sorted(pair for pair in found if floor[pair[1]] <= floor[pair[0]] and pair not in WITHIN)


def lines(package: Path) -> Counter[str]:
    """Lines of Python by room."""
    found: Counter[str] = Counter()
    for path in package.rglob("*.py"):
        module = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
        found[room_of(module)] += len(path.read_text(encoding="utf-8").splitlines())
    return found


def direct(found: Mapping[tuple[str, str], int]) -> set[tuple[str, str]]:
    """The imports that do not follow from others: no arrow where a room reaches another by a detour."""
    below: dict[str, set[str]] = {}
    for here, there in found:
        below.setdefault(here, set()).add(there)

    def reach(room: str) -> set[str]:
        return set().union(*({each} | reach(each) for each in below.get(room, ())))

    return {(a, b) for a, b in found if not any(b in reach(c) for c in below[a] - {b})}


_WIDTH, _ROW, _BOX = 760, 92, (182, 50)
#: Where each room stands across the drawing, chosen so that no arrow runs behind a box.
_ACROSS = {
    "study": 0.3, "cli": 0.7, "mapping": 0.75, "training": 0.22, "simulate": 0.13, "evaluation": 0.59, "ingest": 0.87,
    "models": 0.25, "data": 0.72, GROUND: 0.5,
}  # fmt: skip


def drawing(package: Path) -> str:
    """The rooms on their floors and the direct imports between them, as an SVG that follows the page's colours."""
    found, size = imports(package), lines(package)
    width, height = _BOX
    place: dict[str, tuple[float, float]] = {}
    parts = []
    for row, rooms in enumerate(FLOORS):
        place |= {room: (_WIDTH * _ACROSS[room], 8 + row * _ROW) for room in rooms}
    for here, there in sorted(direct(found)):
        (x1, y1), (x2, y2) = place[here], place[there]
        if y1 == y2:  # on one floor, from the side
            side = 1 if x2 > x1 else -1
            x1, x2, y1, y2 = x1 + side * width / 2, x2 - side * (width / 2 + 7), y1 + height / 2, y2 + height / 2
        else:
            x1, x2, y1, y2 = x1 + (x2 - x1) * 0.12, x2 - (x2 - x1) * 0.12, y1 + height, y2 - 7
        parts.append(f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" marker-end="url(#arch-tip)"/>')
    for room, (x, y) in place.items():
        parts.append(
            f'<rect x="{x - width / 2:.0f}" y="{y}" width="{width}" height="{height}" rx="6"/>'
            f'<text x="{x:.0f}" y="{y + 20}" class="room">{room}</text>'
            f'<text x="{x:.0f}" y="{y + 37}">{escape(PURPOSE[room])}</text>'
        )
    words = "; ".join(f"{a} imports {b}" for a, b in sorted(direct(found)))
    tip = '<marker id="arch-tip" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    total = f"{sum(size.values()):,} lines of Python"
    return (
        f'<svg class="architecture" viewBox="0 0 {_WIDTH} {len(FLOORS) * _ROW - 20}" role="img" '
        f'aria-label="Rooms of the package and their imports: {escape(words)}"><title>{total}</title><defs>{tip}'
        f'<path d="M0 0 L8 4 L0 8 Z"/></marker></defs>{"".join(parts)}</svg>'
    )
