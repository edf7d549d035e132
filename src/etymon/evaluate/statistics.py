"""How sure a number is: intervals of a share, of a mean over documents, and of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054  # the two-sided 95% quantile of the normal distribution


def wilson_interval(correct: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a share (95% by default); `(0, 1)` where nothing was counted.

    Unlike the normal interval it stays inside [0, 1] and is not empty at 0 of n or n of n (Wilson 1927).
    """
    assert 0 <= correct <= count, f"{correct} of {count}"
    if count == 0:
        return 0.0, 1.0
    share, z2 = correct / count, z * z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # The exact bounds at the ends; rounding would otherwise leave 1e-17 or 0.9999999.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == count else min(1.0, centre + half)
    return low, high


def mcnemar_exact(only_before: int, only_after: int) -> float:
    """Return the two-sided exact p-value that items that changed were as likely to change either way.

    `only_before` items were right before and wrong after, `only_after` the other way round; items whose verdict
    did not change say nothing (McNemar 1947, with the binomial distribution instead of chi-squared).
    """
    changed = only_before + only_after
    if changed == 0:
        return 1.0
    log_tail = [
        math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) - changed * math.log(2)
        for k in range(min(only_before, only_after) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in log_tail))


def paired_interval(
    only_before: int, only_after: int, count: int, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the difference of two accuracies over the same `count` items."""
    if count == 0:
        return -1.0, 1.0
    changes = np.array([only_before, only_after, count - only_before - only_after]) / count
    drawn = np.random.default_rng(seed).multinomial(count, changes, size=resamples)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / count, [0.025, 0.975])
    return float(low), float(high)


def ratio_standard_error(
    numerators: Sequence[float], denominators: Sequence[float], *, resamples: int = 1000, seed: int = 0
) -> float | None:
    """Return the bootstrap standard error of sum(numerators) / sum(denominators) over documents.

    Documents, not tokens, are drawn again: the tokens of one document are far from independent.
    None where there are fewer than two documents to draw from.
    """
    count = len(numerators)
    assert count == len(denominators)
    if count < 2:
        return None
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):  # one draw at a time: resamples x documents would not fit in memory
        drawn = generator.integers(0, count, count)
        total = below[drawn].sum()
        ratios[i] = above[drawn].sum() / total if total else np.nan
    return float(np.nanstd(ratios, ddof=1))


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], count: int, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95% percentile bootstrap interval of `statistic`, a function of which of `count` rows are drawn.

    Draws for which it is not defined (NaN) are left out. None where there are fewer than two rows to draw from.
    """
    if count < 2:
        return None
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(0, count, count)) for _ in range(resamples)])
    if np.isnan(values).all():
        return None
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks of `values`, from 1; those that are equal share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2)[places]
    return means


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation of two numbers over the same rows; None where either is always the same."""
    a, b = (each - each.mean() for each in (ranks(first), ranks(second)))
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else None
