"""Grok-1 (xAI 2024, github.com/xai-org/grok-1).

Mixtral's kind of decoder with Gemma 2's bounds: eight gated experts, two for each token, weighted by their
probabilities as they are; a norm before and after every sublayer; scores bounded at 30; a tied head, with factors on
embeddings and logits. The published checkpoint is a pickle of quantised JAX arrays and has no config in a format that
is read here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import llama
from etymon.families.descent import with_attention, with_blocks
from etymon.families.family import Family, extends
from etymon.families.origin import Origin, Recorded
from etymon.spec import LM, Block, Embed, Gated, ModelSpec, MoE, Sub, TopK


@extends(llama.build)
def build(
    *,
    name: str = "grok1",
    dim: int,
    experts: int = 8,
    k: int = 2,
    softcap: float = 30.0,
    logit_scale: float = 3**-0.5,
    activation: str = "gelu_tanh",
    tied: bool = True,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Grok-1 of these dimensions."""
    spec = llama.build(name=name, dim=dim, activation=activation, **dimensions)

    def block(old: Block) -> Block:
        attention, ffn = with_attention(old, softcap=softcap).subs
        assert isinstance(ffn.op, Gated)
        mixture = MoE(experts=experts, expert=ffn.op, router=TopK(k=k, renormalise=False))
        return Block(subs=tuple(Sub(pre=ffn.pre, op=op, branch=ffn.pre) for op in (attention.op, mixture)))

    spec = with_blocks(spec, "grok1", block)
    return dataclasses.replace(spec, embed=Embed(scale=dim**0.5), head=LM(tied=tied, scale=logit_scale))


FAMILY = Family(
    name="grok1",
    title="Grok-1",
    paper="https://github.com/xai-org/grok-1",
    origin=Origin(
        published="2024-03",
        parents=("mixtral", "palm"),
        brought="314 billion parameters given away",
        reference=Recorded("the published JAX code"),
        counts={"grok-1": "315.7B"},
    ),
    build=build,
    sizes={
        "grok-1": {"vocab": 131072, "dim": 6144, "layers": 64, "heads": 48, "kv_heads": 8, "head_dim": 128}
        | {"hidden": 32768, "context": 8192},
    },
    tiny=llama.FAMILY.tiny | {"experts": 4},
)
