"""Multi-page TIFF stacks: pages, depth, colour, and every fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from casam_core.config.data_spec import DataSpec
from client.data import open_dataset
from client.data.dataset import Sample
from client.data.readers.tiff_stack import TiffStackDataset, channels_of
from tests.client.making import RNG, fault, keys

PAGES = RNG.integers(0, 256, (4, 6, 8), dtype=np.uint8)
MASK = np.zeros((4, 6, 8), np.uint8)
MASK[1, 2:4, 2:5] = 3
MASK[3, 0, 0] = 1
MASK[3, 5, 7] = 8


def put(
    root: Path, pages: np.ndarray = PAGES, mask: np.ndarray = MASK, stem: str = "a", **options: object
) -> Path:
    for folder, values, more in (("images", pages, options), ("masks", mask, {})):
        (root / folder).mkdir(parents=True, exist_ok=True)
        default = {} if values.shape[-1] == 3 else {"photometric": "minisblack"}
        tifffile.imwrite(root / folder / f"{stem}.tif", values, **{**default, **more})
    return root


def test_pages_with_labels(tmp_path: Path) -> None:
    spec = DataSpec(reader="tiff_stack", path="stacks")
    put(tmp_path / "stacks")
    dataset = open_dataset(spec, data_root=tmp_path, seed=0, institution="north")
    assert dataset.samples == (Sample("a-z001", "a"), Sample("a-z003", "a"))
    loaded = dataset.load(dataset.samples[1])
    np.testing.assert_array_equal(loaded.image_HW3, np.stack([PAGES[3]] * 3, -1))
    np.testing.assert_array_equal(loaded.labels_HW, np.select([MASK[3] == 1, MASK[3] == 8], [1, 2]))


@pytest.mark.parametrize(
    ("pages", "options", "bits"),
    [
        (PAGES.astype(np.uint16) * 100, {}, 16),
        (PAGES.astype(np.float32), {"compression": "zlib"}, 32),
        (PAGES.astype(np.uint16) * 100, {"imagej": True, "metadata": {"axes": "ZYX"}}, 16),
        (PAGES > 127, {}, 8),
    ],
)
def test_depths(tmp_path: Path, pages: np.ndarray, options: dict[str, object], bits: int) -> None:
    dataset = TiffStackDataset(put(tmp_path, pages, **options))
    assert dataset.empty == 2
    assert dataset.bits(dataset.samples[0]) == bits
    shown = dataset.load(dataset.samples[0]).image_HW3[..., 0].astype(float)
    if pages.dtype == bool:
        np.testing.assert_array_equal(shown, pages[1] * 255.0)
    else:
        assert np.corrcoef(shown.ravel(), pages[1].ravel().astype(float))[0, 1] > 0.999


def test_colour_inverted_and_single_pages(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    dataset = TiffStackDataset(put(tmp_path / "colour", colour, photometric="rgb"))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).image_HW3, colour[1])
    dataset = TiffStackDataset(put(tmp_path / "inverted", photometric="miniswhite"))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).image_HW3[..., 0], 255 - PAGES[1])
    dataset = TiffStackDataset(put(tmp_path / "single", PAGES[1], MASK[1]))
    assert [sample.id for sample in dataset.samples] == ["a-z000"]
    dataset = TiffStackDataset(put(tmp_path / "single-colour", colour[1], MASK[1], photometric="rgb"))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).image_HW3, colour[1])


@pytest.mark.parametrize(
    ("pages", "mask", "options", "expected"),
    [
        (PAGES, MASK[:3], {}, "expected the shape of a.tif, 4 x 6 x 8, found 3 x 6 x 8"),
        (PAGES, MASK * 0, {}, "found only background"),
        (PAGES, MASK / np.float32(2), {}, "found fractions"),
        (PAGES, MASK.astype(np.int16) - 9, {}, "found -9"),
        (np.stack([PAGES] * 2), MASK, {}, "found the axes"),
        (PAGES[:3], MASK[:3], {"imagej": True, "metadata": {"axes": "CYX"}}, "1 x 6 x 8, found 3 x 6 x 8"),
        (PAGES, np.stack([MASK] * 3, -1), {}, "found colour"),
    ],
)
def test_stacks_that_are_refused(
    tmp_path: Path, pages: np.ndarray, mask: np.ndarray, options: dict[str, object], expected: str
) -> None:
    assert expected in fault(lambda: TiffStackDataset(put(tmp_path, pages, mask, **options)))


def ome(root: Path, pages: np.ndarray, axes: str, mask: np.ndarray = MASK, mask_axes: str = "ZYX") -> Path:
    """An OME-TIFF with its mask, which is one, too."""
    for part, values, order in (("images", pages, axes), ("masks", mask, mask_axes)):
        (root / part).mkdir(parents=True)
        tifffile.imwrite(root / part / "a.ome.tif", values, ome=True, metadata={"axes": order})
    return root


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
def test_one_channel_of_an_ome_tiff_is_read(tmp_path: Path, axes: str) -> None:
    pages = np.stack([PAGES, 255 - PAGES.astype(np.uint8)], axis=axes.index("C")).astype(np.uint8)
    root = ome(tmp_path, pages, axes)
    assert channels_of(root / "images" / "a.ome.tif") == 2
    first, second = (TiffStackDataset(root, keys("tiff_stack", channel=channel)) for channel in (0, 1))
    one, other = (found.load(found.samples[0]).image_HW3.astype(int) for found in (first, second))
    assert first.samples[0].id.startswith("a-z"), "the ending is .ome.tif, not .tif"
    np.testing.assert_array_equal(one, 255 - other)
    assert "expected a channel from 0 to 1, found channel = 2" in fault(
        lambda: (found := TiffStackDataset(root, keys("tiff_stack", channel=2))).load(found.samples[0])
    )


def test_a_mask_with_channels_is_refused(tmp_path: Path) -> None:
    root = ome(tmp_path, PAGES, "ZYX", np.stack([MASK, MASK]), "CZYX")
    assert "expected one label map, found channels (axes CZYX)" in fault(lambda: TiffStackDataset(root))


def test_pages_of_several_kinds(tmp_path: Path) -> None:
    put(tmp_path)
    with tifffile.TiffWriter(tmp_path / "images" / "a.tif") as file:
        file.write(PAGES[0])
        file.write(PAGES[1, :3])
    assert "found 2 different kinds of pages" in fault(lambda: TiffStackDataset(tmp_path))


def test_cut_files_are_never_filled(tmp_path: Path) -> None:
    put(tmp_path)
    for folder, kept in (("images", -60), ("images", 5), ("masks", -60)):
        whole = (tmp_path / folder / "a.tif").read_bytes()
        (tmp_path / folder / "a.tif").write_bytes(whole[:kept])

        def read() -> None:
            dataset = TiffStackDataset(tmp_path)
            dataset.load(dataset.samples[0])

        assert "cannot be read" in fault(read)
        (tmp_path / folder / "a.tif").write_bytes(whole)
