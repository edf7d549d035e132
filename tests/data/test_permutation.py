from __future__ import annotations

import numpy as np
import pytest

from etymon.data import Permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097, 65537])
def test_every_value_once(n: int) -> None:
    assert sorted(Permutation(n, 3, 1)(np.arange(n)).tolist()) == list(range(n))


def test_values_are_computed_one_by_one() -> None:
    n = 10**15  # nothing of this size is held
    permutation = Permutation(n, 5)
    some = np.array([[0, 1], [n - 1, 123_456_789]])
    together = permutation(some)
    assert together.shape == (2, 2)
    assert together.max() < n
    assert [int(permutation(int(i))) for i in some.ravel()] == together.ravel().tolist()


def test_key_decides() -> None:
    images = {tuple(Permutation(100, seed, epoch)(np.arange(100)).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(images) == 25
    assert (Permutation(100, 1, 2)(np.arange(100)) == Permutation(100, 1, 2)(np.arange(100))).all()
    assert (Permutation(100, 1, 12)(np.arange(100)) != Permutation(100, 11, 2)(np.arange(100))).any()


@pytest.mark.parametrize("n", [2, 5, 10, 37])
def test_each_place_is_as_likely_as_another(n: int) -> None:
    seeds = 2000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), Permutation(n, seed)(np.arange(n))] += 1
    expected = seeds / n
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_neighbours_are_torn_apart() -> None:
    n = 100_000
    images = Permutation(n, 0)(np.arange(n))
    steps = np.abs(np.diff(images))
    assert abs(steps.mean() / (n / 3) - 1) < 0.02  # what uniform places would give
    assert np.corrcoef(np.arange(n), images)[0, 1] < 0.02
