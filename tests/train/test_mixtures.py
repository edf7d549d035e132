"""Training a mixture of experts: penalties, balance, the optimizers' view of stacked matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from train_setups import Counting, config, tiny_model

from etymon.families import family_named
from etymon.nn import Model, build
from etymon.objectives import CausalLM
from etymon.train import AdamWConfig, Muon, MuonConfig, fit
from etymon.train.config import Penalties
from etymon.train.optimizers import build_optimizers
from etymon.train.step import compute_gradient


def mixture(seed: int = 0) -> Model:
    family = family_named("qwen2_moe")
    model = build(family.spec(**(family.tiny | {"vocab": 61, "experts": 6, "k": 2})), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return model.train()


def gradients(model: Model, **options: object) -> tuple[float, dict[str, Tensor]]:
    settings: dict[str, object] = {"micro_batch": None, "clip": None, "precision": "fp32"}
    result = compute_gradient(model, CausalLM(), Counting(masked=0.3).batch(0), **(settings | options))  # type: ignore[arg-type]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result.loss, found


def test_penalties_join_the_gradient_but_not_the_loss() -> None:
    model, batch = mixture(), Counting(masked=0.3).batch(0)
    plain_loss, plain = gradients(model)
    loss, found = gradients(model, penalties={"balance": 0.5, "router_z": 0.1})
    assert loss == plain_loss
    CausalLM().loss(model, batch)
    penalties = model.penalties()
    (0.5 * penalties["balance"] + 0.1 * penalties["router_z"]).backward()
    for name, p in model.named_parameters():
        own = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(found[name], plain[name] + own, rtol=1e-4, atol=1e-6)
    routers = [name for name in found if name.endswith("router.weight")]
    assert routers and all((found[name] - plain[name]).abs().max() > 1e-4 for name in routers)
    model.zero_grad()
    zero = gradients(model, penalties={"balance": 0.0})[1]
    assert all(torch.equal(zero[name], plain[name]) for name in plain)


def test_a_dense_model_has_no_penalty() -> None:
    model = tiny_model()
    assert gradients(model)[0] == gradients(model, penalties={"balance": 0.5})[0]


def unevenness(weight: float, directory: Path) -> float:
    """The balance penalty after training a model whose tokens all begin with the same two experts."""
    model = mixture()
    with torch.no_grad():
        model.embed.tokens.weight.add_(0.3)
        for _, moe in model.mixtures():
            moe.router.weight[:2].add_(0.1)
    settings = config(30, penalties=Penalties(balance=weight), optimizer=AdamWConfig(lr=3e-3), checkpoint_every=30)
    fit(model, Counting(), CausalLM(), settings, directory / str(weight))
    model.train()
    CausalLM().loss(model, Counting(seed=9).batch(0))
    return float(model.penalties()["balance"].detach())


def test_the_loop_balances_the_experts_by_the_recipe_s_coefficient(tmp_path: Path) -> None:
    with_it, without = unevenness(0.1, tmp_path), unevenness(0.0, tmp_path)
    assert with_it < 2.3 < 3 < without  # 2 is perfect for two experts a token, 6 the worst


def corrected(rate: float, directory: Path) -> tuple[list[int], Tensor]:
    """How many tokens each expert gets after training a model whose tokens all begin with the same experts."""
    family = family_named("deepseek_v3")
    tiny = family.tiny | {"vocab": 61, "layers": 1, "dense_layers": 0, "groups": 1, "experts": 6, "k": 2}
    model = build(family.spec(**tiny))
    moe = next(m for _, m in model.mixtures())
    with torch.no_grad():
        model.embed.tokens.weight.add_(0.3)
        moe.router.weight[:2].add_(0.1)
    penalties = Penalties(balance=0.0, correction=rate)
    fit(model, Counting(), CausalLM(), config(30, penalties=penalties, checkpoint_every=30), directory / str(rate))
    assert moe.served is None
    CausalLM().loss(model.eval(), Counting(seed=9).batch(0))
    assert moe.load is not None and moe.router.correction is not None
    return moe.load.tolist(), moe.router.correction


def test_corrections_balance_the_experts_without_a_loss(tmp_path: Path) -> None:
    (load, correction), (without, zero) = corrected(0.05, tmp_path), corrected(0.0, tmp_path)
    assert not zero.any()
    steps = correction / 0.05
    assert torch.allclose(steps, steps.round(), atol=1e-3) and steps.abs().max() <= 30
    assert max(load) < 2 * sum(load) / 6 < max(without)


def test_settling_counts_every_call_since_the_last_time() -> None:
    family = family_named("deepseek_v3")
    model = build(family.spec(**family.tiny)).train()
    moe = next(m for _, m in model.mixtures())
    loads = []
    for ids in (torch.arange(20).view(2, 10), torch.arange(30).view(3, 10) + 50):
        model(ids)
        loads.append(moe.load)
    served = (loads[0] + loads[1]).float()
    model.settle(0.25)
    assert torch.equal(moe.router.correction, 0.25 * (served.mean() - served).sign())
    before = moe.router.correction.clone()
    model.settle(0.25)  # nothing was served since
    model.eval()(torch.arange(20).view(2, 10))
    model.settle(0.25)
    assert torch.equal(moe.router.correction, before)


def test_muon_orthogonalises_every_expert_s_matrices_apart() -> None:
    generator = torch.Generator().manual_seed(1)
    stack = torch.randn(3, 20, 8, generator=generator)
    steps = [torch.randn(3, 20, 8, generator=generator) for _ in range(3)]
    whole = nn.Parameter(stack.clone())
    parts = [[nn.Parameter(half.clone()) for half in expert.split((12, 8))] for expert in stack]
    apart = [p for expert in parts for p in expert]
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.2}
    ours = Muon([(whole, (12, 8))], **settings)
    theirs = Muon([(p, (p.shape[0],)) for p in apart], **settings)
    for step in steps:
        whole.grad = step.clone()
        for expert, gradient in zip(parts, step, strict=True):
            for p, half in zip(expert, gradient.split((12, 8)), strict=True):
                p.grad = half.clone()
        ours.step()
        theirs.step()
    expected = torch.stack([torch.cat(list(expert)) for expert in parts])
    torch.testing.assert_close(whole.detach(), expected.detach())
    assert (whole - stack).abs().max() > 0.01


@pytest.mark.parametrize("optimizer", [MuonConfig(), AdamWConfig()])
def test_experts_are_matrices_and_routers_are_not(optimizer: MuonConfig | AdamWConfig) -> None:
    model = mixture()
    moe = next(m for _, m in model.mixtures())
    groups = [group for o in build_optimizers(model, optimizer) for group in o.param_groups]
    decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[moe.experts.up.weight] == decay[moe.experts.down.weight] == optimizer.weight_decay
    assert decay[moe.router.weight] == 0
    muon = [o for o in build_optimizers(model, optimizer) if isinstance(o, Muon)]
    held = {p for o in muon for group in o.param_groups for p in group["params"]}
    assert (moe.experts.up.weight in held) == isinstance(optimizer, MuonConfig)
    assert moe.router.weight not in held
