"""A site's commands on its home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casam_core.config.policy import Policy
from casam_core.config.site_file import SiteFile
from casam_core.errors import DeploymentError
from scenarios.deploy.place import Place


def test_root_leaves_no_files_that_the_nodes_user_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("north", SiteFile(), Policy(), tmp_path / "home", None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    place.check_user()  # no home yet
    owned_by(tmp_path / "home", 990, monkeypatch)
    with pytest.raises(DeploymentError, match="run `sudo -u '#990' casam"):
        place.check_user()
    monkeypatch.setattr(os, "geteuid", lambda: 990)
    place.check_user()


def owned_by(folder: Path, user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user, also for tests that root does not run."""
    folder.mkdir()
    found = list(folder.stat())
    found[4] = user
    monkeypatch.setattr(Path, "stat", lambda self, follow_symlinks=True: os.stat_result(found))
