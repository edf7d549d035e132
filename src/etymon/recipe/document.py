"""A recipe as text: YAML with the line of every key, and the dotted settings that change it.

YAML 1.2 rules where they differ from PyYAML's: only `true` and `false` are booleans (`compile: on` is a word) and
`3e-4` is a number. A key that stands twice in one mapping is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from etymon.errors import ConfigError

Path_ = tuple[str | int, ...]

# What the issue trackers and papers of the field call things; accepted in dotted settings.
SHORTHANDS = {"optim": "optimizer"}


@dataclass
class RecipeText:
    """The plain values of a recipe, and where each came from: `lines` maps a path to `file:line` or to a setting."""

    values: dict[str, Any]
    name: str
    places: dict[Path_, str] = field(default_factory=dict)

    def place(self, path: Path_) -> str:
        """Return where the value at `path`, or the nearest mapping around it, was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name


class _Loader(yaml.SafeLoader):
    """SafeLoader with the booleans and floats of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def read_recipe_text(path: str | Path) -> RecipeText:
    """Read a recipe file. Raises ConfigError that says where it is not UTF-8, not YAML, or not a mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such recipe. {_recipes_nearby(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start:,}: {error.reason}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    return parse_recipe_text(text, str(path))


def parse_recipe_text(text: str, name: str = "recipe") -> RecipeText:
    """Parse the text of a recipe. Raises ConfigError with the line of the fault."""
    loader = _Loader(text)
    places: dict[Path_, str] = {}
    try:
        node = loader.get_single_node()
        values = {} if node is None else _value(loader, node, (), places, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}.") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}.") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: a recipe is a mapping of settings, not {_kind(values)}.")
    return RecipeText(values, name, places)


def with_settings(text: RecipeText, settings: Iterable[str], *, under: str | None = None) -> RecipeText:
    """Return the recipe with dotted settings (`pretrain.optimizer.lr=3e-4`) put in; values are YAML.

    A part of the path that is a number is a place in a list. With `under`, a path whose first part is not a section of
    a recipe is meant inside that section. Raises ConfigError for a setting that is not of this form.
    """
    from etymon.recipe.schema import Recipe

    values, places = _copied(text.values), dict(text.places)
    for setting in settings:
        dotted, equals, value = setting.partition("=")
        parts = re.sub(r"\[(\d+)\]", r".\1", dotted.strip()).split(".")
        if not equals or not all(parts):
            raise ConfigError(f"{setting!r}: expected a setting of the form section.key=value, such as seed=1.")
        path: Path_ = tuple(int(p) if p.isdecimal() else SHORTHANDS.get(p, p) for p in parts)
        if under is not None and path[0] not in Recipe.model_fields:
            path = (under, *path)
        _put(values, path, parse_value(value, setting), setting)
        places = {p: place for p, place in places.items() if p[: len(path)] != path}
        places[path] = f"setting {dotted.strip()!r}"
    return RecipeText(values, text.name, places)


def parse_value(text: str, setting: str) -> Any:
    """Parse the value of a setting as YAML. Raises ConfigError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, (), {}, setting)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{setting!r}: the value is not valid YAML: {problem}.") from None
    finally:
        loader.dispose()


def _put(values: Any, path: Path_, value: Any, setting: str) -> None:
    here = values
    for i, part in enumerate(path):
        last = i == len(path) - 1
        if isinstance(here, list):
            if not isinstance(part, int) or part > len(here):
                raise ConfigError(
                    f"{setting!r}: {_dotted(path[:i])} is a list of {len(here)}; {part!r} is not a place in it."
                )
            if part == len(here):
                here.append({})
        elif not isinstance(here, dict):
            raise ConfigError(f"{setting!r}: {_dotted(path[:i])} is {_kind(here)}, which has no {part!r}.")
        key: Any = part if isinstance(here, list) else str(part)
        if last:
            here[key] = value
        else:
            if isinstance(here, dict) and here.get(key) is None:
                here[key] = [] if isinstance(path[i + 1], int) else {}
            elif isinstance(here, list) and isinstance(here[key], str):
                here[key] = {"kind": "builtin"} if here[key] == "builtin" else {"path": here[key]}  # a bare source
            here = here[key]


def _value(loader: _Loader, node: yaml.Node, path: Path_, places: dict[Path_, str], name: str) -> Any:
    places.setdefault(path, f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, place = str(getattr(key_node, "value", "")), f"{name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                raise ConfigError(f"{place}: keys must be plain words.")
            if key in values:
                raise ConfigError(f"{place}: {_dotted((*path, key))} stands here a second time. Keep one of them.")
            places[(*path, key)] = place
            values[key] = _value(loader, value_node, (*path, key), places, name)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*path, i), places, name) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _recipes_nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("recipes")
    found = sorted(str(p) for p in folder.glob("*.yaml"))[:6] if folder.is_dir() else []
    return f"There are: {', '.join(found)}." if found else "Give the path of a YAML file."


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path)) or "the recipe"


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)
