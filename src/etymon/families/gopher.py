"""Gopher (Rae et al. 2021, arXiv:2112.11446).

GPT-2's form with RMSNorm in the place of LayerNorm and the relative positions of Transformer-XL in the place of learned
ones, in six sizes. The paper's counts are those of linear layers without biases; it names no activation: GELU.
"""

from __future__ import annotations

from etymon.errors import ConfigError
from etymon.families.descent import decoder
from etymon.families.family import Family
from etymon.families.origin import Origin, Paper
from etymon.spec import LM, Attention, Block, Dense, ModelSpec, RelativeSinusoids, RMSNorm, Sub


def build(
    *,
    name: str = "gopher",
    family: str = "gopher",
    vocab: int = 32000,
    dim: int,
    layers: int,
    heads: int,
    hidden: int | None = None,
    context: int = 2048,
    eps: float = 1e-6,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a Gopher of these dimensions."""
    if dim % heads:
        raise ConfigError(f"{family}: dim={dim} must be a multiple of heads={heads}")
    norm = RMSNorm(eps=eps)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, scores=RelativeSinusoids())
    ffn = Dense(hidden=hidden or 4 * dim, activation="gelu", bias=False)
    block = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn)))
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, name=name, family=family, vocab=vocab, dim=dim, context=context)


FAMILY = Family(
    name="gopher",
    title="Gopher",
    paper="https://arxiv.org/abs/2112.11446",
    origin=Origin(
        published="2021-12",
        parents=("gpt3", "transformer_xl"),
        brought="280 billion parameters, measured on 152 tasks",
        reference=Paper(),
        counts={
            "gopher-44m": "44M",
            "gopher-117m": "117M",
            "gopher-417m": "417M",
            "gopher-1.4b": "1.4B",
            "gopher-7.1b": "7.1B",
            "gopher-280b": "280B",
        },
    ),
    build=build,
    sizes={
        "gopher-44m": {"dim": 512, "layers": 8, "heads": 16},
        "gopher-117m": {"dim": 768, "layers": 12, "heads": 12},
        "gopher-417m": {"dim": 1536, "layers": 12, "heads": 12},
        "gopher-1.4b": {"dim": 2048, "layers": 24, "heads": 16},
        "gopher-7.1b": {"dim": 4096, "layers": 32, "heads": 32},
        "gopher-280b": {"dim": 16384, "layers": 80, "heads": 128},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
)
