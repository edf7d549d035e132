"""Which runs a sweep is made of: every size with every budget that suits it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etymon.errors import ConfigError
from etymon.nn import count, flops_per_token
from etymon.recipe import inputs
from etymon.recipe.schema import NewModel, PretrainSection, Recipe, sized
from etymon.recipe.sweep import ScalingSection
from etymon.scaling.points import flops_name
from etymon.spec import ModelSpec
from etymon.text import Tokenizer
from etymon.train import Budget


@dataclass(frozen=True)
class Size:
    """One size of a sweep: its model, its parameters (all of them, embeddings included), and the FLOPs of a token."""

    name: str
    model: NewModel
    spec: ModelSpec
    parameters: int
    flops_per_token: int


@dataclass(frozen=True)
class Planned:
    """One run: a size, the budget that it belongs to, and so many steps of `batch` tokens, as near to it as may be."""

    size: Size
    budget: float
    steps: int
    batch: int

    @property
    def tokens(self) -> int:
        """Positions seen."""
        return self.steps * self.batch

    @property
    def flops(self) -> float:
        """FLOPs spent."""
        return float(self.tokens * self.size.flops_per_token)

    @property
    def name(self) -> str:
        """Return `232k at 1e12 FLOPs`."""
        return f"{self.size.name} at {flops_name(self.budget)} FLOPs"

    def folder(self, sweep: Path) -> Path:
        """Return the directory of the run within that of the sweep."""
        return sweep / "runs" / self.size.name / flops_name(self.budget)


def section_of(recipe: Recipe) -> ScalingSection:
    """Return the section `scaling`. Raises ConfigError where there is none, or nothing to measure runs on."""
    if recipe.scaling is None:
        raise ConfigError(
            f"{recipe.name} has no section `scaling`, so it is one run: use `etymon run`. See docs/scaling.md."
        )
    if recipe.data is None or not recipe.data.held_out:
        raise ConfigError("scaling compares runs on held-out text: set data.held_out, such as 0.05.")
    return recipe.scaling


def pretraining(recipe: Recipe) -> PretrainSection:
    """Return what all runs share of their training."""
    assert recipe.pretrain is not None, "a recipe with `scaling` pretrains"
    return recipe.pretrain


def sizes_of(recipe: Recipe, tokenizer: Tokenizer | None) -> list[Size]:
    """Return the sizes, smallest first. Raises ConfigError where two have as good as the same number of parameters."""
    found = []
    for place in range(len(section_of(recipe).sizes)):
        model = sized(recipe, place)
        spec = inputs.model_spec(recipe.model_copy(update={"model": model}), tokenizer)
        parameters = count(spec).total
        context = pretraining(recipe).context or spec.context
        found.append(Size(_short(parameters), model, spec, parameters, flops_per_token(spec, context)))
    found.sort(key=lambda size: size.parameters)
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            raise ConfigError(f"scaling.sizes: two sizes have {one.name} parameters. Leave one of them out.")
    return found


def run_recipe(recipe: Recipe, planned: Planned) -> Recipe:
    """Return the recipe of one run of the sweep."""
    section = pretraining(recipe).model_copy(update={"budget": Budget(steps=planned.steps)})
    return recipe.model_copy(update={"model": planned.size.model, "pretrain": section, "scaling": None})


def plan(recipe: Recipe, tokenizer: Tokenizer | None, corpus: int | None) -> list[Planned]:
    """Return the runs, smallest budget first; `corpus` is the tokens of the training text, None where not yet known.

    Raises ConfigError for a budget that leaves fewer than three sizes, and for a size that is left without any.
    """
    with recipe.at("scaling"):
        return _plan(recipe, section_of(recipe), sizes_of(recipe, tokenizer), corpus)


def _plan(recipe: Recipe, section: ScalingSection, sizes: list[Size], corpus: int | None) -> list[Planned]:
    found = []
    for budget in section.budgets:
        own = [p for size in sizes if _suits(p := planned_run(recipe, size, budget), section, corpus)]
        if len(own) < 3:
            raise ConfigError(
                f"scaling: with {flops_name(budget)} FLOPs only {len(own)} of {len(sizes)} sizes see between "
                f"{section.tokens_per_parameter[0]:g} and {section.tokens_per_parameter[1]:g} tokens per parameter and "
                f"at most {section.epochs:g} epochs; an IsoFLOP profile takes three. Add sizes, or widen "
                "scaling.tokens_per_parameter."
            )
        found += own
    _refuse_idle(sizes, found)
    return found


def planned_run(recipe: Recipe, size: Size, budget: float) -> Planned:
    """Return the run of one size with one budget."""
    section = pretraining(recipe)
    batch = section.batch_size * (section.context or size.spec.context)
    return Planned(size, budget, max(1, round(budget / (size.flops_per_token * batch))), batch)


def _suits(planned: Planned, section: ScalingSection, corpus: int | None) -> bool:
    low, high = section.tokens_per_parameter
    enough_text = corpus is None or planned.tokens <= section.epochs * corpus
    return low <= planned.tokens / planned.size.parameters <= high and enough_text


def _refuse_idle(sizes: Sequence[Size], found: Sequence[Planned]) -> None:
    idle = [size.name for size in sizes if size not in [p.size for p in found]]
    # the largest ones may wait for the check
    if idle and len(sizes) - len(idle) < 4:
        raise ConfigError(f"scaling: no budget suits the sizes {', '.join(idle)}; four sizes are the least.")


def _short(parameters: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)
