"""A model that a person pointed at, ready to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etymon.engine import Engine, EngineConfig
    from etymon.text import Renderer, Tokenizer


def load_engine(
    target: str, config: EngineConfig, device: str, *, int8: bool
) -> tuple[Engine, Tokenizer, Renderer | None]:
    """Load a run, checkpoint or hub id into an engine; quantise it on the way where int8 weights are not there.

    The renderer is None where there is no chat template. Raises CheckpointError where there is no tokenizer.
    """
    import etymon
    from etymon.cli.options import device_named
    from etymon.engine import Engine
    from etymon.errors import CheckpointError
    from etymon.quant import is_quantized, quantize_int8
    from etymon.recipe.target import checkpoint_of
    from etymon.text import Renderer

    model, tokenizer = etymon.load(checkpoint_of(target, int8=int8), device=device_named(device))
    if tokenizer is None:
        raise CheckpointError(f"{target} carries no tokenizer, so it can neither read nor write text.")
    if int8 and not is_quantized(model):
        quantize_int8(model)
    renderer = Renderer(tokenizer) if tokenizer.chat_template is not None else None
    return Engine(model, tokenizer, config), tokenizer, renderer
