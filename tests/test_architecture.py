"""The package keeps to its floors, and the book's drawing of them is the code's own."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book" / "_ext")]

import cryosentinel_architecture as architecture  # noqa: E402

PACKAGE = ROOT / "cryosentinel"


def test_rooms_import_only_downwards():
    found = architecture.imports(PACKAGE)
    assert not architecture.upward(found)
    assert len(found) > 20 and {here for here, _ in found} | {"ground"} == set(architecture.PURPOSE)


def test_every_room_stands_on_a_floor_and_every_folder_is_a_room():
    rooms = [room for floor in architecture.FLOORS for room in floor]
    assert sorted(rooms) == sorted(architecture.PURPOSE)
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(rooms) - {"ground", "cli"}


def test_an_import_that_leads_upwards_is_noticed(tmp_path):
    package = tmp_path / "cryosentinel"
    (package / "models").mkdir(parents=True)
    (package / "evaluation").mkdir()
    text = "import numpy\nfrom cryosentinel import paths\nfrom typing import TYPE_CHECKING\n"
    text += "if TYPE_CHECKING:\n    from cryosentinel.study.study import Study\n"
    (package / "models" / "a.py").write_text(text)
    assert architecture.upward(architecture.imports(package)) == []
    (package / "models" / "b.py").write_text("def f():\n    from cryosentinel.data import chips\n")
    (package / "evaluation" / "c.py").write_text("class A:\n    def f(self):\n        import cryosentinel.training\n")
    assert architecture.upward(architecture.imports(package)) == [("evaluation", "training"), ("models", "data")]
    (package / "models" / "b.py").write_text("from .. import study\nfrom . import a\n")
    (package / "evaluation" / "c.py").write_text("from cryosentinel import paths, Study\n")
    (package / "__init__.py").write_text('_PLACES = {"Study": "study.study"}\n')
    assert architecture.upward(architecture.imports(package)) == [("evaluation", "study"), ("models", "study")]


def test_the_drawing_shows_the_direct_imports():
    found = Counter({("a", "b"): 1, ("b", "c"): 2, ("a", "c"): 5, ("c", "d"): 1})
    assert architecture.direct(found) == {("a", "b"), ("b", "c"), ("c", "d")}
    drawn = architecture.drawing(PACKAGE)
    direct = architecture.direct(architecture.imports(PACKAGE))
    assert drawn.count("<line ") == len(direct) and all(f"{a} imports {b}" in drawn for a, b in direct)
