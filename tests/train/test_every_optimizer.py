"""What holds for each optimizer: it learns in `fit`, remembers what it says, and recipes know its memory."""

from __future__ import annotations

import pytest
import torch
from train_setups import OPTIMIZERS, Counting, config, tiny_model

from etymon.families import family_named
from etymon.nn import build
from etymon.objectives import CausalLM
from etymon.recipe import memory
from etymon.recipe.schema import PretrainSection
from etymon.train import fit, read_metrics
from etymon.train.optimizers import build_optimizers, optimizer_tensors, state_bytes

FIRST_ORDER = [kind for kind in OPTIMIZERS if kind != "mezo"]


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_it_overfits_within_fit(tmp_path, kind):
    settings = config(150, optimizer=OPTIMIZERS[kind], log_every=10, checkpoint_every=150)
    fit(tiny_model(), Counting(), CausalLM(), settings, tmp_path)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_what_is_remembered_is_what_was_said(kind):
    """The bytes after a step are those foretold without memory, which recipes reckon with."""
    spec = family_named("llama").spec(vocab=512, dim=64, layers=2, heads=4, hidden=176, context=32)
    model = build(spec)
    optimizers = build_optimizers(model, OPTIMIZERS[kind])
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    for optimizer in optimizers:
        optimizer.step()
    held = sum(tensor.nbytes for tensor in optimizer_tensors(model, optimizers).values())
    assert held == state_bytes(build_optimizers(build(spec, device="meta"), OPTIMIZERS[kind]))
    assert held == memory.training_memory(spec, PretrainSection(optimizer=OPTIMIZERS[kind]), 32).optimizer


def test_bytes_per_parameter():
    """At a shape where matrices and embeddings are about equal; SOAP and Shampoo pay for sides, GaLore by its rank."""
    spec = family_named("llama").spec(vocab=4096, dim=256, layers=4, heads=4, hidden=704, context=128)
    model = build(spec, device="meta")
    total = sum(p.numel() for p in model.parameters())
    table = model.embed.tokens.weight.numel() + model.head.linear.weight.numel()
    share = table / total
    found = {
        kind: state_bytes(build_optimizers(model, type(settings)())) / total for kind, settings in OPTIMIZERS.items()
    }
    assert found["adamw"] == pytest.approx(8, abs=0.01)
    assert found["lion"] == pytest.approx(4, abs=0.01)
    assert found["muon"] == pytest.approx(4 * (1 - share) + 8 * share, abs=0.05)
    assert found["adafactor"] < 0.05
    in_32_bits = model.embed.tokens.weight.numel() / total
    assert found["adam8bit"] == pytest.approx(2 * (1 + 4 / 256) * (1 - in_32_bits) + 8 * in_32_bits, abs=0.03)
    assert found["galore"] < found["adamw"] < found["soap"] == found["shampoo"]
    assert found["mezo"] == 0


def test_everything_is_frozen_but_what_is_not(tmp_path):
    rules = ({"kind": "embeddings", "frozen": True}, {"match": r"blocks\.0\.", "frozen": True})
    for kind, settings in OPTIMIZERS.items():
        frozen = type(settings).model_validate(settings.model_dump() | {"groups": rules})
        model, start = tiny_model(), dict(tiny_model().named_parameters())
        fit(model, Counting(), CausalLM(), config(3, optimizer=frozen), tmp_path / kind)
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
        kept = {name for name in start if name.startswith(("embed.", "decoder.blocks.0."))}
        assert changed == start.keys() - kept
        assert all(p.requires_grad for p in model.parameters())
