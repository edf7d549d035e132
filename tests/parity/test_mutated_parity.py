"""Parity is parity of every field: with any one of a spec's changed, the reference's logits are no longer ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from references import REFERENCES, Reference, randomised
from test_mutations import acts, mutations, tensors

import etymon
from etymon.errors import EtymonError
from etymon.nn import Model
from etymon.spec import ModelSpec

TOLERANCE = 1e-5
FIRST = {type(reference.make().config).__name__: reference for reference in reversed(REFERENCES)}
HIDDEN = ("from_padding", "padding")  # which act on padded rows only, see test_mutations


def differs(changed: ModelSpec, ours: Model, ids: torch.Tensor, expected: torch.Tensor) -> bool:
    try:
        with torch.device("meta"):
            other = Model(changed)
        if tensors(other) != tensors(ours):
            return True
        other.load_state_dict(dict(ours.state_dict()), strict=False, assign=True)
        other.tie()
        with torch.no_grad():
            got = other.eval()(ids).logits
    except (EtymonError, RuntimeError, AssertionError):
        return True
    return float((got - expected).abs().max() / expected.abs().max()) > TOLERANCE


@pytest.mark.parametrize("reference", FIRST.values(), ids=str)
def test_another_field_is_no_longer_the_reference(reference: Reference, tmp_path: Path) -> None:
    theirs: Any = randomised(reference)
    theirs.save_pretrained(tmp_path)
    ours, _ = etymon.load(tmp_path)
    ids = torch.randint(4, 97, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids, use_cache=False).logits
        assert float((ours(ids).logits - expected).abs().max() / expected.abs().max()) < TOLERANCE
    fields: dict[str, bool] = {}
    for path, changed in mutations(ours.spec, ModelSpec, "spec"):
        fields[path] = fields.get(path, False) or differs(changed, ours, ids, expected)
    decoration = [p for p, acted in fields.items() if not acted and acts(ours.spec, p) and not p.endswith(HIDDEN)]
    assert not decoration, decoration
    assert len(fields) > 15
