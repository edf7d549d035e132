"""Latent attention against the paper's formulas, and what its state holds."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from etymon.families import family_named
from etymon.nn import Model, build, count
from etymon.nn.latent import LatentAttention
from etymon.quant import quantize_int8
from etymon.spec import YarnScaling


def model(**changes: object) -> Model:
    family = family_named("deepseek_v2")
    built = build(family.spec(**(family.tiny | {"heads": 3, "layers": 1, "dense_layers": 1} | changes))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in built.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.dim() == 1))
    return built


def attention(built: Model) -> LatentAttention:
    return next(m for m in built.modules() if isinstance(m, LatentAttention))


def by_hand(a: LatentAttention, x: Tensor) -> Tensor:
    """Equations 37 to 47 of the paper, a head and a position at a time."""
    op, (T, _) = a.op, x.shape
    R, N, V = op.rope.dim, op.head_dim, op.value_dim

    def norm(v: Tensor, module: torch.nn.Module | None) -> Tensor:
        assert module is not None
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight

    def turn(v: Tensor, position: int) -> Tensor:
        angles = position * 10000.0 ** (-torch.arange(0, R, 2) / R)
        complex_v = torch.complex(v[: R // 2], v[R // 2 :]) * torch.polar(torch.ones(R // 2), angles)
        return torch.cat((complex_v.real, complex_v.imag))

    assert a.q_down is not None
    q = (norm(x @ a.q_down.weight.T, a.q_norm) @ a.q.weight.T).view(T, op.heads, R + N)
    down = x @ a.kv_down.weight.T
    latent = norm(down[:, R:], a.kv_norm)
    keys = (latent @ a.kv.weight[: op.heads * N].T).view(T, op.heads, N)
    values = (latent @ a.kv.weight[op.heads * N :].T).view(T, op.heads, V)
    out = torch.zeros(T, op.heads, V)
    for h in range(op.heads):
        for t in range(T):
            scores = []
            for j in range(t + 1):
                turned = turn(q[t, h, :R], t) @ turn(down[j, :R], j)
                scores.append((turned + q[t, h, R:] @ keys[j, h]) * (R + N) ** -0.5)
            out[t, h] = torch.stack(scores).softmax(0) @ values[: t + 1, h]
    return out.flatten(1) @ a.out.weight.T


@torch.no_grad()
def test_the_paper_s_equations() -> None:
    built = model()
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    got = []
    hook = attention(built).register_forward_hook(lambda m, args, y: got.append((args[0], y)))
    built(inputs_embeds=x[None])
    hook.remove()
    ((seen, y),) = got
    expected = by_hand(attention(built), seen[0])
    assert (y[0] - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("quantised", [False, True])
def test_both_ways_are_the_same(quantised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    if quantised:
        quantize_int8(built)
    ids = torch.arange(24).view(2, 12)
    taken = []
    for absorb in (True, False):
        monkeypatch.setattr(LatentAttention, "_absorbing_pays", lambda self, time, keys, absorb=absorb: absorb)
        monkeypatch.setattr(
            LatentAttention,
            "_absorbed",
            lambda self, *given, absorbed=LatentAttention._absorbed: (taken.append(1), absorbed(self, *given))[1],
        )
        state = built.new_state(2, 12)
        with torch.no_grad():
            parts = [built(part, state=state).logits for part in ids.split([5, 1, 1, 4, 1], 1)]
        if absorb:
            expected, used = torch.cat(parts, 1), len(taken)
            assert used == 5
        else:
            got = torch.cat(parts, 1)
            assert len(taken) == used
    tolerance = 0.05 if quantised else 1e-5  # the int8 product rounds to bf16
    assert (got - expected).abs().max() / expected.abs().max() < tolerance


def test_single_tokens_are_absorbed_and_long_inputs_are_not() -> None:
    op = attention(build(family_named("deepseek_v3").spec("deepseek-v3", layers=1), device="meta"))
    assert op._absorbing_pays(1, 4096) and op._absorbing_pays(1, 2) and op._absorbing_pays(16, 4096)
    assert not op._absorbing_pays(4096, 4096) and not op._absorbing_pays(512, 1024)


def test_a_state_holds_one_vector_per_token() -> None:
    """What the paper is about: 576 numbers per token and layer, whatever the heads."""
    family = family_named("deepseek_v3")
    spec = family.spec("deepseek-v3", layers=4, experts=16)
    built = build(spec, device="meta", dtype=torch.bfloat16)
    assert built.new_state(1, 100).nbytes == 4 * 100 * (512 + 64) * 2
    tiny = model(heads=3)
    assert tiny.new_state(2, 10).nbytes == 2 * 10 * (16 + 4) * 4 == model(heads=6).new_state(2, 10).nbytes


def test_yarn_s_temperature_acts_on_the_whole_score() -> None:
    plain = attention(model()).op
    scaled = YarnScaling(factor=40.0, original_context=4096, mscale=0.707, mscale_all=0.707)
    op = dataclasses.replace(plain, rope=dataclasses.replace(plain.rope, scaling=scaled))
    assert op.scale / plain.scale == pytest.approx(1.260804**2, rel=1e-5)  # 0.0707 ln 40 + 1
    assert copy.copy(op).scale == op.scale


def test_queries_without_a_latent() -> None:
    with_rank, without = model(), model(query_rank=None)
    assert attention(without).q_down is None
    assert count(without.spec).total == sum(p.numel() for p in without.parameters())
    assert count(with_rank.spec).total != count(without.spec).total
