"""Packages that only some commands need: extras of this project (pyproject.toml)."""

from __future__ import annotations

EXTRAS = {
    "deploy": ("packaging", "starlette", "tomli_w", "uvicorn"),
    "report": ("altair", "jinja2", "markupsafe", "vl_convert"),
    "simulation": ("ray",),
    "study": ("matplotlib", "pandas", "pyarrow"),
}
"""Modules that only an extra brings, by the extra's name."""


def advice_for(missing: ModuleNotFoundError) -> str | None:
    """One line that names the extra to install; None for a module that no extra brings."""
    module = (missing.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return (
                f"expected the packages of the extra {extra!r}, found that {module} cannot be imported; "
                f"run: pip install 'casam[{extra}]'"
            )
    return None
