"""What a model writes to fixed prompts: greedily, and drawn with a fixed seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etymon.engine import Completion, Engine, Request, Sampling
from etymon.evaluate.record import result_file
from etymon.files import write_json
from etymon.text import Rendered, Renderer

Prompt = str | Sequence[Mapping[str, Any]]  # a text to continue, or a conversation to answer


@dataclass(frozen=True)
class Written:
    """One continuation: its text, the number of its tokens, and why it ended."""

    text: str
    tokens: int
    finish: str | None


@dataclass(frozen=True)
class Sample:
    """One prompt and what the model made of it."""

    prompt: str | list[dict[str, Any]]
    greedy: Written
    sampled: Written


@dataclass(frozen=True)
class Samples:
    """What one model wrote to all prompts."""

    model: str
    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    samples: list[Sample]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `samples-<model>.json`."""
        return asdict(self)

    def save(self, run: Path) -> None:
        """Write `evaluate/samples-<model>.json`."""
        write_json(result_file(run, "samples", self.model, "json"), self.to_dict())


def write_samples(
    engine: Engine,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    *,
    name: str = "model",
    max_tokens: int = 96,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Samples:
    """Continue each text and answer each conversation of `prompts` twice; `name` is what reports call the model.

    Raises RenderError for a conversation that cannot be rendered, RequestError for a prompt that does not fit.
    """
    asked = [prompt if isinstance(prompt, str) else _rendered(renderer, prompt) for prompt in prompts]
    greedy = Sampling(temperature=0.0, max_tokens=max_tokens)
    drawn = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens)
    requests = [
        Request(p, s) if isinstance(p, str) else Request(p.ids, s, prefix=p.prefix)
        for s in (greedy, drawn)
        for p in asked
    ]
    written = [_written(c) for c in engine.generate(requests)]
    samples = [
        Sample(prompt if isinstance(prompt, str) else _messages(prompt), first, second)
        for prompt, first, second in zip(prompts, written[: len(asked)], written[len(asked) :], strict=True)
    ]
    return Samples(name, temperature, top_p, seed, max_tokens, samples)


def _rendered(renderer: Renderer, prompt: Sequence[Mapping[str, Any]]) -> Rendered:
    return renderer.render(_messages(prompt), add_generation_prompt=True)


def _messages(prompt: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(message) for message in prompt]


def _written(completion: Completion) -> Written:
    return Written(completion.text, len(completion.ids), completion.finish)
