from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from train_setups import Counting, tiny_model

from etymon.data import Batch
from etymon.errors import TrainingError
from etymon.objectives import CausalLM
from etymon.train import held_out_loss
from etymon.train.step import compute_gradient


def gradients(micro_batch, masked=0.5, clip=None, seed=0):
    model = tiny_model()
    batch = Counting(masked=masked, seed=seed).batch(0)
    result = compute_gradient(model, CausalLM(), batch, micro_batch=micro_batch, clip=clip, precision="fp32")
    return result, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_the_loss_is_the_mean_over_trained_tokens():
    model, batch = tiny_model(), Counting(masked=0.5).batch(0)
    logits = model(batch.input_ids, position_ids=batch.position_ids, documents=batch.documents).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    result = compute_gradient(model, CausalLM(), batch, micro_batch=None, clip=None, precision="fp32")
    assert result.loss == pytest.approx(expected.item(), rel=1e-6)
    grads = torch.autograd.grad(expected, list(model.parameters()))
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 6, 100])
def test_accumulation_changes_nothing(micro_batch):
    whole, expected = gradients(None)
    result, found = gradients(micro_batch)
    assert result.loss == pytest.approx(whole.loss, rel=1e-6)
    assert result.norm == pytest.approx(whole.norm, rel=1e-5)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)


def test_uneven_masks_weigh_tokens_not_micro_batches():
    # one row trains a single token: averaging per micro-batch would give it the weight of a whole row
    model, batch = tiny_model(), Counting().batch(0)
    targets = batch.targets.clone()
    targets[0, 1:] = -100
    uneven = Batch(batch.input_ids, targets, batch.position_ids, batch.documents)
    a = compute_gradient(model, CausalLM(), uneven, micro_batch=1, clip=None, precision="fp32")
    model.zero_grad()
    b = compute_gradient(model, CausalLM(), uneven, micro_batch=None, clip=None, precision="fp32")
    assert a.loss == pytest.approx(b.loss, rel=1e-6)


def test_rows_that_train_nothing_are_skipped_and_batches_that_do_are_refused():
    model, batch = tiny_model(), Counting().batch(0)
    targets = batch.targets.clone()
    targets[:3] = -100
    some = Batch(batch.input_ids, targets, batch.position_ids, batch.documents)
    compute_gradient(model, CausalLM(), some, micro_batch=1, clip=None, precision="fp32")
    none = Batch(batch.input_ids, torch.full_like(targets, -100), batch.position_ids, batch.documents)
    with pytest.raises(TrainingError, match="trains no token"):
        compute_gradient(model, CausalLM(), none, micro_batch=None, clip=None, precision="fp32")


def test_clipping_scales_the_whole_gradient_and_both_norms_are_reported():
    free, unclipped = gradients(None)
    assert free.clipped_norm == free.norm
    result, clipped = gradients(None, clip=free.norm / 4)
    assert result.norm == pytest.approx(free.norm)
    assert result.clipped_norm == pytest.approx(free.norm / 4)
    for name, grad in clipped.items():
        torch.testing.assert_close(grad, unclipped[name] / 4, rtol=1e-3, atol=1e-7)
    same, _ = gradients(None, clip=free.norm * 4)
    assert same.clipped_norm == same.norm


def test_bf16_gradients_are_near_fp32_and_weights_stay_fp32():
    model = tiny_model()
    result = compute_gradient(model, CausalLM(), Counting().batch(0), micro_batch=None, clip=None, precision="bf16")
    full, _ = gradients(None, masked=0.0)
    assert result.loss == pytest.approx(full.loss, rel=0.02)
    assert result.norm == pytest.approx(full.norm, rel=0.1)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_held_out_loss_is_nats_per_trained_token_and_leaves_no_trace():
    model, loader = tiny_model(), Counting(masked=0.7)
    batches = [loader.batch(step) for step in range(3)]
    with torch.no_grad():
        total = sum(CausalLM().loss(model, batch).item() for batch in batches)
    expected = total / sum(batch.trained for batch in batches)
    model.train()
    assert held_out_loss(model, loader, 3, precision="fp32") == pytest.approx(expected, rel=1e-6)
    assert held_out_loss(model, loader, 3, precision="fp32", micro_batch=4) == pytest.approx(expected, rel=1e-5)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
