"""The page in a real browser: no errors, no requests, nothing that axe-core finds, readable at any width."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver

from scenarios.report.page import page
from scenarios.report.reading import read_all
from tests.browser.driving import (
    DESKTOP,
    PHONE,
    TABLET,
    needs_chromium,
    picture,
    violations,
    window,
)
from tests.scenarios.report.making import scenario_of, write_run

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run's page, and that of two runs with their own parts."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [
        write_run(folder / "one"),
        write_run(folder / "two", scenario_of(seed=1), last_iou=0.83, noise=None),
    ]
    found = {"one": runs[:1], "two": runs}
    for name, chosen in found.items():
        (folder / f"{name}.html").write_text(page(read_all(chosen), full=True))
    return {name: folder / f"{name}.html" for name in found}


def show(browser: webdriver.Chrome, file: Path, size: tuple[int, int], scheme: str) -> None:
    """Open the page at this size in light or dark."""
    window(browser, size, scheme)
    browser.get(file.as_uri())


@pytest.mark.parametrize("name", ["one", "two"])
def test_no_console_errors_and_no_requests(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str
) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, pages[name], DESKTOP, "light")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked == [pages[name].as_uri()]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_axe_finds_no_violation(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, scheme: str
) -> None:
    show(browser, pages[name], DESKTOP, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(browser) == []


def test_axe_would_find_one(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["one"], DESKTOP, "light")
    browser.execute_script("document.querySelector('[role=img]').removeAttribute('aria-label')")
    assert "role-img-alt" in [rule for rule, _ in violations(browser)]


def test_every_chart_is_drawn_and_has_its_words(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["one"], DESKTOP, "light")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width, "
        "s.getBoundingClientRect().height, s.querySelectorAll('path').length])"
    )
    assert len(sizes) >= 11
    assert all(width > 100 and height > 50 and marks > 2 for width, height, marks in sizes)
    tables = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => f.querySelectorAll('details td').length)"
    )
    assert len(tables) == 6
    assert all(cells >= 4 for cells in tables)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE], ids=["desktop", "tablet", "phone"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_it_fits_the_window_in_light_and_dark(
    browser: webdriver.Chrome,
    pages: dict[str, Path],
    tmp_path: Path,
    name: str,
    size: tuple[int, int],
    scheme: str,
) -> None:
    show(browser, pages[name], size, scheme)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= size[0]  # what is wider scrolls by itself
    pixels = picture(browser, tmp_path / f"{name}-{size[0]}-{scheme}.png")
    # The most frequent colour is the paper, and there is more than paper on it.
    counts = np.bincount((pixels.astype(np.int64) @ [65_536, 256, 1]).ravel())
    red, rest = divmod(int(counts.argmax()), 65_536)
    paper = (red + rest // 256 + rest % 256) / 3
    assert paper > 240 if scheme == "light" else paper < 40
    assert (counts > 0).sum() > 100


@pytest.mark.parametrize(("size", "least"), [(DESKTOP, 1400 / 3), (TABLET, 820 / 3), (PHONE, 0.85 * 390)])
def test_the_matrix_earns_its_space(
    browser: webdriver.Chrome, pages: dict[str, Path], size: tuple[int, int], least: float
) -> None:
    show(browser, pages["one"], size, "light")
    width, inside, letters = browser.execute_script(
        "const t = document.querySelector('table.heat'), box = t.closest('.scroll');"
        "return [t.getBoundingClientRect().width, box.clientWidth, "
        "parseFloat(getComputedStyle(t.querySelector('td')).fontSize)]"
    )
    assert width >= least
    assert width <= inside + 1  # three tasks are seen without scrolling
    assert letters >= 13


def test_the_contents_follow_the_reader(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    contents = (
        "scrollTo({top: document.documentElement.scrollHeight / 2, behavior: 'instant'});"
        "const n = document.querySelector('nav'), link = n.querySelector('li a');"
        "return [n.getBoundingClientRect().top, n.getBoundingClientRect().height, link.checkVisibility()]"
    )
    show(browser, pages["one"], DESKTOP, "light")
    top, _, seen = browser.execute_script(contents)
    assert (top, seen) == (0, True)  # open beside the text
    current = "return [...document.querySelectorAll('nav a:target-current')].map(a => a.textContent)"
    assert len(browser.execute_script(current)) == 1
    show(browser, pages["one"], PHONE, "light")
    top, height, seen = browser.execute_script(contents)
    assert (top, seen) == (0, False)  # one folded line at the top
    assert height < 60


def test_the_keyboard_reaches_the_content_first(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["one"], DESKTOP, "light")
    key = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    for kind in ("keyDown", "keyUp"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, **key})
    assert browser.execute_script("return document.activeElement.className") == "skip"
    assert browser.execute_script("return document.activeElement.getBoundingClientRect().left") >= 0


def test_on_paper_every_table_is_open(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["one"], DESKTOP, "light")
    contents = (
        "return [...new Set([...document.querySelectorAll('main details')].map("
        "d => getComputedStyle(d, '::details-content').contentVisibility))]"
    )
    assert browser.execute_script(contents) == ["hidden"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(contents) == ["visible"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
