"""The page in headless Chromium with the network off: figures are there, the console is silent, both colour schemes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import finished_runs
from tunesmith.compare.page import page
from tunesmith.compare.runs import compare
from tunesmith.report import stage

pytestmark = pytest.mark.real

_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here: apt-get install -y --no-install-recommends chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=_QUIET)
        yield started
        started.close()


class _Visit:
    """One page, opened offline; remembers what the console said and what was asked of the network."""

    def __init__(self, browser: Any, path: Path, scheme: str, width: int) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        viewport = {"width": width, "height": 900}
        self.context = browser.new_context(color_scheme=scheme, viewport=viewport, offline=True)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.route("**/*", self._route)
        self.page.goto(path.as_uri())

    def _route(self, route: Any) -> None:
        if route.request.url.startswith("file://") and route.request.is_navigation_request():
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["full", "minimal", "failed", "wide", "hostile"])
def test_page_is_silent_offline_and_fits(browser: Any, tmp_path: Path, kind: str, width: int, scheme: str) -> None:
    run_dir = finished_runs.write(tmp_path, kind)
    stage.run(finished_runs.recipe(), run_dir)
    visit = _Visit(browser, run_dir.report_page, scheme, width)
    page = visit.page
    assert (visit.said, visit.asked) == ([], [])
    assert page.title() == "quickstart-calls · tunesmith", "no text of a model ran"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#curves svg:visible path.curve").count() >= 3
    if kind in ("full", "wide", "hostile"):
        assert page.locator("#results svg:visible rect.bar").count() >= 16
        assert page.locator("#speed svg:visible path.percentile").count() >= 6
        assert page.locator("#speed svg:visible rect.bar").count() >= 6
        assert (
            page.locator("#speed svg:visible path.curve").count() == 5
        )  # tokens/s; two of the first token, two of answers
        assert page.locator("#trained svg:visible rect.bar").count() >= 16, "the way of the rows, and their lengths"
        assert page.locator("#results .overview svg:visible circle.dot").count() == {"wide": 28}.get(kind, 8)
    assert _contrasts(page) >= 4.5
    visit.context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_comparison_page_is_silent_offline_and_fits(browser: Any, tmp_path: Path, width: int) -> None:
    runs = [finished_runs.write(tmp_path / name, "wide") for name in ("one", "two-with-a-rather-long-name-of-its-own")]
    for run in runs:
        for path in (run.path / "evaluate").glob("*.jsonl"):
            path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if not line.endswith("cut")))
    changed = runs[1].items("function_calls")
    changed.write_text(changed.read_text().replace('"correct": true', '"correct": false'))
    path = tmp_path / "compared.html"
    path.write_text(page(compare(runs), runs))
    visit = _Visit(browser, path, "light", width)
    assert (visit.said, visit.asked) == ([], [])
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.page.locator("article").count() == 7 and visit.page.locator("figure svg:visible circle").count() > 20
    assert _contrasts(visit.page) >= 4.5
    visit.context.close()


_PAPER_WIDTH = 703  # CSS pixels: A4 with margins of 12 mm


@pytest.mark.parametrize("kind", ["full", "wide", "comparison"])
def test_on_paper_nothing_is_hidden_cut_or_dark(browser: Any, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "compared.html"
    if kind == "comparison":
        runs = [finished_runs.write(tmp_path / name, "full") for name in ("20260131-142233-one", "20260201-090807-two")]
        for run in runs:
            for items in (run.path / "evaluate").glob("*.jsonl"):
                items.write_text(
                    "".join(f"{line}\n" for line in items.read_text().splitlines() if not line.endswith("cut"))
                )
        path.write_text(page(compare(runs), runs))
    else:
        run_dir = finished_runs.write(tmp_path, kind)
        stage.run(finished_runs.recipe(), run_dir)
        path = run_dir.report_page
    visit = _Visit(browser, path, "dark", _PAPER_WIDTH)
    shown = visit.page
    shown.click("#theme")
    shown.click("#theme")
    shown.emulate_media(media="print", color_scheme="dark")
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not shown.locator("nav").is_visible() and shown.locator("details:not([open])").count() == 0
    assert shown.evaluate("document.documentElement.scrollWidth") <= _PAPER_WIDTH
    assert shown.evaluate(_STICKING_OUT) == []
    assert shown.evaluate(_BROKEN_PATHS) == [], "paths stay on one line"
    assert _contrasts(shown) >= 4.5
    visit.context.close()


_STICKING_OUT = """() => [...document.querySelectorAll(".card")].flatMap((card) => {
  const right = card.getBoundingClientRect().right + 1;
  return [...card.querySelectorAll("td, th, dd, dt, p, pre, svg")]
    .filter((element) => element.getClientRects().length && element.getBoundingClientRect().right > right)
    .map((element) => element.textContent.slice(0, 60));
})"""
_BROKEN_PATHS = """() => [...document.querySelectorAll("table td.mono:first-child")].filter((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return range.getBoundingClientRect().height > 1.9 * parseFloat(getComputedStyle(cell).fontSize) * 1.3;
}).map((cell) => cell.textContent)"""


def test_theme_button_and_hover(browser: Any, tmp_path: Path) -> None:
    run_dir = finished_runs.write(tmp_path, "full")
    stage.run(finished_runs.recipe(), run_dir)
    visit = _Visit(browser, run_dir.report_page, "light", 1280)
    page = visit.page
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("#curves svg.wide").scroll_into_view_if_needed()
    box = page.locator("#curves svg.wide").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    told = page.locator(".tip").inner_text()
    assert "step 2" in told and "training loss, smoothed" in told and "validation loss" in told
    assert (visit.said, visit.asked) == ([], [])
    visit.context.close()


def test_injected_markup_could_not_run(browser: Any, tmp_path: Path) -> None:
    """The page's own policy holds even where escaping would have failed."""
    run_dir = finished_runs.write(tmp_path, "full")
    stage.run(finished_runs.recipe(), run_dir)
    text = run_dir.report_page.read_text()
    injected = "<script>document.title='owned'</script><img src='https://example.invalid/x.png'>"
    run_dir.report_page.write_text(text.replace("<main>", f"<main>{injected}"))
    visit = _Visit(browser, run_dir.report_page, "light", 1280)
    assert visit.page.title() == "quickstart-calls · tunesmith"
    assert visit.asked == []
    assert any("Content Security Policy" in line for line in visit.said)
    visit.context.close()


def _contrasts(page: Any) -> float:
    """Return the smallest contrast (WCAG 2.2, 1.4.3) of visible HTML text against what is behind it."""
    return float(
        page.evaluate(
            """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let least = 21;
  for (const element of document.querySelectorAll("body *:not(svg, svg *, script)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const a = light(parse(getComputedStyle(element).color)), b = light(behind(element));
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""
        )
    )
