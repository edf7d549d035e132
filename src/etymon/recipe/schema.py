"""What a recipe may say. It composes the rooms' own settings, so that each is declared once, where it is used."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from etymon.config import Config
from etymon.data import BuiltinConversations, ConversationSource, DocumentsConfig, Overlength, RecordFiles
from etymon.engine import EngineConfig
from etymon.errors import CheckpointError, ConfigError, DataError, TokenizerError
from etymon.evaluate import PerplexityConfig
from etymon.families import family_named
from etymon.objectives import AnyObjective, MultiTokenConfig, Reads
from etymon.recipe.document import RecipeText
from etymon.recipe.sweep import ScalingSection
from etymon.serve import ServeConfig
from etymon.spec import ModelSpec
from etymon.train import AdamWConfig, Budget, MuonConfig, TrainConfig
from etymon.train.optimizers import OptimizerConfig
from etymon.train.schedules import Tokens, steps_of
from etymon.train.warmup import Warmups

# -- data -------------------------------------------------------------------------------------------------------------


class DataSection(DocumentsConfig):
    """The documents. In `sources`, a bare string is a path, or `builtin`."""

    @field_validator("sources", mode="before")
    @classmethod
    def _bare_strings(cls, value: Any) -> Any:
        return _as_sources(value)


def _as_sources(value: Any) -> Any:
    """Let a bare string stand for a source: `builtin`, or a path."""
    if isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return [
        ({"kind": "builtin"} if v == "builtin" else {"kind": "files", "path": v})
        if isinstance(v, str)
        else {"kind": "files"} | v
        if isinstance(v, dict)
        else v
        for v in value
    ]


def as_paths(value: Any) -> Any:
    """Let a bare string stand for a source that is a path."""
    if isinstance(value, str | dict):
        value = [value]
    return [{"path": v} if isinstance(v, str) else v for v in value] if isinstance(value, list | tuple) else value


# -- tokenizer --------------------------------------------------------------------------------------------------------


class TrainTokenizer(Config):
    """A byte-level BPE vocabulary learned from the training documents."""

    vocab_size: int = Field(default=4096, ge=262, le=1_000_000, description="At most so many tokens")
    sample_bytes: int = Field(default=256 << 20, ge=1 << 10, description="Learned from a fair sample of so many bytes")


class LoadTokenizer(Config):
    """A tokenizer that exists: a directory with `tokenizer.json`, or that file."""

    load: str = Field(min_length=1)


def _load_or(other: str) -> Any:
    def tag(value: Any) -> str:
        loads = "load" in value if isinstance(value, dict) else hasattr(value, "load")
        return "load" if loads else other

    return Discriminator(tag)


TokenizerSection = Annotated[
    Annotated[TrainTokenizer, Tag("train")] | Annotated[LoadTokenizer, Tag("load")], _load_or("train")
]

# -- model ------------------------------------------------------------------------------------------------------------


class NewModel(Config):
    """A model of a family: a published `size`, or the family's dimensions by name (`dim: 256`), or both.

    The vocabulary is the tokenizer's unless `vocab` is given, and the context that of pretraining unless given.
    """

    model_config = ConfigDict(extra="allow")

    family: str
    size: str | None = None

    @model_validator(mode="after")
    def _dimensions_are_the_family_s(self) -> NewModel:
        self.spec(vocab=1 << 20, context=1 << 20)  # raises ConfigError, which is a ValueError
        return self

    @property
    def dimensions(self) -> dict[str, Any]:
        """The dimensions that were given, by the family's names."""
        return dict(self.__pydantic_extra__ or {})

    def spec(self, vocab: int, context: int) -> ModelSpec:
        """Return the spec; `vocab` and `context` hold where the recipe gives none. Raises ConfigError."""
        family = family_named(self.family)
        given = _checked_dimensions(self.family, self.dimensions)
        defaults = {"vocab": vocab} | ({} if self.size else {"context": context})
        return family.spec(self.size, **(defaults | given))


def _checked_dimensions(family: str, given: dict[str, Any]) -> dict[str, Any]:
    known = dimension_types(family)
    if not given.keys() <= known.model_fields.keys():
        family_named(family).spec(**given)  # raises the error that names the nearest dimension
    try:
        checked = known(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name, message = ".".join(map(str, first["loc"])), first["msg"].replace("Input should be", "expected")
        raise ConfigError(f"{family}: {name}: {message}; got {first['input']!r}") from None
    return {key: getattr(checked, key) for key in given}


@cache
def dimension_types(family: str) -> type[Config]:
    """Return a model of the family's dimensions: their types are those of its `build`, and counts are positive."""
    build = family_named(family).build
    hints = get_type_hints(getattr(build, "func", build))  # of what a partial binds
    fields: dict[str, Any] = {}
    for name in inspect.signature(build).parameters.keys() - {"name"}:
        hint = hints[name]
        if hint in (int, int | None):
            hint = Annotated[int, Field(ge=1, le=1 << 40)] if hint is int else Annotated[int, Field(ge=1)] | None
        fields[name] = (hint, None)
    return create_model(f"{family} dimensions", __config__=ConfigDict(extra="forbid"), **fields)


class LoadModel(Config):
    """A checkpoint to continue from: a directory, or a hub id such as `org/name`."""

    load: str = Field(min_length=1)


ModelSection = Annotated[Annotated[NewModel, Tag("new")] | Annotated[LoadModel, Tag("load")], _load_or("new")]

# -- training ---------------------------------------------------------------------------------------------------------


class TrainSection(TrainConfig):
    """What the training stages share. Without a budget a stage takes its share of the recipe's `minutes`."""

    budget: Budget | None = None  # type: ignore[assignment]
    batch_size: int = Field(default=32, ge=1, description="Rows of a batch")
    context: int | None = Field(default=None, ge=2, description="Tokens of a row; the model's context if not given")

    @model_validator(mode="after")
    def _rows_divide(self) -> TrainSection:
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}. Choose micro_batch "
                f"among {', '.join(str(n) for n in range(1, self.batch_size + 1) if self.batch_size % n == 0)}"
            )
        return self

    @model_validator(mode="after")
    def _batches_can_grow(self) -> TrainSection:
        contexts = self.context_warmup if self.context is not None else None
        Warmups(self.batch_size, self.context or 0, self.batch_warmup, contexts)  # raises ConfigError
        return self

    @model_validator(mode="after")
    def _warmups_end(self) -> TrainSection:
        """Refuse warm-ups that are longer than the run, as far as its budget says how long that is."""
        budget = self.budget
        if budget is None or self.context is None or (budget.steps is None and budget.tokens is None):
            return self
        warmups, schedule = self.warmups(self.context), self.schedule
        by_tokens = warmups.total(budget.tokens) if budget.tokens is not None else None
        steps = min(n for n in (budget.steps, by_tokens) if n is not None)
        lengths = {f"schedule.{name}": getattr(schedule, name, 0) for name in ("warmup", "rise")}
        lengths["batch_warmup.length"] = self.batch_warmup.length if self.batch_warmup else 0
        lengths["context_warmup.length"] = self.context_warmup.length if self.context_warmup else 0
        for key, length in lengths.items():
            takes = warmups.sizes(steps).steps(length.tokens) if isinstance(length, Tokens) else steps_of(length, steps)
            if takes > steps:
                raise ValueError(
                    f"{key} takes {takes:,} steps, but the budget ends the run after {steps:,}. Make it shorter, such "
                    "as 0.02 for 2% of the run"
                )
        return self

    def warmups(self, context: int) -> Warmups:
        """Return how batches grow, where rows have `context` tokens in the end. Raises ConfigError."""
        return Warmups(self.batch_size, context, self.batch_warmup, self.context_warmup)

    def train_config(self, budget: Budget) -> TrainConfig:
        """Return the settings of `fit` with this budget."""
        own = {name: getattr(self, name) for name in TrainConfig.model_fields if name != "budget"}
        return TrainConfig(budget=budget, **own)


class PretrainSection(TrainSection):
    """Pretraining on the documents."""

    objective: AnyObjective | None = Field(
        default=None,
        description="A name (clm, mlm, denoising …) or {kind: name, …}; null: that of the model's family",
    )
    pairs: tuple[RecordFiles, ...] = Field(default=(), description="Pairs of texts, for objectives that read those")
    labelled: tuple[RecordFiles, ...] = Field(default=(), description="Texts with a class each, likewise")
    overlength: Overlength = Field(default="error", description="What becomes of those longer than the context")

    @field_validator("pairs", "labelled", mode="before")
    @classmethod
    def _bare_strings(cls, value: Any) -> Any:
        return as_paths(value)

    @property
    def records(self) -> dict[Reads, tuple[RecordFiles, ...]]:
        """The sources that it reads in the place of documents, by what objectives call them."""
        given: dict[Reads, tuple[RecordFiles, ...]] = {"pairs": self.pairs, "labelled": self.labelled}
        return {name: sources for name, sources in given.items() if sources}


class SftSection(TrainSection):
    """Supervised fine-tuning on conversations. In `sources`, a bare string is a path, or `builtin`."""

    sources: tuple[ConversationSource, ...] = Field(default=(BuiltinConversations(),), min_length=1)
    optimizer: OptimizerConfig = MuonConfig(lr=0.01, adamw=AdamWConfig(lr=1e-3, weight_decay=0.0))
    overlength: Literal["error", "drop", "truncate", "split"] = Field(
        default="error", description="What becomes of a conversation that is longer than the context"
    )
    train_on: Literal["assistant", "last"] = Field(default="assistant", description="Every reply, or the last one only")
    future_heads: Literal["trained", "dropped"] = Field(
        default="trained", description="What becomes of heads that look ahead beside the pretrained model"
    )

    @field_validator("sources", mode="before")
    @classmethod
    def _bare_strings(cls, value: Any) -> Any:
        return _as_sources(value)

    @model_validator(mode="after")
    def _conversations_stay_whole(self) -> SftSection:
        if self.context_warmup is not None:
            raise ValueError("context_warmup would cut conversations; it is for pretraining")
        return self


# -- after training ---------------------------------------------------------------------------------------------------


class EvaluateSection(Config):
    """What is measured, before and after fine-tuning and on int8. What is null follows from the recipe's `minutes`."""

    documents: int | None = Field(default=None, ge=1, description="Held-out documents that are scored at most")
    questions: int | None = Field(
        default=None, ge=0, description="Questions of each kind, from each side of the split; 0: none are asked"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Longest answer; null: twice what the right one takes"
    )
    pairs: tuple[RecordFiles, ...] = Field(
        default=(),
        description="Scored pairs of texts, such as STS-B's, which an embedder's cosines are to order",
    )
    seed: int = 0
    prompts: tuple[str, ...] = Field(default=(), description="Texts that the model continues, for the report's samples")
    chats: tuple[str, ...] = Field(default=(), description="Questions that it answers, for the report's samples")
    sample_tokens: int = Field(default=64, ge=1)

    @field_validator("pairs", mode="before")
    @classmethod
    def _bare_strings(cls, value: Any) -> Any:
        return as_paths(value)

    def scaled(self, minutes: float | None) -> EvaluateSection:
        """Return the section with its numbers set: as many as a run of `minutes` can afford."""
        documents = 400 if minutes is None else min(400, max(16, round(8 * minutes)))
        questions = 25 if minutes is None else min(50, max(4, round(1.5 * minutes)))
        own = {"documents": self.documents or documents}
        own["questions"] = questions if self.questions is None else self.questions
        return self.model_copy(update=own)


class QuantizeSection(Config):
    """int8 weights beside the full ones."""

    kind: Literal["int8"] = "int8"


# -- the whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """Where each setting of a recipe was written, where that is known; no part of what the recipe says."""

    text: RecipeText | None = field(default=None, compare=False)


class Recipe(Config):
    """One run, from documents to a served model.

    `minutes` is the dial of the whole run's wall-clock time: training stages without a budget share what it leaves.
    A stage that is null (`sft: null`) is left out.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=100, description="Names the run")
    seed: int = Field(default=0, ge=0)
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda where there is one"
    )
    run: str | None = Field(default=None, min_length=1, description="The run's directory; runs/<name> if not given")
    minutes: float | None = Field(default=None, gt=0, description="Wall-clock time of the whole run")
    scale: float = Field(default=1.0, gt=0, le=1, description="The dial of a published recipe; see recipe/scale.py")
    scaled_by: float | None = Field(default=None, description="Written by a run: the scale that its numbers come from")
    data: DataSection | None = DataSection(held_out=0.05)
    tokenizer: TokenizerSection = TrainTokenizer()
    model: ModelSection
    pretrain: PretrainSection | None = PretrainSection()
    sft: SftSection | None = None
    scaling: ScalingSection | None = None
    evaluate: EvaluateSection = EvaluateSection()
    quantize: QuantizeSection | None = QuantizeSection()
    engine: EngineConfig = EngineConfig()
    serve: ServeConfig = ServeConfig()

    _published: Recipe | None = PrivateAttr(default=None)  # what a scaled recipe was before
    _written: Written = PrivateAttr(default=Written())

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_of_the_checkpoint(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("model"), dict) and "load" in value["model"]:
            return {"tokenizer": {"load": value["model"]["load"]}} | value
        return value

    @model_validator(mode="before")
    @classmethod
    def _no_documents_beside_records(cls, value: Any) -> Any:
        pretrain = value.get("pretrain") if isinstance(value, dict) else None
        if isinstance(pretrain, dict) and (pretrain.get("pairs") or pretrain.get("labelled")):
            return {"data": None} | value
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for problem in _problems(self):
            raise ValueError(problem)
        return self

    @property
    def published(self) -> Recipe | None:
        """The recipe before it was scaled, where it was."""
        return self._published

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Put in front of a fault that is found inside where the recipe says what is at `path`: `file:line`."""
        try:
            yield
        except (ConfigError, DataError, TokenizerError, CheckpointError) as error:
            if self._written.text is None:
                raise
            raise type(error)(f"{self._written.text.place(path)}: {error}") from error

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self.run) if self.run else Path("runs") / self.name

    @property
    def stages(self) -> dict[str, TrainSection]:
        """The training stages of this recipe, by name and in order."""
        found = {"pretrain": self.pretrain, "sft": self.sft}
        return {name: section for name, section in found.items() if section is not None}


NOT_BY_MEZO = "which mezo cannot train: it moves all weights by one loss. Set sft.future_heads: dropped"


def _problems(recipe: Recipe) -> list[str]:
    """Return what does not fit together, as far as it can be seen without touching a file."""
    problems = []
    if isinstance(recipe.model, LoadModel) and isinstance(recipe.tokenizer, TrainTokenizer):
        problems.append(
            "model.load takes the weights of a checkpoint, whose ids mean what its own tokenizer says: a new tokenizer "
            "would make them noise. Remove `tokenizer`, or give `tokenizer.load`"
        )
    records = recipe.pretrain.records if recipe.pretrain is not None else {}
    if recipe.data is None and recipe.pretrain is not None and not records:
        problems.append("pretrain has no documents: give `data`, or set `pretrain: null`")
    if len(records) > 1:
        problems.append("pretrain has pairs and labelled texts: an objective reads one of them, so remove the other")
    if recipe.data is None and isinstance(recipe.tokenizer, TrainTokenizer) and not records:
        problems.append("the tokenizer has no documents to learn from: give `data`, or `tokenizer.load`")
    if not recipe.stages and isinstance(recipe.model, NewModel):
        problems.append("nothing trains this new model: give `pretrain` or `sft`, or a `model.load`")
    for name, section in recipe.stages.items():
        if section.budget is None and recipe.minutes is None and recipe.scaling is None:
            problems.append(
                f"how long is {name}? Give {name}.budget (steps, tokens, epochs or minutes), or `minutes` for the "
                "whole run"
            )
    own = recipe.pretrain
    if own is not None and own.optimizer.kind == "mezo" and isinstance(own.objective, MultiTokenConfig):
        problems.append("pretrain: mezo moves all weights by one loss; the heads of mtp take a gradient of their own")
    tuned, ahead = recipe.sft, own is not None and isinstance(own.objective, MultiTokenConfig)
    if ahead and tuned is not None and tuned.optimizer.kind == "mezo" and tuned.future_heads == "trained":
        problems.append(f"sft: pretraining leaves heads that look ahead, {NOT_BY_MEZO}")
    if isinstance(recipe.model, NewModel):
        problems += _context_problems(recipe, recipe.model)
    return problems + (_scaling_problems(recipe) if recipe.scaling is not None else [])


def _scaling_problems(recipe: Recipe) -> list[str]:
    if not isinstance(recipe.model, NewModel) or recipe.pretrain is None or recipe.sft is not None:
        return [
            "scaling pretrains new models: it takes `model.family` and `pretrain`, and neither `model.load` nor `sft`"
        ]
    if recipe.minutes is not None or recipe.pretrain.budget is not None:
        return ["scaling.budgets say how long each run is. Remove `minutes` and `pretrain.budget`"]
    if recipe.pretrain.batch_warmup is not None or recipe.pretrain.context_warmup is not None:
        return ["scaling counts the FLOPs of full batches. Remove `pretrain.batch_warmup` and `context_warmup`"]
    problems = []
    for place, _ in enumerate(recipe.scaling.sizes if recipe.scaling else ()):
        try:
            sized(recipe, place)
        except ValueError as error:
            problems.append(f"scaling.sizes[{place}]: {_first_fault(error)}")
    return problems


def _first_fault(error: ValueError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else str(error)


def sized(recipe: Recipe, place: int) -> NewModel:
    """Return the model of one of the sizes of `scaling`. Raises ConfigError or ValidationError."""
    assert recipe.scaling is not None and isinstance(recipe.model, NewModel)
    return NewModel.model_validate(recipe.model.model_dump() | recipe.scaling.sizes[place])


def _context_problems(recipe: Recipe, model: NewModel) -> list[str]:
    try:
        spec = model.spec(vocab=vocabulary(recipe) or 1 << 20, context=default_context(recipe))
    except ConfigError as error:
        return [str(error)]
    problems = context_problems(recipe, spec)
    known = vocabulary(recipe)
    if known is not None and spec.vocab < known:
        problems.append(
            f"model.vocab is {spec.vocab}, but the tokenizer may have {known} tokens (tokenizer.vocab_size). "
            "Raise the one or lower the other"
        )
    return problems


def context_problems(recipe: Recipe, spec: ModelSpec) -> list[str]:
    """Return which of the recipe's contexts are longer than the model's."""
    wanted = {f"{name}.context": section.context for name, section in recipe.stages.items()}
    wanted["engine.context"] = recipe.engine.context
    return [
        f"{name} is {context}, but the model's context is {spec.context} (model.context). Raise the one or lower "
        "the other"
        for name, context in wanted.items()
        if context is not None and context > spec.context
    ]


def default_context(recipe: Recipe) -> int:
    """Return the context of a new model whose recipe does not give one."""
    return max((s.context for s in recipe.stages.values() if s.context is not None), default=256)


def vocabulary(recipe: Recipe) -> int | None:
    """Return the most tokens that the recipe's own tokenizer can have; None for one that is loaded."""
    return recipe.tokenizer.vocab_size if isinstance(recipe.tokenizer, TrainTokenizer) else None


def perplexity_config(recipe: Recipe, spec: ModelSpec) -> PerplexityConfig:
    """Return how held-out documents are scored: at the context of training."""
    sections = list(recipe.stages.values())
    context = (sections[0].context if sections else None) or spec.context
    return PerplexityConfig(context=context)
