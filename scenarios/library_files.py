"""The studies that come with the product."""

from __future__ import annotations

from pathlib import Path

from casam_core.config.library import names_in

STUDIES = Path(__file__).parent / "studies"


def study_names() -> list[str]:
    """Names of the library's studies, sorted."""
    return names_in(STUDIES)
