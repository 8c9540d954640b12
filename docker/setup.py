"""What a consortium does once and by hand, done for the demo: kits, volumes with their owners, images, site
files, and each institution's approval of the demo's scenario.

Arguments: NAME:UID:TASK per institution. Volumes are mounted below /volumes. Called again it changes nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

VOLUMES = Path("/volumes")
OPERATOR_UID = 10001
SERVER_FILES = ("ca.crt", "server.crt", "server.key", "register.json", "signing.key")
IMAGES, SIDE, SEED = 26, 128, 0
SCENARIO = "/demo/demo.toml"
FEW = {"limit": {"test": 6}, "minimum": {"train": 5, "test": 2}}
"""For the demo's few images."""


def main(arguments: list[str]) -> None:
    """Fill the volumes."""
    from casam_core.config.library import resolve_scenario
    from casam_core.config.site_file import TaskDescription, read_site_file
    from client.data.splits import simulated_key
    from client.node.approvals import approve
    from scenarios.deploy.provision import Consortium, provision
    from scenarios.engines.bundle import build_bundle
    from scenarios.inspection.site_files import site_text

    asked = resolve_scenario(SCENARIO)
    institutions = [argument.split(":") for argument in arguments]
    made = VOLUMES / "operator" / "casam.fab"
    if made.exists():
        if made.read_bytes() != build_bundle():
            sys.exit(
                "these volumes were made for another version of the code: `docker-compose down -v`, then up"
            )
        print("the volumes are ready")
        return
    with tempfile.TemporaryDirectory() as scratch:
        kits = Path(scratch) / "kits"
        names = tuple(name for name, _, _ in institutions)
        provision(Consortium(names, "gateway:9092", ("superlink",), "/institution"), kits, print)
        for name, uid, task in institutions:
            kit, home = kits / "institutions" / name, VOLUMES / "home" / name
            tasks = {task: TaskDescription.model_validate({"path": task, **FEW})}
            (kit / "site.toml").write_text(site_text(tasks))
            # The simulation's key for splits: the demo shows the figures of one process.
            home.mkdir(parents=True, exist_ok=True)
            (home / "split.key").write_bytes(simulated_key(asked.seed, name))
            approve(asked, name, read_site_file(kit / "site.toml"), home, "person")
            fill(kit, VOLUMES / "site" / name, int(uid))
            write_images(VOLUMES / "data" / name / task, task, name)
            own(VOLUMES / "data" / name, int(uid))
            own(home, int(uid))
        operator = kits / "operator"
        fill(operator, VOLUMES / "server", OPERATOR_UID, SERVER_FILES)
        fill(operator, VOLUMES / "public", OPERATOR_UID, ("ca.crt", "nodes"))
        own(VOLUMES / "state", OPERATOR_UID)
        own(VOLUMES / "runs", OPERATOR_UID)
        fill(operator, VOLUMES / "operator", 0)  # last: its bundle says that all is done


def fill(source: Path, target: Path, uid: int, wanted: tuple[str, ...] | None = None) -> None:
    """Copy a folder, or some of it, into a volume whose only user is `uid`."""
    for item in sorted(source.iterdir()):
        if wanted is not None and item.name not in wanted:
            continue
        if item.is_dir():
            shutil.copytree(item, target / item.name, dirs_exist_ok=True)
        else:
            shutil.copy2(item, target / item.name)
    own(target, uid)


def own(folder: Path, uid: int) -> None:
    """Give a folder and everything in it to `uid`, closed to all others."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid)
        path.chmod(0o700 if path.is_dir() else 0o600)


def write_images(folder: Path, task: str, institution: str) -> None:
    """A dataset as docs/data.md describes it: images/ and masks/, a value per instance."""
    import numpy as np
    from PIL import Image

    from client.data.phantoms.painted import PhantomDataset

    dataset = PhantomDataset(task, IMAGES, SIDE, SEED, institution)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for sample in dataset.samples:
        loaded = dataset.load(sample)
        Image.fromarray(loaded.image_HW3).save(folder / "images" / f"{sample.id}.png")
        Image.fromarray(loaded.labels_HW.astype(np.uint16)).save(folder / "masks" / f"{sample.id}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
