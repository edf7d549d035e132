"""Routers against the papers' formulas written out, the losses that balance them, and what a decode step touches."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etymon import spec
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.nn import Model, build, gemm
from etymon.nn.moe import Chosen, ExpertLinear, MoE, balance_loss, expert_choice, top_k
from etymon.spec import CapacityFactor, ExpertChoice, Groups, Seats, TopK

DIM, EXPERTS = 16, 8


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def table(chosen: Chosen, tokens: int, experts: int = EXPERTS) -> Tensor:
    """The weights [tokens, experts] that the pairs stand for; 0 where a pair is missing."""
    token, expert, weight = chosen
    pairs = torch.zeros(tokens, experts)
    assert len(set(zip(token.tolist(), expert.tolist(), strict=True))) == len(token), "a pair twice"
    pairs[token, expert] = weight
    return pairs


def moe(router: spec.Router, expert: spec.Dense | spec.Gated | None = None, seed: int = 1) -> MoE:
    expert = expert or spec.Gated(hidden=12, activation="silu")
    module = MoE(spec.MoE(experts=EXPERTS, expert=expert, router=router), DIM)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in [*module.parameters(), *module.buffers()]:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_top_k_token_by_token(scores: str, renormalise: bool) -> None:
    z = logits(2, 5, EXPERTS)
    got = table(top_k(TopK(k=3, scores=scores, renormalise=renormalise, scale=2.5), z), 10)
    for row, values in zip(got, z.flatten(0, 1).tolist(), strict=True):
        e = [math.exp(v) for v in values]
        probabilities = [x / sum(e) for x in e] if scores == "softmax" else [1 / (1 + 1 / x) for x in e]
        best = sorted(range(EXPERTS), key=lambda i: -probabilities[i])[:3]
        total = sum(probabilities[i] for i in best) if renormalise else 1.0
        expected = [2.5 * probabilities[i] / total if i in best else 0.0 for i in range(EXPERTS)]
        assert torch.allclose(row, torch.tensor(expected), rtol=1e-5)


def test_a_correction_chooses_but_does_not_weigh() -> None:
    z, correction = logits(1, 40, EXPERTS), torch.zeros(EXPERTS)
    correction[3] = 10.0
    got = table(top_k(TopK(k=2, scores="sigmoid", renormalise=False), z, correction), 40)
    assert (got > 0).sum(1).eq(2).all()
    assert torch.allclose(got[:, 3], z[0, :, 3].sigmoid())


@pytest.mark.parametrize("best", [1, 2])
def test_tokens_choose_within_the_best_groups(best: int) -> None:
    z = logits(1, 60, EXPERTS)
    router = TopK(k=3, renormalise=False, groups=Groups(count=4, keep=2, best=best))
    got = table(top_k(router, z), 60)
    differs = 0
    for row, p in zip(got, z[0].softmax(-1).tolist(), strict=True):
        worth = [sum(sorted(p[g : g + 2])[-best:]) for g in range(0, EXPERTS, 2)]
        kept = sorted(range(4), key=lambda g: -worth[g])[:2]
        open_to_it = [i for g in kept for i in (2 * g, 2 * g + 1)]
        chosen = sorted(open_to_it, key=lambda i: -p[i])[:3]
        assert set(row.nonzero().flatten().tolist()) == set(chosen)
        differs += set(chosen) != set(sorted(range(EXPERTS), key=lambda i: -p[i])[:3])
    assert differs > 5, "no token's choice was limited"


@pytest.mark.parametrize(
    ("router", "seats"), [(TopK(k=2, capacity=Seats(tokens=3)), 3), (TopK(k=2, capacity=CapacityFactor(factor=1.2)), 4)]
)
def test_experts_are_full_at_their_capacity(router: TopK, seats: int) -> None:
    """12 tokens of two choices each among eight experts: 3 seats each if all took the same."""
    z = logits(2, 12, EXPERTS)
    got = table(top_k(router, z), 24)
    free = table(top_k(dataclasses.replace(router, capacity=None), z), 24)
    expected = torch.zeros_like(free)
    for row in range(2):
        left = [seats] * EXPERTS
        for rank in range(2):  # every first choice before any second one
            for t in range(12 * row, 12 * row + 12):
                expert = int(free[t].argsort(descending=True)[rank])
                if left[expert]:
                    left[expert] -= 1
                    expected[t, expert] = free[t, expert]
    assert torch.equal(got, expected)
    assert (got > 0).sum() < (free > 0).sum(), "nobody was dropped"


def test_a_token_that_every_expert_drops_passes_by() -> None:
    module = moe(TopK(k=1, capacity=Seats(tokens=1)))
    with torch.no_grad():
        module.router.weight.zero_()  # all tokens choose the same expert
    y = module(logits(1, 4, DIM))
    assert y[0, 0].abs().max() > 0
    assert torch.equal(y[0, 1:], torch.zeros(3, DIM))


def test_every_expert_chooses_as_many_tokens() -> None:
    z = logits(2, 12, EXPERTS)
    got = table(expert_choice(ExpertChoice(k=2), z), 24)
    assert (got[:12] > 0).sum(0).tolist() == (got[12:] > 0).sum(0).tolist() == [3] * EXPERTS
    for row in range(2):
        probabilities = z[row].softmax(-1)
        for expert in range(EXPERTS):
            best = probabilities[:, expert].argsort(descending=True)[:3]
            expected = torch.zeros(12)
            expected[best] = probabilities[best, expert]
            assert torch.equal(got[12 * row : 12 * row + 12, expert], expected)
    assert (got > 0).sum(1).unique().numel() > 1, "tokens get different numbers of experts"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["dense", "gated", "limited"])
def test_a_mixture_is_the_weighted_sum_of_its_experts(kind: str, bias: bool) -> None:
    expert: spec.Dense | spec.Gated = {
        "dense": spec.Dense(hidden=12, activation="relu", bias=bias),
        "gated": spec.Gated(hidden=12, activation="silu", bias=bias),
        "limited": spec.Gated(hidden=12, activation="quick_gelu", bias=bias, limit=0.7, offset=1.0),
    }[kind]
    router = TopK(k=2, bias=True, scores="sigmoid", correction=True)
    module, x = moe(router, expert), logits(2, 7, DIM)
    z = x @ module.router.weight.T + module.router.bias
    weights = table(top_k(router, z, module.router.correction), 14).view(2, 7, EXPERTS)
    expected = torch.zeros_like(x)
    up, down = module.experts.up, module.experts.down
    for e in range(EXPERTS):
        h = x @ up.weight[e].T + (0 if up.bias is None else up.bias[e])
        if kind == "dense":
            h = h.relu()
        else:
            gate, value = h[..., :12], h[..., 12:]
            if kind == "limited":
                gate, value = gate.clamp(max=0.7), value.clamp(-0.7, 0.7) + 1
            h = gate * torch.sigmoid(gate * (1.702 if kind == "limited" else 1)) * value
        expected += weights[..., e : e + 1] * (h @ down.weight[e].T + (0 if down.bias is None else down.bias[e]))
    assert torch.allclose(module(x), expected, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_stacked_layers(autocast: bool) -> None:
    """Those of separate layers, and none for an expert without tokens."""
    generator = torch.Generator().manual_seed(2)
    layer = ExpertLinear(4, DIM, (6, 3), bias=True)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    counts, x = [3, 0, 5, 1], torch.randn(9, DIM, generator=generator, requires_grad=True)
    dy = torch.randn(9, 9, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x, counts)
        pieces = zip(x.split(counts), layer.weight, layer.bias, strict=True)
        expected = torch.cat([F.linear(*piece) for piece in pieces])
    assert y.dtype == expected.dtype == (torch.bfloat16 if autocast else torch.float32)
    leaves = [x, layer.weight, layer.bias]
    got = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    for a, b in zip(got, torch.autograd.grad(expected, leaves, dy.to(y.dtype)), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if autocast else 1e-5, atol=1e-1 if autocast else 1e-5)
    assert not got[1][1].any() and not got[2][1].any()
    layer.weight.requires_grad_(False)  # frozen, as under an adapter
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x, counts)
    assert torch.equal(torch.autograd.grad(y, x, dy.to(y.dtype))[0], got[0])


def test_a_step_of_one_token_touches_the_chosen_experts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    linear = gemm.linear
    module = moe(TopK(k=2))
    place = {
        weight.data_ptr(): expert
        for stack in (module.experts.up, module.experts.down)
        for expert, weight in enumerate(stack.weight)
    }

    def spied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        touched.append(place.get(weight.data_ptr(), -1))
        return linear(x, weight, bias)

    monkeypatch.setattr(gemm, "linear", spied)
    with torch.no_grad():
        module(logits(1, 1, DIM))
    assert touched[0] == -1 and len(touched) == 5 and len(set(touched)) == 3  # the router; up and down of two


def test_the_router_keeps_its_precision() -> None:
    module, x = moe(TopK(k=2)), logits(1, 64, DIM)
    exact = module.router(x.bfloat16())
    assert exact.dtype == torch.float32
    assert torch.equal(exact, module.router(x.bfloat16().float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.router(x), module.router(x.float())) and module.router(x).dtype == torch.float32


def tiny(**changes: object) -> Model:
    family = family_named("mixtral")
    return build(family.spec(**(family.tiny | changes)))


def test_penalties_are_the_reference_s() -> None:
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    model = tiny(experts=5, k=2).train()
    assert model.penalties() == {}
    model(torch.arange(40).view(2, 20))
    logits = [m.logits for _, m in model.mixtures()]
    got = model.penalties()
    expected = modeling.load_balancing_loss_func(tuple(logits), num_experts=5, top_k=2)
    assert torch.allclose(got["balance"], expected)
    z = torch.cat(logits).exp().sum(-1).log().square().mean()
    assert torch.allclose(got["router_z"], z)
    sigmoid = balance_loss(logits, TopK(k=2, scores="sigmoid"))
    shares = torch.cat(logits).sigmoid() / torch.cat(logits).sigmoid().sum(-1, keepdim=True)
    chosen = sum(F.one_hot(i, 5).float().mean(0) for i in torch.cat(logits).topk(2).indices.unbind(1))
    assert torch.allclose(sigmoid, 5 * (chosen * shares.mean(0)).sum())
    got["balance"].backward()
    routers = [m.router.weight.grad for _, m in model.mixtures()]
    assert all(g is not None and g.abs().max() > 0 for g in routers)
    assert build(family_named("llama").spec(**family_named("llama").tiny)).penalties() == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(k=2, scores="softmx"), "Did you mean 'softmax'"),
        (lambda: moe(TopK(k=9)), "between 1 and experts=8"),
        (lambda: moe(TopK(k=5, groups=Groups(count=4, keep=2))), "between 1 and experts=4"),
        (lambda: moe(TopK(k=2, groups=Groups(count=3, keep=2))), "cannot stand in"),
        (lambda: moe(TopK(k=2, groups=Groups(count=4, keep=5))), "cannot stand in"),
        (lambda: moe(TopK(k=2, groups=Groups(count=4, keep=2, best=3))), "has no 3 best"),
    ],
)
def test_impossible_routers_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
