"""Attention of whole sequences: what torch computes with a mask, and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etymon import kernels


def spans(kind: str, batch: int, time: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(time)
    if kind == "causal":
        first, last = torch.zeros(1, time), places[None]
    elif kind == "all":
        first, last = torch.zeros(1, time), torch.full((1, time), time - 1)
    elif kind == "window":
        first, last = (places - 30).clamp(min=0)[None], places[None]
    else:  # documents of random lengths, each row its own
        begins = torch.stack([torch.randint(0, 9, (time,)).eq(0).cumsum(0) for _ in range(batch)])
        same = begins[:, :, None] == begins[:, None, :]
        first, last = same.int().argmax(2), places.expand(batch, time)
    return first.int().contiguous(), last.int().contiguous()


@pytest.mark.parametrize("kind", ["causal", "all", "window", "documents"])
@pytest.mark.parametrize(
    ("batch", "time", "heads", "kv_heads", "width"),
    [(2, 100, 3, 3, 64), (1, 64, 4, 2, 16), (3, 7, 2, 1, 48), (1, 130, 2, 2, 128), (2, 1, 1, 1, 80)],
)
@torch.inference_mode(False)
def test_equals_masked_attention(kind: str, batch: int, time: int, heads: int, kv_heads: int, width: int) -> None:
    first, last = spans(kind, batch, time)
    qkv = torch.randn(batch, time, heads + 2 * kv_heads, width, dtype=torch.float64, requires_grad=True)
    q, k, v = (each.transpose(1, 2) for each in qkv.split((heads, kv_heads, kv_heads), 2))
    k, v = (each.repeat_interleave(heads // kv_heads, 1) for each in (k, v))
    columns = torch.arange(time)
    mask = (columns >= first[:, None, :, None]) & (columns <= last[:, None, :, None])
    wanted = F.scaled_dot_product_attention(q, k, v, mask, scale=0.2).transpose(1, 2).reshape(batch, time, -1)
    slope = torch.randn(wanted.shape)
    (exact,) = torch.autograd.grad(wanted, qkv, slope.double())

    mine = qkv.detach().float().requires_grad_()
    found = kernels.attend_sequences(mine, first, last, heads=heads, kv_heads=kv_heads, scale=0.2)
    assert (found - wanted).abs().max() < 2e-6 * max(1.0, float(wanted.detach().abs().max()))
    (gradient,) = torch.autograd.grad(found, mine, slope)
    assert (gradient - exact).abs().max() < 5e-6 * max(1.0, float(exact.abs().max()))


@torch.inference_mode(False)
def test_threads_do_not_matter() -> None:
    first, last = spans("causal", 2, 70)
    qkv = torch.randn(2, 70, 6, 32)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        mine = qkv.clone().requires_grad_()
        found = kernels.attend_sequences(mine, first, last, heads=2, kv_heads=2, scale=0.2)
        results.append((found.detach(), *torch.autograd.grad(found.sum(), mine)))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@torch.inference_mode(False)
def test_what_is_no_number_reaches_only_who_sees_it() -> None:
    first, last = spans("causal", 1, 80)
    qkv = torch.randn(1, 80, 3, 16)
    qkv[0, 40, 1, 3] = float("nan")
    found = kernels.attend_sequences(qkv, first, last, heads=1, kv_heads=1, scale=0.2)
    assert not found[0, :40].isnan().any() and found[0, 40:].isnan().all()


def kept_weights(first: Tensor, last: Tensor, heads: int, time: int, seed: int, rate: float) -> Tensor:
    """What every weight is multiplied by, [batch, heads, time, time], read from values that are unit vectors."""
    qkv = torch.zeros(2, time, 3 * heads, 80)
    qkv[:, :, 2 * heads :, :time] = torch.eye(time)[:, None]
    torch.manual_seed(seed)
    mixed = kernels.attend_sequences(qkv, first, last, heads=heads, kv_heads=heads, scale=0.2, dropout=rate)
    seen = last - first + 1  # all that a token sees has the same weight, as queries are 0
    return mixed.view(2, time, heads, 80)[..., :time].transpose(1, 2) * seen[:, None, :, None]


@pytest.mark.parametrize("kind", ["causal", "all", "window", "documents"])
@torch.inference_mode(False)
def test_dropped_weights_and_their_gradients(kind: str) -> None:
    """Beside torch in double precision, with the mask that the kernel drew."""
    heads, time, rate = 2, 75, 0.3
    first, last = spans(kind, 2, time)
    factor = kept_weights(first, last, heads, time, 7, rate)
    qkv = torch.randn(2, time, 3 * heads, 80, dtype=torch.float64, requires_grad=True)
    q, k, v = (each.transpose(1, 2) for each in qkv.split(heads, 2))
    columns = torch.arange(time)
    visible = (columns >= first[:, None, :, None]) & (columns <= last[:, None, :, None])
    weights = (q @ k.mT * 0.2).masked_fill(~visible, -torch.inf).softmax(-1)
    wanted = (weights * (factor > 0).double() / 0.7 @ v).transpose(1, 2).flatten(2)
    slope = torch.randn(wanted.shape)
    (exact,) = torch.autograd.grad(wanted, qkv, slope.double())

    mine = qkv.detach().float().requires_grad_()
    torch.manual_seed(7)
    found = kernels.attend_sequences(mine, first, last, heads=heads, kv_heads=heads, scale=0.2, dropout=rate)
    assert (found - wanted).abs().max() < 4e-6 * max(1.0, float(wanted.detach().abs().max()))
    (gradient,) = torch.autograd.grad(found, mine, slope)
    assert (gradient - exact).abs().max() < 1e-5 * max(1.0, float(exact.abs().max()))


@torch.inference_mode(False)
def test_which_weights_are_dropped() -> None:
    first, last = spans("all", 2, 75)
    drawn = [kept_weights(first, last, 3, 75, seed, 0.3) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    kept = torch.stack((drawn[0], drawn[2])) > 0
    torch.testing.assert_close(drawn[0][kept[0]], torch.full_like(drawn[0][kept[0]], 1 / 0.7))
    each = kept.flatten(0, 3).float()  # 900 queries of 75 weights
    assert each.mean().item() == pytest.approx(0.7, abs=5 * 0.459 / each.numel() ** 0.5)
    assert (each.mean(0) - 0.7).abs().max() < 5 * 0.459 / len(each) ** 0.5  # every column
    assert (each.mean(1) - 0.7).abs().max() < 5 * 0.459 / 75**0.5  # every query
    centred = each - 0.7
    for shift in range(4):  # no two queries have the same series, nor one shifted
        alike = centred[:, shift:] @ centred[:, : 75 - shift].T / (0.21 * (75 - shift))
        alike.fill_diagonal_(0)
        assert alike.abs().max() < 0.75
        assert alike.mean().abs() < 1e-2
