"""Which rate and weight decay each parameter has: an optimizer's own, changed by the rules that a recipe gives."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from etymon.config import Config
from etymon.errors import ConfigError
from etymon.nn import ExpertLinear, Model
from etymon.nn.norm import CentredRMSNorm, RMSNorm
from etymon.train.optimizers.width import width_factors
from etymon.train.together import Together

Kind = Literal["matrices", "head", "embeddings", "norms", "biases", "others"]
"""What a parameter is: the weight of a linear layer (`head`: of one in the head that is not a tied embedding), a table
of vectors, a norm's parameter, a bias, or anything else (routers, decays of state spaces, convolutions)."""

Beta = Annotated[float, Field(ge=0, lt=1)]
"""How much of a running mean stays at each step."""

DECAYED: frozenset[Kind] = frozenset({"matrices", "head"})
"""What weight decay acts on unless a rule says otherwise."""


class GroupRule(Config):
    """What holds for the parameters whose name `match` finds (a regular expression, searched), or that are of a `kind`.

    `lr` replaces the learning rate and `lr_factor` multiplies it; `frozen` parameters are not trained.
    """

    match: str | None = None
    kind: Kind | None = None
    lr: float | None = Field(default=None, gt=0)
    lr_factor: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    frozen: bool = False

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _says_one_thing(self) -> GroupRule:
        if (self.match is None) == (self.kind is None):
            raise ValueError("say which parameters by one of `match` and `kind`")
        changes = {name for name in ("lr", "lr_factor", "weight_decay") if getattr(self, name) is not None}
        if {"lr", "lr_factor"} <= changes:
            raise ValueError("`lr` replaces the rate and `lr_factor` multiplies it: give one of them")
        if self.frozen and changes:
            raise ValueError(f"frozen parameters have no {' or '.join(sorted(changes))}")
        if not self.frozen and not changes:
            raise ValueError("say what holds for these parameters: lr, lr_factor, weight_decay or frozen")
        return self

    def holds_for(self, member: Member) -> bool:
        """Whether the rule is about this parameter."""
        return member.kind == self.kind if self.match is None else re.search(self.match, member.name) is not None

    def __str__(self) -> str:
        return f"kind: {self.kind}" if self.match is None else f"match: {self.match!r}"


class OptimizerSettings(Config):
    """The base of every optimizer's settings, which a recipe gives as `optimizer: {kind: …, …}`.

    `weight_decay` acts on the weights of linear layers, never on embeddings, norms or biases, unless one of the
    `groups` says otherwise; of these the first that holds for a parameter counts. With `layer_decay`, a block that is k
    blocks below the top has `lr * layer_decay ** k` (k = 1 for the uppermost), the embeddings as though they were a
    block below all others: for fine-tuning (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254).
    A `base_width` is the width of the model at which the rates were found; at others they follow it (`width.py`).
    """

    kind: str
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    groups: tuple[GroupRule, ...] = ()
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    base_width: int | None = Field(default=None, ge=1)
    widths: ClassVar[Literal["entrywise", "spectral"] | None] = None

    @field_validator("base_width")
    @classmethod
    def _knows_widths(cls, value: int | None) -> int | None:
        if value is not None and cls.widths is None:
            raise ValueError("how rates follow the width is known of adamw and muon only")
        return value

    def rates(self, member: Member) -> tuple[float, float]:
        """Return the learning rate and weight decay of a parameter that no rule is about."""
        return self.lr, self.weight_decay if member.kind in DECAYED else 0.0

    def build(self, groups: list[Group], matrix_dtype: torch.dtype) -> list[torch.optim.Optimizer]:
        """Return the optimizers that update these groups; `matrix_dtype` is for products that need only directions."""
        raise NotImplementedError

    @property
    def words(self) -> str:
        """The optimizer and its rate, for people."""
        return f"{self.kind}, learning rate {self.lr:g}"


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter as rules see it.

    `parts` are the row counts of the separate projections fused in a matrix of the stack, None for all others;
    `height` is how many blocks below the head it lies, 0 for what is above all blocks.
    """

    name: str
    parameter: nn.Parameter
    kind: Kind
    parts: tuple[int, ...] | None
    height: int


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a weight decay."""

    name: str
    kind: Kind
    members: tuple[Member, ...]
    lr: float
    weight_decay: float
    frozen: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters themselves."""
        return [member.parameter for member in self.members]

    @property
    def size(self) -> int:
        """How many numbers they are."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def in_stack(self) -> bool:
        """Whether these are matrices of a stack, which some optimizers treat as matrices."""
        return self.members[0].parts is not None

    def options(self) -> dict[str, Any]:
        """Return the group as torch's optimizers take it."""
        own = {"name": self.name, "lr": self.lr, "base_lr": self.lr, "weight_decay": self.weight_decay}
        parts = {member.parameter: member.parts for member in self.members if member.parts is not None}
        return {"params": self.parameters, **own, "kind": self.kind, "parts": parts}

    def __str__(self) -> str:
        how = "frozen" if self.frozen else f"learning rate {self.lr:g}, weight decay {self.weight_decay:g}"
        return f"{self.name}: {self.size:,} parameters, {how}"


def plan_groups(model: Model | Together, settings: OptimizerSettings) -> list[Group]:
    """Return the groups of all parameters of `model`: those of `settings` and its rules, frozen ones too.

    Rules read the names of a model's own parameters; a companion's are read as if it stood alone. Raises ConfigError
    for a rule that is about no parameter (of those that earlier rules left), or where everything is frozen.
    """
    found: dict[tuple[Any, ...], list[Member]] = {}
    used: set[int] = set()
    factors: dict[Tensor, float] = {}
    if settings.base_width is not None:
        factors = width_factors(model, settings.base_width, spectral=settings.widths == "spectral")
    for member in members(model):
        number = next((i for i, rule in enumerate(settings.groups) if rule.holds_for(member)), None)
        rule = None if number is None else settings.groups[number]
        used |= {number} if number is not None else set()
        lr, weight_decay = settings.rates(member)
        if rule is not None:
            lr = rule.lr if rule.lr is not None else lr * (rule.lr_factor or 1.0)
            weight_decay = rule.weight_decay if rule.weight_decay is not None else weight_decay
        height = 0 if settings.layer_decay is None else member.height
        factor = factors.get(member.parameter, 1.0)
        lr *= factor * (settings.layer_decay or 1.0) ** height
        weight_decay /= factor  # a step takes the same part of a weight at every width
        frozen = rule is not None and rule.frozen
        frozen |= not member.parameter.requires_grad
        name = _name(member.kind, number, height, factor)
        key = (name, member.kind, lr, weight_decay, frozen, member.parts is not None)
        found.setdefault(key, []).append(member)
    for number, rule in enumerate(settings.groups):
        if number not in used:
            earlier = ", or earlier rules took them" if number else ""
            raise ConfigError(
                f"optimizer.groups[{number}] ({rule}) is about no parameter of the model{earlier}. The names are like "
                f"{', '.join(_examples(model))}."
            )
    groups = [
        Group(name, kind, tuple(each), lr, weight_decay, frozen)
        for (name, kind, lr, weight_decay, frozen, _), each in found.items()
    ]
    if all(group.frozen for group in groups):
        raise ConfigError("optimizer.groups: every parameter is frozen, so nothing is left to train.")
    return groups


@contextlib.contextmanager
def frozen(model: Model | Together, settings: OptimizerSettings) -> Iterator[None]:
    """Let the parameters that `settings` freezes need no gradient, until the end. Raises what `plan_groups` raises."""
    stopped = [p for group in plan_groups(model, settings) if group.frozen for p in group.parameters if p.requires_grad]
    try:
        for parameter in stopped:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in stopped:
            parameter.requires_grad_(True)


def members(model: Model | Together) -> Iterator[Member]:
    """Yield every parameter once, under the name that it has in the first model that holds it."""
    seen: set[nn.Parameter] = set()
    for each in model.each if isinstance(model, Together) else (model,):
        parts = {linear.weight: linear.parts for _, linear in each.matrices()}
        tables = {module.weight for module in each.modules() if isinstance(module, nn.Embedding)}
        stacks = (("encoder", each.encoder), ("decoder", each.decoder)) if isinstance(each, Model) else ()
        depths = {name: len(stack.blocks) for name, stack in stacks if stack is not None}
        for prefix, module in each.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if parameter not in seen:
                    seen.add(parameter)
                    name = f"{prefix}.{own}"
                    kind = _kind(name, own, module, parameter in tables)
                    yield Member(name, parameter, kind, parts.get(parameter), _height(name, depths))


def _kind(name: str, own: str, module: nn.Module, table: bool) -> Kind:
    if table:
        return "embeddings"
    if isinstance(module, RMSNorm | CentredRMSNorm | nn.LayerNorm) or own == "norm":
        return "norms"
    if own == "bias" or own.endswith("_bias"):
        return "biases"
    if isinstance(module, nn.Linear | ExpertLinear):
        return "head" if name.startswith("head.") else "matrices"
    return "others"


def _height(name: str, depths: dict[str, int]) -> int:
    stack, *rest = name.split(".")
    if stack == "embed":
        return 1 + max(depths.values(), default=0)
    if stack in depths and rest[0] == "blocks":
        return depths[stack] - int(rest[1])
    return 0


def _name(kind: Kind, rule: int | None, height: int, factor: float) -> str:
    words = kind + (f", {height} below the top" if height else "") + (f" (groups[{rule}])" if rule is not None else "")
    return words if factor == 1.0 else f"{words}, {factor:g} of the rate for their width"


def _examples(model: Model | Together) -> list[str]:
    """Return a name of each kind."""
    return list({member.kind: member.name for member in members(model)}.values())
