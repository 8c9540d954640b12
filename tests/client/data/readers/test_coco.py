"""COCO instances: polygons, run lengths, crowds, and every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from casam_core.config.data_spec import DataSpec
from casam_core.config.policy import Policy
from casam_core.config.site_file import TaskDescription
from casam_core.model.embeddings import EmbeddingStore
from client.data import open_dataset
from client.data.dataset import Sample
from client.data.readers.coco import CocoDataset
from client.data.splits import PARTS
from client.data.task_data import open_task
from client.release.ledger import Spend, of_images
from scenarios.inspection.understand import understand
from tests.client.making import RNG, fault, keys

IMAGE = RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)
SQUARE = [2, 3, 6, 3, 6, 8, 2, 8]
SMALL = [3, 4, 5, 4, 5, 6, 3, 6]

Table = dict[str, Any]


def annotation(id_: int, segmentation: Any, image_id: int = 1, **more: Any) -> Table:
    return {"id": id_, "image_id": image_id, "category_id": 1, "segmentation": segmentation, **more}


def put(root: Path, annotations: list[Table], *, folder: str = "images", **more: Any) -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    images = [{"id": 1, "file_name": "p1_a.png", "width": 12, "height": 10}]
    images = more.get("images", images)
    for image in images:
        Image.fromarray(IMAGE).save(root / folder / Path(str(image["file_name"])).name)
    (root / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


def test_one_image_in_two_files_has_one_budget(tmp_path: Path) -> None:
    """Its id, and so its part, follows from the folder that a file's name selects."""
    (tmp_path / "images" / "day").mkdir(parents=True)
    names = [f"p{number}.png" for number in range(24)]
    for name in names:
        Image.fromarray(IMAGE).save(tmp_path / "images" / "day" / name)
    for file, folder in (("all.json", "day/"), ("day.json", "")):
        images = [
            {"id": i, "file_name": f"{folder}{name}", "width": 12, "height": 10}
            for i, name in enumerate(names)
        ]
        outlines = [annotation(i, [SQUARE], i) for i in range(len(names))]
        (tmp_path / file).write_text(json.dumps({"images": images, "annotations": outlines}))
    policy = Policy.model_validate({"metrics": "noisy", "budget": {"epsilon_metrics": 8.0, "delta": 0.01}})
    divided = []
    for file in ("all.json", "day.json"):
        spec = TaskDescription(reader="coco", path=str(tmp_path), annotations=file)
        opened = open_task(
            spec,
            task=file,
            institution="north",
            data_root=None,
            store=EmbeddingStore(tmp_path / "store"),
            key=bytes(32),
            policy=policy,
        )
        part = {Path(s.id).name: name for name in PARTS for s in opened.split.part(name)}
        divided.append((part, opened.division))
    (one, first), (other, second) = divided
    assert any(one[name] != other[name] for name in one), "an image is in two parts"
    spent = Spend("", "run", "align", "all", str(tmp_path), "train", "image", 1.0, division=first)
    assert of_images([spent], str(tmp_path), "test", first) == []
    assert of_images([spent], str(tmp_path), "test", second) == [spent]


def labels(root: Path) -> np.ndarray:
    dataset = CocoDataset(root)
    return dataset.load(dataset.samples[0]).labels_HW


@pytest.mark.parametrize("folder", ["images", "."])
def test_polygons_follow_pixel_corners_and_small_ones_stay_whole(tmp_path: Path, folder: str) -> None:
    put(tmp_path, [annotation(7, [SMALL]), annotation(8, [SQUARE])], folder=folder)
    expected = np.zeros((10, 12), int)
    expected[3:8, 2:6] = 2
    expected[4:6, 3:5] = 1
    np.testing.assert_array_equal(labels(tmp_path), expected)


def test_parts_run_lengths_and_crowds(tmp_path: Path) -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 8:11] = 1
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    put(
        tmp_path,
        [
            annotation(1, [[0, 0, 2, 0, 2, 2, 0, 2], [0, 8, 2, 8, 2, 10, 0, 10]]),
            annotation(2, {"size": [10, 12], "counts": counts}),
            annotation(3, {"size": [10, 12], "counts": "abc"}, iscrowd=1),
        ],
    )
    expected = mask.astype(int) * 2
    expected[0:2, 0:2] = expected[8:10, 0:2] = 1
    np.testing.assert_array_equal(labels(tmp_path), expected)


def test_crowds_are_told_and_not_lost_in_silence(tmp_path: Path) -> None:
    """CVAT marks each brushed mask as a crowd."""
    put(tmp_path, [annotation(1, [SMALL]), annotation(2, [SQUARE], iscrowd=1)])
    (told,) = CocoDataset(tmp_path).warnings
    assert told.startswith("1 of 2 annotations are not read, because they are crowds")
    put(tmp_path, [annotation(1, [SMALL], iscrowd=1)])
    assert "found 1 crowds and nothing else" in fault(lambda: CocoDataset(tmp_path))


@pytest.mark.parametrize(
    ("annotations", "written"),
    [("result.json", "images/p1_a.png"), ("images/_annotations.coco.json", "p1_a.png")],
    ids=["Label Studio", "Roboflow"],
)
def test_the_images_are_where_the_file_names_say(tmp_path: Path, annotations: str, written: str) -> None:
    put(
        tmp_path,
        [annotation(1, [SQUARE])],
        images=[{"id": 1, "file_name": written, "width": 12, "height": 10}],
    )
    (tmp_path / "annotations.json").rename(tmp_path / annotations)
    assert understand(tmp_path).keys == {"annotations": annotations}
    dataset = CocoDataset(tmp_path, keys("coco", annotations=annotations))
    assert dataset.load(dataset.samples[0]).labels_HW.any()


def test_images_without_instances_are_left_out_and_groups(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"p{i}_a.png", "width": 12, "height": 10} for i in (3, 1, 2)]
    put(tmp_path / "set", [annotation(1, [SQUARE], 3), annotation(2, [SQUARE], 1)], images=images)
    (tmp_path / "set" / "annotations.json").rename(tmp_path / "set" / "train.json")
    spec = DataSpec(reader="coco", path="set", annotations="train.json", group_pattern=r"(p\d)")
    dataset = open_dataset(spec, data_root=tmp_path, seed=0, institution="north")
    assert dataset.samples == (Sample("p1_a", "p1"), Sample("p3_a", "p3"))
    assert isinstance(dataset, CocoDataset)
    assert dataset.empty == 1
    assert dataset.bits(dataset.samples[0]) == 8
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).image_HW3, IMAGE)
    assert "found the id 'x'" in fault(lambda: dataset.load(Sample("x")))


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ({"size": [10, 12], "counts": "abc"}, "found compressed run lengths (RLE)"),
        ({"size": [10, 12], "counts": [3, 4]}, "expected run lengths that fill 12 x 10"),
        ({"size": [12, 10], "counts": [100, 20]}, "expected run lengths that fill 12 x 10"),
        ({"size": [10, 12], "counts": [-1, 121]}, "expected run lengths that fill 12 x 10"),
        ([[1, 2, 3, 4]], "found 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "found 7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]], "found 1 annotation (5)"),
        ([], "found 1 annotation (5)"),
    ],
)
def test_segmentations_that_are_refused(tmp_path: Path, segmentation: Any, expected: str) -> None:
    put(tmp_path, [annotation(5, segmentation)])
    assert expected in fault(lambda: labels(tmp_path))


def test_an_instance_hidden_by_smaller_ones(tmp_path: Path) -> None:
    put(tmp_path, [annotation(1, [SQUARE]), annotation(2, [SQUARE])])
    assert "found 1 annotation (1) covered" in fault(lambda: labels(tmp_path))


def test_size_of_the_file_counts(tmp_path: Path) -> None:
    put(
        tmp_path, [annotation(1, [SQUARE])], images=[{"id": 1, "file_name": "a.png", "width": 9, "height": 9}]
    )
    assert "expected 9 x 9 pixels as annotations.json says, found 12 x 10" in fault(lambda: labels(tmp_path))


def test_the_file_is_judged_as_a_whole(tmp_path: Path) -> None:
    assert "found nothing" in fault(lambda: CocoDataset(tmp_path / "none"))
    assert "No such file" in fault(lambda: CocoDataset(tmp_path))
    assert "stays inside" in fault(lambda: CocoDataset(tmp_path, keys("coco", annotations="../a.json")))
    (tmp_path / "annotations.json").write_bytes(b"\xff{")
    assert "expected JSON" in fault(lambda: CocoDataset(tmp_path))
    put(tmp_path, [{"id": "x"}, annotation(2, "text")])
    faults = fault(lambda: CocoDataset(tmp_path))
    assert all(place in faults for place in ("annotations.0.id", "annotations.0.image_id", "annotations.1"))
    put(tmp_path, [annotation(1, [SQUARE]), annotation(1, [SQUARE], image_id=44)])
    faults = fault(lambda: CocoDataset(tmp_path))
    assert "expected each annotation id once, found 1 repeat (1)" in faults
    assert "found 1 annotation (1) of others" in faults
    put(tmp_path, [])
    assert "at least one image with an instance" in fault(lambda: CocoDataset(tmp_path))
    put(tmp_path, [annotation(1, [SQUARE])])
    (tmp_path / "images" / "p1_a.png").unlink()
    assert "found 1 image (p1_a.png) missing" in fault(lambda: CocoDataset(tmp_path))
    outside = [{"id": 1, "file_name": "/etc/p1_a.png", "width": 12, "height": 10}]
    put(tmp_path, [annotation(1, [SQUARE])], images=outside)
    assert "expected a path that stays inside" in fault(lambda: CocoDataset(tmp_path))
    for name in ("a" * 252 + ".png", "\u00e4" * 130 + ".png", "a/" * 3000 + "b.png"):  # no disk takes them
        longer = [{"id": 1, "file_name": name, "width": 12, "height": 10}]
        content = {"images": longer, "annotations": [annotation(1, [SQUARE])]}
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        assert f"found 1 image ({Path(name).name}) missing" in fault(lambda: CocoDataset(tmp_path))
