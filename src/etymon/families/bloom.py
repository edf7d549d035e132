"""BLOOM (BigScience 2022, arXiv:2211.05100).

What was new over GPT-3: scores that fall with distance (ALiBi) instead of positions, a norm after the embedding, a
vocabulary of 250880 for 59 languages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import attention_of, decoder
from etymon.families.family import Family
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import LM, ALiBi, Attention, Block, Dense, Embed, LayerNorm, ModelSpec, Sub


def build(
    *,
    name: str = "bloom",
    vocab: int = 250880,
    dim: int,
    layers: int,
    heads: int,
    context: int = 2048,
    eps: float = 1e-5,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a BLOOM of these dimensions; `context` is what it was trained at."""
    norm = LayerNorm(eps=eps)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, bias="qkvo", scores=ALiBi())
    ffn = Dense(hidden=4 * dim, activation="gelu_tanh")
    block = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn)))
    embed = Embed(norm=norm)
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, embed=embed, name=name, family="bloom", vocab=vocab, dim=dim, context=context)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "bloom"."""
    for key in ("slow_but_exact", "pretraining_tp", "skip_bias_add", "skip_bias_add_qkv", "bias_dropout_fusion"):
        reader.take(key, object, None)  # how the published run was split
    for key in ("unk_token_id", "masked_softmax_fusion", "attention_softmax_in_fp32", "offset_alibi", "seed"):
        reader.take(key, object, None)
    reader.expect("apply_residual_connection_post_layernorm", False)
    dim = reader.take("hidden_size", int, None) or reader.take("n_embed", int)
    reader.expect("n_embed", dim)
    reader.expect("n_inner", None, 4 * dim)
    layers = reader.take("n_layer", int, None) or reader.take("num_hidden_layers", int)
    heads = reader.take("n_head", int, None) or reader.take("num_attention_heads", int)
    reader.expect("num_hidden_layers", layers)
    reader.expect("num_attention_heads", heads)
    return build(
        vocab=reader.take("vocab_size", int, 250880),
        dim=dim,
        layers=layers,
        heads=heads,
        context=reader.take("seq_length", int, 2048),
        eps=reader.take("layer_norm_epsilon", float, 1e-5),
        tied=reader.take("tie_word_embeddings", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    norm = spec.trunk.final_norm
    assert norm is not None
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.dim,
        "n_layer": len(spec.trunk.blocks),
        "n_head": attention_of(spec).heads,
        "seq_length": spec.context,
        "layer_norm_epsilon": norm.eps,
        "tie_word_embeddings": spec.tied,
    }


LAYER: Names = {
    "attention.pre": "input_layernorm",
    "attention.op.qkv": "self_attention.query_key_value",
    "attention.op.out": "self_attention.dense",
    "ffn.pre": "post_attention_layernorm",
    "ffn.op.up": "mlp.dense_h_to_4h",
    "ffn.op.down": "mlp.dense_4h_to_h",
}
TOP: Names = {
    "embed.tokens": "transformer.word_embeddings",
    "embed.norm": "transformer.word_embeddings_layernorm",
    "layers": "transformer.h.{}",
    "decoder.final_norm": "transformer.ln_f",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; the rows of every head's q, k and v stand together."""
    attention = attention_of(spec)
    return table(spec, LAYER, TOP, {"attention.op.qkv": (Regroup(attention.heads, (attention.head_dim,) * 3),)})


FAMILY = Family(
    name="bloom",
    title="BLOOM",
    paper="https://arxiv.org/abs/2211.05100",
    origin=Origin(
        published="2022-07",
        parents=("gpt3",),
        brought="forty-six languages, made by a thousand researchers in the open",
        reference=Running(),
    ),
    model_type="bloom",
    architecture="BloomForCausalLM",
    build=build,
    sizes={
        "bloom-560m": {"dim": 1024, "layers": 24, "heads": 16},
        "bloom-1b1": {"dim": 1536, "layers": 24, "heads": 16},
        "bloom-1b7": {"dim": 2048, "layers": 24, "heads": 16},
        "bloom-3b": {"dim": 2560, "layers": 30, "heads": 32},
        "bloom-7b1": {"dim": 4096, "layers": 30, "heads": 32},
        "bloom-176b": {"dim": 14336, "layers": 70, "heads": 112},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    read=read,
    write=write,
    weights=weights,
    prefix="transformer.",
)
