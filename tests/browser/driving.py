"""Headless Chromium for the tests of pages, and what is needed to judge a page.

Needs Debian's chromium and chromium-driver, and axe-core from npm (this folder); .ci/run installs them.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [
    what
    for what, there in (
        ("chromium (apt-get install chromium chromium-driver)", CHROMIUM and DRIVER),
        ("axe-core (npm ci --prefix tests/browser)", AXE.exists()),
    )
    if not there
]
DESKTOP, TABLET, PHONE = (1400, 900), (820, 1100), (390, 844)

needs_chromium = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {'; '.join(MISSING)}"),
]


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """Headless Chromium that keeps what the console and the network say. folder: of its profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={folder}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Chromium lowers the priority of its whole session (Linux autogroups); that must not be the tests' own.
    driver = webdriver.Chrome(options=options, service=Service(DRIVER, popen_kw={"start_new_session": True}))
    try:
        yield driver
    finally:
        driver.quit()


def window(browser: webdriver.Chrome, size: tuple[int, int], scheme: str) -> None:
    """This size, in light or dark."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def violations(browser: webdriver.Chrome) -> list[tuple[str, str]]:
    """What axe-core finds on the open page: (rule, first element)."""
    browser.execute_script(AXE.read_text())
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert len(found["passes"]) > 10  # it really looked
    return [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]]


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
