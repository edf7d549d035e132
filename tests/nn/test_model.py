"""Properties of the core that no reference shows: the chunked loss, initialisation, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from etymon.errors import DataError
from etymon.families import families, family_named
from etymon.nn import IGNORE, Model, build
from etymon.nn import head as head_module


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
    assert abs(loss.item() - torch.tensor(float(spec.vocab)).log().item()) < 0.1


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
