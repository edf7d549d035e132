"""The keys of a published config: one list reads them as the dimensions of `build` and writes them off a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from etymon.families.descent import attention_of
from etymon.families.reader import REQUIRED, ConfigReader
from etymon.spec import Dense, Gated, ModelSpec, MoE

T = TypeVar("T")
Measure = tuple[type, Callable[[ModelSpec], Any]]  # the type of a dimension, and what it is in a spec
ACTIVATIONS = {  # as published → as in a spec
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def feed_forward(spec: ModelSpec) -> Dense | Gated:
    """Return the first feed-forward layer, of an expert where there are experts."""
    op = next(sub.op for block in spec.trunk.blocks for sub in block.subs if isinstance(sub.op, Dense | Gated | MoE))
    return op.expert if isinstance(op, MoE) else op


def eps(spec: ModelSpec) -> float:
    """Return the epsilon of the norms."""
    sub = spec.trunk.blocks[0].subs[0]
    norm = spec.trunk.final_norm or sub.pre or sub.post or getattr(spec.trunk.blocks[0].wiring, "pre", None)
    assert norm is not None
    return norm.eps


def op_of(spec: ModelSpec, kind: type[T]) -> T:
    """Return the first operator of this kind."""
    return next(sub.op for block in spec.trunk.blocks for sub in block.subs if isinstance(sub.op, kind))


MEASURES: dict[str, Measure] = {
    "vocab": (int, lambda spec: spec.vocab),
    "dim": (int, lambda spec: spec.dim),
    "layers": (int, lambda spec: spec.trunk.depth),
    "heads": (int, lambda spec: attention_of(spec).heads),
    "kv_heads": (int, lambda spec: attention_of(spec).kv_heads),
    "head_dim": (int, lambda spec: attention_of(spec).head_dim),
    "hidden": (int, lambda spec: feed_forward(spec).hidden),
    "context": (int, lambda spec: spec.context),
    "eps": (float, eps),
    "rotary_dim": (int, lambda spec: rope.dim if (rope := attention_of(spec).rope) else 0),
    "activation": (str, lambda spec: feed_forward(spec).activation),
    "tied": (bool, lambda spec: spec.tied),
}


class Keys:
    """Which key of a config says which dimension: `dim="n_embd"`, or `dim=("n_embd", 768)` with what its absence means.

    Dimensions that `MEASURES` does not know come with `measures` of their own. `gelu_tanh` is the name under which that
    activation is written.
    """

    def __init__(
        self, *, measures: dict[str, Measure] | None = None, gelu_tanh: str = "gelu_pytorch_tanh", **keys: Any
    ) -> None:
        self.measures = MEASURES | (measures or {})
        self.gelu_tanh = gelu_tanh
        self.keys: dict[str, tuple[str, Any]] = {
            dimension: key if isinstance(key, tuple) else (key, REQUIRED) for dimension, key in keys.items()
        }

    def read(self, reader: ConfigReader, **defaults: Any) -> dict[str, Any]:
        """Read the dimensions; `defaults` overrule what missing keys mean.

        Raises ConfigError where a required key is missing or a value has the wrong type.
        """
        read: dict[str, Any] = {}
        for name, (key, default) in self.keys.items():
            read[name] = reader.take(key, self.measures[name][0], defaults.get(name, default))
        if "activation" in read:
            read["activation"] = ACTIVATIONS.get(read["activation"], read["activation"])
        return read

    def write(self, spec: ModelSpec) -> dict[str, Any]:
        """Write what `read` reads."""
        written = {key: self.measures[name][1](spec) for name, (key, _) in self.keys.items()}
        if "activation" in self.keys and feed_forward(spec).activation == "gelu_tanh":
            written[self.keys["activation"][0]] = self.gelu_tanh
        return written
