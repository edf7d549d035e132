"""GLM-4-0414 (Zhipu 2025, github.com/zai-org/GLM-4).

What was new over GLM-4: a norm after every sublayer too, as in Gemma 2.
"""

from __future__ import annotations

from typing import Any

from etymon.families import glm4
from etymon.families.descent import with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.spec import Block, ModelSpec, Sub


def sandwich(spec: ModelSpec) -> ModelSpec:
    """Return a GLM-4 with a norm after every sublayer."""

    def block(old: Block) -> Block:
        return Block(subs=tuple(Sub(pre=sub.pre, op=sub.op, branch=sub.pre) for sub in old.subs))

    return with_blocks(spec, "glm4_0414", block)


@extends(glm4.build)
def build(*, name: str = "glm4_0414", **dimensions: Any) -> ModelSpec:
    """Return the spec of a GLM-4-0414."""
    return sandwich(glm4.build(name=name, **dimensions))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "glm4"."""
    return sandwich(glm4.read(reader))


_SIZE = {"vocab": 151552, "kv_heads": 2, "context": 32768, "head_dim": 128, "eps": 1e-5}
FAMILY = Family(
    name="glm4_0414",
    title="GLM-4-0414",
    paper="https://github.com/zai-org/GLM-4",
    origin=Origin(
        published="2025-04",
        parents=("glm4",),
        brought="reasoning learned by reinforcement",
        reference=Running(),
        counts={"glm-4-9b-0414": 9_400_279_040, "glm-4-32b-0414": "32.566B"},
    ),
    build=build,
    sizes={
        "glm-4-9b-0414": _SIZE | {"dim": 4096, "layers": 40, "heads": 32, "hidden": 13696},
        "glm-4-32b-0414": _SIZE | {"dim": 6144, "layers": 61, "heads": 48, "hidden": 23040, "qkv_bias": False},
    },
    tiny=glm4.FAMILY.tiny,
    format=Format(
        model_type="glm4",
        architecture="Glm4ForCausalLM",
        read=read,
        write=glm4.write,
    ),
    tensors=Tensors(
        weights=glm4.weights,
    ),
)
