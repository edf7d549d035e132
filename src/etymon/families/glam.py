"""GLaM (Du et al. 2021, arXiv:2112.06905).

What was new over GPT-3: in every second layer 64 feed-forward experts, of which a router chooses two for each token; a
gated feed-forward layer in the others; RMSNorm, no biases, and in every layer T5's learned bias per head and distance.
Only experts of two matrices beside dense layers of three give the 1.2T and 96.6B of the paper. What it leaves open is
as in Google's own configuration (github.com/google/praxis, layers/glam.py): the mixtures come first, their experts have
ReLU, scores are not divided, but logits are, by sqrt(dim).
"""

from __future__ import annotations

from etymon.families.descent import decoder
from etymon.families.family import Family
from etymon.families.origin import Origin, Paper
from etymon.spec import LM, Attention, Block, BucketBias, Dense, Gated, ModelSpec, MoE, RMSNorm, Sub, TopK


def build(
    *,
    name: str = "glam",
    vocab: int = 256000,
    dim: int,
    layers: int,
    heads: int,
    head_dim: int = 128,
    hidden: int | None = None,
    context: int = 1024,
    experts: int = 64,
    k: int = 2,
    buckets: int = 32,
    max_distance: int = 128,
    eps: float = 1e-6,
    activation: str = "gelu_tanh",
    expert_activation: str = "relu",
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a GLaM; the first, third, … layer is a mixture of `experts`, `k` of which see a token."""
    norm, hidden = RMSNorm(eps=eps), hidden or 4 * dim
    bias = BucketBias(buckets=buckets, max_distance=max_distance, heads=heads)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=head_dim, scores=bias, scale=1.0)
    expert = Dense(hidden=hidden, activation=expert_activation, bias=False)
    mixture = MoE(experts=experts, expert=expert, router=TopK(k=k))
    ffns = (mixture, Gated(hidden=hidden, activation=activation))
    pair = [Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn))) for ffn in ffns]
    blocks, head = tuple(pair[i % 2] for i in range(layers)), LM(tied=tied, scale=dim**-0.5)
    return decoder(blocks, norm, head, name=name, family="glam", vocab=vocab, dim=dim, context=context)


FAMILY = Family(
    name="glam",
    title="GLaM",
    paper="https://arxiv.org/abs/2112.06905",
    origin=Origin(
        published="2021-12",
        parents=("gpt3",),
        brought="seven times GPT-3's parameters at half its computation",
        reference=Paper(),
        counts={"glam-1.7b-64e": "27B", "glam-8b-64e": "143.9B", "glam-64b-64e": "1162B"},
        claims={"glam-64b-64e": "1.2T, rounded"},
    ),
    build=build,
    sizes={
        "glam-1.7b-64e": {"dim": 2048, "layers": 24, "heads": 16},
        "glam-8b-64e": {"dim": 4096, "layers": 32, "heads": 32},
        "glam-64b-64e": {"dim": 8192, "layers": 64, "heads": 128},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "head_dim": 16, "context": 64, "experts": 4, "buckets": 8}
    | {"max_distance": 16},
)
