"""ChatGLM2-6B and ChatGLM3-6B (THUDM 2023; arXiv:2406.12793), and GLM-4-9B as it was first published.

What was new over ChatGLM-6B: LLaMA's form instead of the filling of blanks: RMSNorm, SwiGLU, causal, with two heads of
keys and values and rotary positions on half of each head. GLM-4 is the same with other names (`glm4.py`). The configs,
of the same model type as ChatGLM-6B's, come here from `chatglm.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import glm4
from etymon.families.descent import attention_of
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import ModelSpec

# Of published models only GLM-4's stretch their base by `rope_ratio`; in others the key means other things.
STRETCHES = 151552


@extends(glm4.build)
def build(*, name: str = "chatglm2", eps: float = 1e-5, **dimensions: Any) -> ModelSpec:
    """Return the spec of a ChatGLM2 of these dimensions."""
    return dataclasses.replace(glm4.build(name=name, eps=eps, **dimensions), family="chatglm2")


KEYS = Keys(
    vocab="padded_vocab_size",
    dim="hidden_size",
    layers="num_layers",
    heads="num_attention_heads",
    kv_heads="multi_query_group_num",
    head_dim="kv_channels",
    hidden="ffn_hidden_size",
    context="seq_length",
    eps=("layernorm_epsilon", 1e-5),
    tied=("tie_word_embeddings", False),
)
FORM = {"rmsnorm": True, "post_layer_norm": True, "original_rope": True, "multi_query_attention": True}
FORM |= {"add_bias_linear": False, "apply_residual_connection_post_layernorm": False}


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "chatglm", as all but the first generation have it."""
    reader.skip("attention_softmax_in_fp32", "apply_query_key_layer_scaling", "bias_dropout_fusion", "pre_seq_len")
    reader.skip("fp32_residual_connection", "prefix_projection", "vocab_size")
    for key, value in ({"quantization_bit": 0} | FORM).items():
        reader.expect(key, value)
    sizes = KEYS.read(reader)
    if sizes["vocab"] != STRETCHES:
        reader.expect("rope_ratio", 1, 1.0)
    base, bias = 10000.0 * reader.take("rope_ratio", float, 1.0), reader.take("add_qkv_bias", bool, False)
    return build(**sizes, rope_base=base, qkv_bias=bias)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    rest = {"rope_ratio": attention.rope.base / 10000, "add_qkv_bias": attention.bias != ""}
    return KEYS.write(spec) | FORM | rest


LAYER: Names = {
    "attention.pre": "input_layernorm",
    "attention.op.qkv": "self_attention.query_key_value",
    "attention.op.out": "self_attention.dense",
    "ffn.pre": "post_attention_layernorm",
    "ffn.op.gate_up": "mlp.dense_h_to_4h",
    "ffn.op.down": "mlp.dense_4h_to_h",
}
TOP: Names = {
    "embed.tokens": "transformer.embedding.word_embeddings",
    "layers": "transformer.encoder.layers.{}",
    "decoder.final_norm": "transformer.encoder.final_layernorm",
    "head.linear": "transformer.output_layer",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP, {"attention.op.qkv": (glm4.halves(spec),)})


_6B = {"vocab": 65024, "dim": 4096, "layers": 28, "heads": 32, "kv_heads": 2, "hidden": 13696}
FAMILY = Family(
    name="chatglm2",
    title="ChatGLM2-6B",
    paper="https://github.com/THUDM/ChatGLM2-6B",
    origin=Origin(
        published="2023-06",
        parents=("chatglm", "llama"),
        brought="six times the context at twice the speed",
        reference=Recorded("the published model file"),
        counts={"chatglm2-6b": 6_243_584_000, "chatglm3-6b": 6_243_584_000},
    ),
    build=build,
    sizes={
        "chatglm2-6b": _6B | {"context": 32768},
        "chatglm3-6b": _6B | {"context": 8192},
    },
    tiny=glm4.FAMILY.tiny,
    format=Format(
        model_type="chatglm",
        architecture="ChatGLMModel",
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="transformer.output_layer.weight",
        skipped=(r"^transformer\.rotary_pos_emb\.inv_freq$",),
    ),
)
