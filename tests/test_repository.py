"""Facts about the repository that no single file can keep true alone."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

import address  # noqa: E402
import minimum  # noqa: E402
import picture  # noqa: E402
import record  # noqa: E402
import vendor  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _tracked() -> list[Path]:
    """Files that git knows or would add; every file where this is no clone."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is not a clone: git does not list its files")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


# ------------------------------------------------------------------------------------------------------ dependencies


def test_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    # Torch comes from conda, without CUDA, at the same floor; word for word everything else from PyPI.
    (torch,) = (line for line in PROJECT["dependencies"] if line.startswith("torch>"))
    assert torch.replace("torch", "pytorch-cpu") in packages and "torchvision" in packages
    assert pip["pip"] == [*(line for line in PROJECT["dependencies"] if line != torch), "--editable ."]
    python = next(each for each in packages if each.startswith("python"))
    assert python.split(",")[0] == "python" + PROJECT["requires-python"] and "pip" in packages


def test_every_requirement_has_a_floor_and_its_reason():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in minimum.requirements():
        assert minimum.floor(requirement)
        lowest = minimum.floor(requirement).partition("==")[2]
        line = next(line for line in text.splitlines() if f'"{requirement}"' in line)
        assert re.search(rf"# {re.escape(lowest)}: .{{8,}}", line), f"no reason beside {requirement}"


def test_minimum_constraints_read_extras_and_refuse_a_missing_floor():
    assert minimum.floor("jsonargparse[signatures]>=4.50") == "jsonargparse==4.50"
    assert minimum.floor("jupyter-book>=1.0.3,<2") == "jupyter-book==1.0.3"
    with pytest.raises(ValueError, match="no floor"):
        minimum.floor("numpy")


#: Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "huggingface_hub": "huggingface-hub",
    "odc": "odc-geo",
    "pystac_client": "pystac-client",
    "jupyter_book": "jupyter-book",
    # Come with the one on the right, which is a requirement:
    "IPython": "ipykernel",
    "PIL": "matplotlib",
    "branca": "folium",
    "distributed": "dask",
    "pystac": "pystac-client",
    "urllib3": "pystac-client",
    "torchvision": "terratorch",
    "torchmetrics": "lightning",
}


#: Used as programs, not imported: the book, its kernel, and the tools of development.
#: odc-stac shares its name's first part with odc-geo.
PROGRAMS = {
    "build", "jupyter-book", "ipykernel", "mypy", "nbstripout", "odc-stac", "pre-commit", "pytest-xdist", "ruff",
    "rustac",
}  # fmt: skip


def _distributions(sources: Iterable[str]) -> set[str]:
    """The distributions that Python sources import, those that tests skip without included."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            found.update(each.partition(".")[0] for each in names)
        found.update(re.findall(r'importorskip\("(\w+)', source))
    found -= {*sys.stdlib_module_names, "cryosentinel"}
    return {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in found}


def _names(lines: Iterable[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}


def test_imports_and_requirements_are_the_same():
    own = _distributions(path.read_text(encoding="utf-8") for path in (ROOT / "cryosentinel").rglob("*.py"))
    assert own <= _names(minimum.requirements()), "the package imports it, but it stands in no list of pyproject.toml"
    scripts = [path for folder in ("book/_ext", "notebooks") for path in (ROOT / folder).glob("*.py")]
    cells = (
        re.sub(r"^(\s*)[%!].*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    )
    run = own | _distributions([*(path.read_text(encoding="utf-8") for path in scripts), *cells])
    unused = _names(PROJECT["dependencies"]) - run - PROGRAMS
    assert not unused, "required by pyproject.toml, but neither the package nor the book imports it"
    tests = (
        path.read_text(encoding="utf-8") for name in ("tests", "benchmarks") for path in (ROOT / name).glob("*.py")
    )
    unused = _names(minimum.requirements()) - run - _distributions(tests) - PROGRAMS
    assert not unused, "in an extra of pyproject.toml, but nothing imports it"


def test_the_public_interface_is_what_editors_see_and_loads_when_it_is_used():
    import cryosentinel

    tree = ast.parse((ROOT / "cryosentinel" / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node.body for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in typed for alias in node.names}
    places = {name: place.partition(":") for name, place in cryosentinel._PLACES.items()}
    assert seen == {name: (f"cryosentinel.{at}", there or name) for name, (at, _, there) in places.items()}
    # Each name is where the table says it is: defined there, or imported there; nothing heavy is loaded to see that.
    for name, (module, there) in seen.items():
        path = ROOT / module.replace(".", "/")
        text = next(p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()).read_text("utf-8")
        assert re.search(rf"^(def|class) {there}\b|^(from|    ).*import .*\b{there}\b", text, re.MULTILINE), name
    assert cryosentinel.assign_splits is importlib.import_module("cryosentinel.data.split").assign_splits
    assert {"Study", "assign_splits", "__version__"} <= set(dir(cryosentinel))
    with pytest.raises(AttributeError, match="Stduy"):
        cryosentinel.Stduy  # noqa: B018


# ------------------------------------------------------------------------------------------------------------- files


def test_notebooks_are_kept_without_output_and_with_a_kernel():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), f"{path.name}: make format"
        assert notebook["metadata"]["kernelspec"]["name"] == "python3", f"{path.name}: papermill needs a kernel"
        tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1, f"{path.name} needs exactly one cell tagged parameters"


def _first_cells() -> dict[str, str]:
    """The first code cell of each notebook."""
    found = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path.name] = "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))
    return found


def test_every_notebook_begins_with_the_cell_that_installs_where_it_must(monkeypatch, tmp_path):
    from IPython.core.inputtransformer2 import TransformerManager

    (cell,) = set(_first_cells().values())
    assert f'address = "{address.read_address(ROOT)}"' in cell, "run python scripts/address.py"
    installed: list[str] = []

    class Shell:
        def run_line_magic(self, magic: str, line: str, **_: object) -> None:
            installed.append(f"{magic} {line}")

    def run(text: str) -> None:
        plain = TransformerManager().transform_cell(text)
        # IPython fills braces in when the magic runs; here the line is filled in before.
        plain = re.sub(
            r"run_line_magic\((.*)\)", lambda match: f"run_line_magic({match[1].replace(', ', ', f', 1)})", plain
        )
        exec(compile(plain, "first cell", "exec"), {"get_ipython": Shell})

    monkeypatch.chdir(tmp_path)
    run(cell)
    assert not installed, "the package is there: nothing is done"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssertionError, match="not installed"):
        run(cell.replace(f'"{address.read_address(ROOT)}"', '""'))
    run(re.sub(r'address = ".*"', 'address = "https://github.com/someone/lakes"', cell))
    (tmp_path / "clone" / "cryosentinel").mkdir(parents=True)
    (tmp_path / "clone" / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "clone" / "notebooks")
    run(cell)
    assert installed == ["pip install -q git+https://github.com/someone/lakes", "pip install -q -e .."]


def test_notebooks_are_kept_as_reviewers_read_them():
    """No output, no counts, no metadata of a machine, ids that stay, a line of source is a line of JSON."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        notebook = json.loads(text)
        assert json.dumps(notebook, indent=1, ensure_ascii=False) + "\n" == text, f"{path.name}: run make format"
        assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
        assert notebook["metadata"]["language_info"] == {"name": "python"}, "no version of an interpreter"
        cells = notebook["cells"]
        assert len({cell["id"] for cell in cells}) == len(cells)
        for cell in cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None and set(cell["metadata"]) <= {"tags"}
            assert all(line.count("\n") == 1 for line in cell["source"][:-1]), "one line of source a line of the file"
            assert len(cell["source"]) <= 32, f"{path.name}: a cell longer than a screen belongs in the package"


def test_no_file_names_a_machine():
    # A home folder, a temporary folder of a user, or a working folder of somebody's.
    pattern = re.compile(rb"(?<![\w.~])/(?:home|Users|root|work|mnt)/(?!someone)[\w.-]+")
    suffixes = {".py", ".md", ".toml", ".yml", ".yaml", ".ipynb", ".json", ".cff", ".cfg", ".bib", ".sh", ""}
    for path in _tracked():
        if path.suffix in suffixes and path != Path(__file__).resolve():
            found = pattern.findall(path.read_bytes())
            assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_no_tracked_file_is_large():
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in _tracked() if path.stat().st_size > 2 * 2**20}
    assert not large


def test_generated_files_are_ignored():
    names = ["outputs/study/metrics.json", "book/_build/html/index.html", "book/chapters/01_data.ipynb", ".venv/x"]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("this is not a clone: git does not answer")
    assert done.stdout.split() == names


def test_config_at_the_top_is_the_books():
    assert (ROOT / "_config.yml").resolve() == ROOT / "book" / "_config.yml"


def test_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and PROJECT["license"] == "Apache-2.0"


def test_citation_names_the_version_and_the_works():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    import cryosentinel

    assert citation["version"] == cryosentinel.__version__ and citation["license"] == PROJECT["license"]
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for identifier in ("10.5281/zenodo.20239229", "arXiv:2504.11171", "10.1594/PANGAEA.983845"):
        assert identifier in text


def test_changelog_speaks_of_the_version():
    import cryosentinel

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(cryosentinel.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)


def test_zenodo_agrees_with_the_citation():
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    for ours, theirs in (("title", "title"), ("version", "version"), ("keywords", "keywords"), ("license", "license")):
        assert zenodo[ours] == citation[theirs], ours
    related = {entry["identifier"].removeprefix("https://arxiv.org/abs/") for entry in zenodo["related_identifiers"]}
    cited = {
        work.get("doi") or work["identifiers"][0]["value"].removeprefix("arXiv:") for work in citation["references"]
    }
    assert related == cited


# ----------------------------------------------------------------------------------------------------------- vendored


def test_shipped_javascript_is_what_its_checksums_say(tmp_path):
    packages = json.loads(vendor.LIST.read_text(encoding="utf-8"))
    assert set(packages) == {"mathjax", "leaflet"} and not vendor.differences(packages)
    folder = tmp_path / packages["leaflet"]["folder"]
    shutil.copytree(ROOT / packages["leaflet"]["folder"], folder)
    (folder / "leaflet.js").write_text("alert(1)")
    (folder / "more.js").touch()
    (folder / "LICENSE").unlink()
    found = vendor.differences({"leaflet": packages["leaflet"]}, tmp_path)
    assert [each.split()[1] for each in found] == ["LICENSE", "leaflet.js", "more.js"]


def test_renewing_puts_the_files_of_the_npm_package_in_their_places(tmp_path, monkeypatch):
    import hashlib
    import tarfile

    (tmp_path / "package" / "dist").mkdir(parents=True)
    (tmp_path / "package" / "dist" / "a.js").write_text("new")
    with tarfile.open(tmp_path / "lib-2.0.tgz", "w:gz") as archive:
        archive.add(tmp_path / "package", "package")
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\ntest "$*" = "pack lib@2.0" && cp {tmp_path}/lib-2.0.tgz . && echo lib-2.0.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    package = {"version": "2.0", "folder": "js", "files": {"a.js": {"from": "dist/a.js", "sha256": "old"}}}
    vendor.renew("lib", package, tmp_path)
    assert (tmp_path / "js" / "a.js").read_text() == "new"
    assert package["files"]["a.js"]["sha256"] == hashlib.sha256(b"new").hexdigest()


# ---------------------------------------------------------------------------------------------------------- commands


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "book/intro.md", "book/benchmarks.md"])
def test_make_commands_of_the_prose_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert named and named <= _make_targets(), named - _make_targets()


def test_cryosentinel_commands_of_the_readme_exist():
    from cryosentinel.cli import COMMANDS

    named = set(re.findall(r"(?:^|`)cryosentinel ([a-z]+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE))
    assert {"study", "convert", "map", "ingest"} <= named and named <= set(COMMANDS)


def test_links_of_the_readme_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page} links to {target}"


def test_make_help_lists_every_documented_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("study", "test", "bench", "lint", "clean", "book", "picture"):
        assert f"make {target} " in done.stdout


@pytest.fixture
def ci(tmp_path):
    """A clone with ``.ci/run`` in it, and what the script says where only the given programs exist."""
    clone, programs = tmp_path / "main", tmp_path / "bin"
    (clone / ".ci").mkdir(parents=True)
    (clone / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    programs.mkdir()
    for name in ("bash", "dirname", "timeout"):
        (programs / name).symlink_to(shutil.which(name))

    def called(**scripts: str) -> subprocess.CompletedProcess[str]:
        fakes = {"make": 'echo "make $* in $PWD with ${CRYOSENTINEL_REAL_DATA:-none}"', "id": "echo 0", **scripts}
        for name, line in fakes.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        command = [shutil.which("bash"), str(clone / ".ci" / "run")]
        return subprocess.run(command, env={"PATH": str(programs)}, capture_output=True, text=True, check=True, cwd="/")

    return clone, called


def test_continuous_integration_runs_the_readmes_test_command_and_nothing_else(ci):
    clone, called = ci
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert called(chromium="exit 1").stdout == f"make test in {clone} with none\n", (
        "a browser is there: none is fetched"
    )
    data = clone.parent / "shared" / "data"
    data.mkdir(parents=True)
    assert called().stdout == f"make test in {clone} with {data}\n"


@pytest.mark.parametrize(
    ("user", "status", "words"), [("0", 0, ""), ("0", 100, "could not be installed"), ("1000", 0, "no right")]
)
def test_continuous_integration_fetches_a_browser_where_it_may_and_goes_on_where_it_may_not(ci, user, status, words):
    clone, called = ci
    asked = clone / "asked"
    done = called(**{"id": f"echo {user}", "apt-get": f'echo "$*" >> {asked}; exit {status}'})
    assert done.stdout.startswith("make test"), "the tests run in any case"
    assert words in done.stderr and bool(words) == bool(done.stderr)
    lines = asked.read_text().splitlines() if asked.exists() else []
    assert len(lines) == (0 if user != "0" else 1 if status else 2)
    assert status or not lines or lines[-1].endswith("chromium")


def test_make_study_installs_once_and_again_when_the_requirements_change(tmp_path):
    import os

    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "jupyter-book"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/called"\n')
        (programs / name).chmod(0o755)

    def called(*words: str) -> list[str]:
        (tmp_path / "called").write_text("")
        command = ["make", f"PYTHON={sys.executable}", f"VENV={tmp_path / 'venv'}", *words]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        return (tmp_path / "called").read_text().splitlines()

    install = "python -m pip install -e ."
    run = ["python -m cryosentinel study --preset quick", "jupyter-book build book/"]
    assert called("study") == [install, *run]
    assert called("study") == run, "nothing changed, nothing is installed"
    assert called("book", "BOOK_OPTIONS=-W -n")[-1] == "jupyter-book build -W -n book/"
    assert called("study", "PRESET=standard")[0] == "python -m cryosentinel study --preset standard"
    stamp = (tmp_path / "venv" / ".installed").stat().st_mtime
    os.utime(tmp_path / "pyproject.toml", (stamp + 5, stamp + 5))
    assert called("study")[0] == install
    os.utime(tmp_path / "pyproject.toml", (stamp - 5, stamp - 5))
    assert called("bench", "ONLY=overlap_proof")[-1] == "python -m benchmarks --only overlap_proof"
    assert called("bench") == ["python -m benchmarks"]


def test_make_refuses_an_old_python_with_a_sentence(tmp_path):
    old = tmp_path / "python-old"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    command = ["make", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "study"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode and "3.11" in done.stderr
    assert not (tmp_path / "venv").exists()


# ----------------------------------------------------------------------------------------------- address and picture


def test_readme_and_citation_are_in_step_with_the_address():
    texts = tuple((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CITATION.cff"))
    assert address.in_step(*texts, address.read_address(ROOT)) == texts, "run python scripts/address.py"


def test_an_address_set_in_pyproject_shows_everywhere_and_can_be_taken_back(tmp_path):
    url = "https://github.com/someone/lakes"
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changed = address.set_address(pyproject, url)
    (tmp_path / "pyproject.toml").write_text(changed, encoding="utf-8")
    assert address.read_address(tmp_path) == url
    assert address.set_address(changed, url + "2") != changed, "an address that is set can be set again"
    readme, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CITATION.cff"))
    new_readme, new_citation = address.in_step(readme, citation, url)
    notebook = (ROOT / "notebooks" / "01_data.ipynb").read_text(encoding="utf-8")
    made = address.notebook_in_step(notebook, url, "notebooks/01_data.ipynb")
    assert f'address = \\"{url}\\"' in made
    (title, *_), badge = json.loads(notebook)["cells"][0]["source"], json.loads(made)["cells"][0]["source"][2]
    assert json.loads(made)["cells"][0]["source"][0] == title and badge.count("](https://") == 4
    assert "someone/lakes/main?urlpath=lab/tree/notebooks/01_data.ipynb" in badge
    assert address.notebook_in_step(made, url, "notebooks/01_data.ipynb") == made
    assert address.notebook_in_step(made, "") == address.notebook_in_step(notebook, "") == notebook
    assert address.set_address(pyproject, f"{url}.git/") == changed
    assert "mybinder.org/v2/gh/someone/lakes/" in new_readme and "colab" in new_readme
    assert yaml.safe_load(new_citation)["repository-code"] == url
    assert address.in_step(new_readme, new_citation, "") == address.in_step(readme, citation, "")


def test_without_an_address_there_is_no_badge_and_no_button():
    assert address.badges("") == "" and address.launch_links("", "notebooks/01_data.ipynb") == {}
    with pytest.raises(ValueError, match=r"github\.com/x"):
        address.set_address("", "github.com/x")


def test_readme_shows_the_picture_only_when_it_is_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    there = (ROOT / picture.PICTURE).is_file()
    assert picture.with_picture(readme, there) == readme, "run make picture"
    assert "cover.png" in picture.with_picture(readme, True)
    assert "cover.png" not in picture.with_picture(readme, False)


# ----------------------------------------------------------------------------------------------------------- records


def test_standard_record_takes_only_a_standard_run(tmp_path):
    from cryosentinel.errors import InputError

    metrics = {f"compared_{name}_test_iou": {"value": 0.5} for name in ("soup", "stem")}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    stage = {"seconds": 5.0, "preset": "standard", "date": "2026-01-01", "machine": "Abacus, 2 cores"}
    (tmp_path / "timings.json").write_text(json.dumps({"fit": stage, "soup": stage}))
    made = record.study_record(tmp_path, "abc")
    assert made["command"].endswith("--parameters.networks stem")
    assert made["metrics"] == metrics and made["seconds"] == {"fit": 5.0, "soup": 5.0} and made["commit"] == "abc"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"]) and made["machine"] == "Abacus, 2 cores"
    (tmp_path / "metrics.json").write_text('{"a": {"value": 1}}')
    with pytest.raises(InputError, match="networks"):
        record.study_record(tmp_path, "abc")
    (tmp_path / "timings.json").write_text(json.dumps({"fit": {**stage, "preset": "quick"}}))
    with pytest.raises(InputError, match="quick"):
        record.study_record(tmp_path, "abc")
    make, name = record.RECORDS["quick"]
    made = make(tmp_path, "abc")
    assert name == "quick_metrics.json" and made["command"] == "cryosentinel study --preset quick"
    assert made["metrics"] == {"a": {"value": 1}}


def test_seeds_record_names_the_command_that_made_it(tmp_path):
    found = {"preset": "quick", "seeds": [17, 42], "figures": {"compared_stem_test_iou": {}}}
    (tmp_path / "seeds.json").write_text(json.dumps(found))
    made = record.seeds_record(tmp_path, "abc")
    assert made["command"] == "cryosentinel study --preset quick --seeds 17,42 --parameters.networks stem"
    assert made["seeds"] == [17, 42]
    assert record.main(["sedes"]) == 2


def test_the_page_of_seeds_asks_for_figures_that_its_record_has():
    record = json.loads((ROOT / "book" / "seeds.json").read_text(encoding="utf-8"))
    page = (ROOT / "book" / "seeds.md").read_text(encoding="utf-8")
    asked = re.findall(r"^(\S+) \| ", page, re.MULTILINE)
    assert len(asked) > 10 and not set(asked) - set(record["figures"])
