"""µP: what wider models compute after some steps is as large as what narrow ones do, and rates follow the width."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from train_setups import Counting

from etymon.errors import ConfigError
from etymon.families import bert, family_named, gpt2, llama
from etymon.nn import build
from etymon.objectives import CausalLM
from etymon.train import AdamWConfig, GroupRule, LionConfig, MuonConfig, scale_output
from etymon.train.optimizers import build_optimizers, plan_groups
from etymon.train.step import apply_gradient, compute_gradient
from etymon.train.together import Together

LOADER = Counting(batch_size=4)


def decoder(dim, **changes):
    """Heads of one width: the wider the model, the more of them."""
    return llama.build(vocab=61, dim=dim, layers=2, heads=dim // 16, hidden=2 * dim, context=64, **changes)


def trained(spec, settings, *, scaled=None, steps=4, clip=None):
    model = build(spec, seed=0)
    if scaled:
        scale_output(model, scaled)
    optimizers = build_optimizers(model, settings)
    for step in range(steps):
        compute_gradient(model, CausalLM(), LOADER.batch(step), micro_batch=None, clip=clip, precision="fp32")
        apply_gradient(optimizers)
    return model


def sizes(model):
    """Root mean squares of the stream before the last norm, and of the logits."""
    with torch.no_grad():
        norm, seen = model.trunk.final_norm, []
        handle = norm.register_forward_hook(lambda module, given, result: seen.append(given[0]))
        logits = model(LOADER.batch(99).input_ids).logits
        handle.remove()
    return [x.square().mean().sqrt().item() for x in (seen[0], logits)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_coordinate_check(kind, tied):
    """Appendix D.1 of arXiv:2203.03466: no activation grows with the width, and without µP some do."""

    def settings(base_width):
        if kind == "adamw":
            return AdamWConfig(lr=0.01, base_width=base_width)
        return MuonConfig(lr=0.02, adamw=AdamWConfig(lr=0.01, weight_decay=0.0), base_width=base_width)

    ours = [sizes(trained(decoder(dim, tied=tied), settings(32), scaled=32)) for dim in (32, 256)]
    plain = [sizes(trained(decoder(dim, tied=tied), settings(None))) for dim in (32, 256)]
    assert ours[0] == pytest.approx(plain[0])  # the base is the model that it was
    growth, without = ([wide / narrow for narrow, wide in zip(*found, strict=True)] for found in (ours, plain))
    assert all(1 / 1.7 < ratio < 1.7 for ratio in growth), growth
    assert max(without) > 2.5 * max(growth), (growth, without)


def test_the_factor_on_logits_may_stand_in_the_norm():
    """Lemma J.1: the spec's own factor on the logits, with the norm's rate as it was, is the same training."""
    spec = decoder(128, tied=True)
    ours = trained(spec, AdamWConfig(lr=0.003, base_width=64), scaled=64, steps=6)
    rules = (GroupRule(kind="matrices", lr_factor=0.5, weight_decay=0.2),)
    scaled = replace(spec, head=replace(spec.head, scale=0.5))
    theirs = trained(scaled, AdamWConfig(lr=0.003, groups=rules), steps=6)
    ids = LOADER.batch(50).input_ids
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=2e-4)
    assert torch.allclose(ours.trunk.final_norm.weight, 0.5 * theirs.trunk.final_norm.weight, atol=2e-4)


def rates(model, settings):
    found = {member.name: group.lr for group in plan_groups(model, settings) for member in group.members}
    return {name: rate / settings.lr for name, rate in found.items()}


def test_the_rates_are_those_of_table_8():
    model = build(decoder(128, tied=False), device="meta")
    found = rates(model, AdamWConfig(base_width=32))
    hidden = {name for name, ratio in found.items() if ratio == 0.25}
    assert found["embed.tokens.weight"] == found["head.linear.weight"] == 1.0
    assert hidden == {f"{name}.weight" for name, _ in model.matrices()} | {"decoder.final_norm.weight"}
    assert len(hidden) == 2 * 4 + 1
    assert sum(ratio == 1.0 for ratio in found.values()) == 2 + 4  # tables, and the norms in the blocks
    taken = {g.lr * g.weight_decay for g in plan_groups(model, AdamWConfig(base_width=32))}  # of a weight, by a step
    assert sorted(taken) == pytest.approx([0.0, 1e-4])


def test_muon_s_matrices_keep_their_rate():
    model = build(decoder(128, tied=True), device="meta")
    settings = MuonConfig(lr=0.02, adamw=AdamWConfig(lr=0.02, weight_decay=0.0), base_width=32)
    assert {name: ratio for name, ratio in rates(model, settings).items() if ratio != 1.0} == {
        "decoder.final_norm.weight": 0.25
    }


def test_encoders_and_norms_with_biases():
    model = build(bert.build(vocab=61, dim=64, layers=1, heads=4, context=32), seed=0)
    found = rates(model, AdamWConfig(base_width=16))
    assert found["head.projection.dense.weight"] == found["head.projection.norm.weight"] == 0.25
    before = model(torch.arange(8)[None]).logits
    scale_output(model, 16)
    bias = model.head.linear.bias
    assert torch.allclose(model(torch.arange(8)[None]).logits - bias, 0.25 * (before - bias), atol=1e-6)
    other = build(gpt2.build(vocab=61, dim=64, layers=1, heads=4, context=32), seed=0)
    before = other(torch.arange(8)[None]).logits
    scale_output(other, 16)
    assert torch.allclose(other(torch.arange(8)[None]).logits, 0.25 * before, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "message"),
    [("gemma", "factors of its own"), ("electra", "no head over the vocabulary"), ("gpt1", "no norm with a weight")],
)
def test_models_of_which_nothing_is_known_are_refused(family, message):
    known = family_named(family)
    model = build(known.spec(**known.tiny), device="meta")
    with pytest.raises(ConfigError, match=message):
        plan_groups(model, AdamWConfig(base_width=16))


def test_companions_and_other_optimizers_are_refused():
    model = build(decoder(32), device="meta")
    with pytest.raises(ConfigError, match="companion"):
        plan_groups(Together(model, {"generator": build(decoder(16), device="meta")}), AdamWConfig(base_width=16))
    with pytest.raises(ValueError, match="known of adamw and muon only"):
        LionConfig(base_width=16)
    with pytest.raises(ValueError, match="belong beside it"):
        MuonConfig(adamw=AdamWConfig(base_width=16))
