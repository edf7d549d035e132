"""Models are one graph to torch's compiler: a break in it, or a product that it may not trace, costs half the speed."""

from __future__ import annotations

import warnings

import pytest
import torch

from etymon.families import family_named
from etymon.nn import build


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "t5", "bart", "deberta-v2", "longformer"])
def test_a_model_is_one_graph(name: str) -> None:
    family = family_named(name)
    model = build(family.spec(**family.tiny))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    ids = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    given = {"decoder_input_ids": ids[:, :7]} if len(model.spec.stacks) == 2 else {}
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for attention_mask in (None, mask):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # which says what the compiler cannot follow
            got = compiled(ids, attention_mask=attention_mask, **given)
        expected = model(ids, attention_mask=attention_mask, **given)
        assert torch.allclose(got.logits, expected.logits, atol=1e-5)
