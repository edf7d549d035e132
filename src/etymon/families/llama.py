"""LLaMA (Touvron et al. 2023, arXiv:2302.13971; Llama 2, arXiv:2307.09288; Llama 3, arXiv:2407.21783).

What was new over GPT-3: RMSNorm before each sublayer, SwiGLU, rotary positions, no biases, untied head; from Llama 2's
70B on, grouped-query attention; from Llama 3.1 on, frequencies scaled by wavelength. TinyLlama (arXiv:2401.02385)
and many others have the same form.

The file is long because its builder, reader and names serve some thirty descendants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import decoder
from etymon.families.family import Family, Format, Tensors
from etymon.families.llama_sizes import COUNTS, SIZES
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import (
    LM,
    Attention,
    Block,
    Dense,
    Gated,
    ModelSpec,
    MoE,
    RMSNorm,
    Rope,
    RopeScaling,
    Sub,
)

ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
PUBLISHED_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}


def build(
    *,
    name: str = "llama",
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    hidden: int,
    context: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    eps: float = 1e-5,
    rope_base: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    activation: str = "silu",
    attention_bias: bool = False,
    ffn_bias: bool = False,
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of a LLaMA of these dimensions; `hidden` is the width inside the gated feed-forward layer."""
    norm = RMSNorm(eps=eps)
    head_dim = head_dim or dim // heads
    attention = Attention(
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=head_dim,
        bias="qkvo" if attention_bias else "",
        rope=Rope(dim=head_dim, base=rope_base, scaling=rope_scaling),
    )
    ffn = Gated(hidden=hidden, activation=activation, bias=ffn_bias)
    block = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn)))
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, name=name, family="llama", vocab=vocab, dim=dim, context=context)


def read_sizes(reader: ConfigReader, **defaults: Any) -> dict[str, Any]:
    """Read the dimensions that LLaMA's config and those of its descendants have in common, as `build` names them.

    `defaults` override what a missing key means; `eps_key` is another name for "rms_norm_eps".
    """
    dim, heads = reader.take("hidden_size", int), reader.take("num_attention_heads", int)
    activation = reader.take("hidden_act", str, "silu")
    return {
        "vocab": reader.take("vocab_size", int),
        "dim": dim,
        "layers": reader.take("num_hidden_layers", int),
        "heads": heads,
        "kv_heads": reader.take("num_key_value_heads", int, heads),
        "head_dim": reader.take("head_dim", int, defaults.get("head_dim") or dim // heads),
        "hidden": reader.take("intermediate_size", int),
        "context": reader.take("max_position_embeddings", int, defaults.get("context", 2048)),
        "eps": reader.take(defaults.get("eps_key", "rms_norm_eps"), float, defaults.get("eps", 1e-6)),
        "activation": ACTIVATIONS.get(activation, activation),
        "tied": reader.take("tie_word_embeddings", bool, defaults.get("tied", False)),
    }


def write_sizes(spec: ModelSpec) -> dict[str, Any]:
    """Write what `read_sizes` reads."""
    attention, ffn = (sub.op for sub in spec.trunk.blocks[0].subs)
    norm = spec.trunk.final_norm
    assert isinstance(attention, Attention) and norm is not None and isinstance(ffn, Dense | Gated | MoE)
    expert = ffn.expert if isinstance(ffn, MoE) else ffn
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.dim,
        "num_hidden_layers": len(spec.trunk.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": expert.hidden,
        "hidden_act": PUBLISHED_ACTIVATIONS.get(expert.activation, expert.activation),
        "max_position_embeddings": spec.context,
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": spec.tied,
    }


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "llama"."""
    sizes = read_sizes(reader)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    reader.expect("pretraining_tp", 1, 2, 4, 8)  # how the published run was split; the product is the same
    return build(
        **sizes,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        attention_bias=reader.take("attention_bias", bool, False),
        ffn_bias=reader.take("mlp_bias", bool, False),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, ffn = (sub.op for sub in spec.trunk.blocks[0].subs)
    assert isinstance(attention, Attention) and isinstance(ffn, Gated) and attention.rope
    return write_sizes(spec) | {
        "rope_parameters": write_rope(attention.rope),
        "attention_bias": attention.bias != "",
        "mlp_bias": ffn.bias,
    }


LAYER: Names = {
    "attention.pre": "input_layernorm",
    "attention.op.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.op.q_norm": "self_attn.q_norm",
    "attention.op.k_norm": "self_attn.k_norm",
    "attention.op.out": "self_attn.o_proj",
    "ffn.pre": "post_attention_layernorm",
    "ffn.op.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.op.down": "mlp.down_proj",
}
TOP: Names = {
    "embed.tokens": "model.embed_tokens",
    "layers": "model.layers.{}",
    "decoder.final_norm": "model.norm",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; q, k, v and gate, up are stored apart."""
    return table(spec, LAYER, TOP)


FAMILY = Family(
    name="llama",
    title="LLaMA",
    paper="https://arxiv.org/abs/2302.13971",
    origin=Origin(
        published="2023-02",
        parents=("gpt3", "palm", "gpt_neox"),
        brought="small models trained far longer, on public text only",
        reference=Running(),
        counts=COUNTS,
    ),
    build=build,
    sizes=SIZES,
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 48, "context": 64},
    format=Format(
        model_type="llama",
        architecture="LlamaForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=(r"\.rotary_emb\.inv_freq$",),
    ),
)
