"""Whole texts through the engine: vectors, hidden tokens, judgements, pseudo-likelihoods."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from engine_models import random_model

from etymon.engine import Engine, Text
from etymon.errors import RequestError
from etymon.nn import Model
from etymon.text import Tokenizer
from etymon.text.frame import template

draw = random.Random(0)
TEXTS = [[draw.randrange(3, 97) for _ in range(draw.randint(1, 60))] for _ in range(9)]
MASK = 2


@pytest.fixture(scope="module")
def framing() -> Tokenizer:
    """A tokenizer in the manner of BERT."""
    special = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    trained = Tokenizer.train(["one two three four five six seven. " * 4], 300, special_tokens=special)
    processor = template("[CLS] A [SEP]", "[CLS] A [SEP] B:1 [SEP]:1", trained.special)
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    return Tokenizer(dict(trained.data) | {"post_processor": processor}, named)


def alone(model: Model, ids: list[int], **given: Any) -> torch.Tensor:
    """Hidden states [time, dim] of one text by the model's own full pass."""
    with torch.no_grad():
        if model.encoder is not None and model.decoder is not None:
            return model.encode(torch.tensor([ids])).last_hidden_state[0]
        return model(torch.tensor([ids]), logits=False, **given).last_hidden_state[0]


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra", "t5", "bart", "llama", "lstm", "mamba"])
def test_vectors_are_those_of_texts_alone(family: str) -> None:
    model = random_model(family)
    engine = Engine(model, None)
    asked = [
        Text(ids, pooling=pooling, normalised=normalised)
        for ids, (pooling, normalised) in zip(
            TEXTS * 2, [(p, n) for p in ("mean", "first", "last", "tokens") for n in (True, False)] * 3, strict=False
        )
    ]
    for text, found in zip(asked, engine.embed(asked), strict=True):
        hidden = alone(model, list(text.text))
        expected = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1], "tokens": hidden}[text.pooling]
        if text.normalised:
            expected = expected / expected.norm(dim=-1, keepdim=True)
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_texts_are_framed_and_pairs_have_segments(framing: Tokenizer) -> None:
    model = random_model("bert", vocab=framing.vocab_size)
    engine = Engine(model, framing)
    cls, sep = framing.special["[CLS]"], framing.special["[SEP]"]
    one, two = framing.encode("one"), framing.encode("two three")
    single, pair = engine.embed([Text("one", pooling="tokens"), Text("one", "two three", pooling="tokens")])
    assert torch.allclose(single, alone(model, [cls, *one, sep]), atol=1e-5)
    segments = torch.tensor([[0] * (len(one) + 2) + [1] * (len(two) + 1)])
    expected = alone(model, [cls, *one, sep, *two, sep], token_type_ids=segments)
    assert torch.allclose(pair, expected, atol=1e-5)
    without = alone(model, [cls, *one, sep, *two, sep])
    assert not torch.allclose(pair, without, atol=1e-2)


def test_hidden_tokens_are_filled_by_the_model_s_own_probabilities(framing: Tokenizer) -> None:
    model = random_model("bert", vocab=framing.vocab_size)
    ids = [1, *framing.encode("one "), 3, *framing.encode(" three "), 3, 2]
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found, none = Engine(model, framing).fill(["one [MASK] three [MASK]", "one"], top=4)
    assert none == []
    for place, best in zip([i for i, token in enumerate(ids) if token == 3], found, strict=True):
        values, tops = table[place].topk(4)
        assert [id for id, _ in best] == tops.tolist()
        assert [value for _, value in best] == pytest.approx(values.tolist(), abs=1e-5)
    (by_id,) = Engine(model, None).fill([Text(ids)], top=1, mask=3)
    assert [best[0][0] for best in by_id] == [best[0][0] for best in found]


def test_judgements_of_texts_and_of_tokens() -> None:
    classifier = random_model("bert", head=bert_classifier())
    for ids, found in zip(TEXTS, Engine(classifier, None).classify([Text(ids) for ids in TEXTS]), strict=True):
        with torch.no_grad():
            assert torch.allclose(found, classifier(torch.tensor([ids])).logits[0], atol=1e-4)
    discriminator = random_model("electra")
    for ids, found in zip(TEXTS, Engine(discriminator, None).classify([Text(ids) for ids in TEXTS]), strict=True):
        with torch.no_grad():
            assert torch.allclose(found, discriminator(torch.tensor([ids])).logits[0], atol=1e-4)


def bert_classifier() -> Any:
    from etymon.spec import Classify

    return Classify(classes=3)


def test_pseudo_likelihoods_hide_one_token_at_a_time(framing: Tokenizer) -> None:
    model = random_model("bert", vocab=framing.vocab_size)
    texts = ["one two three", "seven"]
    for text, score in zip(texts, Engine(model, framing).pseudo_score(texts), strict=True):
        ids = framing.frame(framing.encode(text)).ids
        wanted, best = [], []
        for place in range(1, len(ids) - 1):
            hidden = [*ids[:place], framing.mask_id, *ids[place + 1 :]]
            with torch.no_grad():
                row = model(torch.tensor([hidden])).logits[0, place].log_softmax(-1)
            wanted.append(float(row[ids[place]]))
            best.append(int(row.argmax()) == ids[place])
        assert score.logprobs == pytest.approx(wanted, abs=1e-5)
        assert score.logprob == pytest.approx(sum(wanted), abs=1e-4)
        assert score.greedy == all(best)
    (raw,) = Engine(model, None).pseudo_score([Text([5, 6, 7])], mask=3)
    assert raw.tokens == 3


@pytest.mark.parametrize(
    ("family", "call", "message"),
    [
        ("llama", lambda engine: engine.fill([Text([5])], mask=2), "does not predict hidden tokens"),
        ("bart", lambda engine: engine.pseudo_score([Text([5])], mask=2), "does not predict hidden tokens"),
        ("electra", lambda engine: engine.fill([Text([5])], mask=2), "does not predict hidden tokens"),
        ("bert", lambda engine: engine.fill([Text([5])]), "no mask token"),
        ("bert", lambda engine: engine.classify([Text([5])]), "no classifier"),
        ("bert", lambda engine: engine.embed(["text"]), "no tokenizer"),
        ("bert", lambda engine: engine.embed([Text([5] * 65)]), "65 tokens, but at most 64"),
        ("bert", lambda engine: engine.embed([Text([97])]), "id outside"),
        ("bert", lambda engine: engine.embed([Text([])]), "text is empty"),
        ("bert", lambda engine: engine.score([[1, 2]], [1]), "is an encoder"),
    ],
)
def test_what_a_model_cannot_do_is_said(family: str, call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(Engine(random_model(family), None))
