"""Every encoder against its reference: outputs, hidden states, gradients, segments, padding, packing, saving back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_references import ENCODERS, TOLERANCE, Reference, load_pair, randomised, relative, tokens
from torch import Tensor

import etymon
from etymon.errors import ConfigError, DataError
from etymon.families import Family, family_named
from etymon.spec import LM, Classify, Hidden


@pytest.fixture(scope="module", params=ENCODERS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pair(request.param, tmp_path_factory)


def inputs(reference: Reference, *shape: int) -> dict[str, Tensor]:
    given = {"input_ids": tokens(*shape)}
    if reference.segments:
        given["token_type_ids"] = torch.arange(shape[1]).ge(shape[1] // 3).long().expand(shape)
    for seed, (argument, count) in enumerate(reference.kinds.items()):
        given[argument] = tokens(*shape, seed=seed) % count
    return given


def outcome(model: Any, **given: Any) -> Tensor:
    """Logits, or the last hidden state of a model without a head."""
    output = model(**given)
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def labels_for(ours: Any, ids: Tensor) -> Tensor | None:
    generator = torch.Generator().manual_seed(2)
    if isinstance(ours.spec.head, Classify):
        return torch.randint(0, ours.spec.head.classes, ids.shape[:1], generator=generator)
    if isinstance(ours.spec.head, LM):
        return ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.6, -100)
    return None if isinstance(ours.spec.head, Hidden) else torch.randint(0, 2, ids.shape, generator=generator)


def newer(family: Family, name: str) -> str:
    for pattern, replacement in family.tensors.renamed.items():
        name = re.sub(pattern, replacement, name)
    return name


def test_outputs_hidden_states_and_gradients(pair: Any) -> None:
    reference, theirs, ours = pair
    given = inputs(reference, 3, 40)
    labels = labels_for(ours, given["input_ids"])
    named = {} if labels is None else {"labels": labels}
    expected = theirs(**given, **named, output_hidden_states=True)
    got = ours(**given, **named, output_hidden_states=True)
    if labels is None:
        assert relative(got.last_hidden_state, expected.last_hidden_state) < TOLERANCE
        expected.loss, got.loss = (x.last_hidden_state.square().sum() for x in (expected, got))
        if got.pooler_output is not None:
            assert relative(got.pooler_output, expected.pooler_output) < TOLERANCE
            expected.loss, got.loss = (x.pooler_output.sum() + x.loss for x in (expected, got))
    else:
        assert relative(got.logits, expected.logits) < TOLERANCE
    assert relative(got.loss, expected.loss) < TOLERANCE
    assert len(got.hidden_states) == len(expected.hidden_states)
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert relative(a, b) < TOLERANCE
    for model in (theirs, ours):
        model.zero_grad()
    expected.loss.backward()
    got.loss.backward()
    family = family_named(ours.spec.family)
    gradients = {newer(family, name): p.grad for name, p in theirs.state_dict(keep_vars=True).items()}
    own = {name: p.grad for name, p in ours.named_parameters()}
    compared = set()
    for rule in family.tensors.weights(ours.spec):
        published = [
            gradients.get(name, gradients.get(name.removeprefix(family.tensors.prefix))) for name in rule.published
        ]
        compared.add(rule.ours)
        if all(gradient is None for gradient in published):  # a table that this call did not use
            assert own[rule.ours] is None
            continue
        gradient = rule.read(published)
        if gradient.abs().max() < 1e-6:  # keys' biases, which no score depends on
            assert own[rule.ours].abs().max() < 1e-5
        elif rule.ours.endswith("qkv.bias"):  # of which a third is such zeros
            assert relative(own[rule.ours], gradient) < 10 * TOLERANCE, rule.ours
        else:
            assert relative(own[rule.ours], gradient) < TOLERANCE, rule.ours
    assert compared == set(own)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: Any, side: str) -> None:
    reference, theirs, ours = pair
    given = inputs(reference, 3, 24)
    mask = torch.ones_like(given["input_ids"])
    for row, pads in enumerate((0, 5, 11)):
        mask[row, :pads] = 0
    if side == "right":
        mask = mask.flip(1)
    given["input_ids"] = given["input_ids"].masked_fill(mask == 0, theirs.config.pad_token_id)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for shown in (None, positions):
        theirs_shown = None if shown is None else shown + reference.position_shift
        expected = outcome(theirs, **given, attention_mask=mask, position_ids=theirs_shown)
        got = outcome(ours, **given, attention_mask=mask, position_ids=shown)
        if isinstance(ours.spec.head, Classify):
            first = mask[:, 0].bool()  # what a classifier makes of padding is nobody's concern
            assert relative(got[first], expected[first]) < TOLERANCE
        else:
            assert relative(got[mask.bool()], expected[mask.bool()]) < TOLERANCE
    real = mask[2].bool()
    if not isinstance(ours.spec.head, Classify):  # padding changes nothing: the row alone gives the same
        alone = outcome(ours, **{name: x[2:, real] for name, x in given.items()})
        assert relative(got[2, real], alone[0]) < TOLERANCE
        assert relative(outcome(ours, **given)[2, real], alone[0]) > 1e-3


def test_packed_documents_equal_documents_alone(pair: Any) -> None:
    reference, _, ours = pair
    if isinstance(ours.spec.head, Classify):
        pytest.skip("a classifier reads the first token of a row")
    lengths = (7, 1, 12, 4)
    given = inputs(reference, 1, sum(lengths))
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = outcome(ours, **given, documents=documents, position_ids=positions)
    parts = [
        dict(zip(given, split, strict=True))
        for split in zip(*(x.split(lengths, 1) for x in given.values()), strict=True)
    ]
    assert relative(packed, torch.cat([outcome(ours, **part) for part in parts], 1)) < TOLERANCE


def test_saved_for_the_reference(pair: Any, tmp_path: Path) -> None:
    reference, theirs, ours = pair
    etymon.save(ours, None, tmp_path / "hf", format="hf", max_shard_bytes=20_000)
    again = type(theirs).from_pretrained(tmp_path / "hf")
    given = inputs(reference, 2, 20)
    assert torch.equal(outcome(again, **given), outcome(theirs, **given))
    reloaded, _ = etymon.load(tmp_path / "hf")
    assert dataclasses_equal(reloaded.spec, ours.spec)
    etymon.save(ours, None, tmp_path / "own")
    native, _ = etymon.load(tmp_path / "own")
    assert native.spec == ours.spec
    for other in (reloaded, native):
        assert torch.equal(outcome(other, **given), outcome(ours, **given))


def dataclasses_equal(a: Any, b: Any) -> bool:
    return a.to_dict() | {"name": ""} == b.to_dict() | {"name": ""}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pair: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    reference, _, _ = pair
    randomised(reference).to(dtype).save_pretrained(tmp_path)
    theirs = type(randomised(reference)).from_pretrained(tmp_path, dtype=dtype).to(dtype)  # some keep what was fp32
    given = inputs(reference, 2, 20)
    exact = outcome(type(theirs).from_pretrained(tmp_path, dtype=torch.float32), **given)
    ours, _ = etymon.load(tmp_path)
    assert ours.dtype == dtype
    full, _ = etymon.load(tmp_path, dtype=torch.float32)
    assert relative(outcome(full, **given), exact) < TOLERANCE
    own_error = relative(outcome(ours, **given).float(), exact)
    their_error = relative(outcome(theirs, **given).float(), exact)
    assert own_error < 2 * their_error + torch.finfo(dtype).eps


def test_an_encoder_cannot_generate(pair: Any) -> None:
    _, _, ours = pair
    with pytest.raises(ConfigError, match="is an encoder"):
        ours.new_state(1, 8)
    with pytest.raises(DataError, match="no decoder behind an encoder"):
        ours(tokens(1, 4), decoder_input_ids=tokens(1, 4))
    if ours.spec.embed.segments:
        with pytest.raises(DataError, match="token_type_ids 7 is not among"):
            ours(tokens(1, 4), token_type_ids=torch.full((1, 4), 7))
