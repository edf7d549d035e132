"""GPT-NeoX-20B (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, arXiv:2304.01373).

What was new over GPT-J: two norms for the two parallel branches, rotated halves instead of neighbouring pairs on a
quarter of each head. StableLM alpha has the same form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, decoder
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import (
    LM,
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
    name: str = "gpt_neox",
    vocab: int = 50432,
    dim: int,
    layers: int,
    heads: int,
    hidden: int | None = None,
    context: int = 2048,
    rotary_part: float = 0.25,
    rope_base: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    eps: float = 1e-5,
    activation: str = "gelu",
    bias: bool = True,
    parallel: bool = True,
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of a GPT-NeoX; `rotary_part` of each head turns, `bias` is that of attention."""
    norm, head_dim = LayerNorm(eps=eps), dim // heads
    rope = Rope(dim=int(head_dim * rotary_part), base=rope_base, scaling=rope_scaling)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=head_dim, bias="qkvo" if bias else "", rope=rope)
    ffn = Dense(hidden=hidden or 4 * dim, activation=activation)
    wiring = Parallel() if parallel else Sequential()
    block = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn)), wiring=wiring)
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, name=name, family="gpt_neox", vocab=vocab, dim=dim, context=context)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gpt_neox"."""
    sizes = llama.read_sizes(reader, eps=1e-5, eps_key="layer_norm_eps")
    if sizes.pop("kv_heads") != sizes["heads"]:
        reader.expect("num_key_value_heads", None)
    part = reader.take("rotary_pct", float, 0.25)
    base = reader.take("rotary_emb_base", float, 10000.0)
    head_dim = sizes.pop("head_dim")
    rope = read_rope(reader, dim=head_dim, context=sizes["context"], part=part, base=base)
    reader.take("classifier_dropout", float, None)
    return build(
        **sizes,
        rotary_part=rope.dim / head_dim,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        bias=reader.take("attention_bias", bool, True),
        parallel=reader.take("use_parallel_residual", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, sizes = attention_of(spec), llama.write_sizes(spec)
    assert attention.rope is not None
    for key in ("num_key_value_heads", "head_dim"):
        del sizes[key]
    return sizes | {
        "layer_norm_eps": sizes.pop("rms_norm_eps"),
        "rope_parameters": write_rope(attention.rope, attention.head_dim),
        "attention_bias": attention.bias != "",
        "use_parallel_residual": isinstance(spec.trunk.blocks[0].wiring, Parallel),
    }


LAYER: Names = {
    "attention.pre": "input_layernorm",
    "ffn.pre": "post_attention_layernorm",
    "attention.op.qkv": "attention.query_key_value",
    "attention.op.out": "attention.dense",
    "ffn.op.up": "mlp.dense_h_to_4h",
    "ffn.op.down": "mlp.dense_4h_to_h",
}
TOP: Names = {
    "embed.tokens": "gpt_neox.embed_in",
    "layers": "gpt_neox.layers.{}",
    "decoder.final_norm": "gpt_neox.final_layer_norm",
    "head.linear": "embed_out",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; the rows of every head's q, k and v stand together."""
    attention = attention_of(spec)
    return table(spec, LAYER, TOP, {"attention.op.qkv": (Regroup(attention.heads, (attention.head_dim,) * 3),)})


_P = {"vocab": 50304}
FAMILY = Family(
    name="gpt_neox",
    title="GPT-NeoX",
    paper="https://arxiv.org/abs/2204.06745",
    origin=Origin(
        published="2022-02",
        parents=("gptj",),
        brought="the largest open model of its day, with its code and its data",
        reference=Running(),
        counts={
            "gpt-neox-20b": "20.555B",
            "pythia-14m": "14.1M",
            "pythia-31m": "30.5M",
            "pythia-70m": "70.4M",
            "pythia-160m": "162.3M",
            "pythia-410m": "405.3M",
            "pythia-1b": "1.012B",
            "pythia-1.4b": "1.415B",
            "pythia-2.8b": "2.775B",
            "pythia-6.9b": "6.857B",
            "pythia-12b": "11.846B",
            "stablelm-alpha-3b": "3.637B",
            "stablelm-alpha-7b": "7.869B",
        },
    ),
    build=build,
    sizes={
        "gpt-neox-20b": {"dim": 6144, "layers": 44, "heads": 64},
        "pythia-14m": _P | {"dim": 128, "layers": 6, "heads": 4},
        "pythia-31m": _P | {"dim": 256, "layers": 6, "heads": 8},
        "pythia-70m": _P | {"dim": 512, "layers": 6, "heads": 8},
        "pythia-160m": _P | {"dim": 768, "layers": 12, "heads": 12},
        "pythia-410m": _P | {"dim": 1024, "layers": 24, "heads": 16},
        "pythia-1b": _P | {"dim": 2048, "layers": 16, "heads": 8},
        "pythia-1.4b": _P | {"dim": 2048, "layers": 24, "heads": 16},
        "pythia-2.8b": _P | {"dim": 2560, "layers": 32, "heads": 32},
        "pythia-6.9b": {"dim": 4096, "layers": 32, "heads": 32},
        "pythia-12b": {"vocab": 50688, "dim": 5120, "layers": 36, "heads": 40},
        "stablelm-alpha-3b": {"vocab": 50688, "dim": 4096, "layers": 16, "heads": 32, "context": 4096},
        "stablelm-alpha-7b": {"vocab": 50432, "dim": 6144, "layers": 16, "heads": 48, "context": 4096},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 2, "context": 64},
    format=Format(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="embed_out.weight",
        skipped=(r"\.attention\.(masked_)?bias$", r"\.rotary_emb\.inv_freq$"),
    ),
)
