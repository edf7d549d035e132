"""A prompt whose text sees itself is read in one call, however small the engine's chunks."""

from __future__ import annotations

import random

import pytest
import torch

from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.families import family_named
from etymon.nn import Model, build


def random_infill(family: str) -> Model:
    chosen = family_named(family)
    model = build(chosen.spec(**chosen.tiny, begin=90, blanks=(91,)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1))
    return model


@torch.inference_mode()
def by_full_passes(model: Model, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["glm", "chatglm", "glm130b"])
def test_fillings_are_those_of_full_passes(family: str) -> None:
    model = random_infill(family)
    draw = random.Random(1)
    prompts = []
    for length in (30, 3, 17, 9, 40, 2):
        text = [draw.randrange(1, 90) for _ in range(length)]
        text[draw.randrange(length)] = 91
        prompts.append([*text, 90])
    engine = Engine(model, None, EngineConfig(slots=3, chunk=4))
    completions = engine.generate([Request(prompt, Sampling(temperature=0, max_tokens=8)) for prompt in prompts])
    assert [completion.ids for completion in completions] == [by_full_passes(model, p, 8) for p in prompts]
