"""Large products, and the loss of logits: right, whichever way round their operands lie."""

from __future__ import annotations

import pytest
import torch

from etymon import kernels
from etymon.nn import gemm


@pytest.mark.parametrize(("m", "n", "k"), [(5, 7, 3), (100, 130, 300), (29, 4200, 17), (500, 96, 800), (1, 1, 1)])
@pytest.mark.parametrize("turned", ["neither", "left", "right", "both"])
def test_equals_the_exact_product(m: int, n: int, k: int, turned: str) -> None:
    a = torch.randn(k, m).T if turned in ("left", "both") else torch.randn(m, k)
    b = torch.randn(n, k).T if turned in ("right", "both") else torch.randn(k, n)
    bias, before = torch.randn(n), torch.randn(m, n)
    exact = a.double() @ b.double()
    bound = 1e-6 * k**0.5 * max(1.0, float(exact.abs().max()))
    assert (kernels.matmul(a, b) - exact).abs().max() < bound
    assert (kernels.matmul(a, b, bias) - (exact + bias)).abs().max() < bound
    assert (kernels.matmul(a, b, out=before.clone(), add=True) - (exact + before)).abs().max() < bound
    totals = torch.full((m,), float("nan"))
    assert (kernels.matmul(a, b, totals=totals) - exact).abs().max() < bound
    assert (totals - a.double().sum(1)).abs().max() < 1e-6 * k
    wide = torch.zeros(m, n + 9)
    kernels.matmul(a, b, out=wide[:, :n])
    assert (wide[:, :n] - exact).abs().max() < bound and not wide[:, n:].any()


def test_an_element_does_not_depend_on_threads_or_neighbours() -> None:
    a, b = torch.randn(301, 1000), torch.randn(1000, 203)
    whole = kernels.matmul(a, b)
    assert torch.equal(kernels.matmul(a[7:50], b[:, 3:99]), whole[7:50, 3:99])
    torch.set_num_threads(3)
    try:
        assert torch.equal(kernels.matmul(a, b), whole)
    finally:
        torch.set_num_threads(1)


def test_what_is_no_number_stays_none() -> None:
    a, b = torch.randn(20, 30), torch.randn(30, 60)
    a[3, 4], b[5, 50] = float("nan"), float("inf")
    found = kernels.matmul(a, b)
    assert found[3].isnan().all() and not found[:3, :50].isnan().any() and found[0, 50].isinf()


@torch.inference_mode(False)
def test_gradients_of_a_layer_large_enough() -> None:
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((2, 150, 130), (230, 130), (230,)))
    wanted = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    slope = torch.randn(2, 150, 230)
    gemm.linear(x, weight, bias).backward(slope)
    found = [t.grad for t in (x, weight, bias)]
    exact = torch.autograd.grad(wanted, (x, weight, bias), slope.double())
    for mine, theirs in zip(found, exact, strict=True):
        assert mine is not None and mine.is_contiguous()
        assert (mine - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("vocab", [2, 16, 37, 5000])
@torch.inference_mode(False)
def test_loss_and_gradient_of_logits(vocab: int) -> None:
    logits = (torch.randn(33, vocab) * 5).requires_grad_()
    logits.data[1] += 1000
    logits.data[2, 1] = -float("inf")
    targets = torch.randint(vocab, (33,))
    targets[2] = 0
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    (slope,) = torch.autograd.grad(exact, logits)
    mine = logits.detach().clone()
    assert kernels.entropy(mine, targets, gradient=False) == pytest.approx(exact.item(), rel=1e-6)
    assert torch.equal(mine, logits)
    assert kernels.entropy(mine, targets, gradient=True) == pytest.approx(exact.item(), rel=1e-6)
    assert (mine - slope).abs().max() < 1e-6


def test_a_loss_of_what_is_no_number_is_none() -> None:
    logits = torch.randn(3, 100)
    logits[1, 70] = float("nan")
    assert kernels.entropy(logits, torch.tensor([1, 2, 3]), gradient=True) != kernels.entropy(
        logits.nan_to_num(), torch.tensor([1, 2, 3]), gradient=False
    )
    assert torch.tensor(kernels.entropy(logits, torch.tensor([1, 2, 3]), gradient=False)).isnan()
