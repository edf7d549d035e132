"""What a recipe reads from outside its run: the files of its sources, the checkpoint and tokenizer it loads.

Everything here is looked at before anything is computed, so that a missing file is known at the door.
"""

from __future__ import annotations

from pathlib import Path

from etymon.api import load_tokenizer
from etymon.data import BuiltinConversations, BuiltinSource
from etymon.data.rows import ROW_SUFFIXES, TEXT_SUFFIXES, find_files
from etymon.errors import CheckpointError, ConfigError, TokenizerError
from etymon.hub import huggingface, locate, native
from etymon.nn import build
from etymon.objectives import Objective, ObjectiveConfig, kind_of_objective, objective_config, trained_spec
from etymon.recipe import records
from etymon.recipe.schema import LoadModel, LoadTokenizer, Recipe, TrainTokenizer, default_context, vocabulary
from etymon.spec import LM, ModelSpec, Prefix
from etymon.text import DEFAULT_SPECIAL, Tokenizer
from etymon.train.optimizers import plan_groups


def document_files(recipe: Recipe) -> list[Path]:
    """Return the files that `data` reads; the built-in corpus has none. Raises DataError for a missing one."""
    files: list[Path] = []
    for place, source in enumerate(recipe.data.sources if recipe.data else ()):
        if not isinstance(source, BuiltinSource):
            with recipe.at("data", "sources", place):
                files += find_files(source.path, source.include, TEXT_SUFFIXES + ROW_SUFFIXES)[0]
    return files


def conversation_files(recipe: Recipe) -> list[Path]:
    """Return the files that `sft` reads. Raises DataError for a missing one."""
    files: list[Path] = []
    for place, source in enumerate(recipe.sft.sources if recipe.sft else ()):
        if not isinstance(source, BuiltinConversations):
            with recipe.at("sft", "sources", place):
                files += find_files(source.path, source.include, ROW_SUFFIXES)[0]
    return files


def find_tokenizer(source: str) -> Tokenizer:
    """Load a tokenizer from a directory, a `tokenizer.json` or a hub id. Raises TokenizerError or CheckpointError."""
    path = Path(source)
    if path.is_file():
        return Tokenizer.load(path)
    directory = locate(path if path.is_dir() else source)
    tokenizer = load_tokenizer(directory)
    if tokenizer is None:
        raise TokenizerError(f"{source}: there is no tokenizer.json. Give a directory that holds one, or that file.")
    return tokenizer


def loaded_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """Return the tokenizer that the recipe loads, or None where it trains one."""
    if not isinstance(recipe.tokenizer, LoadTokenizer):
        return None
    with recipe.at("tokenizer", "load"):
        return find_tokenizer(recipe.tokenizer.load)


def read_spec(source: str) -> ModelSpec:
    """Read what the model of a checkpoint is, without its weights. Raises CheckpointError or ConfigError."""
    directory = locate(source)
    if (directory / native.SPEC).exists():
        return native.read_spec(directory)
    if (directory / "config.json").exists():
        return huggingface.read_spec(directory)[0]
    raise CheckpointError(f"{source}: neither {native.SPEC} nor config.json is there; not a checkpoint.")


def check_objective(recipe: Recipe, spec: ModelSpec, tokenizer: Tokenizer | None) -> None:
    """Raise ConfigError where the model or its tokenizer cannot be trained as the recipe says; `tokenizer` is None
    where it is still to be trained."""
    config = None if recipe.pretrain is None else objective_config(spec, recipe.pretrain.objective)
    trained = trained_spec(spec, config) if config is not None else spec
    with recipe.at("evaluate", "pairs"):
        records.check_pairs(recipe, trained)
    if recipe.sft is not None and (trained.encoder is not None or not isinstance(trained.head, LM)):
        with recipe.at("sft"):
            raise ConfigError(f"sft: conversations train decoders alone, and {spec.name} is none. Set `sft: null`.")
    if recipe.sft is not None and recipe.sft.train_on == "last" and isinstance(trained.trunk.visibility, Prefix):
        with recipe.at("sft", "train_on"):
            raise ConfigError(
                "sft.train_on is last, but in this model's conversations what comes before the first reply sees "
                "itself, and the rest is read from left to right. Set `train_on: assistant`."
            )
    if recipe.pretrain is None or config is None:
        return
    with recipe.at("pretrain", "objective"):
        kind = _fitting(spec, trained, config)
        records.check(recipe.pretrain, kind, config)
        if tokenizer is not None:
            kind.of(trained, tokenizer, config)
            return
    assert isinstance(recipe.tokenizer, TrainTokenizer)
    least = 256 + len(DEFAULT_SPECIAL) + len(kind.control(config))
    if recipe.tokenizer.vocab_size < least:
        with recipe.at("tokenizer", "vocab_size"):
            raise ConfigError(
                f"tokenizer.vocab_size is {recipe.tokenizer.vocab_size}, but 256 bytes and the control tokens of the "
                f"objective {kind.name} take {least}. Raise it."
            )


def _fitting(spec: ModelSpec, trained: ModelSpec, config: ObjectiveConfig) -> type[Objective]:
    """Return the objective of these settings. Raises ConfigError, with the family's own, where it does not fit."""
    try:
        return kind_of_objective(trained, config)
    except ConfigError as error:
        own = objective_config(spec).kind
        hint = "" if own == config.kind else f". {spec.family} is pretrained by {own}: leave pretrain.objective out"
        raise ConfigError(f"{error}{hint}.") from None


def check_groups(recipe: Recipe, spec: ModelSpec) -> None:
    """Raise ConfigError where the parameter groups of a stage's optimizer do not fit the model."""
    model = build(spec, device="meta")
    for name, section in recipe.stages.items():
        with recipe.at(name, "optimizer", "groups"):
            try:
                plan_groups(model, section.optimizer)
            except ConfigError as error:
                raise ConfigError(f"{name}.{error}") from None


def control_tokens(recipe: Recipe) -> tuple[str, ...]:
    """Return the control tokens of the tokenizer that the recipe trains."""
    if recipe.pretrain is None:
        return DEFAULT_SPECIAL
    spec = model_spec(recipe, None)
    config = objective_config(spec, recipe.pretrain.objective)
    return (*DEFAULT_SPECIAL, *kind_of_objective(trained_spec(spec, config), config).control(config))


def decodes(recipe: Recipe) -> bool:
    """Return whether the recipe's model is a decoder alone, which is served and asked questions."""
    spec = trained(recipe)
    return spec.encoder is None and isinstance(spec.head, LM)


def trained(recipe: Recipe) -> ModelSpec:
    """Return what the recipe's model is once it is trained, but for the size of a vocabulary that is to be learned."""
    if isinstance(recipe.model, LoadModel):
        spec = read_spec(recipe.model.load)
    else:
        spec = recipe.model.spec(vocab=vocabulary(recipe) or 1 << 20, context=default_context(recipe))
    return spec if recipe.pretrain is None else trained_spec(spec, recipe.pretrain.objective)


def published(recipe: Recipe) -> bool:
    """Return whether the trained model has a form that other software reads."""
    return huggingface.publishes(trained(recipe))


def model_spec(recipe: Recipe, tokenizer: Tokenizer | None) -> ModelSpec:
    """Return the spec of the recipe's model; `tokenizer` is the loaded or trained one where there is one yet."""
    if isinstance(recipe.model, LoadModel):
        with recipe.at("model", "load"):
            return read_spec(recipe.model.load)
    vocab = vocabulary(recipe) or (tokenizer.vocab_size if tokenizer else 0)
    return recipe.model.spec(vocab=vocab, context=default_context(recipe))
