"""OPT (Zhang et al. 2022, arXiv:2205.01068).

An open GPT-3: ReLU, dense attention in all layers, positions counted from the padding with two rows to spare. The 350M
model alone has norms after the sums, none at the end, and token vectors of half the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import attention_of
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LM, Attention, Block, Dense, Embed, LayerNorm, Learned, ModelSpec, Projection, Stack, Sub


def build(
    *,
    name: str = "opt",
    vocab: int = 50272,
    dim: int,
    layers: int,
    heads: int,
    hidden: int | None = None,
    context: int = 2048,
    width: int | None = None,
    post_norm: bool = False,
    final_norm: bool = True,
    activation: str = "relu",
    bias: bool = True,
    affine: bool = True,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of an OPT; `width` is that of the token vectors, `affine` says whether norms have parameters."""
    norm = LayerNorm(scale=affine, bias=affine)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, bias="qkvo" if bias else "")
    ffn = Dense(hidden=hidden or 4 * dim, activation=activation, bias=bias)
    subs = tuple(Sub(op=op, post=norm) if post_norm else Sub(op=op, pre=norm) for op in (attention, ffn))
    projection = Projection(width=width) if width not in (None, dim) else None
    return ModelSpec(
        name=name,
        family="opt",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(position=Learned(length=context, offset=2, from_padding=True), projection=projection),
        decoder=Stack(blocks=(Block(subs=subs),) * layers, final_norm=norm if final_norm and not post_norm else None),
        head=LM(tied=tied, projection=projection),
    )


def norm_of(spec: ModelSpec) -> LayerNorm:
    """Return the first norm of the first block."""
    norm = spec.trunk.blocks[0].subs[0].pre or spec.trunk.blocks[0].subs[0].post
    assert isinstance(norm, LayerNorm)
    return norm


KEYS = Keys(
    measures={
        "width": (int, lambda spec: spec.embed.width(spec.dim)),
        "bias": (bool, lambda spec: attention_of(spec).bias != ""),
        "affine": (bool, lambda spec: norm_of(spec).scale),
    },
    vocab=("vocab_size", 50272),
    dim=("hidden_size", 768),
    layers=("num_hidden_layers", 12),
    heads=("num_attention_heads", 12),
    hidden=("ffn_dim", 3072),
    context=("max_position_embeddings", 2048),
    width=("word_embed_proj_dim", None),
    activation=("activation_function", "relu"),
    bias=("enable_bias", True),
    affine=("layer_norm_elementwise_affine", True),
    tied=("tie_word_embeddings", True),
    gelu_tanh="gelu_new",
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "opt"."""
    reader.skip("layerdrop")
    return build(
        **KEYS.read(reader),
        post_norm=not reader.take("do_layer_norm_before", bool, True),
        final_norm=not reader.take("_remove_final_layer_norm", bool, False),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return KEYS.write(spec) | {
        "do_layer_norm_before": spec.trunk.blocks[0].subs[0].pre is not None,
        "_remove_final_layer_norm": spec.trunk.final_norm is None,
    }


LAYER: Names = {
    "attention.op.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.op.out": "self_attn.out_proj",
    "attention.pre": "self_attn_layer_norm",
    "attention.post": "self_attn_layer_norm",
    "ffn.op.up": "fc1",
    "ffn.op.down": "fc2",
    "ffn.pre": "final_layer_norm",
    "ffn.post": "final_layer_norm",
}
TOP: Names = {
    "embed.tokens": "model.decoder.embed_tokens",
    "embed.positions": "model.decoder.embed_positions",
    "head.projection": "model.decoder.project_out",
    "embed.projection": "model.decoder.project_in",
    "decoder.final_norm": "model.decoder.final_layer_norm",
    "layers": "model.decoder.layers.{}",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP)


FAMILY = Family(
    name="opt",
    title="OPT",
    paper="https://arxiv.org/abs/2205.01068",
    origin=Origin(
        published="2022-05",
        parents=("gpt3",),
        brought="GPT-3 for researchers, with the logbook of its training",
        reference=Running(),
        counts={
            "opt-125m": "125.2M",
            "opt-350m": "331.2M",
            "opt-1.3b": "1.316B",
            "opt-2.7b": "2.652B",
            "opt-6.7b": "6.658B",
            "opt-13b": "12.853B",
            "opt-30b": "29.975B",
            "opt-66b": "65.720B",
            "opt-175b": "174.604B",
        },
    ),
    build=build,
    sizes={
        "opt-125m": {"dim": 768, "layers": 12, "heads": 12},
        "opt-350m": {"dim": 1024, "layers": 24, "heads": 16, "width": 512, "post_norm": True},
        "opt-1.3b": {"dim": 2048, "layers": 24, "heads": 32},
        "opt-2.7b": {"dim": 2560, "layers": 32, "heads": 32},
        "opt-6.7b": {"dim": 4096, "layers": 32, "heads": 32},
        "opt-13b": {"dim": 5120, "layers": 40, "heads": 40},
        "opt-30b": {"dim": 7168, "layers": 48, "heads": 56},
        "opt-66b": {"dim": 9216, "layers": 64, "heads": 72},
        "opt-175b": {"dim": 12288, "layers": 96, "heads": 96},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="opt",
        architecture="OPTForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="model.",
    ),
)
