"""The book: figures in the prose, chapters that are made when they are missing, pages without the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book" / "_ext")]

import cryosentinel_api as api  # noqa: E402
from cryosentinel_figures import (  # noqa: E402
    Bar,
    Figure,
    FigureError,
    Request,
    Sources,
    bar_html,
    first_map,
    headline,
    preset,
    written,
)
from cryosentinel_pages import NO_DATA, chapter_data, data_box, describe_images, fold_cells  # noqa: E402

from cryosentinel import paths  # noqa: E402
from cryosentinel.simulate.realism import LIMITS  # noqa: E402
from cryosentinel.simulate.realism_plots import GUARDS  # noqa: E402

CHAPTERS = (
    "01_data", "02_train", "03_evaluate", "04_label_noise_audit", "05_limitations", "06_failed_finetune", "07_lake_maps"
)  # fmt: skip
PUBLISHED = json.loads((ROOT / "cryosentinel" / "published.json").read_text(encoding="utf-8"))


def _record(value=0.5, low=0.41, high=0.62, n=1234, data="simulated", **more):
    return {"value": value, "low": low, "high": high, "n": n, "data": data, "source": "soup.ckpt", **more}


def _metrics() -> dict[str, dict]:
    """A metrics file with every name that a page of the book asks the study for."""
    names = set()
    for page in (ROOT / "book").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        names |= {name for name in re.findall(r"\{metric\}`([^`\s]+)", text) if ":" not in name}
        for table in re.findall(r"```\{comparison\}\n(.*?)```", text, re.DOTALL):
            names |= {line.partition("|")[0].strip() for line in table.splitlines() if line.strip()}
    for ending in ("", "_truth"):  # of the headline
        names |= {f"test_iou@best_tta{ending}", f"mndwi_test_iou@best{ending}", f"pixel_test_iou@best{ending}"}
    names |= {"ceiling_truth_against_label", "ceiling_standing_water_against_truth"}
    return {name: _record() for name in names}


def _asked(prefix: str) -> set[str]:
    """Names of figures that a page's text asks a record for."""
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "book").glob("*.md"))
    return {name.replace("~", " ") for name in re.findall(rf"\{{metric\}}`{prefix}([^`\s]+)", pages)}


MAP = '<div><iframe srcdoc="the map" title="Map of lakes"></iframe></div>'


def _chapter(text: str) -> str:
    import nbformat.v4 as v4

    cells = [
        v4.new_markdown_cell(text),
        v4.new_code_cell("preset = 'tiny'", execution_count=1, metadata={"tags": ["parameters"]}),
        v4.new_code_cell(
            "embed(shown)", execution_count=2, outputs=[v4.new_output("display_data", {"text/html": MAP})]
        ),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    # Importing leafmap leaves the state of widgets that no output shows.
    state = {
        "state": {"0": {"model_name": "LayoutModel", "model_module": "x", "model_module_version": "1", "state": {}}}
    }
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {**state, "version_major": 2}}
    return json.dumps(notebook)


def _book(root: Path, chapters: bool = True) -> Path:
    """A copy of the book beside a study of its own, with chapters of one paragraph."""
    ignore = shutil.ignore_patterns("_build", "chapters", "standard_metrics.json", "seeds.json", "__pycache__")
    shutil.copytree(ROOT / "book", root / "book", ignore=ignore)
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)
    # Not beside the book and not in the working folder: only the variable says where.
    (root / "generated" / "study").mkdir(parents=True)
    (root / "generated" / "study" / "metrics.json").write_text(json.dumps(_metrics()))
    if chapters:
        (root / "book" / "chapters").mkdir()
        for name in CHAPTERS:
            text = f"# Chapter {name}\n\nWith $x^2$ and {{metric}}`test_iou@0.50_tta interval n data`."
            (root / "book" / "chapters" / f"{name}.ipynb").write_text(_chapter(text))
    return root


def _build(root: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", "-W", "-n", "--keep-going", "book/"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=_environment(root))


def _environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "NO_COLOR": "1", paths.OUTPUTS_VARIABLE: str(root / "generated")}


# ------------------------------------------------------------------------------------------------------------ figures


@pytest.fixture
def sources(tmp_path) -> Sources:
    study = tmp_path / "metrics.json"
    records = {
        "iou": _record(0.51234),
        "bare": _record(0.5, None, None, reason="3 of 9 blocks hold lake"),
        "count": _record(4283, None, None),
        "none": _record(None, None, None, reason="no chip was judged wrong"),
        "wordless": _record(data="guessed"),
        "empty": _record(None, None, None),
    }
    study.write_text(json.dumps(records))
    return Sources(study, tmp_path / "standard_metrics.json")


def _text(sources: Sources, text: str) -> str:
    request = Request.parse(text)
    return written(sources.figure(request.reference), request)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iou", "0.512"),
        ("iou .1%", "51.2%"),
        ("iou .2f interval n data", "0.51 (interval 0.41 to 0.62, n = 1,234, simulated)"),
        ("bare interval", "0.500 (no interval: 3 of 9 blocks hold lake)"),
        ("count", "4,283"),
        ("none", "not available (no chip was judged wrong)"),
        ("published:val_iou@0.50_tta", f"{PUBLISHED['val_iou@0.50_tta']['value']:.4f}"),
        ("standard:iou", "not available (the standard run has not been made)"),
    ],
)
def test_figures_are_written_as_asked(sources, text, expected):
    assert _text(sources, text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "empty"),
        ("iuo", "'iuo'.* iou"),
        ("iou .3q", ".3q"),
        ("iou intervall", "intervall"),
        ("published:nothing", "published.json"),
        ("wordless", "guessed"),
        ("empty", "reason"),
    ],
)
def test_a_figure_that_cannot_be_written_ends_in_a_sentence(sources, text, sentence):
    with pytest.raises(FigureError, match=sentence):
        _text(sources, text)


def test_a_missing_metrics_file_names_the_command(tmp_path):
    with pytest.raises(FigureError, match="make study"):
        Sources(tmp_path / "metrics.json", tmp_path / "standard.json").figure("iou")


def test_the_standard_run_is_named_where_its_figure_stands(sources):
    run = {"command": "make study PRESET=standard", "commit": "0123456789abcdef", "date": "2026-11-22T10:00:00"}
    sources.paths["standard"].write_text(json.dumps({**run, "metrics": {"iou": _record(0.7)}}))
    assert _text(sources, "standard:iou") == "0.700 (standard run of 2026-11-22, commit 0123456789)"
    with pytest.raises(FigureError, match="bare"):
        _text(sources, "standard:bare")


def test_the_tooltip_says_what_a_figure_is():
    figure = Figure("iou", 0.5, 0.4, 0.6, 12, "simulated", "soup.ckpt", "")
    assert figure.explanation() == "simulated data; interval 0.400 to 0.600; n = 12; soup.ckpt"


def test_an_environment_variable_names_another_study(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYOSENTINEL_OUTPUTS", str(tmp_path / "o"))
    assert Sources.of_book(tmp_path / "book").paths["study"] == tmp_path / "o" / "study" / "metrics.json"
    monkeypatch.delenv("CRYOSENTINEL_OUTPUTS")
    assert Sources.of_book(tmp_path / "book").paths["study"] == ROOT / "outputs" / "study" / "metrics.json"


def _headline(tmp_path, **records) -> list[tuple[str, float | None]]:
    (tmp_path / "metrics.json").write_text(json.dumps(records))
    bars = headline(Sources(tmp_path / "metrics.json", tmp_path / "standard.json"), "truth")
    return [(bar.words, bar.figure.value) for bar in bars]


def test_the_headline_sets_the_best_baseline_and_the_ceiling_beside_the_network(tmp_path):
    records = {
        "test_iou@best_tta_truth": _record(0.6),
        "mndwi_test_iou@best_truth": _record(0.5),
        "pixel_test_iou@best_truth": _record(0.7),
        "pixel_test_iou@best": _record(0.9),  # against the label: another scale
        "oracle_test_iou@best_truth": _record(0.93),  # no baseline
        "new_one_test_iou@best_truth": _record(None, None, None, reason="not run"),
        "ceiling_standing_water_against_truth": _record(0.95),
    }
    words, values = zip(*_headline(tmp_path, **records), strict=True)
    assert values == (0.6, 0.7, 0.95) and "single pixels" in words[1]
    del records["pixel_test_iou@best_truth"], records["mndwi_test_iou@best_truth"]
    with pytest.raises(FigureError, match="no baseline"):
        _headline(tmp_path, **records)


def test_a_bar_is_as_long_as_its_number():
    html = bar_html(Bar("network", Figure("iou", 0.5, 0.41, 0.62), "network"))
    assert "width:50.0%" in html and "left:41.0%;width:21.0%" in html
    assert "whisker" not in bar_html(Bar("network", Figure("iou", 0.5), "network"))


def test_the_first_map_of_a_chapter_is_shown(tmp_path):
    (tmp_path / "a.ipynb").write_text(_chapter("# A"))
    assert first_map(tmp_path / "a.ipynb") == MAP
    (tmp_path / "b.ipynb").write_text(_chapter("# B").replace("srcdoc", "src"))
    with pytest.raises(FigureError, match="b shows no"):
        first_map(tmp_path / "b.ipynb")
    with pytest.raises(FigureError, match="make study"):
        first_map(tmp_path / "c.ipynb")


def test_all_code_of_a_chapter_is_folded():
    cells = [{"cell_type": "code", "metadata": {"tags": tags}, "source": source} for tags, source in (
        (["parameters"], ["a = 1"]), (["injected-parameters"], "a = 2"),
        ([], ["x\n"]), (["remove-cell"], ["x\n"]), (["hide-cell"], ["x\n"]), (["hide-cell", "making"], ["x\n"]),
    )]  # fmt: skip
    source = [json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": ["x\n"] * 40}, *cells]})]
    fold_cells(None, "chapters/03_evaluate", source)
    metadata = [cell["metadata"] for cell in json.loads(source[0])["cells"]]
    folded = [["parameters", "hide-input"], ["injected-parameters", "hide-input"], ["hide-input"], ["remove-cell"]]
    assert [each.get("tags") for each in metadata] == [None, *folded, ["hide-cell"], ["hide-cell", "making"]]
    labels = [each.get("mystnb", {}).get("code_prompt_show", "").split()[:1] for each in metadata]
    assert labels == [[], ["Parameters,"], ["Parameters"], ["Code"], [], ["The"], ["What"]]
    page = ["# Title"]
    fold_cells(None, "intro", page)
    assert page == ["# Title"]


def test_the_box_of_a_page_names_the_kinds_of_its_numbers():
    written = {"source": "notebooks/03_evaluate.ipynb, preset tiny, soup.ckpt"}
    records = {
        "a": {**_record(), **written},
        "b": {**_record(data="real"), **written},
        "c": {**_record(data="published"), "source": "notebooks/05_limitations.ipynb"},
    }
    kinds = chapter_data(records, "03_evaluate")
    box = data_box(kinds, [preset(records)]).astext().splitlines()
    assert [line.split()[0] for line in box if line] == ["simulated", "real"] and "preset tiny" in box[0]
    assert data_box([]).astext() == NO_DATA
    assert "preset quick and standard" in data_box(["simulated"], {"standard", "quick"}).astext()


def test_images_without_a_description_take_one_from_their_section():
    from docutils import nodes

    told = nodes.image(uri="b.png", alt="A lake")
    section = nodes.section("", nodes.title("", "Small lakes"), nodes.paragraph("", "They are shore. And more."))
    section += [nodes.image(uri="a.png"), told, nodes.title("", "Ice"), nodes.image(uri="c.png")]
    describe_images(None, section)
    texts = [image["alt"] for image in section.findall(nodes.image)]
    assert texts == ["Figure of the section “Small lakes”: They are shore.", "A lake", "Figure of the section “Ice”"]


def test_the_reference_reads_signatures_and_sections_from_the_source(tmp_path):
    package = tmp_path / "cryosentinel"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text('_PLACES = {"cut": "data:slice_it", "Chip": "data.chips"}\n')
    (package / "data" / "__init__.py").write_text("from cryosentinel.data.chips import cut as slice_it\n")
    function = """
def cut(chip: Chip, *, side: int = 8) -> list[Chip]:
    '''Cut a chip.

    Into squares.

    Args:
        chip: one,
            whole.
        side: pixels.
        **more: further.

    Returns:
        The squares: all.

    Raises:
        InputError: too small.
    '''
"""
    holder = "class Chip:\n    def show(self) -> None:\n        'Draw it.'\n\n    def _hidden(self): ...\n"
    (package / "data" / "chips.py").write_text(function + holder)
    made = api.entry(package, "cut")
    assert (
        made.signature == "cut(chip: Chip, *, side: int=8) -> list[Chip]" and made.module == "cryosentinel.data.chips"
    )
    assert made.text == ["Cut a chip.", "Into squares."]
    assert made.sections == {
        "Args": [("chip", "one, whole."), ("side", "pixels."), ("**more", "further.")],
        "Returns": [("", "The squares: all.")],
        "Raises": [("InputError", "too small.")],
    }
    assert api.entry(package, "Chip").methods == [("show() -> None", "Draw it.")]


def test_published_figures_all_say_published_and_where_from():
    assert len(PUBLISHED) > 40
    for name, record in PUBLISHED.items():
        assert record["data"] == "published" and record["source"] and record["value"] is not None, name
    # The headline of the card, once more and independently: the corrected test score leaves seven chips out.
    left_out = PUBLISHED["chips_test"]["value"] - PUBLISHED["chips_label_corrected"]["value"]
    assert left_out == PUBLISHED["audited_test_chips"]["value"]
    assert PUBLISHED["test_iou@0.50_label_corrected"]["n"] == PUBLISHED["chips_label_corrected"]["value"]


#: Numbers of the text that no run finds: rules, limits and settings that the text states, versions and licences.
STATED = (
    r"0\.\d+( or 0\.\d+)? degrees", r"\d\.\d+ km", r"baseline 04\.00", r"within 0\.7 to 1\.4", r"its code 0\.3",
    r"IoU at 0\.5", r"probability of 0\.8, do 80 %", r"given 80 %, do 80 %", r"beyond 0\.9",
    r"0\.5 (is chance|says nothing)", r"95 % percentiles", r"warns below 1 %", r"Apache[- ](License )?2\.0",
    r"ODC-By 1\.0", r"v1\.0", r"Python 3\.11",
)  # fmt: skip
#: Of the published method, as its own text has them.
QUOTED = (r"keeps 28 % of its chips and drops 59 %",)


def _prose(text: str) -> str:
    """Text without code, data, formulas, links and what it states or quotes; any other directive holds text."""
    left_out = r"(?!\{)|\{(code|code-cell|code-block|comparison|seeds|plan|math|api|bibliography)\b"
    fence = re.compile(r"^(`{3,})(.*?)$(.*?)^\1", re.DOTALL | re.MULTILINE)
    text = fence.sub(lambda match: "" if re.match(left_out, match[2]) else match[3], text)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "", text, flags=re.DOTALL)
    text = re.sub(r"``[^`]+``|`[^`]*`|\]\([^)]*\)|<[^>]*>|(https?://|doi:|arXiv:)\S+", "", text)
    return re.sub("|".join((*STATED, *QUOTED)), "", re.sub(r"\s+", " ", text))


def _typed(text: str) -> list[str]:
    """Decimals and percentages of a text that are neither stated, quoted nor published."""
    published = {f"{record['value']:.{digits}f}" for record in PUBLISHED.values() for digits in (3, 4)}
    found = re.findall(r"(?<![\w.])\d*\.\d+(?![\w.]*\d)|\b\d+(?= ?%| per ?cent|[x×](?!\w))", _prose(text))
    return [number for number in found if number not in published]


def test_a_guard_that_the_standard_run_breaks_is_named_on_the_page():
    record = json.loads((ROOT / "book" / "standard_metrics.json").read_text(encoding="utf-8"))["metrics"]
    page = (ROOT / "book" / "data_card.md").read_text(encoding="utf-8")
    titles = {title.partition(" (")[0]: name for name, title in GUARDS.items()}
    named = re.findall(r"\*\*Open on the standard preset: (.*?)\.\*\*", page)
    measured = {name for name in record if name.startswith("guard/")}
    beyond = {name[6:] for name in measured if not LIMITS[name[6:]].within(record[name]["value"])}
    assert measured and {titles[title] for title in ", ".join(named).split(", ") if title} == beyond
    assert set(GUARDS) == set(LIMITS)


def test_prose_types_no_result():
    assert _typed("The soup reaches 0.57, 12 % more, {metric}`a .2f`, and published 0.9557.") == ["0.57", "12"]
    assert _typed("```{note}\nIt reaches 0.61.\n```\n```bash\nx 0.4\n```\n$p = 0.5$ at 0.15 degrees") == ["0.61"]
    assert _typed("```{tip}\n57 percent, .57, 208x\n```") == ["57", ".57", "208"]
    assert _typed("```{seeds}\niou@0.50 | IoU at 0.70\n```\n224 x 224 pixels, ends.") == []
    for page in [*(ROOT / "book").glob("*.md"), ROOT / "README.md"]:
        assert not _typed(page.read_text(encoding="utf-8")), page.name
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in (cell for cell in cells if cell["cell_type"] == "markdown"):
            assert not _typed("".join(cell["source"])), path.name


# ----------------------------------------------------------------------------------------------------------- the build


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = _book(tmp_path_factory.mktemp("book"))
    done = _build(root)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "warning" not in done.stderr.lower(), done.stderr
    return root


def _page(root: Path, name: str) -> str:
    return (root / "book" / "_build" / "html" / f"{name}.html").read_text(encoding="utf-8")


def test_every_page_of_the_contents_is_built(built):
    for name in (
        "intro",
        "method",
        "seeds",
        "published",
        "claims",
        "benchmarks",
        "references",
        *(f"chapters/{c}" for c in CHAPTERS),
    ):
        assert "</html>" in _page(built, name)


def test_chapters_and_pages_show_figures_with_their_tooltip(built):
    span = r'<span class="metric metric-simulated" title="simulated data; interval [^"]*; n = 1,234; soup.ckpt">'
    assert re.search(
        span + re.escape("0.500 (interval 0.410 to 0.620, n = 1,234, simulated)"), _page(built, "chapters/03_evaluate")
    )
    published = _page(built, "published")
    assert '<span class="metric metric-published" title="published figure; n = 666;' in published
    assert published.count("not run") == 7, "no standard run: its column says so in every row"
    intro = _page(built, "intro")
    assert "make study PRESET=standard" in intro and intro.count('class="bar"') == 6 and "the map" in intro
    assert "No record" in _page(built, "seeds")


def test_no_page_loads_anything_from_elsewhere(built):
    for page in (built / "book" / "_build" / "html").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="([^"]*)"', text)
        loaded += re.findall(r'<link\b[^>]*\brel="(?:stylesheet|preload)"[^>]*\bhref="([^"]*)"', text)
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))], page.name
    assert "mathjax/tex-chtml.js" in _page(built, "method")


def test_without_an_address_no_page_has_launch_or_repository_buttons(built):
    page = _page(built, "chapters/03_evaluate")
    assert "mybinder" not in page and "colab" not in page and "github.com" not in page


def test_with_an_address_chapters_open_the_notebooks_that_are_in_git(built, tmp_path):
    sys.path[:0] = [str(ROOT / "scripts")]
    import address

    root = _book(tmp_path)
    pyproject = root / "pyproject.toml"
    pyproject.write_text(address.set_address(pyproject.read_text(), "https://github.com/someone/lakes"))
    names = re.findall(r"^(\S+) \| ", (root / "book" / "seeds.md").read_text(), flags=re.MULTILINE)
    figures = {name: {"mean": 0.25, "spread": 0.125, "values": {"17": 0.2, "42": 0.3}} for name in names}
    figures[names[0]] |= {"low": {"17": 0.11, "42": 0.21}, "high": {"17": 0.31, "42": 0.41}}
    record = {"preset": "quick", "seeds": [17, 42], "commit": "0123456789abcdef", "command": "the command"}
    (root / "book" / "seeds.json").write_text(json.dumps({**record, "figures": figures}))
    # Only some pages are looked at; the build is the same otherwise.
    done = _build(root)
    assert done.returncode == 0, done.stderr[-3000:]
    page = _page(root, "chapters/03_evaluate")
    assert "https://mybinder.org/v2/gh/someone/lakes/main?urlpath=lab/tree/notebooks/03_evaluate.ipynb" in page
    assert "https://colab.research.google.com/github/someone/lakes/blob/main/notebooks/03_evaluate.ipynb" in page
    assert "lakes/blob/main/book/chapters" not in page, "executed chapters are not in git"
    assert "mybinder" not in _page(root, "method")
    seeds = _page(root, "seeds")
    assert seeds.count("0.250 ± 0.125") == len(names) > 10 and "commit 0123456789" in seeds and "Seed 17" in seeds
    assert seeds.count("0.300 (0.210 to 0.410)") == 1, "an interval where the record has one"


def test_a_missing_figure_stops_the_build_with_a_sentence(built, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(built, root)
    page = root / "book" / "seeds.md"
    page.write_text(page.read_text() + "\n\n{metric}`test_uoi@0.50`\n")
    done = _build(root)
    assert done.returncode != 0
    assert re.search(r"seeds: .*test_uoi@0\.50", done.stdout + done.stderr)


FAKE_STUDY = """
import json, pathlib, shutil, sys
root = pathlib.Path.cwd()
(root / "called.json").write_text(json.dumps(sys.argv[1:]))
if (root / "fail").exists():
    sys.exit(3)
(root / "book" / "chapters").mkdir(exist_ok=True)
for path in (root / "made").glob("*.ipynb"):
    shutil.copy(path, root / "book" / "chapters")
"""


def test_missing_chapters_are_made_first_and_a_failure_is_told(tmp_path):
    root = _book(tmp_path)
    (root / "book" / "chapters").rename(root / "made")
    # A package of the same name in the working folder stands in for the study.
    (root / "cryosentinel").mkdir()
    (root / "cryosentinel" / "__init__.py").touch()
    (root / "cryosentinel" / "__main__.py").write_text(FAKE_STUDY)
    (root / "fail").touch()
    done = _build(root)
    assert done.returncode != 0 and "status 3" in done.stdout + done.stderr
    (root / "fail").unlink()
    (root / "made" / "05_limitations.ipynb").rename(root / "kept.ipynb")
    done = _build(root)
    assert "chapters/05_limitations of _toc.yml" in done.stdout + done.stderr
    (root / "kept.ipynb").rename(root / "made" / "05_limitations.ipynb")
    done = _build(root)
    assert done.returncode == 0, done.stderr[-3000:]
    called = json.loads((root / "called.json").read_text())
    assert called == ["study", "--preset", "quick", "--chapters", str(root / "book" / "chapters")]
    assert "Chapter 05_limitations" in _page(root, "chapters/05_limitations")


def test_new_metrics_and_benchmarks_are_read_again(built, tmp_path):
    assert "No benchmark has been run yet" in _page(built, "benchmarks")
    root = tmp_path / "copy"
    shutil.copytree(built, root)
    metrics = _metrics() | {"test_iou@0.50_tta": _record(0.777), "pixel_test_iou@best_truth": _record(0.555)}
    (root / "generated" / "study" / "metrics.json").write_text(json.dumps(metrics))
    (root / "benchmarks").mkdir()
    machine = {"cpu": "Abacus", "cores": 2, "bf16": "not native", "memory_gib": 1.0}
    row = {"id": "x_time", "what": "thing", "ours": 0.5, "peer": 2.0, "peer_name": "other", "unit": "s", "ratio": 4.0}
    rows = [{**row, "goal": "2 times", "machine": machine, "date": "2026-11-22"}]
    rows.append({**rows[0], "id": "alone", "peer": None, "peer_name": "", "ratio": None, "goal": None})
    rows[1]["machine"] = {**machine, "cores": 4}
    (root / "benchmarks" / "results.json").write_text(json.dumps(rows))
    # Every page names the preset of the record that it shows, whatever study is at hand.
    metrics = {name: {**of, "source": "soup.ckpt, preset tiny"} for name, of in metrics.items()}
    (root / "generated" / "study" / "metrics.json").write_text(json.dumps(metrics))
    standard = {name: _record(0.4, source="preset standard") for name in _asked("standard:")}
    guarded = ("guard/relief_auc", "guard/context_auc")
    standard |= {name: _record(0.92, source="preset standard") for name in guarded}
    names = ("compared_stem_test_iou", "test_iou@0.50_tta")
    standard |= {name: _record(source="preset standard") for name in names}
    head = {"command": "made", "commit": "0" * 40, "date": "2026-11-22", "machine": machine}
    (root / "book" / "standard_metrics.json").write_text(json.dumps({**head, "metrics": standard}))
    page = (root / "book" / "seeds.md").read_text(encoding="utf-8")
    names = re.findall(r"^(\S+) \| ", page, re.MULTILINE)
    figures = {name: {"mean": 0.5, "spread": 0.1, "values": {"1": 0.4, "2": 0.6}} for name in names}
    seeds = {**head, "preset": "quick", "seeds": [1, 2], "figures": figures}
    (root / "book" / "seeds.json").write_text(json.dumps(seeds))
    done = _build(root)
    assert done.returncode == 0, done.stderr
    boxes = {name: re.search(r"\(preset (.*?)\)", _page(root, name))[1] for name in ("seeds", "published")}
    assert boxes == {"seeds": "quick", "published": "standard and tiny"}
    guards = re.sub(r"<[^>]+>", " ", _page(root, "data_card"))
    assert re.search(r"relief alone finds lakes \(AUC\)\s+at most 0.9\s+not measured\s+0.920, open", guards)
    assert re.search(r"surroundings tell water apart \(AUC\)\s+at least 0.85\s+not measured\s+0.920\s", guards)
    assert "beside the study’s own:\nall-band stem alone, no context." in _page(root, "method")
    assert "0.777" in _page(root, "chapters/03_evaluate")
    assert "0.555" in _page(root, "intro") and "classifier of single pixels" in _page(root, "intro")
    page = re.sub(r"<[^>]+>", " ", _page(root, "benchmarks"))
    assert re.search(r"x_time\s+thing\s+0.5 s\s+2 s, other\s+4\s+2 times\s+2026-11-22 A", page)
    assert "A Abacus, 2 cores, bf16 not native; B Abacus, 4 cores, bf16 not native." in page
    assert "None" not in page and "no peer" in page
