"""The dial `scale`: a published recipe made small, number by number.

What a recipe says is the published run. `scale: 0.01` asks for a model with a hundredth of its parameters outside the
embeddings, and everything else follows from that model, where P is what became of the parameters and W of the width:

- width and depth shrink alike (by the cube root of the scale): whole heads of their published size, whole blocks;
  feed-forward layers, key heads and factorised embeddings in proportion to the width;
- the vocabulary shrinks so that the embeddings keep their share of the parameters (at least 256 merges are left);
- context and windows are in proportion to W, the context at least 64;
- tokens of the run and of a batch (at least 1,024) are in proportion to P: tokens per parameter and the number of
  updates are the published ones;
- warm-ups (of the rate, the batch, the context) and other lengths become parts of the run, whose end `minutes` may
  bring (10 unless the recipe says);
- the learning rates of Adam and its kin are divided by W, those of embeddings too: µP (Yang et al. 2022,
  arXiv:2203.03466) would divide those of hidden matrices only, and does where the recipe has a `base_width`, but in the
  few hundred updates of minutes the embeddings need the rate (JOURNAL.md). Adafactor's and Muon's rates, which are
  relative to the weights or the same for every width, stay.

Objective, dropout, betas, weight decay and clipping stay as published.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from pydantic import BaseModel

from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.nn import count
from etymon.objectives import kind_of_objective, objective_config, trained_spec
from etymon.recipe.budget import share_of
from etymon.recipe.schema import NewModel, PretrainSection, Recipe, TrainTokenizer, default_context
from etymon.spec import ModelSpec
from etymon.text import DEFAULT_SPECIAL
from etymon.train import Budget
from etymon.train.optimizers.groups import OptimizerSettings
from etymon.train.schedules import Tokens
from etymon.train.warmup import Sizes

MINUTES = 10.0
LEAST_BATCH = 1024  # tokens
LEAST_CONTEXT = 64
LEAST_MERGES = 256
LEAST_ROW = 8  # tokens of a row while contexts are still growing
BY_WIDTH = {"adamw", "adam8bit", "lion", "soap", "shampoo", "galore"}
LENGTHS = ("warmup", "decay", "length", "hold", "rise")


def scaled(recipe: Recipe) -> Recipe:
    """Return the recipe that `recipe.scale` asks for, with every number written out. Raises ConfigError for a recipe
    that has nothing to scale, and for a scale at which nothing is left of the model."""
    if recipe.scale == 1:
        return recipe
    if recipe.scaled_by is not None:
        raise ConfigError(f"the numbers are scaled by {recipe.scaled_by:g} already: take the recipe that they are of")
    model, section, tokenizer = recipe.model, recipe.pretrain, recipe.tokenizer
    if not isinstance(model, NewModel) or section is None or recipe.sft is not None:
        raise ConfigError("scale is for recipes that pretrain a new model, and nothing else: remove it")
    if not isinstance(tokenizer, TrainTokenizer):
        raise ConfigError("scale makes the vocabulary smaller, but tokenizer.load gives one: remove it")
    published = published_spec(recipe)
    small = _Small(model, published, recipe.scale)
    parameters = small.parameters / count(published).non_embedding
    control = kind_of_objective(published, config := objective_config(published, section.objective)).control(config)
    vocabulary = _vocabulary(tokenizer.vocab_size, parameters / small.width, 256 + len(DEFAULT_SPECIAL) + len(control))
    context = small.context(section.context or published.context)
    minutes = recipe.minutes if "minutes" in recipe.model_fields_set else MINUTES
    new = recipe.model_copy(
        update={
            "scale": 1.0,
            "scaled_by": recipe.scale,
            "minutes": minutes,
            "tokenizer": tokenizer.model_copy(update={"vocab_size": vocabulary}),
            "model": small.model(vocab=vocabulary),
            "pretrain": _pretrain(section, published, parameters, small.width, context, minutes),
        }
    )
    new = Recipe.model_validate({name: getattr(new, name) for name in new.model_fields_set | {"scaled_by"}})
    new._published = recipe
    return new


def published_spec(recipe: Recipe) -> ModelSpec:
    """Return the model that a recipe with a tokenizer of its own pretrains."""
    assert isinstance(recipe.model, NewModel) and isinstance(recipe.tokenizer, TrainTokenizer)
    assert recipe.pretrain is not None
    spec = recipe.model.spec(vocab=recipe.tokenizer.vocab_size, context=default_context(recipe))
    return trained_spec(spec, recipe.pretrain.objective)


class _Small:
    """The small model: `width` is its width's part of the published one, `parameters` how many it has outside the
    embeddings and the head."""

    def __init__(self, model: NewModel, published: ModelSpec, scale: float) -> None:
        family = family_named(model.family)
        defaults = {n: p.default for n, p in inspect.signature(family.build).parameters.items()}
        self.family, self.given = model.family, (family.sizes[model.size] if model.size else {}) | model.dimensions
        self.large = defaults | self.given
        if not all(isinstance(self.large.get(name), int) for name in ("dim", "layers", "heads")):
            raise ConfigError(f"scale knows models with dim, layers and heads, and family {model.family} has others")
        self.published = published
        wanted = scale * count(published).non_embedding
        self._check_something_is_left(scale, wanted)
        self.heads = max(1, round(self.large["heads"] * scale ** (1 / 3)))
        first, second = self._parameters(1), self._parameters(2)
        self.layers = min(max(1, 1 + round((wanted - first) / (second - first))), self.large["layers"])
        self.parameters = first + (self.layers - 1) * (second - first)

    @property
    def width(self) -> float:
        return self.heads / int(self.large["heads"])

    def context(self, published: int) -> int:
        """Return what becomes of a context."""
        return min(published, max(LEAST_CONTEXT, 32 * round(published * self.width / 32)))

    def model(self, vocab: int, layers: int | None = None) -> NewModel:
        """Return the model section, with the dimensions instead of the size."""
        large, layers = self.large, layers or self.layers
        size = {"dim": large["dim"] // large["heads"] * self.heads, "layers": layers, "heads": self.heads}
        if large.get("decoder_layers"):
            size["decoder_layers"] = max(1, round(large["decoder_layers"] * layers / large["layers"]))
        for name in ("hidden", "width"):
            if large.get(name):
                size[name] = max(8, 8 * round(large[name] * self.width / 8))
        if large.get("kv_heads"):
            most = max(1, round(large["kv_heads"] * self.width))
            size["kv_heads"] = max(n for n in range(1, most + 1) if self.heads % n == 0)
        context = self.context(self.published.context)
        if large.get("window"):
            size["window"] = max(8, round(large["window"] * context / self.published.context))
        return NewModel(family=self.family, **self.given | size | {"vocab": vocab, "context": context})

    def _parameters(self, layers: int) -> int:
        return count(self.model(512, layers).spec(vocab=512, context=LEAST_CONTEXT)).non_embedding

    def _check_something_is_left(self, scale: float, wanted: float) -> None:
        self.heads = 1
        least = self._parameters(1)
        if wanted < least / 2:
            raise ConfigError(
                f"scale {scale:g} leaves {wanted:,.0f} parameters outside the embeddings, and a single block with one "
                f"head has {least:,}. Take at least {least / 2 / wanted * scale:.2g}"
            )


def _vocabulary(published: int, part: float, least: int) -> int:
    return min(published, max(64 * math.ceil((least + LEAST_MERGES) / 64), 64 * round(published * part / 64)))


def _pretrain(
    section: PretrainSection, published: ModelSpec, parameters: float, width: float, context: int, minutes: float | None
) -> PretrainSection:
    budget = section.budget
    if budget is None or (budget.steps is None and budget.tokens is None):
        raise ConfigError("scale needs the length of the published run: give pretrain.budget in steps or in tokens")
    batch = section.batch_size * (section.context or published.context)
    rows = max(1, round(max(parameters * batch, min(batch, LEAST_BATCH)) / context))
    steps, sizes = _length(section, published)
    new: dict[str, Any] = {"batch_size": rows, "context": context, "micro_batch": None}
    new["budget"] = Budget(
        steps=max(1, round(budget.steps * parameters * batch / (rows * context))) if budget.steps else None,
        tokens=max(1, round(budget.tokens * parameters)) if budget.tokens else None,
        minutes=None if minutes is None else share_of(minutes * 60, 0.0, "pretrain", []) / 60,
    )
    for name, value in section:
        if isinstance(value, BaseModel) and any(length in type(value).model_fields for length in LENGTHS):
            new[name] = _in_parts(value, steps, sizes)
    if section.batch_warmup is not None:
        start = max(1, round(section.batch_warmup.start * rows / section.batch_size))
        new["batch_warmup"] = new["batch_warmup"].model_copy(update={"start": start}) if start < rows else None
    if section.context_warmup is not None:
        shorter = (round(c * context / (section.context or published.context)) for c in section.context_warmup.contexts)
        left = tuple(c for c in shorter if context % c == 0 and LEAST_ROW <= c < context)
        new["context_warmup"] = new["context_warmup"].model_copy(update={"contexts": left}) if left else None
    if section.optimizer.kind in BY_WIDTH and section.optimizer.base_width is None:
        new["optimizer"] = _by_width(section.optimizer, width)
    return section.model_copy(update=new)


def _by_width(optimizer: OptimizerSettings, width: float) -> OptimizerSettings:
    """Return the optimizer with its learning rates divided by the width."""
    rules = [(rule, rule.lr) for rule in optimizer.groups]
    groups = tuple(r if lr is None else r.model_copy(update={"lr": _rounded(lr / width)}) for r, lr in rules)
    return optimizer.model_copy(update={"lr": _rounded(optimizer.lr / width), "groups": groups})


def _length(section: PretrainSection, spec: ModelSpec) -> tuple[int, Sizes]:
    """Return the updates of a run whose budget says how many, or how many tokens, and the sizes of its batches."""
    assert section.budget is not None
    warmups = section.warmups(section.context or spec.context)
    steps = section.budget.steps or warmups.total(section.budget.tokens or 1)
    return steps, warmups.sizes(steps)


def _in_parts(setting: BaseModel, steps: int, sizes: Sizes) -> BaseModel:
    """Return a schedule or a warm-up whose lengths are parts of the run."""
    new: dict[str, Any] = {}
    for name in LENGTHS:
        length = getattr(setting, name, None)
        if isinstance(length, Tokens):
            new[name] = sizes.steps(length.tokens) / steps
        elif isinstance(length, int) and length:
            new[name] = length / steps
        if name in new:  # a curve that is longer than the run ends with it; other lengths fill it
            new[name] = None if name == "length" and new[name] >= 1 else _rounded(min(new[name], 0.9999))
    return setting.model_copy(update=new)


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def compared(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return what the numbers of a scaled recipe were and are: name, published, scaled."""
    assert recipe.published is not None
    before, after = _numbers(recipe.published), _numbers(recipe)
    return [(name, value, after.get(name, "the run")) for name, value in before.items()]


def _numbers(recipe: Recipe) -> dict[str, str]:
    spec, section = published_spec(recipe), recipe.pretrain
    assert section is not None and section.budget is not None
    parameters, context = count(spec).non_embedding, section.context or spec.context
    batch = section.batch_size * context
    steps, sizes = _length(section, spec)
    tokens = sizes.positions(steps)
    lengths = {name: getattr(section.schedule, name, None) for name in LENGTHS}
    minutes = section.budget.minutes
    return {
        "parameters": f"{parameters:,} and {count(spec).total - parameters:,} in embeddings and head",
        "width": f"{spec.dim:,}",
        "blocks": f"{spec.trunk.depth:,}",
        "vocabulary": f"{spec.vocab:,}",
        "batch": f"{section.batch_size:,} rows of {context:,} = {batch:,} tokens",
        "updates": f"{steps:,}",
        "tokens": f"{tokens:,}, {tokens / parameters:,.0f} per parameter",
        "at most": "-" if minutes is None else f"{minutes:.1f} minutes",
        "learning rate": f"{section.optimizer.lr:g}",
        **{f"  {name}": _length_in_words(length) for name, length in lengths.items() if length is not None},
    }


def _length_in_words(length: int | float | Tokens) -> str:
    if isinstance(length, Tokens):
        return f"{length.tokens:,} tokens"
    return f"{length:,} updates" if isinstance(length, int) else f"{length:.3%} of the run"
