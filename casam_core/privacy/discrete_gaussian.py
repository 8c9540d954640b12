"""Exact samples of the discrete Gaussian distribution (Canonne, Kamath and Steinke 2020, algorithms 1 to 3).

P(x) is proportional to exp(-x^2 / (2 sigma^2)) for integers x. sigma is a power of two, so every decision
compares integers below 2^64: no floating-point number takes part. The sampler is here because opendp and
other libraries draw from the operating system only, and simulations need draws that repeat.

How: a geometric v and a uniform u below sigma propose x = u + sigma v with a random sign. The proposal is
accepted with probability exp(-g), g = (x^2 + sigma^2 (1 - 2 v)) / (2 sigma^2) >= 0. A coin of probability
exp(-g) is made of coins of rational probability (von Neumann).
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import NDArray

from casam_core.privacy.keystream import Keystream

SIGMA_BITS = 20
SIGMA = 1 << SIGMA_BITS
"""The standard deviation of all privacy noise, in steps of the grid of the release."""

AT_ONCE = 1 << 15
"""Proposals at a time, so that they stay in the processor's cache."""

TERMS = 16
FACTOR = 2**64 // factorial(TERMS)
LIMIT = np.uint64(FACTOR * factorial(TERMS))
"""Larger words are drawn again."""
STEPS_K = np.array([FACTOR * (factorial(TERMS) // factorial(k)) for k in range(TERMS, 0, -1)], np.uint64)
"""A uniform word below LIMIT is below LIMIT / k! with probability 1 / k!; in ascending order."""
PREFIX = 12
STARTS = np.arange(1 << PREFIX, dtype=np.uint64) << np.uint64(64 - PREFIX)
TABLE = TERMS + 1 - np.searchsorted(STEPS_K, STARTS, side="right")
UNDECIDED = np.append(TABLE[:-1] != TABLE[1:], True)
"""By the first 12 bits of a word: its number in `exact_terms`, and whether the other bits can change it."""


def discrete_gaussian(stream: Keystream, count: int, bits: int = SIGMA_BITS) -> NDArray[np.int64]:
    """`count` samples with sigma = 2^bits, bits at most 24."""
    kept: list[NDArray[np.int64]] = []
    missing = count
    while missing > 0:
        accepted = proposals(stream, min(AT_ONCE, 2 * missing + 16), bits)[:missing]
        kept.append(accepted)
        missing -= len(accepted)
    return np.concatenate(kept) if kept else np.empty(0, np.int64)


def proposals(stream: Keystream, count: int, bits: int) -> NDArray[np.int64]:
    """The accepted ones of `count` proposals.

    bits: sigma = 2^bits.
    """
    words = stream.words(count)
    v = np.zeros(count, np.int64)
    index = np.arange(count)
    while len(index):  # P(v >= k) = exp(-k)
        index = index[one_over_e(stream, len(index))]
        v[index] += 1
    x = (words & np.uint64((1 << bits) - 1)).astype(np.int64) + (v << bits)
    negative = (words >> np.uint64(63)).astype(bool)
    g = x * x + ((1 - 2 * v) << (2 * bits))  # of 2 sigma^2
    accepted = np.flatnonzero(~(negative & (x == 0)))  # zero has one sign
    whole, rest = g >> (2 * bits + 1), (g & ((1 << (2 * bits + 1)) - 1)).astype(np.uint64)
    times = 0
    while (more := whole[accepted] > times).any():
        more[more] = ~one_over_e(stream, int(more.sum()))
        accepted = accepted[~more]
        times += 1
    accepted = accepted[exponential_coins(stream, rest[accepted], 2 * bits + 1)]
    return np.where(negative, -x, x)[accepted]


def one_over_e(stream: Keystream, count: int) -> NDArray[np.bool_]:
    """Coins of probability exp(-1)."""
    coins: NDArray[np.bool_] = exact_terms(stream, count) % 2 == 1
    return coins


def exact_terms(stream: Keystream, count: int) -> NDArray[np.int64]:
    """Numbers k >= 1 with P(k > j) = 1 / j!; P(k is odd) = exp(-1)."""
    words = stream.words(count)
    while (refused := words >= LIMIT).any():  # P < 1e-5
        words = np.where(refused, stream.words(count), words)
    prefix = (words >> np.uint64(64 - PREFIX)).astype(np.intp)
    k = TABLE[prefix]
    unsure = np.flatnonzero(UNDECIDED[prefix])
    k[unsure] = TERMS + 1 - np.searchsorted(STEPS_K, words[unsure], side="right")
    for beyond in np.flatnonzero(k > TERMS):  # P = 1 / TERMS!
        while below(stream, int(k[beyond])) == 0:
            k[beyond] += 1
    return k


def below(stream: Keystream, limit: int) -> int:
    """A uniform integer in [0, limit)."""
    while True:
        word = int(stream.words(1)[0])
        if word < (2**64 // limit) * limit:
            return word % limit


def exponential_coins(stream: Keystream, g_N: NDArray[np.uint64], bits: int) -> NDArray[np.bool_]:
    """Coins of probability exp(-g / 2^bits), 0 <= g < 2^bits, bits below 64.

    Of a sequence of coins with probabilities (g / 2^bits) / k, k = 1, 2, ..., the first that fails has an odd
    number with this probability.
    """
    last = exact_terms(stream, len(g_N))  # where the factors 1 / k stop the sequence
    first = np.ones(len(g_N), np.int64)  # where all the factors together stop it
    index = np.arange(len(g_N))
    while len(index):
        index = index[(first[index] < last[index])]
        index = index[(stream.words(len(index)) >> np.uint64(64 - bits)) < g_N[index]]
        first[index] += 1
    coins: NDArray[np.bool_] = first % 2 == 1
    return coins
