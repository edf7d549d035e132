"""Every family runs through the engine: what it generates or encodes is what the model's own full passes say."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from engine_models import random_model
from torch import Tensor

from etymon.engine import Engine, EngineConfig, Request, Sampling, Text
from etymon.errors import ConfigError
from etymon.families import families
from etymon.families.ngram import NGramModel, estimate
from etymon.nn import Model

SIZES = (11, 3, 17, 1)
DECODERS, TRANSLATORS, ENCODERS = (
    [name for name, family in families().items() if (spec := family.spec(**family.tiny)) and kind(spec)]
    for kind in (
        lambda spec: spec.encoder is None,
        lambda spec: len(spec.stacks) == 2,
        lambda spec: spec.decoder is None,
    )
)


def texts(model: Model, seed: int = 1) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, model.spec.vocab) for _ in range(size)] for size in SIZES]


def follow(full: Any, prompt: list[int], answer: Any) -> None:
    """Every generated token is the likeliest after those before it, and its log-probability that of a full pass."""
    ids = list(prompt)
    with torch.no_grad():
        for token, entry in zip(answer.ids, answer.logprobs, strict=True):
            row: Tensor = full(torch.tensor([ids]))[0, -1].log_softmax(-1)
            assert entry.logprob == pytest.approx(float(row[token]), abs=2e-4)
            assert float(row[token]) > float(row.max()) - 1e-4
            ids.append(token)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_generate(family: str) -> None:
    model = random_model(family)
    engine = Engine(model, None, EngineConfig(slots=3, chunk=8))
    prompts = texts(model)
    answers = engine.generate([Request(ids, Sampling(temperature=0, max_tokens=8, logprobs=0)) for ids in prompts])
    for ids, answer in zip(prompts, answers, strict=True):
        assert answer.finish == "length" and len(answer.ids) == 8
        follow(lambda tokens: model(tokens).logits, ids, answer)


@pytest.mark.parametrize("family", TRANSLATORS)
def test_translators_generate(family: str) -> None:
    model = random_model(family)
    begin = (5 if model.spec.start is None else model.spec.start,)
    languages = (1, 0) if model.spec.embed.languages else None
    engine = Engine(model, None, EngineConfig(slots=3, chunk=8, begin=begin, languages=languages))
    sources = texts(model)

    def full(source: Tensor, tokens: Tensor) -> Tensor:
        langs = {"langs": torch.ones_like(source), "decoder_langs": torch.zeros_like(tokens)} if languages else {}
        return model(source, decoder_input_ids=tokens, **langs).logits

    answers = engine.generate([Request(ids, Sampling(temperature=0, max_tokens=8, logprobs=0)) for ids in sources])
    for ids, answer in zip(sources, answers, strict=True):
        follow(partial(full, torch.tensor([ids])), list(begin), answer)
        (scored,) = engine.score([[*begin, *answer.ids]], [len(begin)], [ids])
        assert scored.logprobs == pytest.approx([entry.logprob for entry in answer.logprobs], abs=2e-4)


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_encode(family: str) -> None:
    model = random_model(family)
    given = texts(model)
    for ids, found in zip(
        given, Engine(model, None).embed([Text(ids, pooling="tokens") for ids in given]), strict=True
    ):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).last_hidden_state[0]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_n_grams_generate() -> None:
    words = ["a", "b", "c", "d"]
    draw = random.Random(0)
    sentences = [[draw.choice(words) for _ in range(6)] for _ in range(80)]
    model: Any = NGramModel(estimate(sentences, 3, fallback=(0.5, 1.0, 1.5)))
    engine = Engine(model, None, EngineConfig(slots=2, context=64))
    prompts = [[0], [1, 2, 3], [2, 2, 1, 0, 3]]
    answers = engine.generate([Request(ids, Sampling(temperature=0, max_tokens=8, logprobs=0)) for ids in prompts])
    for ids, answer in zip(prompts, answers, strict=True):
        follow(lambda tokens: model(tokens).logits, ids, answer)


def test_every_family_is_one_of_these() -> None:
    assert sorted([*DECODERS, *TRANSLATORS, *ENCODERS]) == sorted(families())
    assert {"bert", "electra"} <= set(ENCODERS) and {"t5", "mbart"} <= set(TRANSLATORS) and "mamba" in DECODERS


def test_languages_are_named_to_models_that_know_them() -> None:
    with pytest.raises(ConfigError, match="must be told the numbers of the languages"):
        Engine(random_model("mass"), None, EngineConfig(begin=(5,)))
    with pytest.raises(ConfigError, match="knows 2 languages, counted from 0"):
        Engine(random_model("mass"), None, EngineConfig(begin=(5,), languages=(0, 2)))
    with pytest.raises(ConfigError, match="knows 0 languages"):
        Engine(random_model("bart"), None, EngineConfig(languages=(0, 0)))
    model = random_model("mass")
    answers = []
    for languages in ((0, 1), (1, 1), (0, 0)):
        engine = Engine(model, None, EngineConfig(begin=(5,), languages=languages))
        (answer,) = engine.generate([Request([7, 8, 9], Sampling(temperature=0, max_tokens=6, logprobs=0))])
        answers.append([entry.logprob for entry in answer.logprobs])
    assert answers[0] != answers[1] != answers[2] != answers[0]
