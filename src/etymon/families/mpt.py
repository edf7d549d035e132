"""MPT (MosaicML 2023, "Introducing MPT-7B").

What was new over BLOOM: no biases at all, queries, keys and values clamped where the config says so, no norm after the
embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import attention_of, decoder
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys, feed_forward
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LM, ALiBi, Attention, Block, Dense, LayerNorm, ModelSpec, Sub


def build(
    *,
    name: str = "mpt",
    vocab: int = 50432,
    dim: int,
    layers: int,
    heads: int,
    context: int = 2048,
    expansion: int = 4,
    eps: float = 1e-5,
    clip: float | None = None,
    scale: float | None = None,
    max_exponent: float = 8.0,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of an MPT of these dimensions."""
    norm = LayerNorm(eps=eps, bias=False)
    scores = ALiBi(max_exponent=max_exponent)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, scores=scores, clip=clip, scale=scale)
    ffn = Dense(hidden=expansion * dim, activation="gelu", bias=False)
    block = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn)))
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, name=name, family="mpt", vocab=vocab, dim=dim, context=context)


def _scores(spec: ModelSpec) -> ALiBi:
    scores = attention_of(spec).scores
    assert isinstance(scores, ALiBi)
    return scores


KEYS = Keys(
    measures={"expansion": (int, lambda spec: feed_forward(spec).hidden // spec.dim)},
    vocab=("vocab_size", 50368),
    dim=("d_model", 2048),
    layers=("n_layers", 24),
    heads=("n_heads", 16),
    context=("max_seq_len", 2048),
    expansion=("expansion_ratio", 4),
    eps=("layer_norm_epsilon", 1e-5),
    tied=("tie_word_embeddings", True),
)
ATTENTION = Keys(
    measures={
        "clip": (float, lambda spec: attention_of(spec).clip),
        "scale": (float, lambda spec: attention_of(spec).scale),
        "max_exponent": (float, lambda spec: int(_scores(spec).max_exponent)),
    },
    clip=("clip_qkv", None),
    scale=("softmax_scale", None),
    max_exponent=("alibi_bias_max", 8.0),
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "mpt"."""
    attention = reader.section("attn_config") or ConfigReader({}, reader.where)
    attention.skip("attn_impl", "attn_pdrop", "softmax_bias_max")
    attention.expect("attn_type", "multihead_attention")
    attention.expect("alibi", True)
    for key in ("prefix_lm", "qk_ln", "attn_uses_sequence_id"):
        attention.expect(key, False)
    scores = ATTENTION.read(attention)
    attention.finish()
    reader.skip("emb_pdrop", "resid_pdrop", "init_device", "init_config", "verbose", "tokenizer_name")
    reader.skip("embedding_fraction", "norm_type", "learned_pos_emb")  # with ALiBi there are no learned positions
    reader.expect("no_bias", True)
    reader.expect("logit_scale", None)
    return build(**KEYS.read(reader), **scores)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return KEYS.write(spec) | {"no_bias": True, "attn_config": {"alibi": True} | ATTENTION.write(spec)}


LAYER: Names = {
    "attention.pre": "norm_1",
    "attention.op.qkv": "attn.Wqkv",
    "attention.op.out": "attn.out_proj",
    "ffn.pre": "norm_2",
    "ffn.op.up": "ffn.up_proj",
    "ffn.op.down": "ffn.down_proj",
}
TOP: Names = {
    "embed.tokens": "transformer.wte",
    "layers": "transformer.blocks.{}",
    "decoder.final_norm": "transformer.norm_f",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP)


FAMILY = Family(
    name="mpt",
    title="MPT",
    paper="https://www.databricks.com/blog/mpt-7b",
    origin=Origin(
        published="2023-05",
        parents=("gpt3", "bloom"),
        brought="open for commerce; contexts beyond those of training",
        reference=Running(),
        counts={"mpt-7b": "6.649B", "mpt-7b-storywriter": "6.649B", "mpt-30b": "29.957B"},
    ),
    build=build,
    sizes={
        "mpt-7b": {"dim": 4096, "layers": 32, "heads": 32},
        "mpt-7b-storywriter": {"dim": 4096, "layers": 32, "heads": 32, "context": 65536, "clip": 6.0}
        | {"max_exponent": 16.0},
        "mpt-30b": {"dim": 7168, "layers": 48, "heads": 64, "context": 8192},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="mpt",
        architecture="MptForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
    ),
)
