"""A model that a person pointed at, ready to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etymon.engine import Engine, EngineConfig
    from etymon.text import Renderer, Tokenizer


def load_engine(
    target: str, config: EngineConfig, device: str, *, int8: bool, generates: bool = True
) -> tuple[Engine, Tokenizer, Renderer | None]:
    """Load a run, checkpoint or hub id into an engine; quantise it on the way where int8 weights are not there.

    The renderer is None where there is no chat template. What the checkpoint says of generating holds where `config`
    says nothing. Raises CheckpointError where there is no tokenizer, ConfigError where the model `generates` nothing.
    """
    import etymon
    from etymon.cli.options import device_named
    from etymon.engine import Engine
    from etymon.errors import CheckpointError, ConfigError
    from etymon.hub import locate, read_generation
    from etymon.quant import is_quantized, quantize_int8
    from etymon.recipe.target import checkpoint_of
    from etymon.text import Renderer

    source = locate(checkpoint_of(target, int8=int8))
    model, tokenizer = etymon.load(source, device=device_named(device))
    if generates and model.decoder is None:
        raise ConfigError(
            f"{target} is an encoder: it writes no answers. `etymon embed` gives the vectors of texts, `etymon "
            "generate` fills their masks or judges them."
        )
    if tokenizer is None:
        raise CheckpointError(f"{target} carries no tokenizer, so it can neither read nor write text.")
    if int8 and not is_quantized(model):
        quantize_int8(model)
    renderer = Renderer(tokenizer) if tokenizer.chat_template is not None else None
    said = read_generation(source)
    given = {"begin": said.begin, "ends": said.ends, "never": said.never}
    config = config.model_copy(update={key: ids for key, ids in given.items() if not getattr(config, key)})
    return Engine(model, tokenizer, config), tokenizer, renderer
