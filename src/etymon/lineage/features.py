"""What a model has, by name: "moe", "rope", "gqa", … computed from its spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from etymon.errors import ConfigError, suggest
from etymon.lineage.nodes import branch_of
from etymon.spec import ModelSpec, Parallel


def features(spec: ModelSpec) -> set[str]:
    """Return the names of all that a spec has: the types of its parts in lower case, and what people call them."""
    parts = list(_parts(spec))
    found = {type(part).__name__.lower() for part in parts} - {"modelspec", "stack", "block", "sub", "embed", "heads"}
    found.add("seq2seq" if len(spec.stacks) == 2 else "encoder" if spec.encoder is not None else "decoder")
    blocks = [block for stack in spec.stacks for block in dict.fromkeys(stack.blocks)]
    ops = [sub.op for block in blocks for sub in block.subs]
    if branch_of(spec) == "recurrent":
        found.add("recurrent")
    if any("SSM" in type(op).__name__ for op in ops):
        found.add("ssm")
    for op in ops:
        heads, kv_heads = getattr(op, "heads", 0), getattr(op, "kv_heads", 0)
        if heads and kv_heads:
            found.add("mha" if kv_heads == heads else "mqa" if kv_heads == 1 else "gqa")
        if getattr(op, "window", None):
            found.add("windowed")
        if getattr(op, "bias", None):
            found.add("biases")
        if getattr(op, "softcap", None):
            found.add("softcap")
    if any(isinstance(block.wiring, Parallel) for block in blocks):
        found.add("parallel")
    if any(stack.repeats > 1 for stack in spec.stacks):
        found.add("shared-weights")
    if any("Relative" in type(part).__name__ or type(part).__name__ == "BucketBias" for part in parts):
        found.add("relative")
    return found | ({"tied"} if spec.tied else set())


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in dict.fromkeys(value):
            yield from _parts(item)
    elif dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))


def check_features(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ConfigError that names what there is, if something else is wanted."""
    known = sorted(set(known))
    for name in wanted:
        if name not in known:
            raise ConfigError(f"No model has {name!r}; known: {', '.join(known)}.{suggest(name, known)}")
