"""Cryptographic random numbers: AES-256 in counter mode; without the key they look random."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray


class Keystream:
    """An endless stream of random numbers; the same key gives the same stream."""

    def __init__(self, secret: bytes) -> None:
        """secret: at least 16 random bytes; their hash is the key of the cipher."""
        if len(secret) < 16:
            raise ValueError(f"expected a key of at least 16 bytes, found {len(secret)}")
        key = hashlib.sha256(b"casam keystream" + secret).digest()
        # Every stream has its own key, so a constant initial counter is secure.
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` numbers of 64 bits."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), np.uint64)


def masks(seed: bytes, modulus: int, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.int64]]:
    """Arrays of uniform numbers below `modulus`, a power of two; the same seed gives the same arrays.

    shapes: of the arrays. Raises ValueError for another modulus. It replaces Flower's generator for secure
    aggregation, which reduces every seed to 32 bits.
    """
    if modulus & (modulus - 1) or modulus > 2**62:
        raise ValueError(f"expected a power of two up to 2^62, found {modulus}")
    stream = Keystream(seed)
    return [
        (stream.words(math.prod(shape)) & np.uint64(modulus - 1)).astype(np.int64).reshape(shape)
        for shape in shapes
    ]
