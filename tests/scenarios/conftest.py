"""The `casam` command and a browser for tests of the tooling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.casam_command import casam

if TYPE_CHECKING:
    from selenium import webdriver

__all__ = ["browser", "casam"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless Chromium."""
    from tests.browser.driving import chromium

    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver
