"""A model whose prefixes see themselves is asked as it was tuned: its prefix ends before the first reply."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest
import torch
from rich.console import Console

from etymon import serve
from etymon.data import Conversation
from etymon.engine import AsyncEngine, Engine, Request, Sampling
from etymon.evaluate import Task
from etymon.families import family_named
from etymon.nn import Model, build, with_visibility
from etymon.serve import terminal
from etymon.spec import Prefix
from etymon.text import Renderer, Tokenizer

GREEDY = Sampling(temperature=0, max_tokens=6)
FIRST, SECOND = "What is a cat?", "And a dog?"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(Tokenizer.train([FIRST, SECOND, "A cat is a cat."] * 4, 300))


@pytest.fixture(scope="module")
def model(renderer: Renderer) -> Model:
    named = family_named("llama")
    spec = named.spec(**(named.tiny | {"vocab": renderer.tokenizer.vocab_size, "context": 192}))
    model = with_visibility(build(spec), Prefix())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3 if parameter.dim() > 1 else 1.0, generator=generator)
    return model.eval()


def turns(reply: str) -> list[dict[str, Any]]:
    said = (("user", FIRST), ("assistant", reply), ("user", SECOND))
    return [{"role": role, "content": content} for role, content in said]


def answer(model: Model, renderer: Renderer, reply: str, *, whole: bool = False) -> str:
    """What follows, where the prefix is the first question with all around it, or the whole prompt."""
    asked = renderer.render(turns(reply), add_generation_prompt=True).ids
    first = renderer.render(turns(reply)[:1], add_generation_prompt=True).ids
    assert asked[: len(first)] == first
    request = Request(asked, GREEDY, prefix=None if whole else len(first))
    return Engine(model, renderer.tokenizer).generate([request])[0].text


def test_a_service_s_conversations_are_read_as_they_were_trained(model: Model, renderer: Renderer) -> None:
    reply = "A cat is a cat."
    expected = answer(model, renderer, reply)
    assert expected != answer(model, renderer, reply, whole=True)
    engine = AsyncEngine(Engine(model, renderer.tokenizer))
    app = serve.create_app(engine, renderer.tokenizer, renderer, serve.ServeConfig(model_name="tiny"))
    with serve.running(app) as url, httpx.Client(trust_env=False, timeout=60) as http:
        asked = {"model": "tiny", "messages": turns(reply), "temperature": 0, "max_tokens": 6}
        said = http.post(f"{url}/v1/chat/completions", json=asked).raise_for_status().json()
    assert said["choices"][0]["message"]["content"] == expected


def test_a_terminal_s_and_a_task_s_too(model: Model, renderer: Renderer) -> None:
    script, console = iter([FIRST, SECOND]), Console(file=io.StringIO(), width=500, force_terminal=False)

    def read(prompt: str) -> str:
        line = next(script, None)
        if line is None:
            raise EOFError
        return line

    engine, asked = Engine(model, renderer.tokenizer), []
    submit = engine.submit
    engine.submit = lambda request: asked.append(request) or submit(request)
    terminal.chat(engine, renderer, sampling=GREEDY, console=console, read=read)
    first = len(renderer.render(turns("")[:1], add_generation_prompt=True).ids)
    assert [request.prefix for request in asked] == [first, first]
    assert len(asked[1].prompt) > len(asked[0].prompt) == first
    item = Conversation("0", [*turns("A cat is a cat."), {"role": "assistant", "content": "no"}], "a", "held_out", "no")
    (verdict,) = Task([item], max_tokens=6).run(Engine(model, renderer.tokenizer), renderer).verdicts
    assert verdict.output == answer(model, renderer, "A cat is a cat.")
