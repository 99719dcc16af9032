"""Roles and directives of the book, all of which fail the build with a sentence where something is missing.

``{metric}`NAME [FORMAT] [interval] [n] [data]```  one figure; its tooltip says what it is and where it comes from.
``{trained}`SOURCE```       the networks that a run compared its own with.
``{headline} REFERENCE``    network, best baseline and ceiling against ``truth`` or ``label``, with intervals.
``{comparison}``            published figures beside those of the study and the standard run.
``{benchmarks} [PREFIX]``   the table of benchmarks/results.json, ids that begin so.
``{plan} PRICE``            windows, hours and cost of the regions, from rates of benchmarks/results.json.
``{seeds}``                 mean and spread over the seeds of book/seeds.json.
``{real-chips}``            what the shipped weights call lake on real chips, from book/real_chips.json.
``{guards}``                what the simulator is held to, with limits, before and after.
``{ledger}``                the published claims, each with its check and its status.
``{standard-run}``          which run the standard figures come from, or that there is none.
``{study-picture} NAME``    a picture that the study left in its folder; the content is its caption.
``{chapter-map} CHAPTER``   the first interactive map that a chapter shows.
``{api} ROOM``              the public names of a room, read from the code.
``{data-card}``             the card beside the simulated chips.
``{architecture}``          the package's rooms and the imports between them, read from the code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import cryosentinel_api as api
import cryosentinel_architecture as architecture
from cryosentinel_figures import FigureError, Request, bar_html, first_map, headline, preset, written
from cryosentinel_nodes import DATA_SENTENCES, figure_node, look_up, note_data, note_sources, sources_of, table
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from cryosentinel import paths


class MetricRole(SphinxRole):
    """``{metric}`NAME [FORMAT] [interval] [n] [data]```."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The figure as a node."""
        try:
            request = Request.parse(self.text)
            figure = look_up(self.env, request.reference)
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None
        return [figure_node(figure, written(figure, request), request.spec)], []


class TrainedRole(SphinxRole):
    """``{trained}`SOURCE```: which networks the ``standard`` run or the ``study`` trained beside its own, in words."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Text."""
        from cryosentinel.study.comparison import NETWORKS

        note_sources(self.env)
        sources = sources_of(self.env)
        there = self.text != "standard" or sources.has_standard()
        found = sources.records(self.text) if there else {}
        titles = [network.title for name, network in NETWORKS.items() if f"compared_{name}_test_iou" in found]
        return [nodes.Text("; ".join(titles) or "none")], []


class Comparison(SphinxDirective):
    """``{comparison}``: a row a figure, published, study and standard run side by side.

    Each line of the content is ``NAME | what it is in words``; the option ``format`` sets the numbers' format.
    """

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"format": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """One table."""
        spec = self.options.get("format", "")
        standard = sources_of(self.env).has_standard()
        rows: list[list[nodes.Node | str]] = []
        try:
            for line in self.content:
                name, _, words = (part.strip() for part in line.partition("|"))
                if not name:
                    continue
                cells: list[nodes.Node | str] = [words or name]
                for prefix in ("published:", "", "standard:"):
                    if prefix == "standard:" and standard and not sources_of(self.env).recorded(name):
                        cells.append("not in the record")  # which may be of some chapters alone
                        continue
                    figure = look_up(self.env, prefix + name)
                    missing = "not run" if prefix == "standard:" and not standard else f"none: {figure.reason}"
                    text = figure.number(spec) if figure.value is not None else missing
                    if figure.interval(spec):
                        text += f" ({figure.interval(spec)})"
                    cells.append(figure_node(figure, text, spec))
                rows.append(cells)
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None
        titles = ["Figure", "Published system, real chips", "This study, simulated chips", "Standard run, simulated"]
        return [table(titles, rows, ["comparison"])]


class StandardRun(SphinxDirective):
    """``{standard-run}``: a sentence that names the standard run, or says that it has not been made."""

    def run(self) -> list[nodes.Node]:
        """One paragraph."""
        sources = sources_of(self.env)
        path = sources.paths["standard"]
        self.env.note_dependency(str(path.resolve()))
        paragraph = nodes.paragraph()
        if not sources.has_standard():
            paragraph += nodes.Text("The standard run has not been made yet: make study PRESET=standard makes it.")
            return [paragraph]
        try:
            sources.records("standard")
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None
        paragraph += nodes.Text(f"Standard figures come from the {sources.standard_run}, made with ")
        paragraph += nodes.literal("", sources.standard_command)
        paragraph += nodes.Text(".")
        return [paragraph]


class Seeds(SphinxDirective):
    """``{seeds}``: mean, spread and single values of figures over the seeds of book/seeds.json.

    Each line of the content is ``NAME | what it is in words``. Where no record is committed a sentence says so.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One table and a paragraph."""
        path = Path(self.env.app.srcdir) / "seeds.json"
        self.env.note_dependency(str(path.resolve()))
        paragraph = nodes.paragraph()
        if not path.is_file():
            paragraph += nodes.Text("No record of several seeds is there yet; this makes one: ")
            paragraph += nodes.literal("", "cryosentinel study --seeds 17,42,1337")
            return [paragraph]
        record = json.loads(path.read_text(encoding="utf-8"))
        note_data(self.env, "simulated", record["preset"])
        rows: list[list[nodes.Node | str]] = []
        for line in self.content:
            name, _, words = (part.strip() for part in line.partition("|"))
            if not name:
                continue
            if name not in record["figures"]:
                raise ExtensionError(
                    f"{self.env.docname}: no figure is called {name!r} in {path}, or no seed moves it."
                )
            entry = record["figures"][name]
            singles = [
                f"{entry['values'][seed]:.3f}"
                + (f" ({entry['low'][seed]:.3f} to {entry['high'][seed]:.3f})" if "low" in entry else "")
                for seed in map(str, record["seeds"])
            ]
            rows.append([words or name, f"{entry['mean']:.3f} ± {entry['spread']:.3f}", *singles])
        paragraph += nodes.Text(
            f"Preset {record['preset']}, simulated chips, commit {record['commit'][:10]}, made with "
        )
        paragraph += nodes.literal("", record["command"])
        paragraph += nodes.Text(".")
        titles = ["Figure", "Mean ± spread", *(f"Seed {seed}" for seed in record["seeds"])]
        return [table(titles, rows, ["seeds"]), paragraph]


class RealChips(SphinxDirective):
    """``{real-chips}``: what the shipped weights call lake on real chips; a sentence where no record is committed."""

    def run(self) -> list[nodes.Node]:
        """One table and a paragraph."""
        path = Path(self.env.app.srcdir) / "real_chips.json"
        self.env.note_dependency(str(path.resolve()))
        paragraph = nodes.paragraph()
        if not path.is_file():
            paragraph += nodes.Text("No record is there yet; this makes one: ")
            paragraph += nodes.literal("", "python scripts/real_chips.py")
            return [paragraph]
        note_data(self.env, "real")
        record = json.loads(path.read_text(encoding="utf-8"))
        rows: list[list[nodes.Node | str]] = [
            [
                row["where"], nodes.abbreviation("", row["source"], explanation=row["chip"]), f"{row['pixels']:,}",
                *(f"{row[key]:.1%}" for key in ("called_lake", "mean_probability", "mndwi_water")),
            ]
            for row in record["chips"]
        ]  # fmt: skip
        paragraph += nodes.Text(f"Weights {record['weights']}, commit {record['commit'][:10]}, made with ")
        paragraph += nodes.literal("", record["command"])
        paragraph += nodes.Text(f" on {record['date']}.")
        titles = ["Land cover", "Source (chip)", "Pixels", "Called lake", "Mean probability", "MNDWI above 0.3"]
        return [table(titles, rows, ["real-chips"]), paragraph]


class Guards(SphinxDirective):
    """``{guards}``: each guard of the simulator before it was mended, its limit, and what two studies measured."""

    def run(self) -> list[nodes.Node]:
        """One table; a value beyond its limit is called open."""
        from cryosentinel.simulate.realism import LIMITS
        from cryosentinel.simulate.realism_plots import GUARDS

        note_sources(self.env)
        sources = sources_of(self.env)
        files = {"study": sources.records("study"), "standard": {}}
        if sources.has_standard():
            files["standard"] = sources.records("standard")
        rows: list[list[nodes.Node | str]] = []
        for name, limit in LIMITS.items():
            cells: list[nodes.Node | str] = []
            for prefix, source in (("", "study"), ("standard:", "standard")):
                if f"guard/{name}" not in files[source]:
                    cells.append("not measured")
                    continue
                figure = look_up(self.env, f"{prefix}guard/{name}")
                open_end = "" if limit.within(float(figure.value or 0)) else ", open"
                cells.append(figure_node(figure, f"{figure.number()}{open_end}"))
            before = "" if limit.before is None else f"{limit.before:g}"
            rows.append([GUARDS[name], before, limit.words(), *cells, limit.why])
        return [table(["Guard", "Before", "Limit", "This study", "Standard run", "Rests on"], rows, ["guards"])]


class Ledger(SphinxDirective):
    """``{ledger}``: the claims of the study's ledger.json, or a sentence where no study has written one."""

    def run(self) -> list[nodes.Node]:
        """A paragraph that counts the claims by status, and the table."""
        path = sources_of(self.env).paths["study"].with_name("ledger.json")
        self.env.note_dependency(str(path.resolve()))
        paragraph = nodes.paragraph()
        if not path.is_file():
            paragraph += nodes.Text("The ledger has not been written yet; the study writes it: make study.")
            return [paragraph]
        entries = list(json.loads(path.read_text(encoding="utf-8")).values())
        for word in DATA_SENTENCES:
            if any(entry["data"] == word for entry in entries):
                note_data(self.env, word)
        counts = Counter(entry["status"] for entry in entries)
        plural = {"holds": "hold", "does not hold": "do not hold"}
        counted = ", ".join(f"{count} {plural.get(status, status)}" for status, count in counts.most_common())
        paragraph += nodes.Text(f"Of {len(entries)} published claims {counted}.")
        rows: list[list[nodes.Node | str]] = [
            [
                f"{e['claim']} ({e['source']})",
                nodes.strong("", f"{e['status']} ({e['data']})"),
                e["found"],
                e["checked"],
            ]
            for e in entries
        ]
        titles = ["Published claim (source)", "Status (rests on)", "Found", "How it was checked"]
        return [paragraph, table(titles, rows, ["ledger"])]


class Benchmarks(SphinxDirective):
    """``{benchmarks} [PREFIX]``: the table of benchmarks/results.json, or a sentence where none has been run."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One table, and a sentence on the machines."""
        path = Path(self.env.app.srcdir).parent / "benchmarks" / "results.json"
        self.env.note_dependency(str(path.resolve()))
        note_data(self.env, "measured")
        if not path.is_file():
            paragraph = nodes.paragraph()
            paragraph += nodes.Text("No benchmark has been run yet: make bench runs them.")
            return [paragraph]
        prefix = "".join(self.arguments)
        results = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["id"].startswith(prefix)]
        machines = list(dict.fromkeys(_machine(row["machine"]) for row in results))
        letters = dict(zip(machines, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False)) if len(machines) > 1 else {}
        rows: list[list[nodes.Node | str]] = []
        for row in results:
            what = nodes.inline("", "", nodes.literal("", row["id"]), nodes.Text(f" {row['what']}"))
            peer = "no peer" if row["peer"] is None else f"{_quantity(row['peer'], row['unit'])}, {row['peer_name']}"
            better = "" if row["ratio"] is None else _quantity(row["ratio"], "").strip()
            when = f"{row['date'][:10]} {letters.get(_machine(row['machine']), '')}".strip()
            rows.append([what, _quantity(row["ours"], row["unit"]), peer, better, str(row["goal"] or ""), when])
        titles = ["What was measured", "Ours", "Peer", "Times better", "Goal", "When"]
        named = "; ".join(f"{letters[machine]} {machine}" if letters else machine for machine in machines)
        return [table(titles, rows, ["benchmarks"]), nodes.paragraph("", f"Measured on: {named}.")]


class Plan(SphinxDirective):
    """``{plan} PRICE``: what mapping each region would take, at measured rates and a price of the machine's hour."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One table, and a sentence on what was measured."""
        from cryosentinel.mapping.planning import GATE_OVERLAP, plan_regions
        from cryosentinel.mapping.scene import Options

        path = Path(self.env.app.srcdir).parent / "benchmarks" / "results.json"
        self.env.note_dependency(str(path.resolve()))
        note_data(self.env, "measured")
        found = {row["id"]: row for row in json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}
        needed = ("scene_window", "scene_window_large", "gate_windows_alone", "seam_error", "seam_error_gate")
        if missing := set(needed) - set(found):
            paragraph = nodes.paragraph()
            paragraph += nodes.Text(f"Not measured yet: make bench ONLY={sorted(missing)[0]}.")
            return [paragraph]
        own, large, gate, seam, gate_seam = (found[name] for name in needed)
        price, ratio = float(self.arguments[0]), gate["ratio"]
        plain = plan_regions(own["ours"], core_hour=price)
        gated = plan_regions(own["ours"], GATE_OVERLAP, ratio, core_hour=price)
        heavy = plan_regions(large["ours"], GATE_OVERLAP, ratio, core_hour=price)
        stride = plain["windows"].iloc[0] / gated["windows"].iloc[0]
        rows: list[list[nodes.Node | str]] = []
        for a, b, c in zip(plain.itertuples(), gated.itertuples(), heavy.itertuples(), strict=True):
            name = str(a.region).replace("_", " ")
            figures = (a.area_km2, a.windows, b.run, a.hours, b.hours, b.cost, c.hours, c.cost)
            rows.append([name, *(f"{value:,.0f}" for value in figures)])
        titles = ["Region", "km²", "Windows", "With gate", "Hours", "Hours, gate", "USD, gate",
                  "Hours, gate, published size", "USD, gate, published size"]  # fmt: skip
        paragraph = nodes.paragraph()
        paragraph += nodes.Text(
            f"Measured: {own['ours']:.0f} ms for {own['what']} ({own['date'][:10]}, {_machine(own['machine'])}); "
            f"{large['ours']:.0f} ms for {large['what']} ({large['date'][:10]}, {_machine(large['machine'])}); "
            f"{ratio:.2f} times fewer windows by the gate ({gate['what']}), and {stride:.2f} times fewer because they "
            f"share {GATE_OVERLAP} pixels in place of {Options.overlap}: {gate_seam['ours']:.2%} of the water pixels "
            f"differ from those of a larger overlap, {seam['ours']:.2%} at {Options.overlap} ({seam['what']}). "
            f"Assumed: {price:g} USD for an hour of "
            "such a machine. Extrapolated: everything else."
        )
        return [table(titles, rows, ["benchmarks"]), paragraph]


def _machine(machine: dict[str, Any]) -> str:
    bf16 = f", bf16 {machine['bf16']}" if "bf16" in machine else ""  # which decides what training takes
    return f"{machine['cpu']}, {machine['cores']} cores{bf16}"


def _quantity(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


class Headline(SphinxDirective):
    """``{headline} REFERENCE``: a table of three lines, each with its number, interval and bar."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One table."""
        note_sources(self.env)
        try:
            bars = headline(sources_of(self.env), self.arguments[0])
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None
        rows: list[list[nodes.Node | str]] = []
        for bar in bars:
            number = figure_node(bar.figure, bar.figure.number())
            interval = figure_node(bar.figure, bar.figure.interval(".2f") or "none")
            rows.append([bar.words, number, interval, nodes.raw("", bar_html(bar), format="html")])
        return [table(["Map", "IoU", "95 % interval", "0 to 1"], rows, ["headline"])]


class StudyPicture(SphinxDirective):
    """``{study-picture} NAME``: a picture of the study at hand, else the committed one of the same name, said so."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """One figure."""
        name = self.arguments[0]
        book = Path(self.env.app.srcdir)
        made = sources_of(self.env).paths["study"].with_name(name)
        committed = book / "_static" / name
        self.env.note_dependency(str(made.resolve()))
        uri, said = f"_static/{name}", " (from the standard study, whose picture is committed with the book)"
        if made.is_file():
            (book / "assets").mkdir(exist_ok=True)
            shutil.copyfile(made, book / "assets" / name)
            uri, said = f"assets/{name}", ""
            note_data(self.env, "simulated")
        elif not committed.is_file():
            raise ExtensionError(f"{self.env.docname}: neither {made} nor {committed} is there; run make study.")
        else:
            note_data(self.env, "simulated", "standard")
        figure = nodes.figure(classes=["study-picture"])
        figure += nodes.image(uri=uri, alt=self.options["alt"])
        caption = nodes.caption()
        children, messages = self.state.inline_text("\n".join(self.content) + said, self.lineno)
        caption += children
        figure += caption
        return [figure, *messages]


class ChapterMap(SphinxDirective):
    """``{chapter-map} CHAPTER``: the first interactive map of an executed chapter."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The map as HTML."""
        path = Path(self.env.app.srcdir) / "chapters" / f"{self.arguments[0]}.ipynb"
        self.env.note_dependency(str(path.resolve()))
        note_data(self.env, "simulated")
        try:
            return [nodes.raw("", first_map(path), format="html")]
        except FigureError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from None


class Architecture(SphinxDirective):
    """``{architecture}``: the drawing of the rooms, and a table of all imports between them."""

    def run(self) -> list[nodes.Node]:
        """A drawing and a table."""
        package = paths.PACKAGE
        for path in package.rglob("*.py"):
            self.env.note_dependency(str(path))
        found, size = architecture.imports(package), architecture.lines(package)
        rows: list[list[nodes.Node | str]] = []
        for room in (room for rooms in architecture.FLOORS for room in rooms):
            below = sorted(there for here, there in found if here == room)
            rows.append([nodes.literal("", room), f"{size[room]:,}", ", ".join(below) or "none"])
        drawing = nodes.raw("", f'<div class="architecture">{architecture.drawing(package)}</div>', format="html")
        return [drawing, table(["Room", "Lines", "Imports from"], rows, ["rooms"])]


def _with_literals(text: str) -> list[nodes.Node]:
    """Text of a docstring: double backquotes and references to code become literals."""
    found: list[nodes.Node] = []
    for part in re.split(r"(``[^`]+``|:\w+:`[^`]+`)", text):
        if part.startswith("``"):
            found.append(nodes.literal("", part.strip("`")))
        elif match := re.fullmatch(r":\w+:`~?([^`]+)`", part):
            found.append(nodes.literal("", match[1].removeprefix("cryosentinel.")))
        elif part:
            found.append(nodes.Text(part))
    return found


class Api(SphinxDirective):
    """``{api} ROOM``: the public names that a room of the package defines, with signatures and docstrings."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section a name."""
        package, made = paths.PACKAGE, []
        for name in sorted(api.places(package), key=str.lower):
            entry = api.entry(package, name)
            self.env.note_dependency(str(package.parent.joinpath(*entry.module.split(".")).with_suffix(".py")))
            if architecture.room_of(entry.module) == self.arguments[0]:
                made.append(self._section(entry))
        if not made:
            raise ExtensionError(f"{self.env.docname}: the room {self.arguments[0]!r} offers no public name.")
        return made

    def _section(self, entry: api.Entry) -> nodes.section:
        section = nodes.section(ids=[f"api-{entry.name.lower().replace('_', '-')}"], names=[entry.name])
        section += nodes.title("", entry.name)
        code = nodes.literal_block(entry.signature, entry.signature, language="python", classes=["signature"])
        section += code
        for text in entry.text:
            section += nodes.paragraph("", "", *_with_literals(text))
        for heading, lines in entry.sections.items():
            section += nodes.rubric("", heading)
            section += self._list(lines)
        if entry.methods:
            section += nodes.rubric("", "Methods and properties")
            section += self._list(entry.methods)
        section += nodes.paragraph("", "", nodes.emphasis("", f"Defined in {entry.module}."))
        return section

    def _list(self, lines: list[tuple[str, str]]) -> nodes.bullet_list:
        found = nodes.bullet_list()
        for name, text in lines:
            named = [nodes.literal("", name), nodes.Text(": ")] if name else []
            found += nodes.list_item("", nodes.paragraph("", "", *named, *_with_literals(text)))
        return found


class DataCard(SphinxDirective):
    """``{data-card}``: the card beside the simulated chips of the study, or a sentence where they are not there."""

    def run(self) -> list[nodes.Node]:
        """The card's own text and tables."""
        note_data(self.env, "simulated")
        note_sources(self.env)
        name = preset(sources_of(self.env).records("study"))
        path = paths.datasets() / name / "README.md"
        self.env.note_dependency(str(path))
        if not name or not path.is_file():
            return [nodes.paragraph("", "The chips of this study are not here; make study makes them, and their card.")]
        text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        text = re.sub(r"^# .*$", "", text, count=1, flags=re.MULTILINE)
        holder = nodes.section()
        self.state.nested_parse(StringList(text.splitlines(), str(path)), 0, holder, match_titles=True)
        return holder.children


DIRECTIVES = {
    "api": Api,
    "data-card": DataCard,
    "architecture": Architecture,
    "guards": Guards,
    "headline": Headline,
    "comparison": Comparison,
    "benchmarks": Benchmarks,
    "ledger": Ledger,
    "plan": Plan,
    "seeds": Seeds,
    "real-chips": RealChips,
    "standard-run": StandardRun,
    "study-picture": StudyPicture,
    "chapter-map": ChapterMap,
}
