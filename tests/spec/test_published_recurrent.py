"""Published parameter counts of the models without attention, as their papers and model cards round them."""

from __future__ import annotations

import pytest

from etymon.families import family_named
from etymon.nn import build, count

PUBLISHED = {
    "lstm": {"lstm-ptb-small": 4.6e6, "lstm-ptb-medium": 19.8e6, "lstm-ptb-large": 66.0e6},
    "mamba": {
        "mamba-130m": 129e6,
        "mamba-370m": 372e6,
        "mamba-790m": 793e6,
        "mamba-1.4b": 1.372e9,
        "mamba-2.8b": 2.768e9,
    },
    "mamba2": {
        "mamba2-130m": 129e6,
        "mamba2-370m": 368e6,
        "mamba2-780m": 780e6,
        "mamba2-1.3b": 1.344e9,
        "mamba2-2.7b": 2.703e9,
    },
    "rwkv": {
        "rwkv4-169m": 169e6,
        "rwkv4-430m": 430e6,
        "rwkv4-1.5b": 1.515e9,
        "rwkv4-3b": 2.985e9,
        "rwkv4-7b": 7.393e9,
        "rwkv4-14b": 14.15e9,
    },
    "nnlm": {"nnlm-brown": 16383 * 30 + 30 + 100 * 4 * 30 + 100 + 16383 * 101},
}


@pytest.mark.parametrize(("family", "size"), [(f, s) for f, sizes in PUBLISHED.items() for s in sizes])
def test_published_counts(family: str, size: str) -> None:
    spec = family_named(family).spec(size)
    total = count(spec).total
    assert abs(total / PUBLISHED[family][size] - 1) < 0.012
    assert sum(p.numel() for p in build(spec, device="meta").parameters()) == total


def test_every_size_has_a_count() -> None:
    for family, sizes in PUBLISHED.items():
        assert set(family_named(family).sizes) == set(sizes)
