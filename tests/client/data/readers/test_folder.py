"""FolderDataset: every format it reads, every fault it names."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from casam_core.config.data_spec import DataSpec
from casam_core.errors import DataError
from client.data import open_dataset, pixels
from client.data.readers.folder import FolderDataset
from scenarios.inspection.survey import read_everything
from tests.client.making import keys

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
DEEP = RNG.integers(100, 4096, (6, 8)).astype(np.uint16)
DEEP_RGB = RNG.integers(100, 4096, (6, 8, 3)).astype(np.uint16)
MASK = np.zeros((6, 8), np.uint8)
MASK[0:2, 0:3] = 7
MASK[3:5, 4:7] = 200
NUMBERED = np.where(MASK == 7, 1, np.where(MASK == 200, 2, 0))

Write = Callable[[Path], None]


def png16(values: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG; Pillow writes none in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def save(values: np.ndarray, **options: object) -> Write:
    return lambda path: Image.fromarray(values).save(path, **options)


def save_tiff(values: np.ndarray, **options: object) -> Write:
    return lambda path: tifffile.imwrite(path, values, **options)


def save_png16(values: np.ndarray, colour_type: int) -> Write:
    return lambda path: path.write_bytes(png16(values, colour_type)) and None


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) / (high - low) * 255).astype(np.uint8)


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


def build(
    root: Path,
    *,
    image: tuple[str, Write] = ("a.png", save(RGB)),
    mask: tuple[str, Write] = ("a.png", save(MASK)),
) -> Path:
    for folder, (name, write) in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        write(root / folder / name)
    return root


def message(action: Callable[[], object]) -> str:
    """Text of the DataError `action` raises: one line, as commands print it."""
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert "expected" in text
    assert "found" in text
    return text


def load_message(root: Path) -> str:
    dataset = FolderDataset(root)
    return message(lambda: dataset.load(dataset.samples[0]))


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.png", save(GRAY), as_rgb(GRAY)),
        ("a.PNG", save(RGB), RGB),
        ("a.png", save(np.dstack([RGB, GRAY])), RGB),
        ("a.png", save(np.dstack([GRAY, RGB[..., 0]])), as_rgb(GRAY)),
        ("a.png", save(GRAY > 127), as_rgb(np.where(GRAY > 127, 255, 0))),
        ("a.png", save(DEEP), as_rgb(scaled(DEEP))),
        ("a.png", save_png16(DEEP_RGB, 2), scaled(DEEP_RGB)),
        ("a.png", save_png16(np.dstack([DEEP, DEEP * 16]), 4), as_rgb(scaled(DEEP))),
        ("a.png", save_png16(np.dstack([DEEP_RGB, DEEP * 16]), 6), scaled(DEEP_RGB)),
        ("a.png", save(np.full((6, 8), 900, np.uint16)), np.zeros((6, 8, 3))),
        ("a.tif", save(GRAY), as_rgb(GRAY)),
        ("a.tif", save(RGB, compression="tiff_lzw"), RGB),
        ("a.TIFF", save_tiff(DEEP), as_rgb(scaled(DEEP))),
        ("a.tif", save_tiff(DEEP.astype(">u2"), byteorder=">"), as_rgb(scaled(DEEP))),
        ("a.tif", save(DEEP, compression="tiff_lzw"), as_rgb(scaled(DEEP))),
        ("a.tif", save_tiff(DEEP, photometric="miniswhite"), as_rgb(255 - scaled(DEEP))),
        ("a.tif", save_tiff(DEEP_RGB, photometric="rgb", compression="zlib"), scaled(DEEP_RGB)),
        (
            "a.tif",
            save_tiff(DEEP_RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
            scaled(DEEP_RGB),
        ),
        ("a.tif", save_tiff(DEEP.astype(np.float32) / 7), as_rgb(scaled(DEEP))),
        ("a.tif", save_tiff(DEEP.astype(np.int16) - 1024), as_rgb(scaled(DEEP))),
    ],
)
def test_images_of_every_kind(tmp_path: Path, name: str, write: Write, expected: np.ndarray) -> None:
    dataset = FolderDataset(build(tmp_path, image=(name, write)))
    loaded = dataset.load(dataset.samples[0])
    assert loaded.image_HW3.dtype == np.uint8
    np.testing.assert_array_equal(loaded.image_HW3, expected)


def test_16_bit_colour_png_keeps_every_bit(tmp_path: Path) -> None:
    """Values that differ in their lower bytes only, in all three layouts."""
    values = RNG.integers(0, 256, (5, 7, 4)).astype(np.uint16) + 0x1200
    for colour_type, channels in ((2, 3), (4, 2), (6, 4)):
        stored = values[..., :channels]
        (tmp_path / "a.png").write_bytes(png16(stored, colour_type))
        colour = stored[..., : 3 if channels > 2 else 1]
        np.testing.assert_array_equal(
            pixels.read_image(tmp_path / "a.png"), np.broadcast_to(scaled(colour), (5, 7, 3))
        )


def test_palette_image_and_jpeg(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(4)
    dataset = FolderDataset(build(tmp_path / "palette", image=("a.png", lambda path: palette.save(path))))
    image = dataset.load(dataset.samples[0]).image_HW3
    np.testing.assert_array_equal(image, np.asarray(palette.convert("RGB")))

    flat = np.full((6, 8, 3), (200, 40, 90), np.uint8)
    dataset = FolderDataset(build(tmp_path / "jpeg", image=("a.JPG", save(flat, quality=95, format="JPEG"))))
    image = dataset.load(dataset.samples[0]).image_HW3
    assert np.abs(image.astype(int) - flat).max() <= 3

    cmyk = Image.fromarray(flat).convert("CMYK")
    dataset = FolderDataset(build(tmp_path / "cmyk", image=("a.jpeg", lambda path: cmyk.save(path))))
    assert dataset.load(dataset.samples[0]).image_HW3.shape == (6, 8, 3)


def save_palette_mask(path: Path) -> None:
    file = Image.fromarray(MASK, mode="P")
    file.putpalette(list(np.random.default_rng(1).permutation(256)) * 3)
    file.save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", save(MASK)),
        ("a.png", save(MASK.astype(np.uint16) * 300)),
        ("a.png", save(as_rgb(MASK))),
        ("a.png", save(np.dstack([as_rgb(MASK), GRAY]))),
        ("a.png", save_png16(as_rgb(MASK).astype(np.uint16) * 300, 2)),
        ("a.png", save_palette_mask),
        ("a.tif", save(MASK, compression="tiff_lzw")),
        ("a.tif", save_tiff(MASK.astype(np.uint16) * 300)),
        ("a.tif", save(MASK.astype(np.uint16) * 300, compression="tiff_lzw")),
        ("a.tiff", save_tiff(MASK.astype(np.uint32) * 20_000_000)),
        ("a.tif", save_tiff(MASK.astype(np.int32) * 1000)),
        ("a.tif", save_tiff(MASK.astype(np.float32))),
    ],
)
def test_masks_of_every_kind(tmp_path: Path, name: str, write: Write) -> None:
    dataset = FolderDataset(build(tmp_path, mask=(name, write)))
    labels = dataset.load(dataset.samples[0]).labels_HW
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, NUMBERED)


def test_one_bit_mask_and_mask_without_background(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        dataset = FolderDataset(build(tmp_path / name, mask=(name, save(MASK > 0))))
        np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, MASK > 0)
    full = FolderDataset(build(tmp_path / "full", mask=("a.png", save(MASK + 3))))
    np.testing.assert_array_equal(full.load(full.samples[0]).labels_HW, NUMBERED + 1)


def test_classes_become_connected_parts_in_order_of_class(tmp_path: Path) -> None:
    classes = np.zeros((6, 8), np.uint8)
    classes[0, 0:2] = 9
    classes[2, 0], classes[3, 1] = 4, 4  # touch at a corner: one part
    classes[2, 6] = 4
    classes[2, 7] = 9
    expected = np.zeros((6, 8), np.int32)
    expected[2, 0], expected[3, 1], expected[2, 6], expected[0, 0:2], expected[2, 7] = 1, 1, 2, 3, 4
    root = build(tmp_path, mask=("a.png", save(classes)))
    dataset = FolderDataset(root, keys("folder", labels="classes"))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).labels_HW, expected)
    dataset = FolderDataset(root)
    assert dataset.load(dataset.samples[0]).labels_HW.max() == 2


def test_ids_are_sorted_stems_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for stem in ("b_2", "a.x", "B_1"):
        build(tmp_path, image=(f"{stem}.png", save(RGB)), mask=(f"{stem}.tif", save(MASK)))
    for other in (
        "images/README.md",
        "images/._a.x.png",
        "masks/labels.json",
        "masks/.DS_Store",
        "notes.txt",
    ):
        (tmp_path / other).write_text("x")
    (tmp_path / "images" / ".thumbnails").mkdir()
    assert [sample.id for sample in FolderDataset(tmp_path).samples] == ["B_1", "a.x", "b_2"]


def test_groups_come_from_the_file_names(tmp_path: Path) -> None:
    for stem in ("p01_s1", "p01_s2", "p02_s1"):
        build(tmp_path, image=(f"{stem}.png", save(RGB)), mask=(f"{stem}.png", save(MASK)))
    dataset = FolderDataset(tmp_path, keys("folder", group_pattern=r"^(p\d+)_"))
    assert [sample.group for sample in dataset.samples] == ["p01", "p01", "p02"]
    assert all(sample.group is None for sample in FolderDataset(tmp_path).samples)

    text = message(lambda: FolderDataset(tmp_path, keys("folder", group_pattern=r"^(p01)_")))
    assert "1 name (p02_s1) without" in text
    text = message(lambda: FolderDataset(tmp_path, keys("folder", group_pattern=r"(x)?p")))
    assert "3 names (p01_s1, p01_s2, p02_s1) without" in text
    assert "parentheses" in message(lambda: FolderDataset(tmp_path, keys("folder", group_pattern="p01")))
    text = message(lambda: FolderDataset(tmp_path, keys("folder", group_pattern="(p")))
    assert "regular expression" in text
    assert "unterminated" in text


def test_missing_folders(tmp_path: Path) -> None:
    text = message(lambda: FolderDataset(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in text
    assert "found nothing" in text
    (tmp_path / "file").write_text("x")
    assert "found a file" in message(lambda: FolderDataset(tmp_path / "file"))
    (tmp_path / "images").mkdir()
    text = message(lambda: FolderDataset(tmp_path))
    assert str(tmp_path / "masks") in text
    (tmp_path / "images").rmdir()
    (tmp_path / "masks").mkdir()
    assert str(tmp_path / "images") in message(lambda: FolderDataset(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "README").write_text("x")
    assert "expected at least one PNG, JPEG or TIFF, found none" in message(lambda: FolderDataset(tmp_path))


def test_images_and_masks_must_pair(tmp_path: Path) -> None:
    build(tmp_path)
    for name in ("e.png", "d.jpg", "c.tif", "b.png"):
        save(RGB)(tmp_path / "images" / name)
    text = message(lambda: FolderDataset(tmp_path))
    assert "expected a mask like masks/{id}.* for every image" in text
    assert "found 4 images (b.png, c.tif, d.jpg, ...) without" in text
    for name in ("e.png", "d.jpg", "c.tif", "b.png"):
        (tmp_path / "images" / name).unlink()
    save(MASK)(tmp_path / "masks" / "z.png")
    text = message(lambda: FolderDataset(tmp_path))
    assert "expected an image like images/{id}.* for every mask, found 1 mask (z.png) without" in text


def test_one_file_per_stem(tmp_path: Path) -> None:
    build(tmp_path)
    save(RGB)(tmp_path / "images" / "a.jpg")
    assert "found a.jpg and a.png" in message(lambda: FolderDataset(tmp_path))
    (tmp_path / "images" / "a.jpg").unlink()
    save(MASK)(tmp_path / "masks" / "a.tif")
    assert "found a.png and a.tif" in message(lambda: FolderDataset(tmp_path))


def test_other_image_formats_and_subfolders_are_named(tmp_path: Path) -> None:
    build(tmp_path)
    for name in ("scan.nii.gz", "b.BMP"):
        (tmp_path / "images" / name).write_bytes(b"x")
    text = message(lambda: FolderDataset(tmp_path))
    assert "found 2 files (b.BMP, scan.nii.gz) of another format; name the reader" in text
    (tmp_path / "images" / "patient-1").mkdir()
    assert "found 1 folder (patient-1)" in message(lambda: FolderDataset(tmp_path))


def test_size_mismatch(tmp_path: Path) -> None:
    text = load_message(build(tmp_path, mask=("a.png", save(MASK[:5]))))
    assert "masks/a.png" in text
    assert "expected the size of a.png, 8 x 6, found 8 x 5" in text


def test_empty_mask(tmp_path: Path) -> None:
    text = load_message(build(tmp_path, mask=("a.png", save(MASK * 0))))
    assert "masks/a.png" in text
    assert "found only background" in text


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.png", save(RGB), "found a colour mask"),
        ("a.png", save_png16(DEEP_RGB, 2), "found a colour mask"),
        ("a.jpg", save(MASK), "found JPEG"),
        ("a.png", save(MASK, format="JPEG"), "found JPEG"),
        ("a.tif", save(MASK, compression="jpeg"), "found JPEG compression"),
        ("a.tif", save_tiff(MASK, photometric="miniswhite"), "found an inverted gray scale"),
        ("a.tif", save_tiff(MASK.astype(np.float32) / 3), "found fractions"),
        ("a.tif", save_tiff(MASK.astype(np.float32) * np.nan), "found fractions or non-finite"),
        ("a.tif", save_tiff(MASK.astype(np.int16) - 5), "found -5"),
        ("a.tif", save_tiff(np.stack([MASK] * 5), photometric="minisblack"), "found 5 pages"),
    ],
)
def test_masks_that_are_refused(tmp_path: Path, name: str, write: Write, expected: str) -> None:
    text = load_message(build(tmp_path, mask=(name, write)))
    assert f"masks/{name}" in text
    assert expected in text


def orient(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.jpg", save(RGB, exif=orient(3)), "found orientation tag 3"),
        ("a.png", save(RGB, exif=orient(6)), "so that image and mask lie alike"),
        ("a.tif", save(RGB, tiffinfo={274: 8}), "found orientation tag 8"),
        ("a.tif", save_tiff(np.stack([DEEP] * 3), photometric="minisblack"), "found 3 pages"),
        ("a.tif", save_tiff(DEEP * np.float32(np.inf)), "found NaN or infinity"),
        ("a.png", lambda path: path.write_bytes(b"") and None, "cannot be read"),
        ("a.png", lambda path: path.write_text("not an image") and None, "bytes are of no such format"),
    ],
)
def test_images_that_are_refused(tmp_path: Path, name: str, write: Write, expected: str) -> None:
    text = load_message(build(tmp_path, image=(name, write)))
    assert f"images/{name}" in text
    assert expected in text


def test_upright_orientation_tag_is_read(tmp_path: Path) -> None:
    dataset = FolderDataset(build(tmp_path, image=("a.png", save(RGB, exif=orient(1)))))
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).image_HW3, RGB)


LARGE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("fill", [False, True], ids=["strict", "others-let-Pillow-fill"])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", save(LARGE)),
        ("a.jpg", save(LARGE)),
        ("a.png", save_png16(LARGE.astype(np.uint16), 2)),
        ("a.png", save(LARGE[..., 0].astype(np.uint16))),
        ("a.tif", save(LARGE, compression="tiff_lzw")),
        ("a.tif", save(LARGE[..., 0])),
        ("a.tif", save_tiff(LARGE[..., 0].astype(np.uint16))),
        ("a.tif", save_tiff(LARGE[..., 0].astype(np.uint16), compression="zlib", rowsperstrip=8)),
    ],
)
def test_truncated_files_are_never_filled(
    tmp_path: Path, name: str, write: Write, fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", fill)
    root = build(tmp_path, image=(name, write))
    file = root / "images" / name
    file.write_bytes(file.read_bytes()[:-600])
    assert "cannot be read" in load_message(root)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_never_escape_as_another_error(tmp_path: Path) -> None:
    """Whatever a flipped or cut byte does, the reader returns pixels or raises DataError."""
    rng = np.random.default_rng(3)
    texts: list[str] = []
    writers = [
        ("a.png", save(GRAY)),
        ("a.png", save_png16(DEEP_RGB, 2)),
        ("a.jpg", save(RGB)),
        ("a.tif", save(RGB)),
        ("a.tif", save_tiff(DEEP_RGB, photometric="rgb")),
        ("a.tif", save_tiff(DEEP, compression="zlib")),
    ]
    for name, write in writers:
        file = tmp_path / name
        write(file)
        whole = file.read_bytes()
        for _ in range(60):
            broken = bytearray(whole)
            for place in rng.integers(0, len(broken), int(rng.integers(1, 6))):
                broken[place] = rng.integers(0, 256)
            file.write_bytes(broken[: int(rng.integers(len(broken) // 2, len(broken) + 1))])
            for read in (pixels.read_image, pixels.read_mask):
                try:
                    read(file)
                except DataError as fault:
                    texts.append(str(fault))
    assert texts
    assert not any("\n" in text for text in texts)


def test_flipped_byte_in_a_png_is_found_by_its_checksum(tmp_path: Path) -> None:
    root = build(tmp_path, image=("a.png", save(LARGE, compress_level=0)))
    file = root / "images" / "a.png"
    broken = bytearray(file.read_bytes())
    broken[len(broken) // 2] ^= 1
    file.write_bytes(broken)
    assert "checksum" in load_message(root)


def test_images_too_large_to_hold(tmp_path: Path) -> None:
    huge = png16(np.zeros((1, 1), np.uint16), 0)
    for side, shown in ((9000, "9000 x 9000"), (60_000, "3600000000 pixels")):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        crafted = huge[:12] + header + struct.pack(">I", zlib.crc32(header)) + huge[33:]
        root = tmp_path / str(side)
        build(root, image=("a.png", lambda path, data=crafted: path.write_bytes(data) and None))
        text = load_message(root)
        assert "expected at most 67108864 pixels" in text
        assert shown in text


def test_file_removed_after_listing_and_foreign_sample(tmp_path: Path) -> None:
    root = build(tmp_path)
    dataset = FolderDataset(root)
    sample = dataset.samples[0]
    (root / "images" / "a.png").unlink()
    assert "images/a.png" in message(lambda: dataset.load(sample))
    assert "found the id 'b'" in message(lambda: dataset.load(type(sample)("b")))


def test_check_reads_everything_in_order_and_stops_at_the_first_fault(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        build(tmp_path, image=(f"{stem}.png", save(RGB)), mask=(f"{stem}.png", save(MASK)))
    seen: list[tuple[int, int]] = []
    spec = DataSpec(path=str(tmp_path))
    read_everything(FolderDataset(tmp_path), spec, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    read_everything(FolderDataset(tmp_path), spec)
    save(MASK * 0)(tmp_path / "masks" / "b.png")
    seen.clear()
    dataset = FolderDataset(tmp_path)
    text = message(lambda: read_everything(dataset, spec, progress=lambda *counts: seen.append(counts)))
    assert "masks/b.png" in text
    assert seen == [(1, 3)]


def test_open_dataset_resolves_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "nuclei")

    def ids(path: str, data_root: Path | None) -> list[str]:
        dataset = open_dataset(DataSpec(path=path), data_root=data_root, seed=0, institution="site-a")
        return [sample.id for sample in dataset.samples]

    assert ids("nuclei", tmp_path) == ["a"]
    assert ids(str(tmp_path / "nuclei"), None) == ["a"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ids("~/nuclei", None) == ["a"]
    assert ids("nuclei", Path("~")) == ["a"]
    assert "pass --data-root" in message(lambda: ids("nuclei", None))
    assert "unknown home folder" in message(lambda: ids("~no-such-user-here/nuclei", None))


def test_open_dataset_passes_labels_and_groups(tmp_path: Path) -> None:
    build(tmp_path / "set", mask=("a.png", save(np.where(NUMBERED > 0, 1, 0).astype(np.uint8))))
    spec = DataSpec(path="set", labels="classes", group_pattern="(a)")
    dataset = open_dataset(spec, data_root=tmp_path, seed=0, institution="site-a")
    assert dataset.samples[0].group == "a"
    assert dataset.load(dataset.samples[0]).labels_HW.max() == 2


def test_open_dataset_draws_phantoms() -> None:
    spec = DataSpec(reader="phantom", phantom="polyp", images=3, size=32)
    dataset = open_dataset(spec, data_root=None, seed=0, institution="site-a")
    assert len(dataset.samples) == 3
    loaded = dataset.load(dataset.samples[0])
    assert loaded.image_HW3.shape == (32, 32, 3)
    assert loaded.labels_HW.max() >= 1


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no such file; check the path"):
        pixels.read_image(tmp_path / "absent.png")


REAL_DATA = Path(__file__).parents[5] / "shared" / "data"


@pytest.mark.parametrize(
    "name", ["dsb2018_fluorescence", "dsb2018_histology_purple", "dsb2018_histology_white"]
)
def test_real_nuclei(name: str) -> None:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"no folder {name} in {REAL_DATA}")
    dataset = FolderDataset(REAL_DATA / name)
    assert len(dataset.samples) >= 38
    for sample in dataset.samples[::20]:
        loaded = dataset.load(sample)
        assert loaded.image_HW3.shape == (*loaded.labels_HW.shape, 3)
        labels = np.unique(loaded.labels_HW)
        np.testing.assert_array_equal(labels, np.arange(len(labels)))
        assert len(labels) >= 2
