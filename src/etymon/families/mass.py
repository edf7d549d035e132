"""MASS (Song et al. 2019, arXiv:1905.02450), the one for unsupervised translation.

What was new over XLM: a decoder that restores a masked fragment of the sentence from the rest, which the encoder reads;
the decoder sees nothing else, and counts its positions from the fragment's place (`decoder_position_ids`). Both sides
are XLMs with tables of their own; in the decoder's attention to the source, each language has an output projection.
Published are both state dicts in one pickle: here their names follow "encoder." and "decoder.".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import xlm
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
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
    Op,
    Stack,
    Sub,
)


def build(
    *,
    name: str = "mass",
    vocab: int,
    dim: int,
    layers: int,
    decoder_layers: int | None = None,
    heads: int,
    languages: int = 2,
    context: int = 512,
    eps: float = 1e-12,
    activation: str = "gelu",
    start: int | None = None,
) -> ModelSpec:
    """Return the spec of a MASS of these dimensions."""
    if dim % heads:
        raise ConfigError(f"mass: dim={dim} must be a multiple of heads={heads}")
    norm, width = LayerNorm(eps=eps), dim // heads

    def block(*ops: Op) -> Block:
        return Block(subs=tuple(Sub(op=op, post=norm) for op in ops))

    own = Attention(heads=heads, kv_heads=heads, head_dim=width, bias="qkvo")
    cross = CrossAttention(heads=heads, kv_heads=heads, head_dim=width, bias="qkvo", languages=max(1, languages))
    ffn = Dense(hidden=4 * dim, activation=activation)
    position = Learned(length=context)
    return ModelSpec(
        name=name,
        family="mass",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(position=position, languages=languages, norm=norm),
        encoder_embed=Embed(position=position, languages=languages, norm=norm, vocab=vocab),
        encoder=Stack(blocks=(block(own, ffn),) * layers, final_norm=None, visibility=Bidirectional()),
        decoder=Stack(blocks=(block(own, cross, ffn),) * (decoder_layers or layers), final_norm=None),
        head=LM(tied=True, bias=True),
        start=start,
    )


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` with the parameters' published names and "model_type": "mass"."""
    reader.expect("share_inout_emb", True)
    reader.expect("attention_setting", "v1")
    reader.expect("english_only", False)
    layers = reader.take("n_dec_layers", int, None)
    start = reader.take("decoder_start_token_id", int, None)
    return build(**xlm.read_sizes(reader), decoder_layers=layers, start=start)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write what `read` reads."""
    assert spec.encoder is not None
    config = xlm.write_sizes(spec) | {"n_layers": spec.encoder.depth, "n_dec_layers": spec.trunk.depth}
    return config | {"share_inout_emb": True, "is_encoder_decoder": True, "decoder_start_token_id": spec.start}


LAYER: Names = {
    **xlm.LAYER,
    "cross.op.q": "encoder_attn.{}.q_lin",
    "cross.op.kv": ("encoder_attn.{}.k_lin", "encoder_attn.{}.v_lin"),
    "cross.post": "layer_norm15.{}",
}
TOP: Names = {
    f"{ours}.{slot}": f"{side}{name}"
    for side, embed in (("encoder", "encoder_embed"), ("decoder", "embed"))
    for ours, slot, name in (
        (embed, "tokens", ".embeddings"),
        (embed, "positions", ".position_embeddings"),
        (embed, "languages", ".lang_embeddings"),
        (embed, "norm", ".layer_norm_emb"),
        (side, "layers", ""),
    )
} | {"head.linear": "decoder.pred_layer.proj"}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    each = tuple(f"encoder_attn.{{}}.out_lin.{language}" for language in range(max(1, spec.embed.languages)))
    return table(spec, {**LAYER, "cross.op.out": each}, TOP)


FAMILY = Family(
    name="mass",
    title="MASS",
    paper="https://arxiv.org/abs/1905.02450",
    origin=Origin(
        published="2019-05",
        parents=("xlm", "marian"),
        brought="a decoder that restores the fragment which the encoder does not see",
        reference=Recorded("microsoft/MASS"),
        counts={"mass-unsup-ende-1024": 306_651_744},
    ),
    build=build,
    sizes={
        "mass-unsup-ende-1024": {"vocab": 60000, "dim": 1024, "layers": 6, "heads": 8},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    objective="mass",
    format=Format(
        model_type="mass",
        architecture="TransformerModel",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=(r"^encoder\.pred_layer\.",),
        copies=("decoder.pred_layer.proj.weight",),
    ),
)
