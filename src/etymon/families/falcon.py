"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867).

What was new over GPT-3: attention and feed-forward layer side by side (one norm in 7B and 11B, two in 40B and 180B),
few heads of keys and values, rotary positions, no biases. The RefinedWeb models (rw) are sequential, with ALiBi and
biases.

The file is long because three kinds of blocks were published under one model type, and older configs with other keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import attention_of, decoder, side_by_side
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import (
    LM,
    ALiBi,
    Attention,
    Block,
    Dense,
    LayerNorm,
    ModelSpec,
    Parallel,
    Rope,
    RopeScaling,
    Sequential,
    Sub,
)


def build(
    *,
    name: str = "falcon",
    vocab: int = 65024,
    dim: int,
    layers: int,
    heads: int,
    kv_heads: int = 1,
    hidden: int | None = None,
    context: int = 2048,
    norms: int = 1,
    alibi: bool = False,
    bias: bool = False,
    rope_base: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    eps: float = 1e-5,
    activation: str = "gelu",
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a Falcon; `norms` is 1 or 2 for parallel blocks, 0 for sequential ones."""
    norm, head_dim = LayerNorm(eps=eps), dim // heads
    attention = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        bias="qkvo" if bias else "",
        rope=None if alibi else Rope(dim=head_dim, base=rope_base, scaling=rope_scaling),
        scores=ALiBi(scale=head_dim**-0.5) if alibi else None,
    )
    ops = (attention, Dense(hidden=hidden or 4 * dim, activation=activation, bias=bias))
    if norms == 1:
        block = side_by_side(norm, *ops)
    else:
        block = Block(subs=tuple(Sub(op=op, pre=norm) for op in ops), wiring=Parallel() if norms else Sequential())
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, name=name, family="falcon", vocab=vocab, dim=dim, context=context)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "falcon", or of the first releases: "RefinedWebModel" (7B and the sequential
    models, which name what they have) and "RefinedWeb" (40B)."""
    kind = reader.take("model_type", str, "falcon")
    first, grouped = kind != "falcon", reader.take("new_decoder_architecture", bool, kind == "RefinedWeb")
    for key, older in (
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("num_kv_heads", "n_head_kv"),
    ):
        reader.same(key, older)
    dim, heads = reader.take("hidden_size", int, 4544), reader.take("num_attention_heads", int, 71)
    context = reader.take("max_position_embeddings", int, 2048)
    reader.expect("apply_residual_connection_post_layernorm", False)
    reader.take("ff_factor", int, None)  # ffn_hidden_size counts
    alibi = reader.take("alibi", bool, False)
    rope = read_rope(reader, dim=dim // heads, context=context)
    shared = reader.take("multi_query", bool, not first)
    kv_heads = reader.take("num_kv_heads", int, heads)
    parallel = reader.take("parallel_attn", bool, not first) or grouped
    norms = reader.take("num_ln_in_parallel_attn", int, 2 if grouped else 1)
    return build(
        vocab=reader.take("vocab_size", int, 65024),
        dim=dim,
        layers=reader.take("num_hidden_layers", int, 32),
        heads=heads,
        kv_heads=kv_heads if grouped else 1 if shared else heads,
        hidden=reader.take("ffn_hidden_size", int, None),
        context=context,
        norms=norms if parallel else 0,
        alibi=alibi,
        bias=reader.take("bias", bool, False),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        eps=reader.take("layer_norm_epsilon", float, 1e-5),
        activation=reader.take("activation", str, "gelu"),
        tied=reader.take("tie_word_embeddings", bool, True),
    )


def _grouped(spec: ModelSpec) -> bool:
    return attention_of(spec).kv_heads > 1 and isinstance(spec.trunk.blocks[0].wiring, Parallel)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    block, attention, norm = spec.trunk.blocks[0], attention_of(spec), spec.trunk.final_norm
    ffn = block.subs[1].op
    assert isinstance(ffn, Dense) and norm is not None
    parallel = isinstance(block.wiring, Parallel)
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.dim,
        "num_hidden_layers": len(spec.trunk.blocks),
        "num_attention_heads": attention.heads,
        "num_kv_heads": attention.kv_heads,
        "ffn_hidden_size": ffn.hidden,
        "max_position_embeddings": spec.context,
        "new_decoder_architecture": _grouped(spec) or (block.subs[0].pre is not None and parallel),
        "multi_query": attention.kv_heads == 1,
        "parallel_attn": parallel,
        "alibi": attention.scores is not None,
        "bias": attention.bias != "",
        "layer_norm_epsilon": norm.eps,
        "activation": ffn.activation,
        "tie_word_embeddings": spec.tied,
    }
    if config["new_decoder_architecture"]:
        config["num_ln_in_parallel_attn"] = 1 if block.subs[0].pre is None else 2
    return config | ({} if attention.rope is None else {"rope_parameters": write_rope(attention.rope)})


LAYER: Names = {
    "pre": "input_layernorm",
    "attention.op.qkv": "self_attention.query_key_value",
    "attention.op.out": "self_attention.dense",
    "ffn.op.up": "mlp.dense_h_to_4h",
    "ffn.op.down": "mlp.dense_4h_to_h",
}
TOP: Names = {
    "embed.tokens": "transformer.word_embeddings",
    "layers": "transformer.h.{}",
    "decoder.final_norm": "transformer.ln_f",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; query heads stand before the keys and values that they share."""
    attention = attention_of(spec)
    parallel = isinstance(spec.trunk.blocks[0].wiring, Parallel)
    names = ("ln_attn", "ln_mlp") if parallel else ("input_layernorm", "post_attention_layernorm")
    group = attention.query_width // attention.kv_heads
    regroup = Regroup(attention.kv_heads, (group, attention.head_dim, attention.head_dim))
    layer = {"attention.pre": names[0], "ffn.pre": names[1], **LAYER}
    return table(spec, layer, TOP, {"attention.op.qkv": (regroup,)})


FAMILY = Family(
    name="falcon",
    title="Falcon",
    paper="https://arxiv.org/abs/2311.16867",
    origin=Origin(
        published="2023-05",
        parents=("gpt3", "palm"),
        brought="the web alone is enough, if it is filtered well",
        reference=Running(),
        counts={
            "falcon-7b": "6.922B",
            "falcon-11b": "11.10B",
            "falcon-40b": "41.303B",
            "falcon-180b": "178.557B",
            "falcon-rw-1b": "1.312B",
        },
        claims={
            "falcon-7b": "7.217B, with the tied head counted again",
            "falcon-40b": "41.84B, with the tied head counted again",
        },
    ),
    build=build,
    sizes={
        "falcon-7b": {"dim": 4544, "layers": 32, "heads": 71},
        "falcon-11b": {"dim": 4096, "layers": 60, "heads": 32, "kv_heads": 8, "hidden": 16384, "context": 8192}
        | {"rope_base": 500042.0, "tied": False},
        "falcon-40b": {"dim": 8192, "layers": 60, "heads": 128, "kv_heads": 8, "norms": 2},
        "falcon-180b": {"dim": 14848, "layers": 80, "heads": 232, "kv_heads": 8, "norms": 2},
        "falcon-rw-1b": {"vocab": 50304, "dim": 2048, "layers": 24, "heads": 32, "kv_heads": 32, "norms": 0}
        | {"alibi": True, "bias": True},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="falcon",
        older_types=("RefinedWebModel", "RefinedWeb"),
        architecture="FalconForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
    ),
)
