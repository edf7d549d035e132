"""Properties of the core that no reference shows: the chunked loss, initialisation, bad input."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from etymon.errors import DataError
from etymon.families import families, family_named
from etymon.families.descent import with_attention, with_blocks
from etymon.nn import IGNORE, Model, build
from etymon.nn import head as head_module
from etymon.spec import BucketBias, ModelSpec


@pytest.fixture(params=[f for f in families().values() if f.spec(**f.tiny).encoder is None], ids=lambda f: f.name)
def model(request: pytest.FixtureRequest) -> Model:
    model = build(request.param.spec(**request.param.tiny), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, bias: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    hidden = torch.randn(2, 300, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, dtype=dtype, requires_grad=True)
    offset = torch.randn(50, dtype=dtype, requires_grad=True) if bias else None
    inputs = [t for t in (hidden, weight, offset) if t is not None]
    targets = torch.randint(0, 50, (600,))
    rows = hidden.view(-1, 16)
    expected = F.cross_entropy(F.linear(rows, weight, offset).float(), targets, reduction="sum")
    got = head_module.linear_cross_entropy(rows, weight, offset, targets)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert abs(got - expected).item() / expected.item() < tolerance
    scale = torch.tensor(0.37)
    for a, b in zip(
        torch.autograd.grad(got * scale, inputs), torch.autograd.grad(expected * scale, inputs), strict=True
    ):
        assert (a - b).abs().max() / b.abs().max() < tolerance


def test_untrained_positions_count_nothing(model: Model) -> None:
    hidden = torch.randn(2, 9, model.spec.width)
    targets = torch.randint(0, model.spec.vocab, (2, 9))
    targets[:, ::2] = IGNORE
    expected = F.cross_entropy(model.head(hidden).flatten(0, 1), targets.flatten(), reduction="sum")
    assert torch.allclose(model.head.loss(hidden, targets), expected, rtol=1e-5)
    assert model.head.loss(hidden, torch.full((2, 9), IGNORE)).item() == 0.0


def test_fresh_weights_depend_on_the_seed_only(model: Model) -> None:
    spec = model.spec
    a, b, c = build(spec, seed=4), build(spec, seed=4), build(spec, seed=5)
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert not torch.equal(a.embed.tokens.weight, c.embed.tokens.weight)
    loss = a(torch.randint(0, spec.vocab, (4, 32)), labels=torch.randint(0, spec.vocab, (4, 32))).loss
    limit = 0.1 if spec.lm.rows is None else 1.0  # logits of rows of length one have variance 1: about 0.5 above
    assert abs(loss.item() - torch.tensor(float(spec.vocab)).log().item()) < limit


def test_logits_to_keep(model: Model) -> None:
    ids = torch.arange(12)[None]
    full = model(ids).logits
    assert torch.allclose(model(ids, logits_to_keep=3).logits, full[:, -3:], atol=1e-5)
    assert model(ids, logits=False).logits is None
    embedded = model.embed.tokens(ids)
    assert torch.allclose(model(inputs_embeds=embedded).logits, full)


def test_bad_input(model: Model) -> None:
    ids = torch.arange(12)[None]
    with pytest.raises(DataError, match="exactly one of"):
        model()
    with pytest.raises(DataError, match=r"must be \[batch, time\]"):
        model(ids[0])
    with pytest.raises(DataError, match="attention_mask has shape"):
        model(ids, attention_mask=torch.ones(1, 5))
    with pytest.raises(DataError, match="capacity 8"):
        model(ids, state=model.new_state(1, 8))
    with pytest.raises(DataError, match="input has 1 rows but the state has 2"):
        model(ids, state=model.new_state(2, 16))
    bad = ids.clone()
    bad[0, 3] = model.spec.vocab
    with pytest.raises(DataError, match=f"id {model.spec.vocab} .* vocabulary of {model.spec.vocab}"):
        model(bad)


def test_positions_beyond_the_learned_table() -> None:
    family = family_named("gpt2")
    model = build(family.spec(**family.tiny))
    with pytest.raises(DataError, match="position 64 lies beyond the 64 learned positions"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(DataError, match="position 70 lies beyond"):
        model(torch.zeros(1, 2, dtype=torch.long), position_ids=torch.tensor([[3, 70]]))


def perturbed(spec: ModelSpec) -> Model:
    model = build(spec)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (p.dim() == 1))
    return model


@pytest.mark.parametrize("name", ["llama", "bert", "bloom", "gemma2"])
def test_a_mask_may_say_who_sees_whom(name: str) -> None:
    family = family_named(name)
    model = perturbed(family.spec(**family.tiny))
    ids = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    plain = torch.ones(2, 12, 12) if name == "bert" else torch.ones(2, 12, 12).tril()
    assert torch.allclose(model(ids, attention_mask=plain).logits, model(ids).logits, atol=1e-5)
    seen = plain.clone()
    seen[0, :, 3] = 0  # nobody sees token 3 of the first row, not even itself
    changed = ids.clone()
    changed[0, 3] = (ids[0, 3] + 1) % 97
    a, b = model(ids, attention_mask=seen).logits, model(changed, attention_mask=seen).logits
    others = torch.arange(12) != 3
    assert torch.equal(a[0, others], b[0, others]) and torch.equal(a[1], b[1])
    assert not torch.allclose(a[0, 4:], model(ids).logits[0, 4:], atol=1e-4)
    with pytest.raises(DataError, match=r"shape \(2, 12, 11\), expected \(2, 12, 12\)"):
        model(ids, attention_mask=seen[:, :, :11])


def test_a_prefix_that_sees_itself_both_ways_in_a_state() -> None:
    family = family_named("llama")
    model = perturbed(family.spec(**family.tiny))
    ids = torch.randint(0, 97, (1, 10), generator=torch.Generator().manual_seed(1))
    seen = torch.ones(1, 10, 10).tril()
    seen[:, :6, :6] = 1
    full = model(ids, attention_mask=seen).logits
    state = model.new_state(1, 10)
    parts = [model(ids[:, :6], attention_mask=seen[:, :6, :6], state=state).logits]
    parts += [model(ids[:, i : i + 1], state=state).logits for i in range(6, 10)]
    assert torch.allclose(torch.cat(parts, 1), full, atol=1e-5)


def test_a_bias_of_distances_may_belong_to_one_layer() -> None:
    family = family_named("llama")
    bias = BucketBias(buckets=8, max_distance=16, heads=4)
    spec = with_blocks(family.spec(**family.tiny | {"layers": 1}), "llama", partial(with_attention, scores=bias))
    own = perturbed(spec)
    stack = dataclasses.replace(family.spec(**family.tiny | {"layers": 1}).trunk, relative=bias)
    shared = Model(dataclasses.replace(spec, decoder=stack))
    renamed = {k.replace("blocks.0.attention.op.scores", "relative"): v for k, v in own.state_dict().items()}
    shared.load_state_dict(renamed)
    ids = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(own(ids).logits, shared(ids).logits, atol=1e-6)
    own.trunk.blocks[0].attention.op.scores.table.weight.data.zero_()
    assert not torch.allclose(own(ids).logits, shared(ids).logits, atol=1e-3)
