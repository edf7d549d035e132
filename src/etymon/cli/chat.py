"""`etymon chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from etymon.cli.options import Device, Int8, Target, checked


def chat(
    target: Target,
    int8: Int8 = False,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.")] = None,
    device: Device = "auto",
) -> None:
    """Talk with a model in the terminal.

    etymon chat runs/demo --int8

    echo "What is 3 + 4?" | etymon chat runs/demo --temperature 0
    """
    from etymon.cli.loaded import load_engine
    from etymon.engine import EngineConfig, Sampling
    from etymon.errors import CheckpointError
    from etymon.serve.terminal import chat as talk

    values: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    sampling = checked(Sampling, **values)
    engine, _, renderer = load_engine(target, EngineConfig(slots=1), device, int8=int8)
    if renderer is None:
        raise CheckpointError(f"{target} has no chat template, so it cannot hold a conversation.")
    talk(engine, renderer, sampling=sampling, system=system)
