"""Models are one graph to torch's compiler: a break in it, or a product that it may not trace, costs half the speed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from etymon.families import family_named
from etymon.nn import build, gemm


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


def test_compiled_products_go_where_eager_ones_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "ONEDNN", True)
    family = family_named("llama")
    model = build(family.spec(**family.tiny))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    ids = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    gradients = []
    for call in (model, torch.compile(model, backend=aot_autograd(fw_compiler=backend), fullgraph=True)):
        model.zero_grad()
        call(ids, logits=False).last_hidden_state.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    forward, backward = (str(graph.graph).count("etymon.product") for graph in graphs)
    assert forward == 4 * model.spec.decoder.depth
    assert backward == 2 * forward
