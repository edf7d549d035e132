"""LaMDA (Thoppilan et al. 2022, arXiv:2201.08239).

GPT-3's kind of decoder with what T5 had found better: a gated feed-forward layer, eight times as wide as the stream, a
learned bias per head and distance that all layers share, RMSNorm. Attention is twice as wide as the stream. The paper
says neither where the norms stand (before the sublayers, here) nor whether the head is tied (it is, here); its
parameter counts leave the embeddings out.
"""

from __future__ import annotations

from etymon.families.family import Family
from etymon.families.origin import Origin, Paper
from etymon.spec import LM, Attention, Block, BucketBias, Embed, Gated, ModelSpec, RMSNorm, Stack, Sub


def build(
    *,
    name: str = "lamda",
    vocab: int = 32000,
    dim: int,
    layers: int,
    heads: int,
    head_dim: int = 128,
    hidden: int | None = None,
    context: int = 2048,
    buckets: int = 32,
    max_distance: int = 128,
    eps: float = 1e-6,
    activation: str = "gelu_tanh",
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a LaMDA of these dimensions."""
    norm = RMSNorm(eps=eps)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=head_dim)
    ffn = Gated(hidden=hidden or 8 * dim, activation=activation)
    block = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn)))
    relative = BucketBias(buckets=buckets, max_distance=max_distance, heads=heads)
    return ModelSpec(
        name=name,
        family="lamda",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(),
        decoder=Stack(blocks=(block,) * layers, final_norm=norm, relative=relative),
        head=LM(tied=tied),
    )


FAMILY = Family(
    name="lamda",
    title="LaMDA",
    paper="https://arxiv.org/abs/2201.08239",
    origin=Origin(
        published="2021-05",
        parents=("gpt3", "t5"),
        brought="trained on dialogue, then to be safe and grounded in what it looks up",
        reference=Paper(),
        counts={"lamda-2b": "2.18B", "lamda-8b": "8.72B", "lamda-137b": "137.7B"},
        claims={"lamda-2b": "2B, without the embeddings", "lamda-8b": "8B, without the embeddings"},
    ),
    build=build,
    sizes={
        "lamda-2b": {"dim": 2560, "layers": 10, "heads": 40},
        "lamda-8b": {"dim": 4096, "layers": 16, "heads": 64},
        "lamda-137b": {"dim": 8192, "layers": 64, "heads": 128},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "head_dim": 16, "context": 64, "buckets": 8}
    | {"max_distance": 16},
)
