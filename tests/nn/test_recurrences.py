"""Properties that every operator without attention has: rows, padding, packing and states agree with rows alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.errors import ConfigError, DataError
from etymon.families import families, family_named
from etymon.nn import Model, build, count, ssm, wkv
from etymon.quant import quantize_int8
from etymon.spec import LSTM, Sub

SPECS = {f.name: f.spec(**f.tiny) for f in families().values()}
NAMES = [
    name
    for name, spec in SPECS.items()
    if spec.encoder is None and not any(cell.truncates for cell in build(spec).new_state(1, 4).cells)
]
TOLERANCE = 1e-5


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    family = family_named(request.param)
    model = build(family.spec(**family.tiny), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


def test_the_expected_families_are_here() -> None:
    assert {"lstm", "gru", "rnnlm", "nnlm", "mamba", "mamba2", "rwkv"} <= set(NAMES)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_is_as_if_it_were_not_there(model: Model, side: str) -> None:
    ids, mask = tokens(3, 24), torch.ones(3, 24, dtype=torch.long)
    for row, pads in enumerate((0, 5, 11)):
        if side in ("left", "both"):
            mask[row, :pads] = 0
        if side in ("right", "both"):
            mask[row, 24 - pads :] = 0
    if side == "both":
        mask[0, 7:9] = 0
    got = model(ids, attention_mask=mask).logits
    assert torch.isfinite(got).all()
    for row in range(3):
        real = mask[row].bool()
        if real.any():
            assert relative(got[row, real], model(ids[row : row + 1, real]).logits[0]) < TOLERANCE


def test_cached_decoding_equals_the_full_pass(model: Model) -> None:
    ids = tokens(2, 30)
    full = model(ids).logits
    for chunks in ([1] * 30, [13, 1, 1, 9, 6], [29, 1]):
        state = model.new_state(2, 32)
        parts = [model(chunk, state=state).logits for chunk in ids.split(chunks, 1)]
        assert relative(torch.cat(parts, 1), full) < TOLERANCE


def test_padded_prompts_in_a_state(model: Model) -> None:
    """Prompts padded at their end leave each row as if its tokens alone had been read."""
    ids, lengths = tokens(3, 20), (4, 9, 1)
    mask = torch.stack([(torch.arange(9) < n).long() for n in lengths])
    state = model.new_state(3, 64)
    model(ids[:, :9], attention_mask=mask, state=state)
    going_on = torch.ones(3, 12)
    going_on[:, :9] = mask
    got = model(ids[:, 9:12], attention_mask=going_on, state=state).logits
    for row, n in enumerate(lengths):
        alone = model(torch.cat((ids[row : row + 1, :n], ids[row : row + 1, 9:12]), 1)).logits[0, n:]
        assert relative(got[row], alone) < TOLERANCE


@pytest.mark.parametrize("padded", [False, True])
def test_packed_documents_equal_documents_alone(model: Model, padded: bool) -> None:
    lengths = (7, 1, 12, 4)
    ids = tokens(2, sum(lengths))
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).repeat(2, 1)
    documents[1] = 3  # one document only
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -2:] = 0
    packed = model(ids, documents=documents, attention_mask=mask).logits
    packed[mask.bool()].square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = torch.cat([model(part).logits for part in ids[:1].split(lengths, 1)], 1)
    alone = torch.cat((alone, model(ids[1:]).logits))
    alone[mask.bool()].square().mean().backward()
    assert relative(packed[mask.bool()], alone[mask.bool()]) < TOLERANCE
    for name, p in model.named_parameters():
        assert relative(gradients[name], p.grad) < 2 * TOLERANCE, name


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv"])
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    family = family_named(name)
    model = build(family.spec(**family.tiny), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    ids = tokens(2, 43)
    documents = torch.zeros_like(ids)
    documents[0, 10:], documents[0, 17:], documents[1, 16:] = 1, 2, 1
    for packing in (None, documents):
        results = []
        for chunk in (7, 64):
            monkeypatch.setattr(ssm, "CHUNK", chunk)
            monkeypatch.setattr(wkv, "CHUNK", chunk)
            model.zero_grad()
            logits = model(ids, documents=packing).logits
            logits.square().mean().backward()
            results.append([logits, *(p.grad.clone() for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            assert relative(a, b) < 3 * TOLERANCE


def test_the_scan_s_gradients() -> None:
    torch.manual_seed(0)
    shapes = [(2, 5, 3), (2, 5, 3), (3, 4), (2, 5, 4), (2, 5, 4)]
    x, dt, decay, b, c = (torch.randn(s) for s in shapes)
    inputs = [t.requires_grad_() for t in (x, dt.abs().detach(), -decay.abs().detach(), b, c)]
    starts = torch.zeros(2, 5, dtype=torch.bool)
    starts[1, 3] = True

    def plain(x: Tensor, dt: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
        h, ys = torch.zeros(2, 3, 4, dtype=x.dtype), []
        for t in range(5):
            h = (dt[:, t, :, None] * decay).exp() * h * (~starts[:, t, None, None])
            h = h + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
            ys.append((h * c[:, t, None]).sum(-1))
        return torch.stack(ys, 1)

    weight = torch.randn(2, 5, 3)
    expected = torch.autograd.grad((plain(*inputs) * weight).sum(), inputs)
    y, _ = ssm.selective_scan(*inputs, starts, None)
    got = torch.autograd.grad((y * weight).sum(), inputs)
    for a, e in zip(got, expected, strict=True):
        assert relative(a, e) < TOLERANCE


def test_the_engine_reads_prompts_of_any_length(model: Model) -> None:
    prompts = [tokens(n, 1)[:, 0].tolist() for n in (3, 9, 4, 4, 17)]
    sampling = Sampling(temperature=0.0, max_tokens=6, ignore_eos=True)
    engine = Engine(model, None, EngineConfig(slots=3, chunk=8))
    together = engine.generate([Request(prompt, sampling) for prompt in prompts])
    for prompt, answer in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(6):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
        assert list(answer.ids) == ids[0, len(prompt) :].tolist()


def test_a_state_cannot_go_back(model: Model) -> None:
    state = model.new_state(2, 16)
    model(tokens(2, 6), state=state)
    with pytest.raises(DataError, match="cannot go back from 6 to 4 tokens"):
        state.truncate(0, 4)
    state.truncate(0, 6)
    state.truncate(0, 0)
    fresh = model.new_state(1, 16)
    assert all(torch.equal(a[:1], b) for x, y in zip(state.cells, fresh.cells, strict=True)
               for a, b in zip(x.tensors, y.tensors, strict=True))  # fmt: skip


@torch.no_grad()
def test_quantised(model: Model) -> None:
    ids = tokens(2, 12)
    full = model(ids).logits
    got = quantize_int8(model)(ids).logits
    assert 0 < relative(got, full) < 0.1


def test_it_learns(model: Model) -> None:
    fresh = build(model.spec, seed=3)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    ids = tokens(4, 24)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = fresh(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_counts_are_exact(model: Model) -> None:
    assert count(model.spec).total == sum(p.numel() for p in model.parameters())


def test_widths_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="48 channels cannot be added to a stream of 32; use alpha=0"):
        Sub(op=LSTM(width=48)).width(32)
    with pytest.raises(ConfigError, match="a tied head needs a stream of 32 channels, not 48"):
        family_named("lstm").spec(vocab=97, dim=32, width=48, layers=1, tied=True)
