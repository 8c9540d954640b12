"""Freeze what this version writes: `python -m tests.frozen NAME`.

Where entries are written as before, the new bank.zip says nothing new: remove it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from casam_core.bank.bank import Bank
from casam_core.bank.entry_file import Entry
from casam_core.config.named_parts import ROUTERS
from casam_core.model.forms import FORMS, build_layer, changes_sam, form_spec, weights_of
from casam_core.model.frame import Frame
from casam_core.model.prompts import Prompts
from casam_core.routing.public_frames import FRAMES
from casam_use.loaded_bank import LoadedEntry
from tests.banks import files_of, tiny_backbone, tiny_entry
from tests.disasters.faults import Fault, Plan
from tests.disasters.homes import SERVER, provisioned
from tests.disasters.playing import play
from tests.disasters.world import Played, World

CUT = Plan(0, "private", (Fault("cut", SERVER, 360, 1.0),))
"""The power goes in the evaluation of the third stage. (In v1 to v3, while its task was learned.)"""


NUMBERS = "numbers.json"
"""In bank.zip beside the bank's files: what its entries made of one embedding when they were frozen."""


def every_kind() -> Iterator[Entry]:
    """An entry of each form of a bank, one with a finder, and of each router; its task says which."""
    for form in FORMS:
        if not changes_sam(form):
            yield replace(tiny_entry("polyp", form), task=f"form {form}")
    for kind in ROUTERS:
        yield replace(tiny_entry("polyp", kind=kind), task=f"router {kind}")
    plain = tiny_entry("polyp")
    layer = build_layer(form_spec("low_rank", {"finder": True}), 32, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    yield replace(plain, task="finder", layer=weights_of(layer))


def numbers_of(entry: Entry, frames: Path) -> list[float]:
    """Sums over what an entry makes of an embedding, and over the mask that its decoder makes of that for one
    box; the score, and a sum of what its finder says."""
    loaded, backbone = LoadedEntry.of(entry, frames), tiny_backbone()
    z_BCHW = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 32, 8, 8))).float()
    frame = Frame(64, 64, backbone.geometry.side)
    with torch.no_grad():
        made_BCHW = loaded.layer(z_BCHW)
        decoder, finder = loaded.layer.decoder(backbone.mask_decoder), loaded.layer.finder
        found = [] if finder is None else [float(finder(z_BCHW).square().sum())]
        box = Prompts(boxes_N4=np.array([[10.0, 12.0, 40.0, 50.0]], np.float32)).into(frame)
        mask_1HW, _ = backbone.decode(made_BCHW[0], box, decoder)
    layer = [float(made_BCHW.sum()), float(made_BCHW.square().sum()), float(mask_1HW.square().sum())]
    return [*layer, loaded.score(z_BCHW[0]), *found]


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
        state = json.loads((world.run_folder / "state.json").read_text())["state"]
        assert len(state["files"]["items"]) == 3, "not in the third stage"
        assert state["learned"] is not None, "not in its evaluation"
        keep(world, target / "interrupted.zip")
        return False

    def at_the_end(world: World, usual: object) -> Played:
        played = whole(world, None)
        assert not played.broken
        keep(world, target / "summed.zip")
        return played

    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(target / "bank.zip", "w", zipfile.ZIP_DEFLATED) as into,
    ):
        bank = Bank.open(Path(folder) / "bank", create=True)
        for entry in every_kind():
            bank.add(entry)
            if digest := entry.provenance.frame:
                FRAMES.keep(FRAMES.data(digest), bank.frames)
        for name, data in files_of(bank.folder).items():
            into.writestr(name, data)
        numbers = {entry.task: numbers_of(entry, bank.frames) for entry in bank}
        into.writestr(NUMBERS, json.dumps(numbers, indent=2))
    with patch.object(World, "rest", at_the_cut):
        play(CUT)
    with patch.object(World, "play", at_the_end):
        play(Plan(0, "secret", ()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.frozen", description=__doc__)
    parser.add_argument("name", help="of the new folder, such as v3")
    freeze(Path(__file__).parent / parser.parse_args().name)
