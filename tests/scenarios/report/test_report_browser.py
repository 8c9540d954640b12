"""The page in a real browser: no errors, no requests, nothing that axe-core finds, readable at any width.

Needs Debian's chromium and chromium-driver, and axe-core from npm (tests/browser); .ci/run installs them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from scenarios.report.page import page
from scenarios.report.reading import read_all
from tests.scenarios.report.making import scenario_of, write_run

AXE = Path(__file__).parents[2] / "browser" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [
    what
    for what, there in (
        ("chromium (apt-get install chromium chromium-driver)", CHROMIUM and DRIVER),
        ("axe-core (npm ci --prefix tests/browser)", AXE.exists()),
    )
    if not there
]
DESKTOP, PHONE = (1280, 900), (390, 844)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {'; '.join(MISSING)}"),
]


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless Chromium that keeps what the console and the network say."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Chromium lowers the priority of its whole session (Linux autogroups); that must not be the tests' own.
    service = Service(DRIVER, popen_kw={"start_new_session": True})
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def show(browser: webdriver.Chrome, file: Path, size: tuple[int, int], scheme: str) -> None:
    """Open the page at this size in light or dark."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(file.as_uri())


def picture(browser: webdriver.Chrome, file: Path) -> np.ndarray[Any, Any]:
    """The whole page as pixels; kept in $CASAM_SCREENSHOTS where that is set, for people to look at."""
    size = browser.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 16_000), "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    file.write_bytes(base64.b64decode(shot["data"]))
    if keep := os.environ.get("CASAM_SCREENSHOTS"):
        shutil.copy(file, Path(keep) / file.name)
    return np.asarray(Image.open(file).convert("RGB"))


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
    browser.execute_script(AXE.read_text())
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert len(found["passes"]) > 20  # it really looked
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []


def test_axe_would_find_one(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["one"], DESKTOP, "light")
    browser.execute_script("document.querySelector('[role=img]').removeAttribute('aria-label')")
    browser.execute_script(AXE.read_text())
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert "role-img-alt" in [v["id"] for v in found["violations"]]


def test_every_chart_is_drawn_and_has_its_words(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["one"], DESKTOP, "light")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width, "
        "s.getBoundingClientRect().height, s.querySelectorAll('path').length])"
    )
    assert len(sizes) >= 14
    assert all(width > 100 and height > 50 and marks > 2 for width, height, marks in sizes)
    tables = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => f.querySelectorAll('details td').length)"
    )
    assert len(tables) == 9
    assert all(cells >= 4 for cells in tables)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
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
        "return [...new Set([...document.querySelectorAll('details')].map("
        "d => getComputedStyle(d, '::details-content').contentVisibility))]"
    )
    assert browser.execute_script(contents) == ["hidden"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(contents) == ["visible"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
