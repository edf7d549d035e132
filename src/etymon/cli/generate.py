"""`etymon generate` and `etymon embed`: a model on a few texts, whatever kind of model it is."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from etymon.cli.options import Device, Int8, Speculation, Target, checked

if TYPE_CHECKING:
    from etymon.engine import Engine

Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="One or several texts.")]


class Pooling(StrEnum):
    """Which hidden states an embedding is."""

    MEAN = "mean"
    FIRST = "first"
    LAST = "last"


def generate(
    target: Target,
    texts: Texts,
    int8: Int8 = False,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.")] = None,
    speculation: Speculation = None,
    beams: Annotated[int | None, typer.Option(help="Search by so many beams instead of drawing tokens.")] = None,
    groups: Annotated[int, typer.Option(help="Groups of beams that differ from one another.")] = 1,
    diversity: Annotated[float, typer.Option(help="What a group's token costs the later groups.")] = 0.0,
    length_penalty: Annotated[float, typer.Option(help="Above 0 favours long answers of beams.")] = 1.0,
    contrastive: Annotated[
        float | None, typer.Option(metavar="ALPHA", help="Contrastive search: what likeness to earlier text costs.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Continue texts; answer them, where the model's decoder stands behind an encoder; fill their masks or judge them,
    where the model is an encoder.

    etymon generate runs/demo "Once upon a time"

    etymon generate google/flan-t5-small "translate English to German: Good morning." --beams 4

    etymon generate google-bert/bert-base-cased "Paris is the [MASK] of France."
    """
    from etymon.cli.loaded import load_engine
    from etymon.engine import Beams, Contrastive, EngineConfig, Request, Sampling
    from etymon.errors import ConfigError

    values: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    if beams is not None and contrastive is not None:
        raise ConfigError("--contrastive: a search is by beams or contrastive, not both.")
    if beams is not None:
        values["search"] = Beams(beams=beams, groups=groups, diversity=diversity, length_penalty=length_penalty)
    elif contrastive is not None:
        values["search"] = Contrastive(alpha=contrastive)
    sampling = checked(Sampling, **values)
    slots = max(sampling.rows, min(16, sampling.rows * len(texts)))
    limits: dict[str, Any] = {"slots": slots, "speculation": speculation}
    engine, _, _ = load_engine(target, checked(EngineConfig, **limits), device, int8=int8, generates=False)
    if engine.model.decoder is None:
        _judge(engine, texts)
        return
    for answer in engine.generate([Request(text, sampling) for text in texts]):
        print(answer.text)


def _judge(engine: Engine, texts: list[str]) -> None:
    """Print what an encoder makes of each text: a line per mask with the best tokens, or the head's logits."""
    from etymon.errors import RequestError
    from etymon.spec import LM

    if not isinstance(engine.model.spec.head, LM):
        for logits in engine.classify(texts):
            print(json.dumps([round(value, 4) for value in logits.tolist()]))
        return
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    for text, masks in zip(texts, engine.fill(texts), strict=True):
        if not masks:
            name = tokenizer.decode([tokenizer.mask_id or 0], skip_special=False)
            raise RequestError(
                f"{engine.model.spec.name} is an encoder: it writes no answers, but it fills {name} where you put it "
                f"into the text: {text!r} has none."
            )
        for best in masks:
            print("  ".join(f"{tokenizer.decode([id]).strip() or id} {value:.2f}" for id, value in best))


def embed(
    target: Target,
    texts: Texts,
    pooling: Annotated[
        Pooling | None, typer.Option(help="Which hidden states are the vector; by default as trained, else the mean.")
    ] = None,
    normalised: Annotated[bool, typer.Option("--normalised", help="Make every vector of length 1.")] = False,
    device: Device = "auto",
) -> None:
    """Print a vector for each text, as a line of JSON.

    etymon embed sentence-transformers/all-MiniLM-L6-v2 "a text" "another" --normalised
    """
    from etymon.cli.loaded import load_engine
    from etymon.engine import EngineConfig, Text

    engine, _, _ = load_engine(target, EngineConfig(slots=1), device, int8=False, generates=False)
    chosen: dict[str, Any] = {} if pooling is None else {"pooling": pooling.value}
    asked = [Text(text, **chosen, normalised=normalised or None) for text in texts]
    for vector in engine.embed(asked):
        print(json.dumps([round(value, 6) for value in vector.tolist()]))
