"""MPT (MosaicML 2023, "Introducing MPT-7B").

What was new over BLOOM: no biases at all, queries, keys and values clamped where the config says so, no norm after the
embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import attention_of, decoder
from etymon.families.family import Family
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


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "mpt"."""
    attention = reader.section("attn_config")
    clip = scale = None
    exponent = 8.0
    if attention is not None:
        clip = attention.take("clip_qkv", float, None)
        scale = attention.take("softmax_scale", float, None)
        exponent = attention.take("alibi_bias_max", float, 8.0)
        for key in ("attn_impl", "attn_pdrop", "softmax_bias_max"):
            attention.take(key, object, None)
        for key, values in {
            "attn_type": ("multihead_attention",),
            "alibi": (True,),
            "prefix_lm": (False,),
            "qk_ln": (False,),
            "attn_uses_sequence_id": (False,),
        }.items():
            attention.expect(key, *values)
        attention.finish()
    for key in (
        *("emb_pdrop", "resid_pdrop", "init_device", "init_config", "verbose", "learned_pos_emb", "tokenizer_name"),
        *("embedding_fraction", "norm_type"),
    ):
        reader.take(key, object, None)  # training, precision; with ALiBi there are no learned positions
    reader.expect("no_bias", True)
    reader.expect("logit_scale", None)
    return build(
        vocab=reader.take("vocab_size", int, 50368),
        dim=reader.take("d_model", int, 2048),
        layers=reader.take("n_layers", int, 24),
        heads=reader.take("n_heads", int, 16),
        context=reader.take("max_seq_len", int, 2048),
        expansion=reader.take("expansion_ratio", int, 4),
        eps=reader.take("layer_norm_epsilon", float, 1e-5),
        clip=clip,
        scale=scale,
        max_exponent=exponent,
        tied=reader.take("tie_word_embeddings", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, ffn, norm = attention_of(spec), spec.trunk.blocks[0].subs[1].op, spec.trunk.final_norm
    assert isinstance(ffn, Dense) and norm is not None and isinstance(attention.scores, ALiBi)
    return {
        "vocab_size": spec.vocab,
        "d_model": spec.dim,
        "n_layers": len(spec.trunk.blocks),
        "n_heads": attention.heads,
        "max_seq_len": spec.context,
        "expansion_ratio": ffn.hidden // spec.dim,
        "layer_norm_epsilon": norm.eps,
        "no_bias": True,
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": int(attention.scores.max_exponent),
            "clip_qkv": attention.clip,
            "softmax_scale": attention.scale,
        },
        "tie_word_embeddings": spec.tied,
    }


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
    ),
    model_type="mpt",
    architecture="MptForCausalLM",
    build=build,
    sizes={
        "mpt-7b": {"dim": 4096, "layers": 32, "heads": 32},
        "mpt-7b-storywriter": {"dim": 4096, "layers": 32, "heads": 32, "context": 65536, "clip": 6.0}
        | {"max_exponent": 16.0},
        "mpt-30b": {"dim": 7168, "layers": 48, "heads": 64, "context": 8192},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    read=read,
    write=write,
    weights=weights,
    prefix="transformer.",
)
