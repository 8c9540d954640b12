"""Synthetic images in the layout of the authors' data, as many as the paper's: to measure speed, nothing
else.

    python -m casam_bench.card.paper_data FOLDER --share 20

writes the nine folders that the scenario paper-nine names, with a twentieth of the images, and beside them
sam_vit_b_01ec64.pth: random weights of SAM's ViT-B.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import sparse

from casam_bench.models import parts_of
from casam_core.seeding import initialisers_from, numpy_generator
from client.data.phantoms import PHANTOMS

SIZES = {
    "ACDC": (1632, 177),
    "EBHI-SEG": (1701, 487),
    "56Nx": (558, 463),
    "DN": (724, 391),
    "Polyp": (804, 196),
    "MSD_Prostate": (419, 53),
    "MSD_Spleen": (876, 146),
    "Promise12": (712, 66),
    "STS-2D": (1700, 70),
}
"""Training and test images of the paper's tasks, by the folders of paper-nine."""

PAINTED = 8
"""Different pictures of a task; the others are these, moved aside, so that making them takes less time."""


def write_all(folder: Path, share: int, side: int) -> None:
    """All nine tasks with a `share`-th of the images, at least eight to train and two to test."""
    for number, (name, (train, test)) in enumerate(SIZES.items()):
        modality = sorted(PHANTOMS)[number % len(PHANTOMS)]
        write_task(folder / name, modality, max(8, train // share), max(2, test // share), side)


def write_task(folder: Path, modality: str, train: int, test: int, side: int) -> None:
    """One task: `train` and `test` pictures of `side` pixels, with one class."""
    for part in ("image", "label"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    painted = [PHANTOMS[modality](numpy_generator(0, modality, i), side) for i in range(PAINTED)]
    entries = []
    for i in range(train + test):
        picture, aside = painted[i % PAINTED], i // PAINTED
        image_HW3 = np.roll(picture.image_HW3, aside, axis=1)
        class_HW = np.roll(picture.labels_HW > 0, aside, axis=1).astype(np.uint8)
        label = f"label/{i:05d}.(1, {side}, {side}, 1).npz"
        Image.fromarray(image_HW3).save(folder / f"image/{i:05d}.png", compress_level=1)
        sparse.save_npz(folder / label, sparse.csr_matrix(class_HW.reshape(1, -1)), compressed=False)
        entries.append({"image": f"image/{i:05d}.png", "label": label})
    labels = {"0": "background", "1": modality}
    content = {"name": folder.name, "labels": labels, "training": entries[:train], "test": entries[train:]}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def write_checkpoint(path: Path, model: str) -> None:
    """Random weights in the form of SAM's official files."""
    with initialisers_from(0):
        encoder, prompt_encoder, mask_decoder = parts_of(model)
    named = {"image_encoder": encoder, "prompt_encoder": prompt_encoder, "mask_decoder": mask_decoder}
    torch.save(
        {
            f"{part}.{key}": value
            for part, module in named.items()
            for key, value in module.state_dict().items()
        },
        path,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=int, default=1, help="a twentieth of the images: 20")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--model", default="vit_b")
    given = parser.parse_args(arguments)
    write_all(given.folder, given.share, given.side)
    write_checkpoint(given.folder / "sam_vit_b_01ec64.pth", given.model)


if __name__ == "__main__":
    main()
