"""Every encoder-decoder against its reference: logits, gradients, padding, packing, cached decoding, generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_references import SEQ2SEQ, TOLERANCE, load_pair, randomised, relative, tokens
from torch import Tensor

import etymon
from etymon.errors import DataError
from etymon.families import family_named


@pytest.fixture(scope="module", params=SEQ2SEQ, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pair(request.param, tmp_path_factory)


def padded(ids: Tensor, side: str) -> Tensor:
    """The mask of a batch whose rows are padded by 0, 4, 8 … tokens."""
    real = torch.arange(ids.shape[1])[None] >= 4 * torch.arange(ids.shape[0])[:, None]
    return (real.flip(1) if side == "right" else real).long()


def test_logits_hidden_states_and_gradients(pair: Any) -> None:
    _, theirs, ours = pair
    source, target = tokens(3, 40), tokens(3, 30, seed=2)
    start = 3 if ours.spec.start is None else ours.spec.start
    shifted = torch.cat([torch.full((3, 1), start), target[:, :-1]], 1)
    labels = target.clone()
    labels[1:, 22:] = -100
    # (the tokens after the last label are padding in the one and not in the other: they change no loss)
    expected = theirs(source, decoder_input_ids=shifted, labels=labels, output_hidden_states=True)
    got = ours(source, decoder_input_ids=shifted, labels=labels, output_hidden_states=True)
    assert relative(got.logits, expected.logits) < TOLERANCE
    assert relative(got.loss, expected.loss) < TOLERANCE
    assert relative(got.encoder_last_hidden_state, expected.encoder_last_hidden_state) < TOLERANCE
    for own, reference in (
        (got.hidden_states, expected.decoder_hidden_states),
        (got.encoder_hidden_states, expected.encoder_hidden_states),
    ):
        assert len(own) == len(reference)
        for a, b in zip(own, reference, strict=True):
            assert relative(a, b) < TOLERANCE
    for model in (theirs, ours):
        model.zero_grad()
    expected.loss.backward()
    got.loss.backward()
    # (an expert that no token has chosen has no gradient there, and zeros here)
    found = theirs.state_dict(keep_vars=True).items()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in found}
    own_gradients = {name: p.grad for name, p in ours.named_parameters()}
    compared = set()
    for rule in family_named(ours.spec.family).tensors.weights(ours.spec):
        compared.add(rule.ours)
        published = [gradients[name] for name in rule.published]
        if rule.published == ("final_logits_bias",):  # a buffer there, set by whoever converted the checkpoint
            continue
        gradient = rule.read(published)
        if rule.ours == "embed.tokens.weight":  # the reference's padding gets no gradient as an input
            own_gradients[rule.ours][theirs.config.pad_token_id] = gradient[theirs.config.pad_token_id] = 0
        loose = 10 if rule.ours.endswith("kv.bias") else 1  # the keys' part is zero but for rounding
        assert relative(own_gradients[rule.ours], gradient) < loose * TOLERANCE, rule.ours
    assert compared == set(own_gradients)
    if ours.spec.start is not None:
        assert relative(ours(source, labels=target).logits, theirs(source, labels=target).logits) < TOLERANCE
    else:
        with pytest.raises(DataError, match="pass decoder_input_ids"):
            ours(source, labels=target)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: Any, side: str) -> None:
    _, theirs, ours = pair
    source, target = tokens(3, 24), tokens(3, 20, seed=2)
    mask, target_mask = padded(source, side), padded(target, "right")
    given = {"decoder_input_ids": target, "attention_mask": mask, "decoder_attention_mask": target_mask}
    expected, got = theirs(source, **given), ours(source, **given)
    real = target_mask.bool()
    assert relative(got.logits[real], expected.logits[real]) < TOLERANCE
    encoded, reference = got.encoder_last_hidden_state, expected.encoder_last_hidden_state
    assert relative(encoded[mask.bool()], reference[mask.bool()]) < TOLERANCE
    wrong = ours(source, decoder_input_ids=target).logits[2]
    assert relative(wrong[real[2]], got.logits[2][real[2]]) > 1e-3
    if side == "right":  # padding changes nothing
        alone = ours(source[2:, mask[2].bool()], decoder_input_ids=target[2:, real[2]]).logits[0]
        assert relative(got.logits[2][real[2]], alone) < TOLERANCE


def test_encoder_outputs_in_the_place_of_the_source(pair: Any) -> None:
    _, theirs, ours = pair
    source, target = tokens(2, 24), tokens(2, 9, seed=2)
    mask = padded(source, "right")
    expected = ours(source, mask, decoder_input_ids=target).logits
    encoded = ours.encode(source, mask)
    for outputs in (
        encoded,
        encoded.last_hidden_state,
        (encoded.last_hidden_state,),
        theirs.get_encoder()(source, mask),
    ):
        got = ours(attention_mask=mask, encoder_outputs=outputs, decoder_input_ids=target).logits
        assert relative(got, expected) < TOLERANCE


def test_cached_decoding_equals_the_full_pass(pair: Any) -> None:
    _, _, ours = pair
    source, target = tokens(2, 24), tokens(2, 30, seed=2)
    mask = padded(source, "left")
    full = ours(source, mask, decoder_input_ids=target).logits
    for chunks in ([1] * 30, [13, 1, 1, 9, 6], [29, 1]):
        state, parts, given = (
            ours.new_state(2, 32, source_capacity=24),
            [],
            {"input_ids": source, "attention_mask": mask},
        )
        for chunk in target.split(chunks, 1):
            parts.append(ours(**given, decoder_input_ids=chunk, state=state).logits)
            given = {}
        assert relative(torch.cat(parts, 1), full) < TOLERANCE
    assert state.lengths.tolist() == [30, 30]


def test_rows_of_different_lengths_decode_together(pair: Any) -> None:
    _, _, ours = pair
    source, target = tokens(3, 20), tokens(3, 20, seed=2)
    sizes = (20, 7, 12)
    full = torch.cat(
        [ours(source[i : i + 1, :n], decoder_input_ids=target[i : i + 1]).logits for i, n in enumerate(sizes)]
    )
    state = ours.new_state(3, 24, source_capacity=20)
    for row, length in enumerate((3, 9, 14)):
        part = slice(row, row + 1)
        ours(source[part, : sizes[row]], decoder_input_ids=target[part, :length], state=state.rows(row, row + 1))
    for step in range(3):
        lengths = state.lengths.tolist()
        column = torch.stack([target[row, length] for row, length in enumerate(lengths)])[:, None]
        logits = ours(decoder_input_ids=column, state=state.rows(0, 3)).logits[:, 0]
        expected = torch.stack([full[row, length] for row, length in enumerate(lengths)])
        assert relative(logits, expected) < TOLERANCE, step
    state.truncate(1, 5)
    state.copy_row(1, 0)
    logits = ours(decoder_input_ids=target[1:2, 5:9], state=state.rows(0, 1)).logits
    assert relative(logits, full[1:2, 5:9]) < TOLERANCE


def test_packed_documents_equal_documents_alone(pair: Any) -> None:
    _, _, ours = pair
    sizes, target_sizes = (7, 1, 12, 4), (3, 5, 6, 2)
    source, target = tokens(1, sum(sizes)), tokens(1, sum(target_sizes), seed=2)

    def packing(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        documents = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)])[None]
        return documents, torch.cat([torch.arange(n) for n in sizes])[None]

    documents, positions = packing(sizes)
    decoder_documents, decoder_positions = packing(target_sizes)
    packed = ours(
        source,
        position_ids=positions,
        documents=documents,
        decoder_input_ids=target,
        decoder_position_ids=decoder_positions,
        decoder_documents=decoder_documents,
    ).logits
    pairs = zip(source.split(sizes, 1), target.split(target_sizes, 1), strict=True)
    alone = torch.cat([ours(a, decoder_input_ids=b).logits for a, b in pairs], 1)
    assert relative(packed, alone) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pair: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    reference, _, _ = pair
    randomised(reference).to(dtype).save_pretrained(tmp_path)
    theirs = type(randomised(reference)).from_pretrained(tmp_path, dtype=dtype)
    given = {"input_ids": tokens(2, 20), "decoder_input_ids": tokens(2, 20, seed=2)}
    exact = type(theirs).from_pretrained(tmp_path, dtype=torch.float32)(**given).logits
    ours, _ = etymon.load(tmp_path)
    assert ours.dtype == dtype
    full, _ = etymon.load(tmp_path, dtype=torch.float32)
    assert relative(full(**given).logits, exact) < TOLERANCE
    own_error = relative(ours(**given).logits.float(), exact)
    their_error = relative(theirs(**given).logits.float(), exact)
    assert own_error < 2 * their_error + torch.finfo(dtype).eps


def test_saved_for_the_reference(pair: Any, tmp_path: Path) -> None:
    _, theirs, ours = pair
    etymon.save(ours, None, tmp_path / "hf", format="hf", max_shard_bytes=20_000)
    again = type(theirs).from_pretrained(tmp_path / "hf")
    given = {"input_ids": tokens(2, 20), "decoder_input_ids": tokens(2, 20, seed=2)}
    saved = again.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in theirs.state_dict().items())
    # (to rounding: some of the reference's products round differently where its tensors lie differently in memory)
    assert relative(again(**given).logits, theirs(**given).logits) < 1e-6
    assert again.config.decoder_start_token_id == ours.spec.start
    reloaded, _ = etymon.load(tmp_path / "hf")
    assert reloaded.spec == ours.spec
    etymon.save(ours, None, tmp_path / "own")
    native, _ = etymon.load(tmp_path / "own")
    assert native.spec == ours.spec
    for other in (reloaded, native):
        assert torch.equal(other(**given).logits, ours(**given).logits)


def test_greedy_generation_is_the_reference_s(pair: Any) -> None:
    _, theirs, ours = pair
    source = tokens(3, 12)
    mask = padded(source, "right")
    start = 3 if ours.spec.start is None else ours.spec.start
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "num_beams": 1}
    expected = theirs.generate(source, attention_mask=mask, decoder_start_token_id=start, **options)
    eos = theirs.generation_config.eos_token_id
    state, ids = ours.new_state(3, 32, source_capacity=12), torch.full((3, 1), start)
    scores = ours(source, mask, decoder_input_ids=ids, state=state).logits[:, -1].detach()
    for _ in range(20):
        if eos is not None:
            scores[:, eos] = -torch.inf  # min_new_tokens forbids it in the reference
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
        scores = ours(decoder_input_ids=ids[:, -1:], state=state).logits[:, -1].detach()
    assert torch.equal(ids, expected)


def test_errors_name_what_is_missing(pair: Any) -> None:
    _, _, ours = pair
    ids = tokens(1, 8)
    with pytest.raises(DataError, match="pass exactly one of decoder_input_ids"):
        ours(ids)
    with pytest.raises(DataError, match="the decoder has no source"):
        ours(decoder_input_ids=ids)
    with pytest.raises(DataError, match="the decoder has no source"):
        ours(decoder_input_ids=ids, state=ours.new_state(1, 8))
    with pytest.raises(DataError, match="a source of 8 tokens does not fit a state made for 4"):
        ours(ids, decoder_input_ids=ids, state=ours.new_state(1, 8, source_capacity=4))
    with pytest.raises(DataError, match="both documents and decoder_documents"):
        ours(ids, decoder_input_ids=ids, documents=torch.zeros_like(ids))
