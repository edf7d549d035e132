"""The difference of two specs, as people would say it.

Two models are compared as designs: sublayer by sublayer according to what they do (attention with attention), without
their sizes, and with what depends on sizes written as what it means (a scale of sqrt(width), keys shared by groups of
heads). What varies over the layers is one value, "none and 256 in turn". With `sizes`, numbers are compared too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from etymon.spec import Block, ModelSpec, Norm, Parallel, Rope, Stack, Sub

ABSENT = "–"
SIZES = {"heads", "head_dim", "hidden", "width", "inner", "rank", "length", "vocab", "dim", "context", "depth", "start"}
IDS = {"begin", "blanks", "padding"}  # ids of tokens say nothing about a design

USUAL = ("one for each head", "as the stream", "all", "1/√head")  # what is not worth a word inside of brackets


@dataclass(frozen=True)
class Change:
    """A field that differs: where it stands in the spec, and its values in words."""

    where: str
    before: str
    after: str


@dataclass(frozen=True)
class Shape:
    """A part of a spec, made comparable: its type, those of its fields that say something, and which are as always."""

    kind: str
    fields: dict[str, Any]
    usual: frozenset[str] = frozenset()

    def __str__(self) -> str:
        shown = [_field(name, value) for name, value in self.fields.items() if name not in self.usual]
        inside = ", ".join(filter(None, shown))
        return f"{self.kind}({inside})" if inside else self.kind


def changes(before: ModelSpec, after: ModelSpec, *, sizes: bool = False) -> list[Change]:
    """Return what differs between two specs, in the order of the spec."""
    a, b = _model(before, sizes), _model(after, sizes)
    if a.fields["stacks"] != b.fields["stacks"]:
        a, b = _shared_stack(a, b)
    return _joined(list(_compare("", [a], [b])))


def nearest(ones: Sequence[ModelSpec], others: Sequence[ModelSpec]) -> tuple[ModelSpec, ModelSpec]:
    """Return the two specs, one of each, that are closest in size."""
    return min(((a, b) for a in ones for b in others), key=lambda pair: abs(math.log(_size(pair[0]) / _size(pair[1]))))


def _size(spec: ModelSpec) -> float:
    return sum(stack.depth for stack in spec.stacks) * spec.dim**2


# -- a spec as shapes -------------------------------------------------------------------------------------------------


def _model(spec: ModelSpec, sizes: bool) -> Shape:
    made = _Shapes(spec.dim, sizes)
    stacks = {
        name: made.stack(stack) for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)) if stack
    }
    shown: dict[str, Any] = {"stacks": " and ".join(stacks)}
    if len(stacks) == 1:  # a decoder alone and an encoder alone are compared with each other
        stacks = {"": next(iter(stacks.values()))}
    shown |= {key: getattr(spec, key) for key in ("vocab", "dim", "context") if sizes}
    for field in fields(spec):
        if field.name not in {"name", "family", "encoder", "decoder", *SIZES}:
            shown[field.name] = made.value(getattr(spec, field.name))
    return Shape("model", shown | stacks)


def _shared_stack(a: Shape, b: Shape) -> tuple[Shape, Shape]:
    """Compare the stacks that two models share, where one has an encoder and a decoder and the other only one."""
    one, two = (a, b) if "" in a.fields else (b, a)
    if "" not in one.fields or "" in two.fields:
        return a, b
    same = one.fields["stacks"]
    dropped = {"encoder", "decoder", "encoder_embed"}
    stack = two.fields[same]
    kept = {name: value for name, value in stack.fields.items() if name != "cross"}
    narrowed = {name: value for name, value in two.fields.items() if name not in dropped} | {"": Shape("stack", kept)}
    one = Shape(one.kind, {name: value for name, value in one.fields.items() if name != "encoder_embed"})
    return (
        (one, Shape(two.kind, narrowed))
        if one.fields["stacks"] == a.fields["stacks"]
        else (Shape(two.kind, narrowed), one)
    )


class _Shapes:
    """Makes shapes of the parts of a spec whose stream is `dim` wide."""

    def __init__(self, dim: int, sizes: bool) -> None:
        self.dim = dim
        self.sizes = sizes

    def stack(self, stack: Stack) -> Shape:
        norms = list(dict.fromkeys(_norms(stack)))
        blocks = list(stack.blocks)
        shown: dict[str, Any] = {"depth": stack.depth} if self.sizes else {}
        shown["norm"] = (
            " and ".join(str(self.value(norm)) for norm in norms) if len(norms) != 1 else self.value(norms[0])
        )
        shown["norm place"] = _Turns([_places(block) for block in blocks])
        shown["final norm"] = stack.final_norm is not None
        shown["wiring"] = _Turns([type(block.wiring).__name__.lower() for block in blocks])
        shown["shared weights"] = stack.repeats > 1
        for field in fields(stack):
            if field.name not in ("blocks", "final_norm", "repeats"):
                shown[field.name] = self.value(getattr(stack, field.name))
        for role in dict.fromkeys(sub.op.name for block in blocks for sub in block.subs):
            subs = [sub for block in blocks for sub in block.subs if sub.op.name == role]
            shown[role] = _Turns([self.sublayer(sub, stack.depth) for sub in subs])
        return Shape("stack", shown)

    def sublayer(self, sub: Sub, depth: int) -> Shape:
        """An operator with what its sublayer says beside the norms."""
        op = self.value(sub.op)
        beside = {field.name: field for field in fields(sub) if field.name not in ("op", "pre", "branch", "post")}
        usual = {name for name, field in beside.items() if getattr(sub, name) == field.default}
        shown = {name: self.value(getattr(sub, name)) for name in beside}
        if not self.sizes and math.isclose(sub.alpha, math.sqrt(2 * depth)):
            shown["alpha"] = "√(2 × layers)"
        return Shape(op.kind, op.fields | shown, op.usual | usual)

    def value(self, value: Any) -> Any:
        """Make a shape of a part; numbers and words stay as they are."""
        if not dataclasses.is_dataclass(value):
            return value
        if isinstance(value, Stack):  # within an operator
            return Shape(f"{value.depth} {'block' if value.depth == 1 else 'blocks'}", {})
        shown = {field.name: self.value(getattr(value, field.name)) for field in fields(value)}
        spoken = (f for f in fields(value) if f.name == "axes" or isinstance(f.default, bool | str))
        usual = {f.name for f in spoken if getattr(value, f.name) == f.default}
        if not self.sizes:
            meaning = self.meaning(value)
            usual |= {name for name, text in meaning.items() if text in USUAL}
            shown = {name: item for name, item in (shown | meaning).items() if name not in SIZES | IDS}
        return Shape(type(value).__name__, shown, frozenset(usual))

    def meaning(self, value: Any) -> dict[str, Any]:
        """Say what numbers mean that depend on the size of the model, and what an absent one means."""
        found: dict[str, Any] = {}
        heads, kv_heads, head_dim = (getattr(value, name, None) for name in ("heads", "kv_heads", "head_dim"))
        if heads and kv_heads:
            shared = "one for all heads" if kv_heads == 1 else "shared by groups of heads"
            found["keys"] = "one for each head" if kv_heads == heads else shared
            found["kv_heads"] = None
        if heads and head_dim and hasattr(value, "query_width"):
            found["head width"] = "as the stream" if heads * head_dim == self.dim else "its own"
        if hasattr(value, "window"):
            found["window"] = value.window or "all"
        if head_dim and isinstance(rope := getattr(value, "rope", None), Rope):
            shape = self.value(rope)
            part = "all" if rope.dim == head_dim else f"{rope.dim / head_dim:.0%}"
            found["rope"] = Shape(shape.kind, shape.fields | {"part": part}, shape.usual)
        if hasattr(value, "scale") and not isinstance(value.scale, bool):
            found["scale"] = self.scale(value.scale, head_dim)
        return found

    def scale(self, scale: float | None, head_dim: int | None) -> float | str | None:
        """Write a scale as what it is of the model's width, or of that of its heads."""
        if scale is None:
            return "1/√head" if head_dim else None
        for name, width in (("head", head_dim or 0), ("width", self.dim)):
            for power, text in ((0.5, f"√{name}"), (-0.5, f"1/√{name}"), (-1.0, f"1/{name}")):
                if width > 1 and math.isclose(scale, width**power, rel_tol=1e-3):
                    return text
        return scale


def _norms(stack: Stack) -> Iterator[Norm]:
    for block in dict.fromkeys(stack.blocks):
        found = [block.wiring.pre] if isinstance(block.wiring, Parallel) else []
        found += [norm for sub in block.subs for norm in (sub.pre, sub.branch, sub.post)]
        yield from (norm for norm in found if norm is not None)
    if stack.final_norm is not None:
        yield stack.final_norm


def _places(block: Block) -> str:
    """Say where the norms of a block stand."""
    names = {"pre": "before", "branch": "behind", "post": "after the sum"}
    if isinstance(block.wiring, Parallel) and block.wiring.pre is not None:
        return "one before all"
    found = [
        " and ".join(word for place, word in names.items() if getattr(sub, place) is not None) for sub in block.subs
    ]
    return " / ".join(dict.fromkeys(place or "none" for place in found))


# -- what varies over the layers --------------------------------------------------------------------------------------


class _Turns(list[Any]):
    """The values of one thing over the layers."""


def _pattern(values: Sequence[Any]) -> str:
    """Write the values over the layers as one: what they all are, or how they take turns."""
    texts = [_text(value) for value in values]
    if len(set(texts)) <= 1:
        return texts[0] if texts else ABSENT
    for period in range(2, min(12, len(texts) // 2) + 1):
        if all(text == texts[i % period] for i, text in enumerate(texts)):
            runs = [(text, len(list(run))) for text, run in groupby(texts[:period])]
            if all(n == 1 for _, n in runs):
                return " and ".join(text for text, _ in runs) + " in turn"
            return ", then ".join(f"{n} × {text}" for text, n in runs) + ", in turn"
    runs = [(text, len(list(run))) for text, run in groupby(texts)]
    if len(runs) == 2:
        return f"{runs[0][1]} × {runs[0][0]}, then {runs[1][0]}"
    counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
    *rare, common = sorted(counts, key=lambda text: counts[text])
    return f"{common}; in {sum(counts[text] for text in rare)} of {len(texts)} layers {' or '.join(rare)}"


# -- comparison -------------------------------------------------------------------------------------------------------


def _compare(where: str, a: list[Any], b: list[Any]) -> Iterator[Change]:
    """Yield the changes between the values that two specs have in one place, over the layers."""
    kinds = {value.kind if isinstance(value, Shape) else None for value in (*a, *b)}
    if len(kinds) == 1 and None not in kinds and a and b:
        for name in dict.fromkeys(name for shape in (*a, *b) for name in shape.fields):
            path = f"{where}.{name}" if where and name else where or name
            yield from _compare(path, *(_column(shapes, name) for shapes in (a, b)))
    elif (before := _pattern(a)) != (after := _pattern(b)):
        yield Change(where, before, after)


def _column(shapes: list[Shape], name: str) -> list[Any]:
    """The values of one field over the layers."""
    found: list[Any] = []
    for shape in shapes:
        value = shape.fields.get(name)
        found.extend(value) if isinstance(value, _Turns) else found.append(value)
    return found


def _joined(found: list[Change]) -> list[Change]:
    """Tell once what changed alike in an encoder and in its decoder."""
    twins = {"encoder_embed": "embed", "encoder": "decoder"}
    told = {(change.where, change.before, change.after) for change in found}
    joined = []
    for change in found:
        head, _, rest = change.where.partition(".")
        of = {name: f"{name}.{rest}" for name in (head, *(n for pair in twins.items() for n in pair if head in pair))}
        alike = {name for name, where in of.items() if (where, change.before, change.after) in told}
        if {"encoder", "decoder"} <= alike:
            if head == "encoder":
                joined.append(Change(rest, change.before, change.after))
        elif not (head == "encoder_embed" and "embed" in alike):
            joined.append(change)
    return joined


# -- words ------------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value != int(value):
        return f"{value:.4g}".replace("e-0", "e-")
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def _field(name: str, value: Any) -> str:
    """Write one field inside of a value's brackets; what is absent is not written."""
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if value in (None, "", 0.0) or name == "eps" or (name in ("scale", "alpha", "beta") and value == 1.0):
        return ""
    if name == "part":
        return "" if value == "all" else f"{value} of each head"
    return str(value) if isinstance(value, Shape) or name == "activation" else f"{name} {_text(value)}"
