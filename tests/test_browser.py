"""The built book in a real browser without a network: every page of the tiny study, its maps, formulas and search."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
import yaml
from conftest import ROOT, TinyStudy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]


@pytest.fixture(scope="module")
def html(tiny_study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book of the tiny study, built with warnings as errors from a copy of its sources."""
    root = tmp_path_factory.mktemp("read")
    ignore = shutil.ignore_patterns("_build", "chapters", "assets", "__pycache__")
    for name in ("book", "scripts", "benchmarks"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(tiny_study.chapters, root / "book" / "chapters")
    program = str(Path(sys.executable).with_name("jupyter-book"))
    done = subprocess.run(
        [program, "build", "-W", "-n", "--keep-going", "book/"], cwd=root, capture_output=True, text=True, check=False,
        env={**tiny_study.environment, "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root / "book" / "_build" / "html"


class _Page(HTMLParser):
    """Links, names that links can lead to, and images of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.images: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.names |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.images.append((found.get("src", ""), found.get("alt", "")))


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[Path, _Page]:
    return {path: _Page(path) for path in html.rglob("*.html") if "_static" not in path.parts}


def test_every_link_leads_somewhere(pages: dict[Path, _Page]) -> None:
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target, name = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            found = (path.parent / unquote(target)).resolve() if target else path
            # The theme's buttons fill an empty or a bare "#" in.
            if not found.is_file() or (name and found in pages and name not in pages[found].names):
                dead.append(f"{path.name} -> {link}")
    assert not dead


def test_every_image_is_described(pages: dict[Path, _Page]) -> None:
    shown = [(path.name, src, alt) for path, page in pages.items() for src, alt in page.images]
    assert len(shown) > 15
    assert not [each for each in shown if len(each[2]) < 10 or re.search(r"\.(png|svg|jpe?g)$", each[2])]


def test_every_page_names_its_data(html: Path) -> None:
    for name in PAGES:
        text = (html / f"{name}.html").read_text(encoding="utf-8")
        box = re.search(r'<div class="data-box[^>]*>(.*?)</div>', text, re.DOTALL)
        assert box and re.search(r"simulated|published|real|measured|no result", box[1]), name
        assert "forecasts nothing" in text, f"{name}: the footer warns"
    assert "data-published" in (html / "published.html").read_text()
    assert re.search(r"\(preset [^)]*\btiny\b", (html / "intro.html").read_text()), "beside the standard run's"
    assert "(preset quick)" in (html / "seeds.html").read_text(), "the record's, not the study's"


@pytest.fixture(scope="module")
def tab(html: Path) -> Iterator[Any]:
    """A tab whose every request to a network fails; ``tab.complaints`` gathers errors, failures and such requests."""
    sync_api = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        context.set_offline(True)
        context.set_default_timeout(90_000)  # a busy machine is slow, not wrong
        page = context.new_page()
        page.complaints = complaints = []
        local = ("file:", "data:", "blob:", "about:")
        page.on("request", lambda r: None if r.url.startswith(local) else complaints.append(f"asked for {r.url}"))
        page.on("requestfailed", lambda r: complaints.append(f"failed {r.url}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        yield page
        browser.close()


def _complaints(tab: Any) -> list[str]:
    """What has gone wrong since this was last asked."""
    found, tab.complaints[:] = [*tab.complaints], []
    return found


#: Texts of the page whose contrast with what lies behind them is below what WCAG asks of large letters (3 to 1).
FAINT = """() => {
  const colour = text => {
    const n = text.match(/[\\d.]+/g).map(Number), scale = text.startsWith('color(') ? 255 : 1;
    return [n[0] * scale, n[1] * scale, n[2] * scale, n.length > 3 ? n[3] : 1];
  };
  const light = c => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c[3] > 0.5) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const e of document.querySelectorAll('article *')) {
    const own = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
    if (!own || e.closest('mjx-container, .headerlink, script, style') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const front = light(colour(e instanceof SVGElement ? style.fill : style.color)), back = light(behind(e));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 3) found.push(`${ratio.toFixed(1)}: ${own.slice(0, 40)}`);
  }
  return found;
}"""


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_an_error_fits_a_phone_and_reads_by_day_and_night(tab: Any, html: Path, name: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto((html / f"{name}.html").as_uri())
    width = tab.evaluate("document.documentElement.scrollWidth")
    tab.set_viewport_size({"width": 1200, "height": 900})
    assert not _complaints(tab)
    assert width <= 390, "the page runs off a phone's screen"
    for scheme in ("dark", "light"):
        tab.evaluate("theme => document.documentElement.dataset.theme = theme", scheme)
        assert tab.evaluate(FAINT) == [], scheme
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth && i.src).map(i => i.src)"
    assert tab.evaluate(broken) == []


@in_browser
def test_formulas_are_set(tab: Any, html: Path) -> None:
    tab.goto((html / "method.html").as_uri())
    tab.locator("mjx-container").first.wait_for()
    assert tab.locator("mjx-container").count() >= 10 and not _complaints(tab)


@in_browser
@pytest.mark.parametrize("name", ["intro", "chapters/03_evaluate"])
def test_a_map_moves_and_says_what_a_lake_is(tab: Any, html: Path, name: str) -> None:
    tab.goto((html / f"{name}.html").as_uri())
    frame = tab.locator("iframe[title*='Map']").first
    frame.scroll_into_view_if_needed()
    inside = frame.content_frame
    inside.locator("path.leaflet-interactive").first.wait_for(state="attached")
    inside.locator("path.leaflet-interactive").first.dispatch_event("click")
    popup = inside.locator(".leaflet-popup-content")
    popup.wait_for()
    assert "area" in popup.inner_text()
    pane = inside.locator(".leaflet-map-pane")
    before, box = pane.get_attribute("style"), frame.bounding_box()
    tab.mouse.move(box["x"] + 60, box["y"] + box["height"] - 120)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 120, box["y"] + box["height"] - 160, steps=4)
    tab.mouse.up()
    assert pane.get_attribute("style") != before, "the map did not follow the pointer"
    assert not _complaints(tab)


@in_browser
def test_search_finds_a_term(tab: Any, html: Path) -> None:
    tab.goto((html / "search.html").as_uri() + "?q=bootstrap")
    tab.locator("#search-results ul.search li a").first.wait_for()
    found = tab.locator("#search-results ul.search li a").all_inner_texts()
    assert any("Evaluation" in title for title in found) and not _complaints(tab)


@in_browser
def test_a_figure_says_where_it_comes_from(tab: Any, html: Path) -> None:
    tab.goto((html / "published.html").as_uri())
    titles = tab.locator("span.metric").evaluate_all("spans => spans.map(s => s.title)")
    assert any(title.startswith("published figure") for title in titles)
    assert any(title.startswith("simulated data") for title in titles)
