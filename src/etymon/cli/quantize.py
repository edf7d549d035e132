"""`etymon quantize`: int8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from etymon.cli.options import Target


def quantize(
    target: Target,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The directory to write; for a run, RUN/int8.")
    ] = None,
) -> None:
    """Write a copy of a model with int8 weights.

    etymon quantize runs/demo

    etymon quantize some/checkpoint --out some/checkpoint-int8
    """
    import etymon
    from etymon.errors import ConfigError
    from etymon.evaluate import wording
    from etymon.evaluate.model import nbytes
    from etymon.quant import quantize_int8
    from etymon.recipe.target import checkpoint_of, is_run

    if out is None and not is_run(target):
        raise ConfigError("Where to? Give --out DIRECTORY.")
    folder = out or Path(target) / "int8"
    model, tokenizer = etymon.load(checkpoint_of(target))
    before = nbytes(model)
    quantize_int8(model)
    etymon.save(model, tokenizer, folder, format="etymon")
    print(f"{folder}: {wording.size(before)} → {wording.size(nbytes(model))} of weights")
