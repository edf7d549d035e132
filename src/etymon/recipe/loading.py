"""From the text of a recipe to a `Recipe`: defaults put in, and faults said by line, with the nearest known key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from etymon.errors import ConfigError, suggest
from etymon.files import write_text
from etymon.recipe.document import Path_, RecipeText, read_recipe_text, with_settings
from etymon.recipe.scale import scaled
from etymon.recipe.schema import NewModel, Recipe, Written, default_context, dimension_types

MOST_FAULTS = 8


def load_recipe(path: str | Path, settings: Iterable[str] = (), *, under: str | None = None) -> Recipe:
    """Read a recipe file, or that of a run directory, with dotted settings on top.

    Raises ConfigError that lists every fault with its line, what was expected, and the nearest known key.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise ConfigError(f"{path}: this directory holds no run (recipe.yaml is missing). Give a recipe or a run.")
        text = read_recipe_text(path / "recipe.yaml")
        text.values["run"] = str(path)  # a run that was moved is where it is
    else:
        text = read_recipe_text(path)
    if under == "pretrain" and text.values.get("pretrain", {}) is None:
        under = "sft"  # the only stage that trains
    return recipe_from(with_settings(text, settings, under=under))


def recipe_from(text: RecipeText) -> Recipe:
    """Validate the values of a recipe. Raises ConfigError."""
    try:
        recipe = Recipe.model_validate(with_defaults(Recipe, text.values))
    except ValidationError as error:
        faults = list(dict.fromkeys(_faults(error, text)))
    else:
        try:
            recipe = scaled(recipe)
        except ConfigError as error:
            raise ConfigError(f"{text.place(('scale',))}: {error}.") from None
        recipe = resolved(recipe)
        recipe._written = Written(text)
        return recipe
    if len(faults) == 1:
        raise ConfigError(faults[0])
    more = f"\n  … and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    raise ConfigError(f"{text.name}: {len(faults)} faults:\n  " + "\n  ".join(faults[:MOST_FAULTS]) + more)


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with what follows from other settings written out: directory, names, seeds, contexts, sizes."""
    context = default_context(recipe)
    changes: dict[str, Any] = {"run": str(recipe.directory), "evaluate": recipe.evaluate.scaled(recipe.minutes)}
    if "model_name" not in recipe.serve.model_fields_set:
        changes["serve"] = recipe.serve.model_copy(update={"model_name": recipe.name})
    for name, section in recipe.stages.items():
        own: dict[str, Any] = {} if "seed" in section.model_fields_set else {"seed": recipe.seed}
        if section.context is None and isinstance(recipe.model, NewModel):
            own["context"] = min(context, recipe.model.spec(vocab=1, context=context).context)
        changes[name] = section.model_copy(update=own)
    if isinstance(recipe.model, NewModel) and recipe.model.size is None and "context" not in recipe.model.dimensions:
        changes["model"] = NewModel.model_validate(plain(recipe)["model"] | {"context": context})
    return recipe.model_copy(update=changes)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every setting explicit; API keys are left out."""
    values = plain(recipe)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, atomically."""
    write_text(path, "# Resolved by etymon: every setting of this run.\n" + dump_recipe(recipe))


def plain(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values; secrets do not appear."""
    return recipe.model_dump(mode="json", exclude={"serve": {"api_keys"}})


def with_defaults(model: type[BaseModel], values: Any) -> Any:
    """Put partial mappings on top of the defaults that they change part of.

    `optimizer: {lr: 1}` changes the rate of a stage's own default optimizer, kind included; a mapping that names
    another kind stands for itself.
    """
    if not isinstance(values, dict):
        return values
    result = dict(values)
    for name, field in model.model_fields.items():
        given, default = result.get(name), field.default
        if not isinstance(given, dict):
            continue
        if isinstance(default, BaseModel) and _same_kind(given, default):
            result[name] = _merged(default, given)
        else:
            for candidate in _models(field.annotation):
                if _fits(given, candidate):
                    result[name] = with_defaults(candidate, given)
    return result


def _merged(default: BaseModel, given: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in default.model_fields_set | ({"kind"} & set(type(default).model_fields)):
        values[name] = getattr(default, name)
    for name, value in given.items():
        own = getattr(default, name, None)
        merge = isinstance(value, dict) and isinstance(own, BaseModel) and _same_kind(value, own)
        values[name] = _merged(own, value) if merge and isinstance(own, BaseModel) else value
    return with_defaults(type(default), values)


def _same_kind(given: dict[str, Any], default: BaseModel) -> bool:
    if "load" in given and not hasattr(default, "load"):
        return False
    return "kind" not in given or given["kind"] == getattr(default, "kind", given["kind"])


def _fits(given: dict[str, Any], candidate: type[BaseModel]) -> bool:
    kind = candidate.model_fields.get("kind")
    if kind is not None and "kind" in given:
        return bool(given["kind"] == kind.default)
    return ("load" in given) == ("load" in candidate.model_fields)


# -- faults -----------------------------------------------------------------------------------------------------------


def _faults(error: ValidationError, text: RecipeText) -> Iterator[str]:
    """Yield one message for each faulty place; members of a union that all refuse a value speak as one."""
    found: dict[Path_, list[ErrorDetails]] = {}
    for details in error.errors():
        found.setdefault(_path(details["loc"], text.values, details["type"]), []).append(details)
    for path, every in found.items():
        inner = any(other != path and other[: len(path)] == path for other in found)
        if inner and all(details["type"].endswith(("too_short", "too_long")) for details in every):
            continue  # pydantic counts the items that it refused
        messages = list(dict.fromkeys(_message(details, path, text) for details in every))
        yield f"{text.place(path)}: {' Or: '.join(messages)}"


def _path(location: tuple[int | str, ...], values: Any, fault: str) -> Path_:
    """Return the path as it was written: pydantic's location without the names of union members."""
    path: list[int | str] = []
    here = values
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if here == part:
            here = {"kind": part}  # a bare name that stands for its kind
        if isinstance(here, dict):
            if part in here:
                here = here[part]
            elif part == here.get("kind"):  # the member's name, which may be a key as well (muon's adamw)
                continue
            elif (last and fault == "missing") or (isinstance(part, str) and _is_field(path, part)):
                here = None
            else:
                continue
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _is_field(path: list[int | str], part: str) -> bool:
    return part in known_keys(tuple(path))


def _message(details: ErrorDetails, path: Path_, text: RecipeText) -> str:
    name, kind, given = dotted(path), details["type"], details.get("input")
    if kind == "extra_forbidden":
        others = [c for c in _models(_annotation(path[:-1])) if {"kind", path[-1]} <= c.model_fields.keys()]
        if others:
            whose = " or ".join(str(c.model_fields["kind"].default) for c in others)
            return f"unknown key {name!r} for this kind: it belongs to kind {whose}."
        return f"unknown key {name!r}.{nearest(path)}"
    if kind == "missing":
        return f"{name} is missing: {_expected(path)}."
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        return f"{name}: {_such_as(given, path)}; got {_shown(given)}."
    if kind in ("tuple_type", "list_type"):
        return f"{name}: expected a list; got {_shown(given)}."
    if kind in ("too_short", "too_long"):
        side = (
            f"at least {details['ctx']['min_length']}"
            if kind == "too_short"
            else f"at most {details['ctx']['max_length']}"
        )
        return f"{name}: expected {side} items; got {details['ctx']['actual_length']}."
    if kind == "union_tag_invalid":
        context = details["ctx"]
        tags = context["expected_tags"]
        return f"{name}: unknown kind {context['tag']!r}; known: {tags}.{suggest(str(context['tag']), _quoted(tags))}"
    if kind == "union_tag_not_found":
        kinds = [c.model_fields["kind"].default for c in _models(_annotation(path)) if "kind" in c.model_fields]
        return f"{name}: `kind` is missing; it is one of {', '.join(map(repr, kinds))}."
    message = details["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        message = message if message.endswith((".", "?")) else f"{message}."
        return f"{name}: {message}" if path else message
    message = (message[0].lower() + message[1:]).replace("input should be", "expected").partition(", unable to")[0]
    return f"{name}: {message}; got {_shown(given)}."


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "a secret"
    if isinstance(value, dict | BaseModel):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "nothing (null)" if value is None else repr(value)[:80]


def _such_as(given: Any, path: Path_) -> str:
    """Return `expected a mapping such as {kind: adamw}`, with the kind that is nearest to the word that was given."""
    kinds = [m.model_fields["kind"].default for m in _models(_annotation(path)) if "kind" in m.model_fields]
    near = difflib.get_close_matches(given, kinds, n=1) if isinstance(given, str) else []
    return f"expected a mapping such as {{kind: {(near or kinds)[0]}}}" if kinds else _expected(path)


def _expected(path: Path_) -> str:
    models = _models(_annotation(path))
    if not models:
        outer = [m.model_fields[path[-1]] for m in _models(_annotation(path[:-1])) if path[-1] in m.model_fields]
        said = next((field.description for field in outer if field.description), "it has no default")
        return said[0].lower() + said[1:]
    keys = " or ".join("{" + ", ".join(list(m.model_fields)[:4]) + "}" for m in models)
    return f"expected a mapping such as {keys}"


def _quoted(tags: str) -> list[str]:
    return [tag.strip().strip("'") for tag in tags.split(",")]


def nearest(path: Path_) -> str:
    """Return `" Did you mean 'x'?"`: the nearest key beside the unknown one, or a clearly nearer one elsewhere."""
    name, siblings = str(path[-1]), known_keys(path[:-1])
    beside = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    leaves: dict[str, list[str]] = {}
    for full in every_key():
        leaves.setdefault(full.rpartition(".")[2], []).append(full)
    elsewhere = difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)
    if beside and not (elsewhere and _likeness(name, elsewhere[0]) > _likeness(name, beside[0]) + 0.1):
        return f" Did you mean {dotted((*path[:-1], beside[0]))!r}?"
    if elsewhere:
        return " Did you mean " + " or ".join(repr(full) for full in leaves[elsewhere[0]][:3]) + "?"
    return f" Known here: {', '.join(siblings)}." if siblings else ""


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def dotted(path: Path_) -> str:
    """Return `data.sources[0].path`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def known_keys(path: Path_) -> list[str]:
    """Return the keys that the mapping at `path` may have, over all kinds that may stand there."""
    keys: dict[str, None] = {}
    for model in _models(_annotation(path)):
        keys |= dict.fromkeys(model.model_fields)
        if model is NewModel:
            keys |= dict.fromkeys(k for f in ("gpt2", "llama") for k in dimension_types(f).model_fields)
    return list(keys)


def every_key() -> list[str]:
    """Return every dotted key of a recipe, without the places in lists."""
    found: list[str] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            found.append(prefix + name)
            for inner in _models(field.annotation):
                walk(inner, f"{prefix}{name}.")

    walk(Recipe, "")
    return list(dict.fromkeys(found))


def _annotation(path: Path_) -> Any:
    annotation: Any = Recipe
    for part in path:
        if isinstance(part, int):
            annotation = Union[tuple(_models(annotation))]  # noqa: UP007 - made at run time
            continue
        fields = [m.model_fields[part].annotation for m in _models(annotation) if part in m.model_fields]
        if not fields:
            return None
        annotation = Union[tuple(fields)]  # noqa: UP007
    return annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings models that occur in an annotation, through unions, lists and `Annotated`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType, list, tuple):
        return list(dict.fromkeys(m for a in get_args(annotation) if a is not Ellipsis for m in _models(a)))
    return []
