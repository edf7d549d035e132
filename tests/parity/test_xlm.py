"""XLM trained to predict the next token, and what its files may ask for that is not here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoder_references import TOLERANCE, Reference, load_pair, relative, tokens
from encoder_references_languages import LANGS, _xlm

import etymon
from etymon.errors import ConfigError, DataError

CAUSAL = Reference("xlm-causal", _xlm(causal=True), kinds=LANGS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pair(CAUSAL, tmp_path_factory)


def test_a_causal_model_is_a_decoder(pair: Any) -> None:
    _, theirs, ours = pair
    ids, langs = tokens(3, 30), tokens(3, 30, seed=4) % 5
    expected = theirs(ids, langs=langs, output_hidden_states=True)
    got = ours(ids, langs=langs, output_hidden_states=True)
    assert ours.spec.encoder is None
    for a, b in zip((got.logits, *got.hidden_states), (expected.logits, *expected.hidden_states), strict=True):
        assert relative(a, b) < TOLERANCE
    (theirs.zero_grad(), ours.zero_grad())
    expected.logits.square().mean().backward()
    got.logits.square().mean().backward()
    for name in ("embeddings", "lang_embeddings", "position_embeddings"):
        own = {"embeddings": "tokens", "lang_embeddings": "languages", "position_embeddings": "positions"}[name]
        gradient = getattr(theirs.transformer, name).weight.grad
        assert relative(getattr(ours.embed, own).weight.grad, gradient) < TOLERANCE


def test_cached_decoding_and_padding(pair: Any) -> None:
    _, theirs, ours = pair
    ids, langs = tokens(2, 20), tokens(2, 20, seed=4) % 5
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    expected = theirs(ids, attention_mask=mask, langs=langs).logits
    assert relative(ours(ids, mask, langs=langs).logits[mask.bool()], expected[mask.bool()]) < TOLERANCE
    state, parts = ours.new_state(2, 24), []
    for chunk, language in zip(ids.split((7, 1, 12), 1), langs.split((7, 1, 12), 1), strict=True):
        parts.append(ours(chunk, langs=language, state=state).logits)
    assert relative(torch.cat(parts, 1), ours(ids, langs=langs).logits) < TOLERANCE


def test_both_directions(pair: Any, tmp_path: Path) -> None:
    _, theirs, ours = pair
    etymon.save(ours, None, tmp_path, format="hf")
    again, (reloaded, _) = transformers.XLMWithLMHeadModel.from_pretrained(tmp_path), etymon.load(tmp_path)
    assert torch.equal(again(tokens(2, 9)).logits, theirs(tokens(2, 9)).logits)
    assert dataclasses.replace(reloaded.spec, name="") == dataclasses.replace(ours.spec, name="")


def test_what_is_refused(pair: Any, tmp_path: Path) -> None:
    _, _, ours = pair
    with pytest.raises(DataError, match="langs 5 is not among the 5 languages"):
        ours(tokens(1, 4), langs=torch.full((1, 4), 5))
    with pytest.raises(DataError, match="no tasks: leave out task_type_ids"):
        ours(tokens(1, 4), task_type_ids=torch.zeros(1, 4, dtype=torch.int64))
    etymon.save(ours, None, tmp_path, format="hf")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"asm": True}))
    with pytest.raises(ConfigError, match="asm = True is not supported"):
        etymon.load(tmp_path)
