"""Rotary scalings that depend on the length of the input, on both sides of the original context and across it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import Reference, randomised
from references_lineage import LLAMA_SIZES
from torch import Tensor

import etymon

ORIGINAL = 16


def _llama() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    sizes = LLAMA_SIZES | {"max_position_embeddings": ORIGINAL}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_parameters=rope))


def _phi3() -> Any:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [1.5, 2.0, 4.0, 9.0],
        "original_max_position_embeddings": ORIGINAL,
    }
    config = transformers.Phi3Config(
        **LLAMA_SIZES, rope_parameters=rope, original_max_position_embeddings=ORIGINAL, sliding_window=None
    )
    return transformers.Phi3ForCausalLM(config)


ROWS = [Reference("llama-dynamic", _llama), Reference("phi3-longrope", _phi3)]


@pytest.fixture(params=ROWS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    theirs = randomised(request.param)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = etymon.load(tmp_path / "theirs")
    return theirs, ours


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, 97, shape, generator=torch.Generator().manual_seed(5))


def test_lengths_on_both_sides_of_the_original_context(pair: Any) -> None:
    theirs, ours = pair
    ids = tokens(2, 40)
    # (rising, because the reference's dynamic scaling keeps the longest length that it has seen)
    for length in (10, ORIGINAL, ORIGINAL + 1, 27, 40):
        assert relative(ours(ids[:, :length]).logits, theirs(ids[:, :length], use_cache=False).logits) < 1e-5, length
    # the scaling acts, and only beyond the context
    plain = ours(ids[:, :ORIGINAL]).logits
    assert relative(ours(ids[:, : ORIGINAL + 1]).logits[:, :ORIGINAL], plain) > 1e-4


def test_cached_decoding_across_the_original_context(pair: Any) -> None:
    """Keys keep the frequencies with which they were cached, on both sides: what comes after the border is therefore
    not what a full pass would give."""
    theirs, ours = pair
    ids = tokens(1, 26)
    state, cache = ours.new_state(1, 32), transformers.DynamicCache(config=theirs.config)
    for chunk in ids.split([12, *[1] * 14], 1):
        expected = theirs(chunk, past_key_values=cache, use_cache=True).logits
        got = ours(chunk, state=state).logits
        assert relative(got, expected) < 1e-5, int(state.lengths[0])
    assert relative(got, ours(ids).logits[:, -1:]) > 1e-4


def test_gradients_and_saving_back(pair: Any, tmp_path: Path) -> None:
    theirs, ours = pair
    ids = tokens(2, 30)
    expected = theirs(ids, labels=ids, use_cache=False)
    got = ours(ids, labels=ids)
    expected.loss.backward()
    got.loss.backward()
    assert relative(ours.embed.tokens.weight.grad, theirs.model.embed_tokens.weight.grad) < 1e-5
    etymon.save(ours, None, tmp_path / "hf", format="hf")
    again = type(theirs).from_pretrained(tmp_path / "hf")
    assert torch.equal(again(ids, use_cache=False).logits, theirs(ids, use_cache=False).logits)
    reloaded, _ = etymon.load(tmp_path / "hf")
    assert reloaded.spec.decoder == ours.spec.decoder


def test_the_dynamic_scaling_counts_from_max_position_embeddings(tmp_path: Path) -> None:
    """As in the reference, which does not look at original_max_position_embeddings."""
    theirs = randomised(ROWS[0])
    theirs.config.rope_parameters["original_max_position_embeddings"] = 8
    theirs.save_pretrained(tmp_path)
    ours, _ = etymon.load(tmp_path)
    ids = tokens(1, 30)
    again = type(theirs).from_pretrained(tmp_path)
    assert relative(ours(ids).logits, again(ids, use_cache=False).logits) < 1e-5
