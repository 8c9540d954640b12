"""Looks for images, masks and embeddings in what was sent, in the encodings in which they could be hidden.

Exact encodings are searched for as bytes, also inside of every zlib stream and PNG file that a message holds,
as bytes or in base64.
Anything like a copy (scaled, shifted, noisy) is searched for by correlation: a window of the secret slides
over the message read as bytes, half, single and double precision.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import irfft, next_fast_len, rfft

WINDOW = 192
ALIKE = 0.9
"""Correlation of a window with a message; by chance it stays below a half."""
SHORT, LONG = 40, 512
BASE64 = re.compile(rb"[A-Za-z0-9+/]{64,}={0,2}")
PNG = b"\x89PNG\r\n\x1a\n"

Secrets = Mapping[str, NDArray[np.generic]]
"""By name: uint8 images, int32 label maps, float32 embeddings."""


def encodings(secret: NDArray[np.generic]) -> dict[str, bytes]:
    """The same values as bytes, by the name of the encoding."""
    values = np.asarray(secret)
    return {
        "raw": values.tobytes(),
        "uint8": scaled(values).tobytes(),
        "fp16": values.astype(np.float16).tobytes(),
        "fp32": values.astype(np.float32).tobytes(),
    }


def scaled(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """As 8 bits over the values' own range."""
    x = values.astype(np.float64)
    return np.asarray(np.rint((x - x.min()) / max(np.ptp(x), 1e-12) * 255), np.uint8)


def needles(data: bytes) -> list[bytes]:
    """Some pieces that are not there by chance: short ones of many values, else long ones of many changes."""
    short = [data[p : p + SHORT] for p in np.linspace(0, max(len(data) - SHORT, 0), 200).astype(int)]
    telling = sorted({piece for piece in short if len(set(piece)) >= 12}, key=lambda p: -len(set(p)))
    if telling:
        return telling[:12]
    long = [data[p : p + LONG] for p in np.linspace(0, max(len(data) - LONG, 0), 50).astype(int)]
    return sorted({piece for piece in long if changes(piece) >= 12}, key=lambda p: -changes(p))[:12]


def changes(data: bytes) -> int:
    """How often a byte differs from the one before."""
    return int(np.count_nonzero(np.diff(np.frombuffer(data, np.uint8))))


def unpacked(data: bytes) -> Iterator[bytes]:
    """The message itself, and the content of every zlib stream and PNG file in it, in base64, too."""
    yield data
    yield from files_in(data)
    for run in BASE64.findall(data):
        for start in range(4):  # the byte before it may look like a part of it
            text = run[start : start + (len(run) - start) // 4 * 4]
            decoded = base64.b64decode(text)
            yield decoded
            yield from files_in(decoded)


def files_in(data: bytes) -> Iterator[bytes]:
    """The content of every zlib stream and PNG file."""
    for start in positions(data, PNG):
        with_image = io.BytesIO(data[start:])
        try:
            yield np.asarray(Image.open(with_image)).tobytes()
        except (OSError, SyntaxError, ValueError):
            continue
    for start in positions(data, b"\x78"):
        try:
            yield zlib.decompressobj().decompress(data[start:], 1 << 24)
        except zlib.error:
            continue


def positions(data: bytes, mark: bytes) -> Iterator[int]:
    at = data.find(mark)
    while at >= 0:
        yield at
        at = data.find(mark, at + 1)


def exact(secrets: Secrets, data: bytes) -> list[str]:
    """Names and encodings of what stands in a message as it is, packed or not."""
    contents = [content for content in unpacked(data) if len(content) >= SHORT]
    return [
        f"{name} as {encoding}"
        for name, secret in secrets.items()
        for encoding, coded in encodings(secret).items()
        for pieces in [needles(coded)]
        if any(piece in content for piece in pieces for content in contents)
    ]


def similar(secrets: Secrets, data: bytes) -> list[str]:
    """Names of what a message holds something very much like. Masks have too few values to tell."""
    windows = {name: w for name, secret in secrets.items() if (w := window_of(secret)) is not None}
    found: set[str] = set()
    for signal in readings(data):
        if len(signal) >= WINDOW and np.ptp(signal) > 0:
            highest = highest_correlations(list(windows.values()), signal)
            found |= {name for name, value in zip(windows, highest, strict=True) if value > ALIKE}
    return sorted(found)


def window_of(secret: NDArray[np.generic]) -> NDArray[np.float64] | None:
    """The liveliest stretch of a secret, standardised; None where it has no values to tell it by."""
    x = np.asarray(secret, np.float64).ravel()
    if len(x) < WINDOW:
        return None
    starts = np.linspace(0, len(x) - WINDOW, 64).astype(int)
    best = max((x[s : s + WINDOW] for s in starts), key=lambda w: len(set(w.round(6))))
    return None if len(set(best.round(6))) < 16 else (best - best.mean()) / best.std()


def readings(data: bytes) -> Iterator[NDArray[np.float64]]:
    """The message read as numbers, from every alignment."""
    yield np.frombuffer(data, np.uint8).astype(np.float64)
    for dtype in (np.float16, np.float32, np.float64):
        size = np.dtype(dtype).itemsize
        for offset in range(size):
            whole = (len(data) - offset) // size
            if whole <= 0:
                continue
            with np.errstate(all="ignore"):
                values = np.frombuffer(data, dtype, whole, offset).astype(np.float64)
                # What is no sensible number is not part of a copy; zero keeps the others where they are.
                yield np.where(np.isfinite(values) & (np.abs(values) < 1e5), values, 0.0)


def highest_correlations(windows: list[NDArray[np.float64]], signal: NDArray[np.float64]) -> list[float]:
    """Per window, its largest |Pearson correlation| with any stretch of the signal."""
    n, size = WINDOW, next_fast_len(len(signal) + WINDOW)
    sums = np.cumsum(np.concatenate([[0.0], signal]))
    squares = np.cumsum(np.concatenate([[0.0], signal**2]))
    mean = (sums[n:] - sums[:-n]) / n
    spread = np.sqrt(np.maximum((squares[n:] - squares[:-n]) / n - mean**2, 0))
    usable = spread > 1e-6 * float(np.abs(signal).max())
    spectrum = rfft(signal, size)
    products = (irfft(spectrum * np.conj(rfft(window, size)), size)[: len(spread)] for window in windows)
    return [float(np.abs(p[usable] / (n * spread[usable])).max(initial=0.0)) for p in products]
