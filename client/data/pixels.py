"""Pixels of one file: PNG, JPEG and TIFF, read strictly.

A file is either read exactly as it was stored or refused with a DataError; nothing is guessed, filled
or rotated. Pillow decodes PNG, JPEG and 8-bit TIFF; tifffile decodes TIFF with more than 8 bits.

Orientation tags are refused, not applied. A mask has no such tag, and the files do not show whether it was
drawn on the stored or on the rotated pixels. After half turns and mirrors even the sizes agree, so a wrong
guess would silently train on wrong labels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from casam_core.errors import DataError
from client.data.labels import whole_labels

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ome.tif", ".ome.tiff"})
"""File endings that are read, in lower case."""

MAX_PIXELS = 2**26
"""Largest image read, 8192 x 8192; beyond it a small file could fill the memory."""

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
_PICTURE = "a complete PNG, JPEG or TIFF"
LOSSY_TIFF = ("JPEG", "OJPEG", "JPEG_2000_LOSSY", "WEBP", "JPEGXR")


def read_image(path: Path) -> NDArray[np.uint8]:
    """The image at `path` as uint8 RGB, shape (height, width, 3).

    8-bit files keep their values: gray is repeated over the channels, palettes are looked up, alpha is
    dropped without blending. 16-bit, 32-bit and float files are scaled by the image's own minimum and
    maximum (over all colour channels together) to 0..255 and rounded; a constant one becomes black.
    Raises DataError.
    """
    stored, inverted = _decode(path, as_mask=False)
    if stored.ndim == 3:
        # Gray + alpha and RGB + alpha lose their alpha; gray is repeated below.
        stored = stored[..., 0] if stored.shape[2] <= 2 else stored[..., :3]
    image = stored if stored.dtype == np.uint8 else _scale(stored, path)
    return as_rgb(255 - image if inverted else image)


def read_mask(path: Path) -> NDArray[Any]:
    """The label map at `path` as stored: (height, width), an integer type, no value below 0.

    Palette files give their indices. RGB(A) files are read if their three channels are equal, float files
    if every value is a whole number. Raises DataError, also for lossy files: lossy compression creates false
    labels along edges.
    """
    values, inverted = _decode(path, as_mask=True)
    if inverted:
        raise DataError(
            f"{path}: expected a mask whose background is stored as 0, found an inverted gray scale "
            f"(MinIsWhite); save it with a plain gray scale"
        )
    if values.ndim == 3:
        colour = values[..., : 3 if values.shape[2] >= 3 else 1]
        if (colour != colour[..., :1]).any():
            raise DataError(
                f"{path}: expected a label map with one value per pixel, found a colour mask (channels "
                f'differ); write labels = "colours" if each colour is a class, or save it as gray'
            )
        values = values[..., 0]
    return whole_labels(values, path)


def read_colours(path: Path) -> NDArray[np.int64]:
    """values_HW of an RGB(A) mask: 0 where it is black, else 65536 R + 256 G + B. Raises DataError."""
    stored, _ = _decode(path, as_mask=True)
    if stored.ndim != 3 or stored.shape[2] < 3 or stored.dtype != np.uint8:
        raise DataError(
            f"{path}: expected an 8-bit RGB mask, because labels = 'colours', found another kind; write "
            "labels = 'classes' or 'instances' for masks with one value per pixel"
        )
    colours: NDArray[np.int64] = stored[..., :3].astype(np.int64) @ np.array([65536, 256, 1])
    return colours


def stored_bits(path: Path) -> int:
    """Bits per value in the file `path`, from its header: 8 (or fewer), 16, 32 or 64. Raises DataError."""
    with reading(path, _PICTURE), Image.open(path, formats=("PNG", "JPEG", "TIFF")) as file:
        if isinstance(file, PngImagePlugin.PngImageFile):
            with path.open("rb") as raw:
                return max(8, raw.read(25)[24])
        tags = getattr(file, "tag_v2", {})
        return max(8, *map(int, tags.get(_BITS_PER_SAMPLE, (8,))))


def _scale(stored: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """`stored` mapped linearly from its own minimum..maximum to 0..255."""
    values = stored.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: expected finite intensities, found NaN or infinity; replace these pixels")
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled: NDArray[np.uint8] = np.rint((values - low) / (high - low) * 255).astype(np.uint8)
    return scaled


def _decode(path: Path, *, as_mask: bool) -> tuple[NDArray[Any], bool]:
    """Stored values, (height, width) or (height, width, channels), and whether 0 means white."""
    # Other libraries turn on this process-wide switch, which fills missing pixels with gray.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with reading(path, _PICTURE):
        data = path.read_bytes()
        try:
            opened = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
        except Image.DecompressionBombError as fault:
            raise _too_large(path, one_line(fault)) from fault
        except UnidentifiedImageError as fault:  # whose own text names an object of Python
            raise ValueError("its first bytes are of no such format") from fault
        with opened as file:
            if file.width * file.height > MAX_PIXELS:
                raise _too_large(path, f"{file.width} x {file.height}")
            if file.format == "PNG":
                _verify_png(data)
            _check_header(path, file, as_mask=as_mask)
            if file.format == "TIFF":
                return _decode_tiff(path, data, file, as_mask=as_mask)
            if file.format == "PNG":
                return _decode_png(data, file, as_mask=as_mask), False
            return _pillow_values(file, as_mask=as_mask), False


def _check_header(path: Path, file: ImageFile.ImageFile, *, as_mask: bool) -> None:
    # MPO is a JPEG with several pictures, which phones write.
    if as_mask and file.format in ("JPEG", "MPO"):
        raise DataError(
            f"{path}: expected a lossless mask, found JPEG, which blurs labels; export it anew as PNG or TIFF"
        )
    orientation = file.getexif().get(_ORIENTATION, 1)
    if orientation not in (0, 1):
        raise DataError(
            f"{path}: expected pixels stored upright, found orientation tag {orientation}; turn the pixels "
            "themselves or remove the tag, so that image and mask lie alike"
        )


def _verify_png(data: bytes) -> None:
    """Check the checksum of every chunk; decoding alone does not check all."""
    # verify() makes its file object unusable, and reading EXIF decodes a PNG: so this comes first, on a copy.
    with Image.open(io.BytesIO(data), formats=("PNG",)) as copy:
        copy.verify()


def _decode_png(data: bytes, file: ImageFile.ImageFile, *, as_mask: bool) -> NDArray[Any]:
    # Bytes 24 and 25 of a PNG are its bit depth and colour type (0: gray).
    if data[24] == 16 and data[25] != 0:
        return _decode_png_16_bit_colour(data)
    return _pillow_values(file, as_mask=as_mask)


def _decode_png_16_bit_colour(data: bytes) -> NDArray[Any]:
    """Both bytes of every sample, (height, width, 2, 3 or 4) uint16.

    Pillow keeps one byte per sample of 16-bit colour: the upper one, or with the other byte order the lower
    one. Gray with alpha has four bytes per pixel and is therefore decoded as RGBA.
    """
    colour_type = data[25]
    if colour_type == 4:
        pairs = _pillow_png_bytes(data, "RGBA").astype(np.uint16)
        return pairs[..., 0::2] << 8 | pairs[..., 1::2]
    mode = {2: "RGB", 6: "RGBA"}[colour_type]
    upper = _pillow_png_bytes(data, f"{mode};16B").astype(np.uint16)
    return upper << 8 | _pillow_png_bytes(data, f"{mode};16L")


def _pillow_png_bytes(data: bytes, raw_mode: str) -> NDArray[np.uint8]:
    """The PNG decoded as if its bytes were laid out as `raw_mode`."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as file:
        file.tile = [tile._replace(args=raw_mode) for tile in file.tile]
        return np.asarray(file)


def _pillow_values(file: ImageFile.ImageFile, *, as_mask: bool) -> NDArray[Any]:
    if as_mask or file.mode.startswith("I;16"):
        if file.mode not in ("1", "L", "P", "LA", "PA", "RGB", "RGBA") and not file.mode.startswith("I;16"):
            raise ValueError(f"colour space {file.mode} holds no labels")
        return np.asarray(file)
    return np.asarray(file.convert("RGB"))


def _decode_tiff(
    path: Path, data: bytes, file: ImageFile.ImageFile, *, as_mask: bool
) -> tuple[NDArray[Any], bool]:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        if len(tiff.pages) != 1:
            raise DataError(
                f"{path}: expected one image per file, found {len(tiff.pages)} pages; save each page "
                f"(or the channels together as RGB) as a file of its own"
            )
        page = tiff.pages.first
        # Pillow's header check ignores samples per pixel and depth.
        if page.size > MAX_PIXELS * 4:
            raise _too_large(path, f"an array of shape {page.shape}")
        compression = getattr(page.compression, "name", str(page.compression))
        if as_mask and compression in LOSSY_TIFF:
            raise DataError(
                f"{path}: expected a lossless mask, found {compression} compression; export it without"
            )
        # tifffile fills missing strips with zeros; an incomplete file must not look like a dark image.
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count == 0 or offset + count > len(data):
                raise ValueError("the file ends before its pixels do")
        photometric = getattr(page.photometric, "name", str(page.photometric))
        inverted = photometric == "MINISWHITE"
        if page.dtype in (np.dtype(bool), np.dtype(np.uint8)):
            # Pillow reverses inverted 8-bit scales by itself; for masks the stored values are needed.
            return _pillow_values(file, as_mask=as_mask), inverted and as_mask
        if photometric not in ("MINISBLACK", "MINISWHITE", "RGB"):
            raise ValueError(f"colour space {photometric} with {page.bitspersample} bits is not read")
        return _deep_tiff_values(path, page, file, compression), inverted


def _deep_tiff_values(
    path: Path, page: tifffile.TiffPage, file: ImageFile.ImageFile, compression: str
) -> NDArray[Any]:
    """Values of a TIFF with more than 8 bits, (height, width) or (height, width, 3 or 4)."""
    try:
        values: NDArray[Any] = np.asarray(page.asarray())
    except ValueError as fault:
        if "imagecodecs" not in str(fault):
            raise
        if file.mode.startswith("I;16"):
            return _pillow_values(file, as_mask=True)
        raise DataError(
            f"{path}: expected a TIFF without compression or with deflate, found {compression} on "
            f"{page.bitspersample}-bit pixels; save it again, or install the package imagecodecs"
        ) from fault
    if page.axes == "SYX":
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise DataError(
            f"{path}: expected gray, RGB or RGBA, found an array of shape {values.shape}; save one "
            f"2-D image per file"
        )
    return values


def _too_large(path: Path, found: str) -> DataError:
    return DataError(
        f"{path}: expected at most {MAX_PIXELS} pixels, found {found}; cut it into tiles or scale it down"
    )


@contextmanager
def reading(source: Path, content: str, advice: str = "export or copy it again") -> Iterator[None]:
    """Whatever a library raises while it reads `source` becomes a DataError; a DataError stays as it is.

    Decoders raise many kinds of exceptions for damaged files; none of them is a defect of this code.
    content: what the file should hold. advice: what to do.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as fault:
        raise DataError(f"{source}: expected {content}, found no such file; check the path") from fault
    except Exception as fault:
        raise DataError(
            f"{source}: expected {content}, found a file that cannot be read ({one_line(fault)}); {advice}"
        ) from fault


def one_line(fault: BaseException) -> str:
    """An exception's text in one line, short enough for a message."""
    return " ".join(str(fault).split())[:160] or type(fault).__name__


# --- From stored intensities (Hounsfield units, 16-bit counts, floats) to the 8 bits that SAM sees ---------

PERCENTILES = (0.5, 99.5)
"""Gray range of a volume without a window: values outside become black or white. Otherwise a few very bright
voxels (metal, vessels) would leave only a few grays for all tissue."""


def window_range(window: list[float]) -> tuple[float, float]:
    """(black, white) of a window [centre, width]."""
    centre, width = window
    return centre - width / 2, centre + width / 2


def percentile_range(values: NDArray[Any], source: str) -> tuple[float, float]:
    """(black, white) of a volume by PERCENTILES; its minimum and maximum if these agree.

    source: the file, for the message. Raises DataError for NaN and infinity.
    """
    if not np.isfinite(values).all():
        raise DataError(f"{source}: expected finite intensities, found NaN or infinity; replace these voxels")
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def to_uint8(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """`values` mapped linearly from black..white to 0..255, clipped; all 0 where black equals white."""
    if black == white:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float32) - np.float32(black)) * np.float32(255 / (white - black))
    result: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return result


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width) repeated over three channels; (height, width, 3) as it is."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image, dtype=np.uint8)
