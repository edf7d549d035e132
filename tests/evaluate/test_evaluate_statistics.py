from __future__ import annotations

import math

import numpy as np
import pytest

from etymon.evaluate.statistics import mcnemar_exact, paired_interval, ratio_standard_error, wilson_interval


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (81, 263, 0.25529, 0.36621)],
)
def test_wilson_interval_equals_published_values(correct: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=1e-5)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_holds_the_truth_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    for truth in (0.03, 0.3, 0.9):
        drawn = rng.binomial(60, truth, size=2000)
        inside = [low <= truth <= high for low, high in (wilson_interval(int(k), 60) for k in drawn)]
        assert 0.92 < np.mean(inside) < 0.99


@pytest.mark.parametrize(
    ("only_before", "only_after", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (5, 15, 0.04138947), (7, 7, 1.0)]
)
def test_mcnemar_is_the_two_sided_binomial(only_before: int, only_after: int, p: float) -> None:
    assert mcnemar_exact(only_before, only_after) == pytest.approx(p, abs=1e-8)
    assert mcnemar_exact(only_after, only_before) == pytest.approx(p, abs=1e-8)


def test_mcnemar_survives_large_counts() -> None:
    assert 0 < mcnemar_exact(40_000, 41_000) < 0.001


def test_paired_interval_surrounds_the_difference_and_tightens() -> None:
    low, high = paired_interval(10, 40, 200)
    assert low < 0.15 < high
    narrow = paired_interval(100, 400, 2000)
    assert narrow[1] - narrow[0] < (high - low) / 2
    assert paired_interval(0, 0, 50) == (0.0, 0.0)


def test_ratio_standard_error_is_that_of_the_mean_where_denominators_are_equal() -> None:
    values = np.random.default_rng(1).normal(5, 2, size=400)
    error = ratio_standard_error(values.tolist(), [10.0] * 400, resamples=2000)
    assert error == pytest.approx(float(values.std(ddof=1)) / math.sqrt(400) / 10, rel=0.08)


def test_ratio_standard_error_of_one_document_is_unknown() -> None:
    assert ratio_standard_error([3.0], [1.0]) is None
