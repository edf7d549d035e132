"""Sequential heads guess with a state of their own: what a pass over the whole text would say, and no text changes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import random_model

import etymon
from etymon.engine import Beams, Engine, EngineConfig, Heads, Request, Sampling
from etymon.errors import CheckpointError, ConfigError
from etymon.families import llama
from etymon.hub import read_future_heads, write_future_heads
from etymon.nn import Model
from etymon.nn.head import LMHead
from etymon.nn.layout import Layout
from etymon.nn.mtp import SequentialHeads, build_sequential_heads

CYCLE = [3, 7, 3, 9, 4, 7, 7, 5, 3, 8, 6]  # an id alone says little of what follows


def random_heads(model: Model, depth: int) -> SequentialHeads:
    heads = build_sequential_heads(model, depth)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(0.0, 0.3 if parameter.dim() > 1 else 1.0, generator=generator)
    return heads.eval()


def requests(count: int, tokens: int, **settings: Any) -> list[Request]:
    """Greedy and seeded ones, some with several choices, whose prompts share beginnings."""
    draw = random.Random(0)
    common = [draw.randrange(3, 90) for _ in range(20)]
    asked = []
    for i in range(count):
        own = [draw.randrange(3, 90) for _ in range(draw.randint(2, 9))]
        given = {"temperature": (0, 0.7)[i % 2], "seed": i, "max_tokens": tokens, "n": 1 + i % 2} | settings
        asked.append(Request(common[: 20 * (i % 2)] + own, Sampling(**given)))
    return asked


def answers(engine: Engine, asked: list[Request]) -> list[list[list[int]]]:
    return [[choice.ids for choice in answer.choices] for answer in engine.generate(asked)]


def check(engine: Engine) -> None:
    """Nothing failed, and nobody holds anything once the drafter has seen others."""
    drafter = engine._sequential
    assert engine._speculator is not None and drafter is not None and not engine._speculator._rest
    drafter._sweep()
    assert not drafter._rows.rows
    for group in drafter._paging._groups:
        assert group.blocks.used == 0


@torch.no_grad()
def guesses(model: Model, heads: SequentialHeads, ids: list[int], count: int) -> list[int]:
    """What the heads say behind `ids`, by one pass of each over all places, without any state."""
    hidden = model(torch.tensor([ids[:-1]])).last_hidden_state
    text, seen, made = list(ids), hidden, hidden
    for index in range(count):
        head = min(index, heads.depth - 1)
        if index >= heads.depth:  # the last head goes on from what it made itself, one place on
            hidden = torch.cat((seen, made[:, -1:]), 1)
        places = hidden.shape[1]
        following = torch.arange(head + 1, head + 1 + places)[None]
        tokens = torch.tensor([text[head + 1 :][:places]])
        vectors = model.embed(tokens, None, Layout((1, places), hidden.device, position_ids=following), {})
        seen, made = hidden, heads(hidden, vectors, Layout((1, places), hidden.device), head)
        text.append(int(model.head(made[0, -1]).argmax()))
        hidden = made
    return text[len(ids) :]


@pytest.mark.parametrize(
    ("family", "depth"), [("llama", 1), ("gpt2", 3), ("deepseek_v3", 2), ("gemma3", 1)], ids=lambda value: str(value)
)
def test_they_guess_what_a_pass_over_the_whole_text_says(
    family: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every rejection, pause, preemption and change of rows; and the texts are those without them."""
    draw = random.Random(0)
    monkeypatch.setattr("etymon.engine.speculation.worth", lambda *given: draw.choice((0, 0, 2, 4)))
    monkeypatch.setattr("etymon.engine.sequential.LAG", 3)  # so that much is read by the way, too
    model = random_model(family, context=96)
    heads = random_heads(model, depth)
    kind = Heads(model=heads, most=4096)
    asked = requests(6, tokens=20)
    limits = {"slots": 4, "tokens": 96, "chunk": 32, "prefix_cache": False}
    engine = Engine(model, None, EngineConfig(**limits, speculation=kind))
    drafter: Any = engine._sequential
    propose, seen = drafter.propose, list[tuple[list[int], list[int]]]()

    def watched(sequences: Any, wanted: Any) -> list[list[int]]:
        drafts: list[list[int]] = propose(sequences, wanted)
        pairs = zip(sequences, drafts, strict=True)
        seen.extend((list(s.ids), draft) for s, draft in pairs if draft and s.sampling.greedy)
        return drafts

    drafter.propose = watched
    assert answers(engine, asked) == answers(Engine(model, None, EngineConfig(**limits)), asked)
    assert len(seen) >= 10 and engine.metrics.verified > engine.metrics.accepted / 4
    assert engine.metrics.preempted
    for ids, draft in draw.sample(seen, 10):
        assert guesses(model, heads, ids, len(draft)) == draft
    check(engine)


def test_what_a_cache_spared_is_not_seen_and_changes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etymon.engine.speculation.worth", lambda share, tokens, rows, cost, device: 3)
    monkeypatch.setattr("etymon.engine.sequential.KEPT", 8)
    model = random_model(context=96)
    kind = Heads(model=random_heads(model, 2), most=4096)
    asked = [*requests(6, tokens=12), Request(list(range(3, 40)), Sampling(max_tokens=9, search=Beams(beams=3)))]
    engine = Engine(model, None, EngineConfig(slots=6, chunk=16, speculation=kind))
    expected = answers(Engine(model, None, EngineConfig(slots=6, chunk=16)), asked)
    assert answers(engine, asked) == expected and answers(engine, asked) == expected
    assert engine.metrics.cache_found and engine.metrics.drafted
    check(engine)


@pytest.fixture(scope="module", params=[1, 2])
def trained(request: pytest.FixtureRequest) -> tuple[Model, SequentialHeads]:
    """A model and its heads, trained together on one periodic text."""
    model = etymon.build(llama.build(vocab=12, dim=32, layers=2, heads=2, hidden=64, context=96))
    heads = build_sequential_heads(model, request.param)
    assert isinstance(model.head, LMHead)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=5e-3)
    text = torch.tensor(CYCLE * 7)
    draw = random.Random(0)
    for _ in range(80):
        rows = torch.stack([text[start : start + 57] for start in (draw.randrange(11) for _ in range(4))])
        ids, targets = rows[:, :-1], rows[:, 1:]
        hidden = model(ids, logits=False).last_hidden_state
        loss = model.head.loss(hidden, targets) + heads.loss(model, hidden, ids, targets).sum()
        optimizer.zero_grad()
        (loss / rows.numel()).backward()
        optimizer.step()
    return model, heads


def test_trained_heads_are_right(
    trained: tuple[Model, SequentialHeads], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from their directory, as many tokens as they were trained for. (Beside two layers, a third is never worth
    its time.)"""
    depth = trained[1].depth
    monkeypatch.setattr("etymon.engine.speculation.worth", lambda share, tokens, rows, cost, device: depth)
    model, heads = trained
    write_future_heads(heads, tmp_path)
    engine = Engine(model, None, EngineConfig(speculation=f"heads:{tmp_path}"))
    asked = [
        Request((CYCLE * 3)[start : start + 16], Sampling(temperature=temperature, seed=start, max_tokens=40))
        for start, temperature in ((0, 0), (3, 0), (5, 0.5))
    ]
    found = answers(engine, asked)
    assert found == answers(Engine(model, None), asked)
    assert found[1] == [(CYCLE * 6)[19:59]], "the text goes on"
    metrics = engine.metrics
    assert metrics.accepted > 0.95 * metrics.drafted and metrics.drafted > 50
    assert metrics.steps < 40 * (0.6 if depth == 1 else 0.45)
    check(engine)


def test_they_come_back_as_they_were_and_bad_files_are_errors(tmp_path: Path) -> None:
    model = random_model("deepseek_v3")
    heads = random_heads(model, 2)
    write_future_heads(heads, tmp_path)
    back = read_future_heads(tmp_path)
    assert isinstance(back, SequentialHeads) and (back.depth, back.spec) == (2, model.spec)
    state, again = heads.state_dict(), back.state_dict()
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)
    config = tmp_path / "future_heads.json"
    good = config.read_text()
    for wrong, message in (("3", "it should be heads.2"), ('"2"', "whole number"), ("0", "1 to 64")):
        config.write_text(good.replace('"depth": 2', f'"depth": {wrong}'))
        with pytest.raises(CheckpointError, match=message):
            read_future_heads(tmp_path)


def test_what_cannot_draft_is_an_error() -> None:
    def make(heads: Any, of: Model) -> Engine:
        return Engine(of, None, EngineConfig(speculation=Heads(model=heads)))

    model, recurrent = random_model(), random_model("mamba")
    with pytest.raises(ConfigError, match="go with the model that they were trained on"):
        make(random_heads(random_model(dim=32), 1), random_model(dim=64))
    with pytest.raises(ConfigError, match="bring them there"):
        make(random_heads(model, 1).bfloat16(), model)
    with pytest.raises(ConfigError, match="must forget what was not written"):
        make(random_heads(recurrent, 1), recurrent)
    for family, reason in (("longllama", "Windows"), ("retro", "more than its own tokens"), ("t5", "does not predict")):
        with pytest.raises(ConfigError, match=reason):
            SequentialHeads(random_model(family).spec, 1)
    for depth in (0, 65):
        with pytest.raises(ConfigError, match="1 to 64"):
            SequentialHeads(model.spec, depth)
