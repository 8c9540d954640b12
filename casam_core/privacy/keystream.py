"""Random numbers that nobody can tell from noise without the key: AES-256 in counter mode."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray


class Keystream:
    """An endless stream under one key; the same key gives the same stream."""

    def __init__(self, secret: bytes) -> None:
        """secret: at least 16 bytes of full strength; hashed to the cipher's key."""
        if len(secret) < 16:
            raise ValueError(f"a key of at least 16 bytes is needed, found {len(secret)}")
        key = hashlib.sha256(b"casam keystream" + secret).digest()
        # A fresh key per stream is what makes a constant starting counter right.
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` numbers of 64 bits."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), np.uint64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """The next numbers in [0, 1), multiples of 2^-53."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def masks(seed: bytes, modulus: int, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.int64]]:
    """Arrays of uniform numbers below `modulus`, a power of two, that the same seed repeats.

    Takes the place of Flower's generator for secure aggregation, which folds every seed to 32 bits.
    """
    if modulus & (modulus - 1) or modulus > 2**62:
        raise ValueError(f"expected a power of two up to 2^62, found {modulus}")
    stream = Keystream(seed)
    return [
        (stream.words(math.prod(shape)) & np.uint64(modulus - 1)).astype(np.int64).reshape(shape)
        for shape in shapes
    ]
