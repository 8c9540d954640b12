"""The authors' layout: labels in each form, the fixed test list, pseudo-masks, refused pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from casam_core.config.data_spec import DataSpec, LimitSpec, SplitSpec
from casam_core.errors import DataError
from client.data import open_dataset
from client.data.dataset import Sample
from client.data.readers import sparse_labels
from client.data.readers.med_datasets import MedDataset
from client.data.splits import simulated_key, split_samples
from tests.client.making import RNG, fault, keys

SIZE = (6, 8)
IMAGE = RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
MAP = np.zeros(SIZE, np.uint8)
MAP[0:2, 0:3] = 1
MAP[4:6, 0:2] = 1
MAP[3:5, 4:7] = 2
STACK = np.stack([MAP == 1, MAP == 2])[..., None].astype(np.uint8)
PSEUDO = np.where(MAP == 0, -1, MAP.astype(np.int32) * 5)

Entry = dict[str, Any]


def put(
    root: Path, name: str, *, label: np.ndarray = STACK, shape: str | None = None, imask: bool = True
) -> Entry:
    """One sample's files; returns its entry. shape: as in the label's file name, "" for none."""
    for folder in ("image", "label", "imask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGE).save(root / "image" / f"{name}.png")
    shape = f".{label.shape}" if shape is None else shape
    flat = label.reshape(1, -1) if label.ndim != 2 else label
    sparse.save_npz(root / "label" / f"x___{name}{shape}.npz", sparse.csr_matrix(flat))
    entry = {"image": f"image/{name}.png", "label": f"label/x___{name}{shape}.npz"}
    if imask:
        np.save(root / "imask" / f"{name}.npy", PSEUDO)
        entry["imask"] = f"imask/{name}.npy"
    return entry


def write(root: Path, training: list[Entry], test: list[Entry], **more: Any) -> Path:
    table = {
        "name": "TINY",
        "labels": {"0": "background", "1": "ring", "2": "core"},
        "training": training,
        "test": test,
        **more,
    }
    (root / "dataset.json").write_text(json.dumps(table))
    return root


def tiny(root: Path, **options: Any) -> Path:
    """Six training images of three patients and two test images."""
    training = [put(root, f"p{i // 2}_{i}", **options) for i in range(6)]
    return write(root, training, [put(root, f"t{i}", imask=False, **options) for i in range(2)])


def test_class_stacks_and_the_fixed_test_list(tmp_path: Path) -> None:
    spec = DataSpec(reader="med_datasets", path="TINY", group_pattern=r"/(\w\d)")
    tiny(tmp_path / "TINY")
    dataset = open_dataset(spec, data_root=tmp_path, seed=0, institution="north")
    assert dataset.samples[0] == Sample("image/p0_0", "p0", "train")
    loaded = dataset.load(dataset.samples[0])
    np.testing.assert_array_equal(loaded.image_HW3, IMAGE)
    np.testing.assert_array_equal(loaded.labels_HW, MAP)
    for seed in range(4):
        split = split_samples(
            dataset.samples, spec.split, LimitSpec(), key=simulated_key(seed, "x"), scope="x"
        )
        assert [sample.id for sample in split.test] == ["image/t0", "image/t1"]
        assert len(split.val) in (2, 4), "one or two of three patients validate"
        assert not {s.group for s in split.train} & {s.group for s in split.val}


def test_classes_become_connected_parts_and_bits(tmp_path: Path) -> None:
    dataset = MedDataset(tiny(tmp_path), keys("med_datasets", labels="classes"))
    assert dataset.load(dataset.samples[0]).labels_HW.max() == 3
    assert dataset.bits(dataset.samples[0]) == 8


@pytest.mark.parametrize(
    ("label", "shape"), [(MAP, ""), (MAP.reshape(1, 1, -1), ""), (STACK[..., 0], None), (STACK, None)]
)
def test_every_form_of_a_label(tmp_path: Path, label: np.ndarray, shape: str | None) -> None:
    dataset = MedDataset(tiny(tmp_path, label=label, shape=shape))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, MAP)


def test_overlapping_classes_keep_the_smaller(tmp_path: Path) -> None:
    stack = STACK.copy()
    stack[0] = 1
    dataset = MedDataset(tiny(tmp_path, label=stack))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, np.where(MAP == 2, 2, 1))


def test_pseudo_masks_train_and_labels_test(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    pseudo = PSEUDO.copy()
    pseudo[3:5, 4:7] = 7
    np.save(root / "imask" / "p0_0.npy", pseudo[None])
    dataset = MedDataset(root, keys("med_datasets", pseudo_masks=True))
    assert dataset.load(dataset.samples[0]).labels_HW.max() == 2
    np.testing.assert_array_equal(dataset.load(dataset.samples[-1]).labels_HW, MAP)
    np.save(root / "imask" / "p0_0.npy", pseudo[:5])
    assert "expected whole numbers of the image's size" in fault(lambda: dataset.load(dataset.samples[0]))
    np.save(root / "imask" / "p0_0.npy", pseudo.T)
    assert "found the shape (8, 6)" in fault(lambda: dataset.load(dataset.samples[0]))
    np.save(root / "imask" / "p0_0.npy", pseudo - 9)
    assert "found -10" in fault(lambda: dataset.load(dataset.samples[0]))
    np.save(root / "imask" / "p0_0.npy", pseudo.astype(object))
    assert "found pickled content" in fault(lambda: dataset.load(dataset.samples[0]))
    (root / "imask" / "p0_0.npy").write_bytes(b"")
    assert "found a file that cannot be read" in fault(lambda: dataset.load(dataset.samples[0]))
    np.savez(root / "imask" / "p0_0", a=pseudo)
    (root / "imask" / "p0_0.npz").rename(root / "imask" / "p0_0.npy")
    assert "found an archive" in fault(lambda: dataset.load(dataset.samples[0]))
    (root / "imask" / "p0_0.npy").unlink()
    assert "found 1 file (imask/p0_0.npy) missing" in fault(
        lambda: MedDataset(root, keys("med_datasets", pseudo_masks=True))
    )
    assert MedDataset(root).samples, "without pseudo_masks they may be absent"
    write(root, [put(root, "a", imask=False)], [put(root, "b")])
    assert "expected an imask of image/a.png" in fault(
        lambda: MedDataset(root, keys("med_datasets", pseudo_masks=True))
    )


@pytest.mark.parametrize(
    ("label", "shape", "expected"),
    [
        (MAP[:5], "", "expected a shape in the file name"),
        (STACK, ".(2, 8, 6, 1)", "expected the shape (2, 6, 8, 1) in the file name"),
        (STACK[:1], None, "expected the shape (2, 6, 8, 1) in the file name"),
        (STACK[:, :5], ".(2, 6, 8, 1)", "expected as many values as the shape in its name"),
        (STACK * 0, None, "found only background"),
        (np.stack([MAP > 0, MAP > 0])[..., None].astype(np.uint8), None, "found class 1 covered"),
        (MAP * 0.5, "", "found fractions"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, label: np.ndarray, shape: str | None, expected: str) -> None:
    dataset = MedDataset(tiny(tmp_path, label=label, shape=shape))
    text = fault(lambda: dataset.load(dataset.samples[0]))
    assert expected in text
    assert "label/x___p0_0" in text


def test_pickled_and_other_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny(tmp_path)
    dataset = MedDataset(root)
    file = root / "label" / f"x___p0_0.{STACK.shape}.npz"

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (root / "ran",))

    parts = {
        "format": b"csr",
        "shape": np.array([1, 96]),
        "indices": np.array([0]),
        "indptr": np.array([0, 1]),
    }
    np.savez(file, data=np.array([Bomb()], object), **parts)
    assert "found pickled content" in fault(lambda: dataset.load(dataset.samples[0]))
    assert not (root / "ran").exists()
    np.savez(file, labels=MAP)
    assert "expected a sparse matrix" in fault(lambda: dataset.load(dataset.samples[0]))
    file.write_bytes(b"PK")
    assert "cannot be read" in fault(lambda: dataset.load(dataset.samples[0]))
    monkeypatch.setattr(sparse_labels, "MAX_PIXELS", 1)
    np.savez_compressed(file, data=np.zeros(99))
    assert "bytes unpacked" in fault(lambda: dataset.load(dataset.samples[0]))


def test_dataset_json_is_judged_as_a_whole(tmp_path: Path) -> None:
    assert "found nothing" in fault(lambda: MedDataset(tmp_path / "none"))
    assert "No such file" in fault(lambda: MedDataset(tmp_path))
    (tmp_path / "dataset.json").write_text("{")
    assert "expected JSON" in fault(lambda: MedDataset(tmp_path))
    write(tmp_path, [{"image": "a.png"}], [{"label": 3}], labels=[])
    faults = fault(lambda: MedDataset(tmp_path))
    assert all(place in faults for place in ("training.0.label", "test.0.image", "test.0.label", "labels"))
    write(tmp_path, [{"image": "a.png", "label": "b.npz"}], [{"image": "/etc/c.png", "label": "../d.npz"}])
    faults = fault(lambda: MedDataset(tmp_path))
    assert "found 2 files (a.png, b.npz) missing" in faults
    assert "expected a path that stays inside" in faults
    root = tiny(tmp_path)
    entry = put(root, "twice")
    write(root, [entry], [entry])
    assert "found 1 repeat (image/twice)" in fault(lambda: MedDataset(root))


def marked(parts: str, groups: str | None = None) -> tuple[Sample, ...]:
    """Samples from letters: t train, e test, - unmarked."""
    names = {"t": "train", "e": "test", "-": None}
    return tuple(
        Sample(f"{i:03d}", groups[i] if groups else None, names[letter])  # type: ignore[arg-type]
        for i, letter in enumerate(parts)
    )


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (marked("tt-e"), "found 1 unmarked of 4"),
        (marked("te"), "found 1 test images and 1 training groups"),
        (marked("ttt"), "found 0 test images"),
        (marked("ttte", "abca"), "found 1 in training and test (first: 'a')"),
    ],
)
def test_own_lists_that_cannot_be_split(samples: tuple[Sample, ...], expected: str) -> None:
    text = fault(
        lambda: split_samples(
            samples, SplitSpec(), LimitSpec(), key=simulated_key(0, "site"), scope="site/task"
        )
    )
    assert expected in text


@pytest.mark.parametrize("sequence", [False, True])
def test_validation_is_a_share_of_training(sequence: bool) -> None:
    samples = marked("t" * 40 + "e" * 7)
    spec = SplitSpec(val=0.25, test=0.5, sequence=sequence)
    split = split_samples(samples, spec, LimitSpec(test=5), key=simulated_key(1, "x"), scope="x")
    assert len(split.test) == 5
    assert len(split.train) + len(split.val) == 40
    if sequence:
        assert len(split.val) == 10
        assert split.train[-1].id < split.val[0].id


def test_foreign_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found the id 'x'"):
        MedDataset(tiny(tmp_path)).load(Sample("x"))
