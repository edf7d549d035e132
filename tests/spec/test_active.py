"""Parameters that one token's pass through a mixture uses, beside what was published."""

from __future__ import annotations

import pytest

from etymon.families import families
from etymon.nn import count

# What one token's pass uses, as the papers and model cards round it.
ACTIVE: dict[str, str] = {
    "mixtral-8x7b": "12.9B",
    "mixtral-8x22b": "39B",
    "qwen1.5-moe-a2.7b": "2.7B",
    "qwen2-57b-a14b": "14B",
    "qwen3-30b-a3b": "3.4B",  # "3.3B" on the card, of 3.353 billion
    "qwen3-235b-a22b": "22B",
    "olmoe-1b-7b": "1.3B",
    "deepseek-moe-16b": "2.8B",
    "deepseek-v2-lite": "2.7B",  # "2.4B" in the paper, which leaves out the token embedding (0.21 billion)
    "deepseek-v2": "21B",
    "deepseek-v3": "38B",  # "37B" in the paper: 37.55 billion with the token embedding, 36.6 without
    "deepseek-r1": "38B",
    "gpt-oss-20b": "4.2B",  # "3.61B" in the paper, which leaves out the token embedding (0.579 billion)
    "gpt-oss-120b": "5.7B",  # "5.13B" in the paper, likewise
}
SIZES = {size: family for family in families().values() for size in family.sizes}


@pytest.mark.parametrize("size", ACTIVE)
def test_active_parameters(size: str) -> None:
    published = ACTIVE[size]
    decimals = len(published[:-1].partition(".")[2])
    assert f"{count(SIZES[size].spec(size)).active / 1e9:.{decimals}f}B" == published
