"""Every family against its reference: logits, hidden states, gradients, cached decoding, padding, both directions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from consistency import check_rows
from references import REFERENCES, Reference, randomised
from safetensors.torch import load_file
from torch import Tensor

import etymon
from etymon.families import family_named

TOLERANCE = 1e-5


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.fixture(scope="module", params=REFERENCES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    reference: Reference = request.param
    theirs = randomised(reference)
    directory = tmp_path_factory.mktemp(reference.name)
    theirs.save_pretrained(directory)
    ours, tokenizer = etymon.load(directory)
    assert tokenizer is None
    return reference, theirs, ours


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def published_gradients(theirs: Any, directory: Path) -> dict[str, Tensor]:
    """The gradients under published names, which are not always those in memory: saved as if they were weights."""
    with torch.no_grad():
        gradients = copy.deepcopy(theirs)
        for parameter, source in zip(gradients.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    gradients.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


def exact_gradients(theirs: Any, ids: Tensor, directory: Path) -> dict[str, Tensor]:
    """The gradients of the reference in double precision."""
    double = copy.deepcopy(theirs).double()
    double.zero_grad()
    double(ids, labels=ids, use_cache=False).loss.backward()
    return published_gradients(double, directory)


def test_logits_hidden_states_and_gradients(pair: Any, tmp_path: Path) -> None:
    reference, theirs, ours = pair
    ids = tokens(3, 40)
    expected = theirs(ids, labels=ids, output_hidden_states=True, use_cache=False)
    got = ours(ids, labels=ids, output_hidden_states=True)
    assert relative(got.logits, expected.logits) < TOLERANCE
    assert relative(got.loss, expected.loss) < TOLERANCE
    assert len(got.hidden_states) == len(expected.hidden_states)
    own_states, traces = list(got.hidden_states), list(expected.hidden_states)
    if ours.head.projection is not None:  # ours belongs to the head, the reference's to the stack
        own_states[-1] = ours.head.projection(own_states[-1])
    if reference.trace_after_blocks:
        *after, last = traces
        own_states, traces = own_states[1:], [*after[:-1], last]
    for a, b in zip(own_states, traces, strict=True):
        assert relative(a, b) < TOLERANCE
    for model in (theirs, ours):
        model.zero_grad()
    expected.loss.backward()
    got.loss.backward()
    reference_gradients = published_gradients(theirs, tmp_path)
    own_gradients = {name: p.grad for name, p in ours.named_parameters()}
    compared, exact = set(), dict[str, Tensor]()
    rules = family_named(ours.spec.family).tensors.weights
    assert rules is not None
    for rule in rules(ours.spec):
        if rule.ours in dict(ours.named_buffers()):
            continue
        gradient = rule.read([reference_gradients[name] for name in rule.published])
        if relative(own_gradients[rule.ours], gradient) >= TOLERANCE:  # where scores are large both sides round
            exact = exact or exact_gradients(theirs, ids, tmp_path)
            gradient = rule.read([exact[name] for name in rule.published])
        assert relative(own_gradients[rule.ours], gradient) < TOLERANCE, rule.ours
        compared.add(rule.ours)
    assert compared == set(own_gradients)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: Any, side: str) -> None:
    reference, theirs, ours = pair
    ids = tokens(3, 24)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 5, 11)):
        mask[row, :pads] = 0
    if side == "right":
        mask = mask.flip(1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for position_ids in (None, positions):
        got = ours(ids, attention_mask=mask, position_ids=position_ids).logits
        if not reference.padding_is_skipped:
            continue
        expected = theirs(ids, attention_mask=mask, position_ids=position_ids).logits
        assert torch.isfinite(got).all()
        real = mask.bool()
        assert relative(got[real], expected[real]) < TOLERANCE
    # padding changes nothing: the row alone gives the same logits
    alone = ours(ids[2:, mask[2].bool()]).logits[0]
    assert relative(got[2, mask[2].bool()], alone) < TOLERANCE


def test_padding_mask_is_used(pair: Any) -> None:
    _, _, ours = pair
    ids, mask = tokens(1, 12), torch.ones(1, 12)
    mask[:, :4] = 0
    assert relative(ours(ids, attention_mask=mask).logits[:, 4:], ours(ids).logits[:, 4:]) > 1e-3


def test_cached_decoding_equals_the_full_pass(pair: Any) -> None:
    _, theirs, ours = pair
    ids = tokens(2, 30)
    full = ours(ids).logits
    assert relative(full, theirs(ids).logits) < TOLERANCE
    for chunks in ([1] * 30, [13, 1, 1, 9, 6], [29, 1]):
        state, parts = ours.new_state(2, 32), []
        for chunk in ids.split(chunks, 1):
            parts.append(ours(chunk, state=state).logits)
        assert relative(torch.cat(parts, 1), full) < TOLERANCE
    assert state.lengths.tolist() == [30, 30]


def test_rows_of_different_lengths_decode_together(pair: Any) -> None:
    check_rows(pair[2])


def test_left_padding_in_a_state(pair: Any) -> None:
    _, _, ours = pair
    ids = tokens(1, 12)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 4), torch.ones(1, 12)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0).long()
    expected = ours(ids).logits
    state = ours.new_state(1, 16)
    ours(padded[:, :10], attention_mask=mask[:, :10], position_ids=positions[:, :10], state=state)
    for t in range(10, 16):
        logits = ours(
            padded[:, t : t + 1],
            attention_mask=mask[:, : t + 1],
            position_ids=positions[:, t : t + 1],
            state=state,
        ).logits
        assert relative(logits[:, 0], expected[:, t - 4]) < TOLERANCE


def test_packed_documents_equal_documents_alone(pair: Any) -> None:
    _, _, ours = pair
    lengths = (7, 1, 12, 4)
    ids = tokens(1, sum(lengths))
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ours.zero_grad()
    packed = ours(ids, documents=documents, position_ids=positions).logits
    packed.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    alone = torch.cat([ours(part).logits for part in ids.split(lengths, 1)], 1)
    alone.square().mean().backward()
    assert relative(packed, alone) < TOLERANCE
    for name, p in ours.named_parameters():
        assert relative(gradients[name], p.grad) < TOLERANCE, name


def test_saved_for_the_reference(pair: Any, tmp_path: Path) -> None:
    _, theirs, ours = pair
    etymon.save(ours, None, tmp_path / "hf", format="hf", max_shard_bytes=20_000)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    again = type(theirs).from_pretrained(tmp_path / "hf")
    ids = tokens(2, 20)
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    reloaded, _ = etymon.load(tmp_path / "hf")
    assert reloaded.spec.decoder == ours.spec.decoder
    assert torch.equal(reloaded(ids).logits, ours(ids).logits)
    etymon.save(ours, None, tmp_path / "own")
    native, _ = etymon.load(tmp_path / "own")
    assert native.spec == ours.spec
    assert torch.equal(native(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pair: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    reference, _, _ = pair
    randomised(reference).to(dtype).save_pretrained(tmp_path)
    # (loaded anew, because .to(dtype) would also round the reference's rotary frequencies)
    theirs = type(randomised(reference)).from_pretrained(tmp_path, dtype=dtype)
    exact = type(theirs).from_pretrained(tmp_path, dtype=torch.float32)(tokens(2, 20)).logits
    ours, _ = etymon.load(tmp_path)
    assert ours.dtype == dtype
    assert ours(tokens(1, 4)).logits.dtype == dtype
    full, _ = etymon.load(tmp_path, dtype=torch.float32)
    assert relative(full(tokens(2, 20)).logits, exact) < TOLERANCE
    # within the rounding of the dtype itself: both are as far from fp32 as each other
    own_error = rounding(ours(tokens(2, 20)).logits.float(), exact, ours)
    their_error = rounding(theirs(tokens(2, 20)).logits.float(), exact, ours)
    assert own_error < 2 * their_error + torch.finfo(dtype).eps


def rounding(rounded: Tensor, exact: Tensor, model: Any) -> float:
    """The worst error of all positions; of a mixture that of the median one, as others choose other experts."""
    errors = ((rounded - exact).abs().amax(-1).flatten() / exact.abs().max()).detach()
    return float(errors.median() if any(model.mixtures()) else errors.max())


def test_greedy_generation_is_the_reference_s(pair: Any) -> None:
    reference, theirs, ours = pair
    if not reference.decodes_as_it_reads:
        pytest.skip("the reference's generation differs from its own full pass")
    prompt = tokens(1, 8)
    mask = torch.ones_like(prompt)
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    expected = theirs.generate(prompt, attention_mask=mask, **options)
    eos = theirs.generation_config.eos_token_id
    state, ids = ours.new_state(1, 32), prompt
    logits = ours(prompt, state=state, logits_to_keep=1).logits
    for _ in range(20):
        scores = logits[0, -1].clone()
        if eos is not None:
            scores[eos] = -torch.inf  # min_new_tokens forbids it in the reference
        ids = torch.cat([ids, scores.argmax()[None, None]], 1)
        logits = ours(ids[:, -1:], state=state).logits
    assert torch.equal(ids, expected)
