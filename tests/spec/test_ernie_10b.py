"""The ten billion parameters of ERNIE 3.0 (arXiv:2107.02137), of which only the paper exists."""

from __future__ import annotations

from etymon.families import family_named
from etymon.nn import count


def test_the_paper_s_layers_are_ten_billion_parameters() -> None:
    """48 layers of width 4096 that all tasks share, under a branch of 12 layers of width 768 for understanding and one
    for generation (section 4.1); the vocabulary is that of the published models."""
    ernie = family_named("ernie")
    shared = ernie.spec(vocab=40000, dim=4096, layers=48, heads=64)
    branch = ernie.spec(vocab=40000, dim=768, layers=12, heads=12)
    total = count(shared).non_embedding + 40000 * 4096 + 2 * count(branch).non_embedding
    assert abs(total / 10e9 - 1) < 0.01
