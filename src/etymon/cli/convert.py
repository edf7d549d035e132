"""`etymon convert`: a checkpoint in another format, with a delta or adapter merged in on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from etymon.cli.options import Target

OUT = typer.Argument(metavar="TARGET", help="The directory or GGUF file to write.")


def convert(
    source: Target,
    target: Annotated[Path, OUT],
    format: Annotated[str, typer.Option(help="hf, etymon or gguf.")] = "hf",
    quantization: Annotated[str, typer.Option(help="Matrices of a GGUF file: f32, f16, q8_0 or q4_0.")] = "f16",
    delta: Annotated[str | None, typer.Option(help="A checkpoint of differences to add to the source.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="A LoRA adapter to merge (a PEFT directory).")] = None,
) -> None:
    """Write a model in another format.

    etymon convert runs/demo demo.gguf --format gguf --quantization q8_0
    """
    import etymon
    from etymon.errors import ConfigError, suggest
    from etymon.hub import apply_delta, copy_future_heads, holds_future_heads, locate, merge_lora
    from etymon.recipe.target import checkpoint_of

    formats = ("hf", "etymon", "gguf")
    if format not in formats:
        raise ConfigError(f"--format {format}: expected hf, etymon or gguf.{suggest(format, formats)}")
    model, tokenizer = etymon.load(checkpoint_of(source))
    if delta is not None:
        difference, theirs = etymon.load(delta)
        model, tokenizer = apply_delta(model, difference), theirs or tokenizer
    if adapter is not None:
        model = merge_lora(model, adapter)
    etymon.save(model, tokenizer, target, format=format, quantization=quantization)  # type: ignore[arg-type]
    beside = locate(checkpoint_of(source))
    if format == "etymon" and delta is None and adapter is None:
        copy_future_heads(beside, target)
    elif holds_future_heads(beside):
        print(f"{beside} has heads that look ahead, which {target} is without")
    print(f"{target}: {model.spec.name}, {format}")
