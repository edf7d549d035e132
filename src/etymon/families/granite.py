"""Granite 3 (IBM 2024, "Granite 3.0 Language Models").

What was new over LLaMA: fixed multipliers on embeddings, on what sublayers add, on scores and on logits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import llama
from etymon.families.descent import with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.spec import Attention, Block, Embed, ModelSpec


def scaled(spec: ModelSpec, *, embed: float, residual: float, scores: float, logits: float) -> ModelSpec:
    """Return a LLaMA with Granite's multipliers; `logits` divides."""

    def block(old: Block) -> Block:
        new = with_attention(old, scale=scores)
        return Block(subs=tuple(dataclasses.replace(sub, beta=residual) for sub in new.subs))

    head = dataclasses.replace(spec.lm, scale=1 / logits)
    return with_blocks(dataclasses.replace(spec, embed=Embed(scale=embed), head=head), "granite", block)


@extends(llama.build)
def build(
    *,
    name: str = "granite",
    embed_multiplier: float = 12.0,
    residual_multiplier: float = 0.22,
    attention_multiplier: float = 0.015625,
    logits_scaling: float = 8.0,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Granite: a LLaMA of these dimensions with multipliers."""
    return scaled(
        llama.build(name=name, **dimensions),
        embed=embed_multiplier,
        residual=residual_multiplier,
        scores=attention_multiplier,
        logits=logits_scaling,
    )


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "granite"."""
    return scaled(
        llama.read(reader),
        embed=reader.take("embedding_multiplier", float, 1.0),
        residual=reader.take("residual_multiplier", float, 1.0),
        scores=reader.take("attention_multiplier", float, 1.0),
        logits=reader.take("logits_scaling", float, 1.0),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = spec.trunk.blocks[0].subs[0]
    assert isinstance(attention.op, Attention)
    return llama.write(spec) | {
        "embedding_multiplier": spec.embed.scale,
        "residual_multiplier": attention.beta,
        "attention_multiplier": attention.op.scale,
        "logits_scaling": 1 / spec.lm.scale,
    }


FAMILY = Family(
    name="granite",
    title="Granite",
    paper="https://github.com/ibm-granite/granite-3.0-language-models",
    origin=Origin(
        published="2024-10",
        parents=("llama",),
        brought="for companies, with multipliers that carry hyperparameters across sizes",
        reference=Running(),
        counts={"granite-3.0-2b": 2_533_531_648, "granite-3.0-8b": 8_170_848_256},
    ),
    build=build,
    sizes={
        "granite-3.0-2b": {"vocab": 49155, "dim": 2048, "layers": 40, "heads": 32, "kv_heads": 8, "hidden": 8192}
        | {"context": 4096, "tied": True},
        "granite-3.0-8b": {"vocab": 49155, "dim": 4096, "layers": 40, "heads": 32, "kv_heads": 8, "hidden": 12800}
        | {"context": 4096, "tied": True, "attention_multiplier": 0.0078125, "logits_scaling": 16.0},
    },
    tiny=llama.FAMILY.tiny,
    format=Format(
        model_type="granite",
        architecture="GraniteForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=llama.weights,
    ),
)
