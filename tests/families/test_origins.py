"""Every family says where it stands in the lineage."""

from __future__ import annotations

import re

import pytest

from etymon.families import Family, families
from etymon.families.origin import parsed_count
from etymon.nn import count


@pytest.mark.parametrize("family", families().values(), ids=lambda f: f.name)
def test_every_family_has_an_origin(family: Family) -> None:
    origin = family.origin
    assert re.fullmatch(r"(19|20)\d\d-(0[1-9]|1[0-2])", origin.published), "origin.published: the month, as in 2023-02"
    assert origin.parents, "origin.parents: the nodes of the lineage that it came from"
    assert family.name not in origin.parents
    assert 10 <= len(origin.brought) <= 90, "origin.brought: what was new, in one short line"
    assert not origin.brought.endswith(".")


@pytest.mark.parametrize("family", families().values(), ids=lambda f: f.name)
def test_claims_are_of_sizes_and_differ_from_what_is_there(family: Family) -> None:
    for size, claim in family.origin.claims.items():
        assert size in family.sizes
        apart = count(family.spec(size)).total / parsed_count(claim) - 1
        assert 0.01 < abs(apart) < 1.5, "a claim that agrees needs no reason"
        assert ", " in claim or "; " in claim, "the reason follows the number"
