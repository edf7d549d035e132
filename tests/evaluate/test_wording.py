from __future__ import annotations

import pytest

from etymon.evaluate import wording


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.count(0), "0"),
        (wording.count(99_999), "99,999"),
        (wording.count(100_000), "100 k"),
        (wording.count(12_345_678), "12.3 M"),
        (wording.count(999_600_000), "1 G"),
        (wording.size(512), "512 B"),
        (wording.size(1_340_000_000), "1.34 GB"),
        (wording.duration(0.0412), "0.041 s"),
        (wording.duration(59.7), "1 min 00 s"),
        (wording.duration(372), "6 min 12 s"),
        (wording.duration(11_060), "3 h 04 min"),
        (wording.percent(0), "0 %"),
        (wording.percent(0.0123), "1.2 %"),
        (wording.percent(0.62), "62 %"),
        (wording.percent(0.9996), "99.9+ %"),
        (wording.percent(0.0001), "< 0.1 %"),
        (wording.percent(1), "100 %"),
        (wording.points(-0.0301), "−3.0"),
        (wording.points(0.00001), "±0.0"),
        (wording.interval(0.483, 0.747), "48–75 %"),
        (wording.p_value(0.0001), "< 0.001"),
        (wording.p_value(0.214), "0.21"),
        (wording.number(0), "0"),
        (wording.number(4841.2), "4,841"),
        (wording.number(0.00021), "0.000210"),
        (wording.number(1.5e-9), "1.50e-09"),
    ],
)
def test_quantities_are_written_for_people(said: str, expected: str) -> None:
    assert said == expected
