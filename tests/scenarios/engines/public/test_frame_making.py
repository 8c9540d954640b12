"""The frame of a backbone: shipped ones can be made again, missing ones are made when a run starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from casam_core.bank.bank import Bank
from casam_core.config.library import scenario_path
from casam_core.config.public_files import file_of
from casam_core.config.scenario import Scenario
from casam_core.errors import BankError
from casam_core.routing.public_frames import FRAMES
from casam_core.routing.routers import PublicFrameSpec
from casam_use.loaded_bank import load_bank
from client.site import Site
from scenarios.engines.inprocess import run_inprocess
from scenarios.engines.public import frame_making
from scenarios.engines.public.frame_making import difference_to_a_new_one, with_frame
from tests.casam_command import Casam
from tests.conftest import tiny_table


def unshipped(monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """A scenario whose frame casam does not ship, with the digest of a new one."""
    monkeypatch.setattr(frame_making, "IMAGES", 3)
    monkeypatch.setattr(frame_making, "RECOLOURED", 2)
    table = tiny_table(stream=["polyp"])
    scenario = Scenario.model_validate(table)
    router = scenario.router.model_copy(update={"frame": None})
    return with_frame(scenario.model_copy(update={"router": router}))


def test_a_shipped_frame_is_what_phantoms_give_on_this_machine() -> None:
    assert difference_to_a_new_one(Scenario.model_validate(tiny_table())) < 1e-3


def test_a_frame_that_is_not_shipped_is_made_travels_and_lies_in_the_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = unshipped(monkeypatch)
    assert isinstance(scenario.router, PublicFrameSpec)
    digest = scenario.router.frame
    assert digest is not None
    # The sites have folders of their own, as on other machines: the frame can only come with a message.
    at_sites = tmp_path / "at the sites"
    monkeypatch.setattr(Site, "folder_of", lambda site, kind: at_sites)
    run_inprocess(scenario, tmp_path / "run", None)
    assert [path.name for path in at_sites.iterdir()] == [f"{digest}.json"]
    bank = Bank.open(tmp_path / "run" / "bank")
    assert bank["polyp"].provenance.frame == digest
    assert file_of(bank.frames, digest).is_file()
    # The bank works without the machine that made the frame, and not without the frame.
    file_of(FRAMES.here, digest).unlink()
    assert "polyp" in load_bank(bank.folder)
    bare = shutil.copytree(bank.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("frames"))
    with pytest.raises(BankError, match="there is no frame"):
        load_bank(bare)


def test_the_command_says_what_a_frame_is_made_of(casam: Casam, tmp_path: Path) -> None:
    shown = casam("scenarios", "frame", "quickstart").out
    assert "ships with casam" in shown
    assert "16 polyp, 8 polyp, recoloured" in shown
    assert "64 in 512 features (moments)" in shown
    assert "has no frame" in casam("scenarios", "frame", scenario_path("paper-nine")).refusal
