"""Phantoms: the same bits for the same seed, valid labels at every size, nine different modalities."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from casam_core.config.data_spec import DataSpec, ShiftSpec
from casam_core.errors import DataError
from client.data.dataset import LoadedSample, Sample
from client.data.phantoms import PHANTOMS, SLICES_PER_PATIENT
from client.data.phantoms.painted import PhantomDataset, area, elongation, labelled
from client.data.phantoms.shapes import Blob, Canvas

NAMES = sorted(PHANTOMS)
EXPECTED = {
    "cardiac_mr",
    "dental_xray",
    "glomeruli_a",
    "glomeruli_b",
    "histology",
    "polyp",
    "prostate_mr_a",
    "prostate_mr_b",
    "spleen_ct",
}


def _dataset(
    name: str, *, images: int = 4, size: int = 64, seed: int = 0, site: str = "site-a"
) -> PhantomDataset:
    return PhantomDataset(name, images, size, seed, site)


def _load(dataset: PhantomDataset, index: int) -> LoadedSample:
    return dataset.load(dataset.samples[index])


def _same(a: LoadedSample, b: LoadedSample) -> bool:
    return np.array_equal(a.image_HW3, b.image_HW3) and np.array_equal(a.labels_HW, b.labels_HW)


@pytest.fixture(autouse=True)
def painted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests take pictures that were painted before (tests/conftest.py)."""
    monkeypatch.setattr(PhantomDataset, "load", inspect.unwrap(PhantomDataset.load))


def test_the_registry_holds_the_nine_modalities() -> None:
    assert set(PHANTOMS) == EXPECTED
    assert set(SLICES_PER_PATIENT) <= EXPECTED


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "images"), [(32, 8), (64, 24), (256, 3), (101, 2)])
def test_every_sample_keeps_the_contract(name: str, size: int, images: int) -> None:
    dataset = _dataset(name, images=images, size=size, seed=size)
    for sample in dataset.samples:
        loaded = dataset.load(sample)
        assert loaded.image_HW3.shape == (size, size, 3)
        assert loaded.image_HW3.dtype == np.uint8
        assert loaded.labels_HW.shape == (size, size)
        assert loaded.labels_HW.dtype == np.int32
        labels = np.unique(loaded.labels_HW)
        assert labels.max() >= 1
        assert np.array_equal(labels[labels > 0], np.arange(1, labels.max() + 1))
        assert (loaded.labels_HW == 0).mean() > 0.2
        assert np.ptp(loaded.image_HW3) > 80


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    first, second = _dataset(name), _dataset(name)
    again = _load(second, 3)  # in another order, to show that loads do not share state
    assert _same(_load(first, 0), _load(second, 0))
    assert _same(_load(first, 3), again)


@pytest.mark.parametrize("name", NAMES)
def test_more_images_do_not_change_the_first(name: str) -> None:
    few, many = _dataset(name, images=2), _dataset(name, images=37)
    assert many.samples[:2] == few.samples
    assert _same(_load(few, 1), _load(many, 1))


@pytest.mark.parametrize("name", NAMES)
def test_index_seed_and_institution_each_change_the_image(name: str) -> None:
    reference = _load(_dataset(name), 0)
    others = [
        _load(_dataset(name), 1),
        _load(_dataset(name, seed=1), 0),
        _load(_dataset(name, site="site-b"), 0),
    ]
    for other in others:
        assert not np.array_equal(reference.image_HW3, other.image_HW3)
        assert not np.array_equal(reference.labels_HW, other.labels_HW)


def test_the_nine_differ_even_from_one_generator_state() -> None:
    images = [PHANTOMS[name](np.random.default_rng(5), 64).image_HW3.astype(float) for name in NAMES]
    for i, one in enumerate(images):
        for other in images[i + 1 :]:
            assert np.abs(one - other).mean() > 5


@pytest.mark.parametrize("name", ["cardiac_mr", "prostate_mr_a", "spleen_ct", "dental_xray"])
def test_grey_modalities_are_grey(name: str) -> None:
    image = _load(_dataset(name), 0).image_HW3
    assert np.array_equal(image[..., 0], image[..., 1])
    assert np.array_equal(image[..., 0], image[..., 2])


def test_cardiac_labels_are_pool_inside_myocardium() -> None:
    labels = _load(_dataset("cardiac_mr"), 0).labels_HW
    rows, columns = np.nonzero(labels == 1)
    assert labels.max() == 2
    ring_rows, ring_columns = np.nonzero(labels == 2)
    assert ring_rows.min() < rows.min() <= rows.max() < ring_rows.max()
    assert ring_columns.min() < columns.min() <= columns.max() < ring_columns.max()


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_one_patient_share_a_group(name: str) -> None:
    samples = _dataset(name, images=10).samples
    slices = SLICES_PER_PATIENT.get(name, 1)
    assert [sample.id for sample in samples] == [f"{i:04d}" for i in range(10)]
    groups = [sample.group for sample in samples]
    assert None not in groups
    assert len(set(groups)) == -(-10 // slices)
    for i, group in enumerate(groups):
        assert group == groups[i // slices * slices]


@pytest.mark.parametrize("name", sorted(SLICES_PER_PATIENT))
def test_slices_of_one_patient_look_alike(name: str) -> None:
    dataset = _dataset(name, images=16)
    masks = [_load(dataset, i).labels_HW > 0 for i in range(16)]

    def overlap(i: int, j: int) -> float:
        return float((masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum())

    pairs = [(i, j) for i in range(16) for j in range(i)]
    within = np.mean([overlap(i, j) for i, j in pairs if i // 4 == j // 4])
    between = np.mean([overlap(i, j) for i, j in pairs if i // 4 != j // 4])
    assert within > between + 0.05


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="unknown phantom 'brain_pet'") as error:
        _dataset("brain_pet")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize(("images", "size"), [(0, 64), (4, 8)])
def test_impossible_requests_are_refused(images: int, size: int) -> None:
    with pytest.raises(DataError, match="expected"):
        _dataset("polyp", images=images, size=size)


@pytest.mark.parametrize("sample", [Sample("0004", "polyp-0004"), Sample("x", None), Sample("0001", "other")])
def test_a_sample_of_another_dataset_is_refused(sample: Sample) -> None:
    with pytest.raises(DataError, match="0000 to 0003"):
        _dataset("polyp").load(sample)


def test_a_blob_has_its_border_at_level_one() -> None:
    blob = Blob(0.4, 0.6, 0.1, 0.2, 0.7)
    y, x = blob.at(1.0, 1.3)
    level = blob.level(np.full((1, 1), y, np.float32), np.full((1, 1), x, np.float32))
    assert level[0, 0] == pytest.approx(1.0, abs=1e-4)


def test_slivers_are_dropped_but_never_the_last_instance() -> None:
    canvas = Canvas(32, (0.5,))
    canvas.labels_HW[0, 0] = 1
    canvas.labels_HW[4:12, 4:12] = 7
    assert np.array_equal(np.unique(canvas.sample(smallest=0.01).labels_HW), [0, 1])
    canvas.labels_HW[4:12, 4:12] = 0
    assert canvas.sample(smallest=0.01).labels_HW.sum() == 1


def _shifted(name: str = "histology", *, index: int = 0, **shift: Any) -> LoadedSample:
    return _load(PhantomDataset(name, 4, 96, 0, "site-a", ShiftSpec(**shift)), index)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_shift_every_bit_stays(name: str) -> None:
    assert _same(_shifted(name), _load(_dataset(name, size=96), 0))


@pytest.mark.parametrize(("objects", "opposite"), [("small", "large"), ("round", "long")])
def test_label_skew_keeps_one_half_of_the_objects_and_the_picture(objects: str, opposite: str) -> None:
    every, some, others = (_shifted(objects=word) for word in ("all", objects, opposite))
    number = every.labels_HW.max()
    measured = area if objects == "small" else elongation
    assert some.labels_HW.max() == others.labels_HW.max() == (number + 1) // 2
    assert set(np.unique(some.labels_HW)) == set(range((number + 1) // 2 + 1))
    np.testing.assert_array_equal(some.image_HW3, every.image_HW3)
    # Both halves are the same objects as before, and one is on one side of the other.
    np.testing.assert_array_equal((some.labels_HW > 0) | (others.labels_HW > 0), every.labels_HW > 0)
    most = max(measured(some.labels_HW == k) for k in range(1, some.labels_HW.max() + 1))
    least = min(measured(others.labels_HW == k) for k in range(1, others.labels_HW.max() + 1))
    assert most <= least


def test_label_skew_of_the_heart_is_another_structure() -> None:
    """The pool is the smaller label of most hearts: of two labels, one stays and becomes 1."""
    assert _shifted("cardiac_mr", objects="small").labels_HW.max() == 1


def test_a_single_object_is_always_labelled() -> None:
    mask = np.zeros((8, 8), np.int32)
    mask[2:5, 2:7] = 1
    for objects in ("all", "small", "large", "round", "long"):
        np.testing.assert_array_equal(labelled(mask, objects), mask)


def test_another_scanner_changes_the_picture_and_no_label() -> None:
    plain = _shifted()
    for shift in ({"contrast": 0.5}, {"blur": 0.02}, {"noise": 0.1}, {"colour": (1.0, 0.8, 0.6)}):
        other = _shifted(**shift)
        assert not np.array_equal(other.image_HW3, plain.image_HW3)
        np.testing.assert_array_equal(other.labels_HW, plain.labels_HW)
        assert _same(other, _shifted(**shift)), "the same bits for the same seed"
    half, whole = _shifted(contrast=0.5).image_HW3.astype(float), plain.image_HW3.astype(float)
    np.testing.assert_allclose(half, (whole - 127.5) / 2 + 127.5, atol=1)
    red = _shifted(colour=(1.0, 0.0, 0.0)).image_HW3
    np.testing.assert_array_equal(red[..., 1:], 0)
    sharp, blurred = (np.diff(_shifted(blur=b).image_HW3.astype(float), axis=0).std() for b in (0.0, 0.02))
    assert blurred < 0.5 * sharp
    noisy = _shifted(noise=0.05).image_HW3.astype(float)
    inside = (whole > 60) & (whole < 195)  # noise is cut off at black and white
    assert np.std((noisy - whole)[inside]) == pytest.approx(0.05 * 255, rel=0.05)


def test_a_shift_belongs_to_phantoms() -> None:
    with pytest.raises(ValueError, match="shift belongs to phantom, found reader 'folder'"):
        DataSpec(path="images", shift=ShiftSpec(noise=0.1))
