"""T5 (Raffel et al. 2019, arXiv:1910.10683) and its second version T5 v1.1; FLAN-T5, T0 and UL2 have v1.1's form.

What was new over the original Transformer: every task is text to text, positions are buckets of distances shared by all
layers, scores are not scaled, RMSNorm comes before each sublayer, nothing has a bias. v1.1 gates the feed-forward layer
and unties the head, whose input v1.0 scales.

The file is long because it holds two forms, v1.0 and v1.1, and the sizes of four models of the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError, suggest
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys, feed_forward
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import (
    LM,
    Attention,
    Bidirectional,
    Block,
    BucketBias,
    CrossAttention,
    Dense,
    Embed,
    Gated,
    ModelSpec,
    RMSNorm,
    Stack,
    Sub,
)

FEED_FORWARD: dict[str, tuple[type[Dense | Gated], str]] = {
    "relu": (Dense, "relu"),
    "gated-gelu": (Gated, "gelu_tanh"),
    "gated-silu": (Gated, "silu"),
}


def build(
    *,
    name: str = "t5",
    family: str = "t5",
    vocab: int = 32128,
    dim: int,
    layers: int,
    decoder_layers: int | None = None,
    heads: int,
    head_dim: int = 64,
    hidden: int,
    feed_forward: str = "relu",
    buckets: int = 32,
    max_distance: int = 128,
    context: int = 512,
    eps: float = 1e-6,
    tied: bool = True,
    start: int = 0,
) -> ModelSpec:
    """Return the spec of a T5 of these dimensions; `feed_forward` is one of "relu", "gated-gelu", "gated-silu"."""
    if feed_forward not in FEED_FORWARD:
        listing = ", ".join(FEED_FORWARD)
        hint = suggest(feed_forward, FEED_FORWARD)
        raise ConfigError(f"t5: unknown feed_forward {feed_forward!r}; known: {listing}.{hint}")
    norm, (kind, activation) = RMSNorm(eps=eps), FEED_FORWARD[feed_forward]
    attention = Sub(pre=norm, op=Attention(heads=heads, kv_heads=heads, head_dim=head_dim, scale=1.0))
    cross = Sub(pre=norm, op=CrossAttention(heads=heads, kv_heads=heads, head_dim=head_dim, scale=1.0))
    ffn = Sub(pre=norm, op=kind(hidden=hidden, activation=activation, bias=False))
    relative = BucketBias(buckets=buckets, max_distance=max_distance, heads=heads)
    return ModelSpec(
        name=name,
        family=family,
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(),
        encoder_embed=Embed(),
        encoder=Stack(
            blocks=(Block(subs=(attention, ffn)),) * layers,
            final_norm=norm,
            visibility=Bidirectional(),
            relative=relative,
        ),
        decoder=Stack(
            blocks=(Block(subs=(attention, cross, ffn)),) * (decoder_layers or layers),
            final_norm=norm,
            relative=relative,
        ),
        head=LM(tied=tied, scale=dim**-0.5 if tied else 1.0),
        start=start,
    )


def _relative(spec: ModelSpec) -> BucketBias:
    assert isinstance(spec.trunk.relative, BucketBias)
    return spec.trunk.relative


def _published(spec: ModelSpec) -> str:
    ffn = feed_forward(spec)
    return next(name for name, form in FEED_FORWARD.items() if form == (type(ffn), ffn.activation))


KEYS = Keys(
    measures={
        "layers": (int, lambda spec: spec.encoder.depth if spec.encoder else 0),
        "decoder_layers": (int, lambda spec: spec.trunk.depth),
        "feed_forward": (str, _published),
        "buckets": (int, lambda spec: _relative(spec).buckets),
        "max_distance": (int, lambda spec: _relative(spec).max_distance),
        "start": (int, lambda spec: spec.start),
    },
    vocab=("vocab_size", 32128),
    dim=("d_model", 512),
    layers=("num_layers", 6),
    decoder_layers=("num_decoder_layers", None),
    heads=("num_heads", 8),
    head_dim=("d_kv", 64),
    hidden=("d_ff", 2048),
    feed_forward=("feed_forward_proj", "relu"),
    buckets=("relative_attention_num_buckets", 32),
    max_distance=("relative_attention_max_distance", 128),
    context=("n_positions", 512),
    eps=("layer_norm_epsilon", 1e-6),
    tied=("tie_word_embeddings", True),
    start=("decoder_start_token_id", 0),
)


def read(reader: ConfigReader, family: str = "t5", tied: bool | None = None) -> ModelSpec:
    """Read a `config.json` of model type "t5"; `tied` overrules what it says."""
    reader.skip("dense_act_fn", "is_gated_act", "output_past")  # the first two follow from feed_forward_proj
    sizes = KEYS.read(reader)
    # newer files say that the head is tied whether it is or not, and mean this key
    stored = reader.take("scale_decoder_outputs", bool, sizes["tied"])
    return build(**sizes | {"family": family, "tied": stored if tied is None else tied})


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return KEYS.write(spec) | {"is_encoder_decoder": True}


def _layer(*subs: str) -> Names:
    """Return the names of a block's tensors, which count its sublayers."""
    names: dict[str, str | tuple[str, ...]] = {}
    for place, name in enumerate(subs):
        names[f"{name}.pre"] = f"layer.{place}.layer_norm"
    q, k, v, o = (f"layer.0.SelfAttention.{x}" for x in "qkvo")
    names |= {"attention.op.qkv": (q, k, v), "attention.op.out": o}
    q, k, v, o = (f"layer.1.EncDecAttention.{x}" for x in "qkvo")
    names |= {"cross.op.q": q, "cross.op.kv": (k, v), "cross.op.out": o}
    ffn = f"layer.{len(subs) - 1}.DenseReluDense"
    names |= {"ffn.op.gate_up": (f"{ffn}.wi_0", f"{ffn}.wi_1"), "ffn.op.up": f"{ffn}.wi", "ffn.op.down": f"{ffn}.wo"}
    return names


ENCODER_LAYER, LAYER = _layer("attention", "ffn"), _layer("attention", "cross", "ffn")
TOP: Names = {
    "embed.tokens": "shared",
    **{
        slot.format(side): name.format(side)
        for side in ("encoder", "decoder")
        for slot, name in (
            ("{}.relative.table", "{}.block.0.layer.0.SelfAttention.relative_attention_bias"),
            ("{}.layers", "{}.block.{{}}"),
            ("{}.final_norm", "{}.final_layer_norm"),
        )
    },
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP, encoder_layer=ENCODER_LAYER)


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
SKIPPED = (r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",)  # read by no layer
V1_1 = {
    "small": {"dim": 512, "layers": 8, "heads": 6, "hidden": 1024},
    "base": {"dim": 768, "layers": 12, "heads": 12, "hidden": 2048},
    "large": {"dim": 1024, "layers": 24, "heads": 16, "hidden": 2816},
    "xl": {"dim": 2048, "layers": 24, "heads": 32, "hidden": 5120},
    "xxl": {"dim": 4096, "layers": 24, "heads": 64, "hidden": 10240},
}
_GATED = {"feed_forward": "gated-gelu", "tied": False}
FAMILY = Family(
    name="t5",
    title="T5",
    paper="https://arxiv.org/abs/1910.10683",
    origin=Origin(
        published="2019-10",
        parents=("marian",),
        brought="every task is text to text; relative positions as a bias",
        reference=Running(),
        counts={
            "t5-small": 60_506_624,
            "t5-base": 222_903_552,
            "t5-large": 737_668_096,
            "t5-3b": 2_851_598_336,
            "t5-11b": 11_307_321_344,
            "t5-v1_1-small": 76_961_152,
            "t5-v1_1-base": 247_577_856,
            "t5-v1_1-large": 783_150_080,
            "t5-v1_1-xl": 2_849_757_184,
            "t5-v1_1-xxl": 11_135_332_352,
            "flan-t5-small": 76_961_152,
            "flan-t5-base": 247_577_856,
            "flan-t5-large": 783_150_080,
            "flan-t5-xl": 2_849_757_184,
            "flan-t5-xxl": 11_135_332_352,
            "t0-11b": 11_135_332_352,
            "ul2-20b": 19_591_209_984,
        },
        claims={"t5-large": "770M; how it is counted is not told"},
    ),
    build=build,
    sizes={
        "t5-small": {"dim": 512, "layers": 6, "heads": 8, "hidden": 2048},
        "t5-base": {"dim": 768, "layers": 12, "heads": 12, "hidden": 3072},
        "t5-large": {"dim": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "t5-3b": {"dim": 1024, "layers": 24, "heads": 32, "head_dim": 128, "hidden": 16384},
        "t5-11b": {"dim": 1024, "layers": 24, "heads": 128, "head_dim": 128, "hidden": 65536},
        **{f"t5-v1_1-{size}": _GATED | dimensions for size, dimensions in V1_1.items()},
        **{f"flan-t5-{size}": _GATED | dimensions for size, dimensions in V1_1.items()},
        "t0-11b": _GATED | V1_1["xxl"],
        "ul2-20b": {
            "dim": 4096,
            "layers": 32,
            "heads": 16,
            "head_dim": 256,
            "hidden": 16384,
            "feed_forward": "gated-silu",
            "tied": False,
        },
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "head_dim": 8, "hidden": 48, "context": 64},
    objective="span_corruption",
    format=Format(
        model_type="t5",
        architecture="T5ForConditionalGeneration",
        tokenizer="T5Tokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=SKIPPED,
        copies=COPIES,
    ),
)
