"""What objectives count beside their loss: judgements of tokens, of segments."""

from __future__ import annotations

import numpy as np
import torch

from etymon.data import IGNORED, PretrainLoader, TokenShards
from etymon.evaluate import measure
from etymon.families import family_named
from etymon.nn import build, with_head
from etymon.objectives import NextSentence, NextSentenceConfig, ReplacedTokens, choose_objective
from etymon.objectives.segments import SegmentBatch
from etymon.text import CLS, DEFAULT_SPECIAL, SEP, Tokenizer


def test_judgements_of_replaced_tokens_are_counted(shards: TokenShards, tokenizer: Tokenizer) -> None:
    named = family_named("electra")
    model = build(named.spec(**(named.tiny | {"vocab": tokenizer.vocab_size})), seed=1).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    objective = choose_objective(model.spec, tokenizer)
    assert isinstance(objective, ReplacedTokens)
    generator = objective.companions(model)["generator"].eval()
    batch = objective.collate(PretrainLoader(shards, 4, 32).batch(0), np.random.default_rng(0))
    torch.manual_seed(5)
    found = measure(model, objective, [batch])
    torch.manual_seed(5)
    given = {"position_ids": batch.position_ids, "documents": batch.documents}
    chosen = batch.targets != IGNORED
    with torch.no_grad():
        guessed = torch.multinomial(generator(batch.input_ids, **given).logits[chosen].softmax(-1), 1)[:, 0]
        text = torch.where(chosen, batch.targets, batch.input_ids)
        original = text.clone()
        text[chosen] = guessed
        said = torch.sigmoid(model(text, **given).logits) > 0.5
    wrong = text != original
    assert wrong.any() and said.any() and not said.all()
    expected = {
        "tokens judged rightly": 100 * float((said == wrong).float().mean()),
        "replaced tokens found": 100 * float(said[wrong].float().mean()),
    }
    assert {each.name: round(each.value, 3) for each in found} == {k: round(v, 3) for k, v in expected.items()}
    assert all(each.interval and each.interval[0] <= each.value <= each.interval[1] for each in found)


def test_judgements_of_segments_are_counted() -> None:
    texts = ["The cat sat on the mat. The dog ran off. A ball lay there. It was round. "] * 2
    tokenizer = Tokenizer.train(texts, 320, special_tokens=(*DEFAULT_SPECIAL, "<|mask|>", CLS, SEP))
    named = family_named("bert")
    spec = NextSentence.trains(named.spec(**(named.tiny | {"vocab": tokenizer.vocab_size})), NextSentenceConfig())
    model = with_head(build(spec, seed=1), spec.head, seed=3).eval()
    ids = torch.randint(10, 300, (6, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 1, IGNORED])
    ones = torch.ones_like(ids)
    batch = SegmentBatch(ids, torch.full_like(ids, IGNORED), ones, 0 * ones, labels, torch.ones(6))
    (found,) = measure(model, choose_objective(spec, tokenizer, "nsp"), [batch])
    with torch.no_grad():
        hidden = model(ids, ones, token_type_ids=0 * ones).last_hidden_state
        told = model.head.pair(hidden).argmax(1)  # type: ignore[union-attr]
    assert found.count == 5 and found.value == 20 * int((told[:5] == labels[:5]).sum())
