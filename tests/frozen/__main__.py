"""Freeze what this version writes: `python -m tests.frozen NAME`."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from unittest.mock import patch

from tests.disasters.faults import Fault, Plan
from tests.disasters.homes import SERVER, provisioned
from tests.disasters.playing import play
from tests.disasters.world import Played, World

CUT = Plan(0, "private", (Fault("cut", SERVER, 300, 1.0),))
"""The power goes in the third stage."""


def keep(world: World, archive: Path) -> None:
    """Put all homes into an archive, without the files that they were provisioned with."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as into:
        for path in sorted(world.top.rglob("*")):
            name = path.relative_to(world.top)
            if path.is_file() and name.name not in provisioned(world.plan.case)[name.parts[0]]:
                into.write(path, name.as_posix())


def freeze(target: Path) -> None:
    """Play an interrupted and a finished run, and keep their homes."""
    target.mkdir()
    whole = World.play

    def at_the_cut(world: World, seconds: float) -> bool:
        assert len(list(world.run_folder.glob("stages/*.json"))) == 3, "not in the third stage"
        keep(world, target / "interrupted.zip")
        return False

    def at_the_end(world: World, usual: object) -> Played:
        played = whole(world, None)
        assert not played.broken
        keep(world, target / "summed.zip")
        return played

    with patch.object(World, "rest", at_the_cut):
        play(CUT)
    with patch.object(World, "play", at_the_end):
        play(Plan(0, "secret", ()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.frozen", description=__doc__)
    parser.add_argument("name", help="of the new folder, such as v3")
    freeze(Path(__file__).parent / parser.parse_args().name)
