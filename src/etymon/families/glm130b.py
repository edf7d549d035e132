"""GLM-130B (Zeng et al. 2022, arXiv:2210.02414), in the format of SwissArmyTransformer.

What was new over GLM: rotary positions on one axis, GEGLU, and DeepNorm: each sublayer's input is normalised, and the
normalised vector, times sqrt(2 * layers), is what its output is added to. That is the same as norms that follow each
sublayer, each one place earlier: the first layer's is the embedding's, and the last one belongs to the last sublayer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.weights import Operation, Regroup, Rule, affine
from etymon.spec import (
    LM,
    Attention,
    Block,
    Dense,
    Embed,
    Gated,
    Infill,
    LayerNorm,
    ModelSpec,
    Rope,
    Stack,
    Sub,
)


def build(
    *,
    name: str = "glm130b",
    family: str = "glm130b",
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    hidden: int,
    context: int = 2048,
    eps: float = 1e-5,
    axes: int = 1,
    gated: bool = True,
    alpha: float | None = None,
    tied: bool = True,
    begin: int | None = None,
    blanks: tuple[int, ...] = (),
) -> ModelSpec:
    """Return the spec of a GLM-130B of these dimensions; a filling begins with the id `begin`, at one of `blanks`.
    `alpha`, which multiplies the normalised vectors, is sqrt(2 * layers)."""
    if dim % heads:
        raise ConfigError(f"{family}: dim={dim} must be a multiple of heads={heads}")
    norm, alpha, width = LayerNorm(eps=eps), alpha or (2 * layers) ** 0.5, dim // heads
    attention = Attention(heads=heads, kv_heads=heads, head_dim=width, bias="qkvo", rope=Rope(dim=width, axes=axes))
    ffn = Gated(hidden=hidden, activation="gelu", bias=True) if gated else Dense(hidden=hidden, activation="gelu_tanh")
    block = Block(subs=(Sub(op=attention, post=norm, alpha=alpha), Sub(op=ffn, post=norm, alpha=alpha)))
    return ModelSpec(
        name=name,
        family=family,
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(norm=norm),
        decoder=Stack(blocks=(block,) * layers, final_norm=None, visibility=Infill(begin=begin, blanks=blanks)),
        head=LM(tied=tied),
    )


KEYS = Keys(
    vocab="vocab_size",
    dim="hidden_size",
    layers="num_layers",
    heads="num_attention_heads",
    hidden="inner_hidden_size",
    context=("max_sequence_length", 2048),
    eps=("layernorm_epsilon", 1e-5),
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a model's configuration, with "model_type": "glm130b"."""
    reader.skip("model_class", "tokenizer_type", "model_parallel_size")
    begin, blank = reader.take("sop_token_id", int, None), reader.take("mask_token_id", int, None)
    return build(**KEYS.read(reader), begin=begin, blanks=() if blank is None else (blank,))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write what `read` reads."""
    rule = spec.trunk.visibility
    assert isinstance(rule, Infill)
    ids = {"sop_token_id": rule.begin, "mask_token_id": rule.blanks[0] if rule.blanks else None}
    return KEYS.write(spec) | {key: value for key, value in ids.items() if value is not None}


def stack_weights(spec: ModelSpec, qkv: tuple[Operation, ...] = ()) -> Iterator[Rule]:
    """List the tensors up to the head; queries, keys and values of each head stand together, and `qkv` is what else is
    done to them."""
    attention = spec.trunk.blocks[0].subs[0].op
    assert isinstance(attention, Attention)
    qkv = (Regroup(attention.heads, (attention.head_dim,) * 3), *qkv)
    yield Rule("embed.tokens.weight", ("transformer.word_embeddings.weight",))
    norm, last = "embed.norm", len(spec.trunk.blocks) - 1
    for i, block in enumerate(spec.trunk.blocks):
        ours, theirs, ffn = f"decoder.blocks.{i}", f"transformer.layers.{i}", block.subs[1].op
        yield from affine(norm, f"{theirs}.input_layernorm", bias=True)
        yield from affine(f"{ours}.attention.op.qkv", f"{theirs}.attention.query_key_value", bias=True, ops=qkv)
        yield from affine(f"{ours}.attention.op.out", f"{theirs}.attention.dense", bias=True)
        yield from affine(f"{ours}.attention.post", f"{theirs}.post_attention_layernorm", bias=True)
        swapped = (Regroup(1, (ffn.hidden,) * 2, order=(1, 0)),) if isinstance(ffn, Gated) else ()
        up = "gate_up" if isinstance(ffn, Gated) else "up"
        yield from affine(f"{ours}.ffn.op.{up}", f"{theirs}.mlp.dense_h_to_4h", bias=True, ops=swapped)
        yield from affine(f"{ours}.ffn.op.down", f"{theirs}.mlp.dense_4h_to_h", bias=True)
        norm = f"{ours}.ffn.post"
        if i == last:
            yield from affine(norm, "transformer.final_layernorm", bias=True)


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return stack_weights(spec)


FAMILY = Family(
    name="glm130b",
    title="GLM-130B",
    paper="https://arxiv.org/abs/2210.02414",
    origin=Origin(
        published="2022-08",
        parents=("glm",),
        brought="DeepNorm on normalised inputs, a stable way to train 130 billion parameters",
        reference=Recorded("THUDM/SwissArmyTransformer"),
        counts={"glm-130b": 128_697_794_560},
        claims={"glm-130b": "130B, with the head counted apart"},
    ),
    build=build,
    sizes={
        "glm-130b": {
            "vocab": 150528,
            "dim": 12288,
            "layers": 70,
            "heads": 96,
            "hidden": 32768,
            "begin": 150004,
            "blanks": (150000,),
        },
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "hidden": 88, "context": 64},
    format=Format(
        model_type="glm130b",
        architecture="GLM130B",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=(r"rotary_emb\.inv_freq$",),
    ),
)
