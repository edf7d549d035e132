"""Parameters that one token's pass through a mixture uses, beside what was published."""

from __future__ import annotations

import pytest
from published_moe import ACTIVE

from etymon.families import families
from etymon.nn import count

SIZES = {size: family for family in families().values() for size in family.sizes}


@pytest.mark.parametrize("size", ACTIVE)
def test_active_parameters(size: str) -> None:
    published = ACTIVE[size]
    decimals = len(published[:-1].partition(".")[2])
    assert f"{count(SIZES[size].spec(size)).active / 1e9:.{decimals}f}B" == published
