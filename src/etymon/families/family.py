"""What a family file says, and how the files are found."""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

import etymon.families
from etymon.errors import ConfigError, suggest
from etymon.families.origin import Origin
from etymon.families.reader import ConfigReader
from etymon.families.weights import Rule
from etymon.spec import ModelSpec


def extends(parent: Callable[..., ModelSpec]) -> Callable[[Callable[..., ModelSpec]], Callable[..., ModelSpec]]:
    """Decorate a `build` whose `**dimensions` go to `parent`, so that its signature and hints are those of both."""

    def decorate(build: Callable[..., ModelSpec]) -> Callable[..., ModelSpec]:
        own = inspect.signature(build)
        parameters = {n: p for n, p in own.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        merged = dict(inspect.signature(parent).parameters) | parameters
        build.__signature__ = own.replace(parameters=list(merged.values()))  # type: ignore[attr-defined]
        build.__annotations__ = get_type_hints(parent) | build.__annotations__
        return build

    return decorate


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a family's `config.json` is read and written.

    `older_types` are other model types of it, and `sign` is a key that tells its configs from others of `model_type`.
    `tokenizer` is the class that reads its tokenizer files, where these do not tell. A family that was never published
    has neither; one published as another family's (Galactica as OPT) has no `read`.
    """

    model_type: str = ""
    older_types: tuple[str, ...] = ()
    sign: str = ""
    architecture: str = ""
    tokenizer: str = ""
    read: Callable[[ConfigReader], ModelSpec] | None = None
    write: Callable[[ModelSpec], dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """How a family's checkpoints name their tensors: `weights` lists the rules.

    `prefix` may be missing from published names; names matching `skipped` that no rule wants are buffers, or parts that
    this model does without; `copies` may be there but must equal the token embedding, as the head, `head_name`, must
    where it is tied; `renamed` replaces patterns in older names. `ahead` lists the rules of so many layers behind the
    last one, which predict further ahead, as those of `etymon.nn.mtp.SequentialHeads`.
    """

    weights: Callable[[ModelSpec], Iterable[Rule]] | None = None
    head_name: str = "lm_head.weight"
    prefix: str = ""
    skipped: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    ahead: Callable[[ModelSpec, int], Iterable[Rule]] | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of published models.

    `build(name=..., **dimensions)` makes a spec; `sizes` are the dimensions of its published models and `tiny` those
    of a model for tests. `origin` is its place in the lineage. `objective` is what it is pretrained by (None: what
    follows from its stacks, see `etymon.objectives.choice`).
    """

    name: str
    title: str
    paper: str
    origin: Origin
    build: Callable[..., ModelSpec]
    sizes: dict[str, dict[str, Any]]
    tiny: dict[str, Any]
    objective: str | None = None
    format: Format = field(default_factory=Format)
    tensors: Tensors = field(default_factory=Tensors)

    def spec(self, size: str | None = None, **dimensions: Any) -> ModelSpec:
        """Return the spec of a published size, of free dimensions, or of a size with some of them changed.

        Raises ConfigError for an unknown size or dimension, naming the nearest known one, and for a missing one.
        """
        parameters = inspect.signature(self.build).parameters
        known = parameters.keys() - {"name"}
        for key in dimensions.keys() - known:
            listing = ", ".join(sorted(known))
            raise ConfigError(f"{self.name} has no dimension {key!r}; known: {listing}.{suggest(key, known)}")
        if size is not None and size not in self.sizes:
            listing = ", ".join(self.sizes)
            raise ConfigError(f"{self.name} has no size {size!r}; known: {listing}.{suggest(size, self.sizes)}")
        merged = (self.sizes[size] if size else {}) | dimensions
        if missing := [n for n, p in parameters.items() if p.default is p.empty and n not in (*merged, "name")]:
            raise ConfigError(f"{self.name} takes {', '.join(missing)} as well: give a number for each, or a size")
        try:
            return self.build(name=size or f"{self.name}-custom", **merged)
        except TypeError as error:
            raise ConfigError(f"{self.name}: {str(error).replace('build() ', '')}") from None


@cache
def families() -> dict[str, Family]:
    """Return every family by name: each module of this package that defines FAMILY is one."""
    found, collecting = {}, gc.isenabled()
    gc.disable()  # looking through all of torch's objects for garbage takes as long as these imports
    try:
        for module in pkgutil.iter_modules(etymon.families.__path__):
            family = getattr(importlib.import_module(f"etymon.families.{module.name}"), "FAMILY", None)
            if family is not None:
                found[family.name] = family
    finally:
        if collecting:
            gc.enable()
    return found


def family_named(name: str) -> Family:
    """Return a family by its name. Raises ConfigError that names the nearest known one."""
    if name not in families():
        listing = ", ".join(families())
        raise ConfigError(f"unknown family {name!r}; known: {listing}.{suggest(name, families())}")
    return families()[name]


def family_of_model_type(model_type: str, where: str, keys: Collection[str] = ()) -> Family:
    """Return the family that reads configs of this `model_type` ("" where they name none), with these `keys`. Raises
    ConfigError that names the nearest one."""
    readers = [family for family in families().values() if family.format.read is not None]
    signed = [family for family in readers if family.format.sign in keys]
    if not model_type and signed:
        return signed[0]
    readers.sort(key=lambda family: (family in signed) - bool(family.format.sign and family not in signed))
    known = {kind: family for family in readers for kind in (family.format.model_type, *family.format.older_types)}
    if model_type not in known:
        listing = ", ".join(known)
        raise ConfigError(
            f"{where}: model_type {model_type!r} is of no family here; known: {listing}.{suggest(model_type, known)}"
        )
    return known[model_type]
