"""MeZO: slopes along random directions, from forward passes only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train_setups import Counting, config, tiny_model

from etymon.objectives import CausalLM
from etymon.train import MeZOConfig, fit, held_out_loss
from etymon.train.optimizers import MeZO, build_optimizers, optimizer_tensors
from etymon.train.step import compute_gradient, estimate_gradient


def direction(model, mezo):
    """The direction of the current seed, by parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mezo.move(1.0)
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
    return moved


def estimate(model, mezo, step, micro_batch=None, clip=None):
    settings = {"seed": 0, "step": step, "micro_batch": micro_batch, "clip": clip, "precision": "fp32"}
    return estimate_gradient(mezo, model, CausalLM(), Counting(masked=0.3).batch(0), **settings)


def test_the_slope_is_the_gradient_along_the_direction():
    model = tiny_model().double()
    (mezo,) = build_optimizers(model, MeZOConfig(eps=1e-3))
    compute_gradient(model, CausalLM(), Counting(masked=0.3).batch(0), micro_batch=None, clip=None, precision="fp32")
    slopes = []
    for step in range(300):
        result = estimate(model, mezo, step)
        slopes.append(mezo.slope)
        if step < 5:
            z = direction(model, mezo)
            expected = sum((p.grad * z[name]).sum().item() for name, p in model.named_parameters())
            assert mezo.slope == pytest.approx(expected, rel=1e-2, abs=2e-3)
            assert result.norm == abs(mezo.slope)
    # E[slope^2] = |gradient|^2 for normal z: the estimate slope * z has the gradient as its mean
    squared = sum(p.grad.square().sum().item() for p in model.parameters())
    assert torch.tensor(slopes).square().mean().item() == pytest.approx(squared, rel=0.3)


def test_the_estimate_is_unbiased():
    target = torch.tensor([1.0, -2.0, 0.5])
    p = nn.Parameter(torch.zeros(3))
    mezo = MeZO([{"params": [p], "lr": 1.0, "weight_decay": 0.0}], {"eps": 1e-2})
    total, trials = torch.zeros(3), 4000
    for seed in range(trials):
        mezo.seed = seed
        ends = []
        for distance in (mezo.eps, -mezo.eps):
            mezo.move(distance)
            ends.append((p.detach() - target).square().sum().item() / 2)
            mezo.move(-distance)
        mezo.slope = (ends[0] - ends[1]) / (2 * mezo.eps)
        with torch.no_grad():
            p.zero_()
            mezo.step()
            total -= p
            p.zero_()
    assert (total / trials - -target).abs().max() < 0.25  # the gradient at 0; 5 standard errors


def test_it_finds_the_minimum_of_a_convex_function():
    target = torch.randn(10, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(torch.zeros(10))
    mezo = MeZO([{"params": [p], "lr": 0.05, "weight_decay": 0.0}], {"eps": 1e-3})
    for seed in range(600):
        mezo.seed = seed
        ends = []
        for distance in (mezo.eps, -mezo.eps):
            mezo.move(distance)
            ends.append((p.detach() - target).square().sum().item() / 2)
            mezo.move(-distance)
        mezo.slope = (ends[0] - ends[1]) / (2 * mezo.eps)
        mezo.step()
    assert (p.detach() - target).norm() < 0.01 * target.norm()


def test_weights_are_back_and_micro_batches_change_nothing():
    model, start = tiny_model(), tiny_model()
    (mezo,) = build_optimizers(model, MeZOConfig())
    whole = estimate(model, mezo, 3)
    for p, before in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, before, rtol=0, atol=1e-6)
    slope = mezo.slope
    parts = estimate(model, mezo, 3, micro_batch=1)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert mezo.slope == pytest.approx(slope, rel=0.02)
    estimate(model, mezo, 3, clip=abs(slope) / 2)
    assert abs(mezo.slope) == pytest.approx(abs(slope) / 2)


def test_no_gradient_and_no_state_exist():
    model = tiny_model()
    optimizers = build_optimizers(model, MeZOConfig(lr=1e-4))
    graph = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: graph.append(t) or t, lambda t: t):
        estimate(model, optimizers[0], 0)
        optimizers[0].step()
    assert not graph
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer_tensors(model, optimizers)


def test_its_memory_is_that_of_inference():
    """With gradients kept it would be 2.7 times as much, and 5 with a graph."""
    script = Path(__file__).with_name("memory_process.py")
    returned = {f"MALLOC_{name}_THRESHOLD_": "65536" for name in ("MMAP", "TRIM")}  # what is freed is not resident
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env=os.environ | returned
    )
    inference, mezo = map(int, done.stdout.split())
    assert mezo < 1.15 * inference


def test_a_model_learns_from_forward_passes(tmp_path):
    model = tiny_model()
    before = held_out_loss(model, Counting(seed=1), 8, precision="fp32")
    settings = config(150, optimizer=MeZOConfig(lr=1e-3), clip=None, log_every=50, checkpoint_every=150)
    fit(model, Counting(), CausalLM(), settings, tmp_path)
    assert held_out_loss(model, Counting(seed=1), 8, precision="fp32") < before - 0.1
