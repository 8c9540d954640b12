"""Names and keys of parts are known without their code; their code has an entry for each of them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from casam_core.config.named_parts import BACKBONES, FORMS, ROUTERS
from casam_core.config.section import Registry

HOMES = {
    "casam_core.model.backbones": BACKBONES,
    "casam_core.model.forms": FORMS,
    "casam_core.routing.routers": ROUTERS,
}


@pytest.mark.parametrize("home", HOMES)
def test_every_name_has_an_entry_and_every_entry_a_name(home: str) -> None:
    entries = importlib.import_module(home).ENTRIES
    assert list(entries) == list(HOMES[home])


@pytest.mark.parametrize("registry", HOMES.values(), ids=HOMES)
def test_an_entry_has_the_keys_of_its_name(registry: Registry) -> None:
    for name, section in registry.sections().items():
        assert registry[name].section is section


def test_reading_a_scenario_imports_no_torch() -> None:
    code = (
        "import sys; from casam_core.config.library import resolve_scenario; resolve_scenario('quickstart');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
