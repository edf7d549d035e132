"""Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al. 2023, arXiv:2306.11644; Li et al. 2023, arXiv:2309.05463).

Their data were new, not their form: GPT-J's parallel block with one norm, rotary positions on half of each head (0.4 in
Phi-2), biases everywhere, in the head too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, decoder, side_by_side
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import (
    LM,
    Attention,
    Dense,
    LayerNorm,
    ModelSpec,
    Rope,
    RopeScaling,
)


def build(
    *,
    name: str = "phi",
    vocab: int = 51200,
    dim: int,
    layers: int,
    heads: int,
    hidden: int,
    context: int = 2048,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    rotary_part: float = 0.5,
    rope_base: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    eps: float = 1e-5,
    activation: str = "gelu_tanh",
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of a Phi of these dimensions; `rotary_part` of each head turns."""
    head_dim, norm = head_dim or dim // heads, LayerNorm(eps=eps)
    attention = Attention(
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=head_dim,
        bias="qkvo",
        rope=Rope(dim=int(head_dim * rotary_part), base=rope_base, scaling=rope_scaling),
    )
    ffn = Dense(hidden=hidden, activation=activation)
    blocks, head = (side_by_side(norm, attention, ffn),) * layers, LM(tied=tied, bias=True)
    return decoder(blocks, norm, head, name=name, family="phi", vocab=vocab, dim=dim, context=context)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "phi"."""
    sizes = llama.read_sizes(reader, eps=1e-5, eps_key="layer_norm_eps")
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"], part=0.5)
    reader.expect("qk_layernorm", False)
    part = rope.dim / sizes["head_dim"]
    return build(**sizes, rotary_part=part, rope_base=rope.base, rope_scaling=rope.scaling)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, sizes = attention_of(spec), llama.write_sizes(spec)
    assert attention.rope is not None
    rope = write_rope(attention.rope, attention.head_dim)
    if sizes["hidden_act"] == "gelu_pytorch_tanh":
        sizes["hidden_act"] = "gelu_new"
    return sizes | {"layer_norm_eps": sizes.pop("rms_norm_eps"), "rope_parameters": rope}


LAYER: Names = {
    "pre": "input_layernorm",
    "attention.op.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.op.out": "self_attn.dense",
    "ffn.op.up": "mlp.fc1",
    "ffn.op.down": "mlp.fc2",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, {**llama.TOP, "decoder.final_norm": "model.final_layernorm"})


FAMILY = Family(
    name="phi",
    title="Phi",
    paper="https://arxiv.org/abs/2309.05463",
    origin=Origin(
        published="2023-06",
        parents=("codegen",),
        brought="textbooks are all you need: small models on chosen and synthetic text",
        reference=Running(),
        counts={"phi-1": "1.418B", "phi-1.5": "1.418B", "phi-2": "2.780B"},
    ),
    build=build,
    sizes={
        "phi-1": {"dim": 2048, "layers": 24, "heads": 32, "hidden": 8192},
        "phi-1.5": {"dim": 2048, "layers": 24, "heads": 32, "hidden": 8192},
        "phi-2": {"dim": 2560, "layers": 32, "heads": 32, "hidden": 10240, "rotary_part": 0.4},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 64},
    format=Format(
        model_type="phi",
        architecture="PhiForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
