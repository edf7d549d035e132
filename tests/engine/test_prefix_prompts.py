"""A prompt is a prefix that sees itself, if the model is one that was trained so: the engine reads it whole, and shares
what it leaves with those alone who ask with the same one."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from engine_models import random_model

from etymon.engine import (
    Beams,
    DraftModel,
    EarlyExit,
    Engine,
    EngineConfig,
    PromptLookup,
    Request,
    Sampling,
)  # fmt: skip
from etymon.engine.score import score
from etymon.errors import ConfigError, RequestError
from etymon.nn import Model, with_visibility
from etymon.spec import Causal, Prefix

GREEDY = Sampling(temperature=0, max_tokens=8)


def seeing(family: str = "llama", **dimensions: int) -> Model:
    return with_visibility(random_model(family, **dimensions), Prefix())


def prompts(lengths: tuple[int, ...] = (30, 3, 17, 1, 40, 2)) -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(3, 90) for _ in range(length)] for length in lengths]


def logits(model: Model, ids: list[int], prefix: int) -> torch.Tensor:
    """Of one full pass of the same weights, under a mask that is written down here."""
    seen = torch.tensor([[[j <= i or j < prefix for j in range(len(ids))] for i in range(len(ids))]])
    with torch.inference_mode():
        return with_visibility(model, Causal())(torch.tensor([ids]), seen).logits[0]


def by_full_passes(model: Model, prompt: list[int], tokens: int = 8, prefix: int | None = None) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(logits(model, ids, len(prompt) if prefix is None else prefix)[-1].argmax()))
    return ids[len(prompt) :]


def answers(engine: Engine, asked: list[list[int]], **told: Any) -> list[list[int]]:
    return [answer.ids for answer in engine.generate([Request(prompt, GREEDY, **told) for prompt in asked])]


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v2", "gemma2"])
def test_answers_are_those_of_full_passes(family: str) -> None:
    """Prompts of many lengths, far beyond the chunk, several at a time, and all once more from the cache."""
    model, asked = seeing(family), prompts()
    expected = [by_full_passes(model, prompt) for prompt in asked]
    plain = Engine(with_visibility(model, Causal()), None, EngineConfig(slots=3, chunk=4))
    assert answers(plain, asked) != expected
    engine = Engine(model, None, EngineConfig(slots=3, chunk=4))
    assert answers(engine, asked) == expected
    assert engine.metrics.cache_found == 0
    assert answers(engine, asked) == expected
    assert engine.metrics.cache_found == 16 + 16 + 32  # whole blocks of the same prompts


def test_only_the_same_prompt_is_found_again() -> None:
    """The first blocks of a longer or shorter prompt have other keys and values; those of its answer are its own."""
    model = seeing(context=128)
    engine = Engine(model, None, EngineConfig(slots=2))
    (prompt,) = prompts((36,))
    asked = [prompt, prompt[:33], [*prompt, 5], prompt]
    for ids, found in zip(asked, (0, 0, 0, 32), strict=True):
        before = engine.metrics.cache_found
        assert answers(engine, [ids]) == [by_full_passes(model, ids)]
        assert engine.metrics.cache_found - before == found
    # a conversation goes on: its first prompt is the prefix, what follows is read from left to right, and is found
    longer = [*prompt, *by_full_passes(model, prompt), *prompts((30,))[0]]
    for found in (32, 64):
        before = engine.metrics.cache_found
        assert answers(engine, [longer], prefix=36) == [by_full_passes(model, longer, prefix=36)]
        assert engine.metrics.cache_found - before == found


@pytest.mark.parametrize("speculation", [PromptLookup(tokens=4), EarlyExit(layers=1), "draft"])
def test_drafts_change_nothing(speculation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etymon.engine.speculation.worth", lambda share, tokens, rows, cost, device: tokens)
    model, asked = seeing(), prompts()
    if speculation == "draft":
        with pytest.raises(ConfigError, match="reads a prompt in one piece"):
            Engine(model, None, EngineConfig(speculation=DraftModel(model=seeing())))
        speculation = DraftModel(model=with_visibility(model, Causal()))
    engine = Engine(model, None, EngineConfig(slots=3, speculation=speculation))
    assert answers(engine, asked) == [by_full_passes(model, prompt) for prompt in asked]
    assert engine.metrics.drafted


@pytest.mark.parametrize("config", [{"tokens": 64, "slots": 3}, {"deterministic": True}, {"prefix_cache": False}])
def test_whatever_the_engine_does_answers_stay(config: dict[str, Any]) -> None:
    """Little room, so that some give way and are read again; each alone; no cache; forks and beams."""
    model, asked = seeing(context=64), prompts((30, 15, 15, 3, 30))
    engine = Engine(model, None, EngineConfig(**config))
    assert answers(engine, asked) == [by_full_passes(model, prompt) for prompt in asked]
    if "tokens" in config:
        assert engine.metrics.preempted
    forked = Sampling(temperature=1, seed=3, max_tokens=5, n=2)
    alone = [Engine(model, None, EngineConfig()).generate([Request(asked[1], s)]) for s in (forked, beams())]
    assert [c.ids for c in engine.generate([Request(asked[1], forked)])[0].choices] == [
        c.ids for c in alone[0][0].choices
    ]
    assert engine.generate([Request(asked[1], beams())])[0].ids == alone[1][0].ids


def test_deterministic_answers_are_the_same_to_the_last_bit_in_any_company() -> None:
    model = seeing()
    asked = [Request(ids, Sampling(temperature=0, max_tokens=6, logprobs=1)) for ids in prompts((30, 28, 29, 9, 8))]
    config = EngineConfig(deterministic=True)
    together = Engine(model, None, config).generate(asked)
    alone = [Engine(model, None, config).generate([request])[0] for request in asked]
    assert [answer.logprobs for answer in together] == [answer.logprobs for answer in alone]


def beams() -> Sampling:
    return Sampling(search=Beams(beams=2), max_tokens=5)


def test_a_context_is_the_prefix_of_what_is_scored() -> None:
    model = seeing()
    sequences, starts = prompts((30, 9, 30)), [18, 1, 25]
    sequences[2] = [*sequences[0][:18], *sequences[2][18:]]

    def expected(prefix: list[int]) -> list[float]:
        found = []
        for ids, start, cut in zip(sequences, starts, prefix, strict=True):
            said = logits(model, ids, cut).log_softmax(-1)
            found.append(sum(float(said[place - 1, ids[place]]) for place in range(start, len(ids))))
        return found

    engine = Engine(model, None, EngineConfig(chunk=4))
    for prefix in (None, [5, 0, 25], [0, 0, 0]):
        wanted = pytest.approx(expected(starts if prefix is None else prefix), abs=1e-3)
        assert [s.logprob for s in engine.score(sequences, starts, prefix=prefix)] == wanted
        assert [s.logprob for s in score(model, sequences, starts, prefix=prefix)] == wanted
    assert expected(starts) != pytest.approx(expected([0, 0, 0]), abs=0.1)
    for ask in (engine.score, lambda *given, **told: score(model, *given, **told)):
        with pytest.raises(RequestError, match="sequence 1: a prefix of 3 ids must end before what is scored, at 1"):
            ask(sequences, starts, prefix=[0, 3, 0])


def test_a_prompt_that_sees_itself_has_no_probability() -> None:
    engine = Engine(seeing(), None)
    asked = prompts((12,))[0]
    with pytest.raises(RequestError, match=r"see one another.*max_tokens=0"):
        engine.generate([Request(asked, Sampling(max_tokens=3, prompt_logprobs=0))])
    with pytest.raises(RequestError, match="prefix=13 is none of it"):
        engine.generate([Request(asked, GREEDY, prefix=13)])
    said = engine.generate([Request(asked, Sampling(max_tokens=0, prompt_logprobs=0))])[0].prompt_logprobs
    model = logits(engine.model, asked, 1).log_softmax(-1)
    assert said is not None
    for place in range(1, 12):
        assert said[place].logprob == pytest.approx(float(model[place - 1, asked[place]]), abs=1e-3)
