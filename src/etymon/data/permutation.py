"""A keyed permutation of `range(n)` whose every value is computed on its own: shuffling in O(1) memory.

A balanced Feistel network permutes the smallest domain of an even number of bits that holds `n`; values that
fall outside are sent through again until they fall inside (cycle walking: Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002). The domain is less than four times `n`, so the walk is short.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 8


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_numbers(*key: int | str, count: int) -> NDArray[np.uint64]:
    """Return `count` 64-bit numbers that depend on every part of `key` and on nothing else."""
    name = "\x00".join(map(str, key)).encode()
    digest = hashlib.shake_128(name).digest(8 * count)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


class Permutation:
    """The permutation of `range(n)` that `key` names: `Permutation(n, seed, epoch)(indices)`."""

    def __init__(self, n: int, *key: int | str) -> None:
        assert n > 0
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = key_numbers(*key, count=ROUNDS)

    def _encrypt(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half) | right

    def __call__(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return the images of `indices`, an integer array of any shape with values in `range(n)`."""
        x = np.atleast_1d(np.asarray(indices)).astype(np.uint64)
        x = self._encrypt(x)
        outside = x >= self.n
        while outside.any():
            x[outside] = self._encrypt(x[outside])
            outside = x >= self.n
        return x.astype(np.int64).reshape(np.shape(indices))
