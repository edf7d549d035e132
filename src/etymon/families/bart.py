"""BART (Lewis et al. 2019, arXiv:1910.13461).

What was new over the original Transformer: pretraining by restoring corrupted text, GELU, learned positions whose table
begins with two unused rows, and a norm after the embeddings.

The file is long because its builder, reader and table serve mBART, the original Transformer and AlexaTM too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Row, Rule
from etymon.spec import (
    LM,
    Attention,
    Bidirectional,
    Block,
    CrossAttention,
    Dense,
    Embed,
    LayerNorm,
    Learned,
    ModelSpec,
    Norm,
    Op,
    Sinusoidal,
    Stack,
    Sub,
)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "swish": "silu", "silu": "silu"}
NORM = LayerNorm(eps=1e-5)


def build(
    *,
    name: str = "bart",
    family: str = "bart",
    vocab: int = 50265,
    dim: int,
    layers: int,
    decoder_layers: int | None = None,
    heads: int,
    decoder_heads: int | None = None,
    hidden: int | None = None,
    decoder_hidden: int | None = None,
    context: int = 1024,
    activation: str = "gelu",
    scale: float = 1.0,
    start: int | None = 2,
    position: Learned | Sinusoidal | None = None,
    embed_norm: LayerNorm | None = NORM,
    norm: Norm = NORM,
    norms: str = "post",
) -> ModelSpec:
    """Return the spec of a BART of these dimensions; `scale` multiplies the token vectors, `norms` of the kind `norm`
    stand "pre" or "post" of each sublayer."""
    for count in (heads, decoder_heads or heads):
        if dim % count:
            raise ConfigError(f"{family}: dim={dim} must be a multiple of heads={count}")

    def sub(op: Op) -> Sub:
        return Sub(op=op, pre=norm) if norms == "pre" else Sub(op=op, post=norm)

    def block(heads: int, hidden: int, *cross: Sub) -> Block:
        attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, bias="qkvo")
        return Block(subs=(sub(attention), *cross, sub(Dense(hidden=hidden, activation=activation))))

    n = decoder_heads or heads
    cross = sub(CrossAttention(heads=n, kv_heads=n, head_dim=dim // n, bias="qkvo"))
    final_norm = norm if norms == "pre" else None
    embed = Embed(position=position or Learned(length=context, offset=2), norm=embed_norm, scale=scale)
    return ModelSpec(
        name=name,
        family=family,
        vocab=vocab,
        dim=dim,
        context=context,
        embed=embed,
        encoder_embed=embed,
        encoder=Stack(
            blocks=(block(heads, hidden or 4 * dim),) * layers, final_norm=final_norm, visibility=Bidirectional()
        ),
        decoder=Stack(
            blocks=(block(n, decoder_hidden or hidden or 4 * dim, cross),) * (decoder_layers or layers),
            final_norm=final_norm,
        ),
        head=LM(tied=True, bias=True),
        start=start,
    )


def read_dimensions(reader: ConfigReader) -> dict[str, Any]:
    """Read the keys that BART's heirs share with it, as arguments of `build`."""
    activation, dim = reader.take("activation_function", str, "gelu"), reader.take("d_model", int)
    layers = reader.take("encoder_layers", int)
    reader.take("num_hidden_layers", int, None)  # the encoder's, again
    reader.expect("tie_word_embeddings", True)
    reader.expect("share_encoder_decoder_embeddings", True)
    reader.expect("extra_pos_embeddings", 2)
    reader.expect("add_bias_logits", False)
    for key in ("static_position_embeddings", "normalize_before", "normalize_embedding", "add_final_layer_norm"):
        reader.take(key, bool, None)  # said by the model type as well
    return {
        "vocab": reader.take("vocab_size", int),
        "dim": dim,
        "layers": layers,
        "decoder_layers": reader.take("decoder_layers", int, layers),
        "heads": reader.take("encoder_attention_heads", int),
        "decoder_heads": reader.take("decoder_attention_heads", int, None),
        "hidden": reader.take("encoder_ffn_dim", int),
        "decoder_hidden": reader.take("decoder_ffn_dim", int, None),
        "context": reader.take("max_position_embeddings", int, 1024),
        "activation": ACTIVATIONS.get(activation, activation),
        "scale": dim**0.5 if reader.take("scale_embedding", bool, False) else 1.0,
        "start": reader.take("decoder_start_token_id", int, None),
    }


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "bart"."""
    dimensions = read_dimensions(reader)
    return build(**dimensions | {"start": 2 if dimensions["start"] is None else dimensions["start"]})


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    assert spec.encoder is not None
    (attention, ffn), (cross, own) = ([stack.blocks[0].subs[i].op for i in (0, -1)] for stack in spec.stacks)
    assert isinstance(attention, Attention) and isinstance(cross, Attention)
    assert isinstance(ffn, Dense) and isinstance(own, Dense)
    return {
        "vocab_size": spec.vocab,
        "d_model": spec.dim,
        "encoder_layers": spec.encoder.depth,
        "decoder_layers": spec.trunk.depth,
        "encoder_attention_heads": attention.heads,
        "decoder_attention_heads": cross.heads,
        "encoder_ffn_dim": ffn.hidden,
        "decoder_ffn_dim": own.hidden,
        "max_position_embeddings": spec.context,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(ffn.activation, ffn.activation),
        "scale_embedding": spec.embed.scale != 1.0,
        "is_encoder_decoder": True,
        "decoder_start_token_id": spec.start,
    }


LAYER: Names = {
    "attention.op.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.op.out": "self_attn.out_proj",
    "cross.op.q": "encoder_attn.q_proj",
    "cross.op.kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross.op.out": "encoder_attn.out_proj",
    "ffn.op.up": "fc1",
    "ffn.op.down": "fc2",
    **{f"attention.{place}": "self_attn_layer_norm" for place in ("pre", "post")},
    **{f"cross.{place}": "encoder_attn_layer_norm" for place in ("pre", "post")},
    **{f"ffn.{place}": "final_layer_norm" for place in ("pre", "post")},
}


def side(name: str, embed: str, final_norm: str = "layer_norm") -> Names:
    """Return the names of one side outside its layers."""
    return {
        f"{embed}.positions": f"model.{name}.embed_positions",
        f"{embed}.norm": f"model.{name}.layernorm_embedding",
        f"{name}.layers": f"model.{name}.layers.{{}}",
        f"{name}.final_norm": f"model.{name}.{final_norm}",
    }


TOP: Names = {
    "embed.tokens": "model.shared",
    **side("encoder", "encoder_embed"),
    **side("decoder", "embed"),
    "head.linear.bias": "final_logits_bias",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP, {"head.linear.bias": (Row(),)})


COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
FAMILY = Family(
    name="bart",
    title="BART",
    paper="https://arxiv.org/abs/1910.13461",
    origin=Origin(
        published="2019-10",
        parents=("marian", "bert"),
        brought="denoising: restore a text from one that was corrupted",
        reference=Running(),
        counts={"bart-base": 139_470_681, "bart-large": 406_341_721},
    ),
    build=build,
    sizes={
        "bart-base": {"dim": 768, "layers": 6, "heads": 12},
        "bart-large": {"dim": 1024, "layers": 12, "heads": 16},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="bart",
        architecture="BartForConditionalGeneration",
        tokenizer="BartTokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        copies=COPIES,
    ),
)
