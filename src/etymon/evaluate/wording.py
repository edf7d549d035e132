"""Quantities as people read them."""

from __future__ import annotations

import math

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def count(value: float) -> str:
    """Write a count: `1,234` up to five digits, then `123 k`, `4.56 M`, `7.8 G`."""
    return f"{value:,.0f}" if abs(value) < 100_000 else _scaled(value, ("", "k", "M", "G", "T"))


def size(length: float) -> str:
    """Write a length in bytes: `512 B`, `3.4 MB` (powers of ten)."""
    return _scaled(length, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Write three significant digits with the unit that leaves fewer than four before the point."""
    for unit in units:
        if abs(value) < 999.5 or unit == units[-1]:
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes all")


def duration(seconds: float) -> str:
    """Write a time: `0.34 s`, `42 s`, `6 min 12 s`, `3 h 04 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def percent(share: float) -> str:
    """Write a share: `62 %`, `3.5 %`; only nothing is `0 %` and only all is `100 %`."""
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.5 <= value < 100:
        return f"{math.floor(10 * value) / 10:.1f}{'+' if value > 99.9 else ''} %"
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.1f} %"


def points(change: float) -> str:
    """Write a difference of shares in percentage points, with its sign: `+12.5`, `−3.0`."""
    return signed(100 * change, 1)


def signed(value: float, digits: int = 3) -> str:
    """Write a difference with its sign, never `-0.0`."""
    text = f"{value:+.{digits}f}"
    return f"±{text[1:]}" if float(text) == 0 else text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """Write an interval of shares in percent: `48–75 %`."""
    return f"{100 * low:.0f}–{100 * high:.0f} %"


def p_value(value: float) -> str:
    """Write a probability that matters only when small: `0.21`, `0.003`, `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def number(value: float, digits: int = 3) -> str:
    """Write a measured number with so many significant digits, without an exponent where it can be avoided."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, places)}f}"


def visible(text: str) -> str:
    """Return `text` with its control characters as their pictures and without white space at its end."""
    return text.rstrip().translate(_PICTURES)
