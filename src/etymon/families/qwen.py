"""Qwen (Bai et al. 2023, arXiv:2309.16609).

LLaMA's form with biases on queries, keys and values. Beyond the context, rotary frequencies are stretched whenever the
length has doubled, and queries are multiplied by the logarithm of their place. (The published code does neither while
it trains; it stretches every row of a batch by that row's own length; and when it decodes it keeps the stretch of the
prompt, where here, as with all scalings that depend on the length, the next doubling stretches what follows.)
Published names are GPT-2's; `w1` is up, `w2` gate, and `intermediate_size` counts both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import gptj, llama
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.keys import Keys, feed_forward
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import DoublingScaling, LogScale, ModelSpec


@extends(llama.build)
def build(
    *, name: str = "qwen", eps: float = 1e-6, dynamic_ntk: bool = True, logn: bool = True, **dimensions: Any
) -> ModelSpec:
    """Return the spec of a Qwen of these dimensions; `dynamic_ntk` and `logn` are what happens beyond its context."""
    spec = llama.build(name=name, eps=eps, **dimensions)
    scaling = DoublingScaling(original_context=spec.context) if dynamic_ntk else None
    rope, scores = attention_of(spec).rope, LogScale(context=spec.context) if logn else None
    assert rope is not None
    changes = {"bias": "qkv", "rope": dataclasses.replace(rope, scaling=scaling), "scores": scores}
    return with_blocks(spec, "qwen", lambda block: with_attention(block, **changes))


KEYS = Keys(
    measures={
        "both": (int, lambda spec: 2 * feed_forward(spec).hidden),  # gate and up
        "rope_base": (float, lambda spec: rope.base if (rope := attention_of(spec).rope) else 0.0),
        "dynamic_ntk": (bool, lambda spec: (rope := attention_of(spec).rope) is not None and rope.scaling is not None),
        "logn": (bool, lambda spec: attention_of(spec).scores is not None),
    },
    vocab="vocab_size",
    dim="hidden_size",
    layers="num_hidden_layers",
    heads="num_attention_heads",
    head_dim=("kv_channels", 128),
    both="intermediate_size",
    context=("seq_length", 2048),
    eps=("layer_norm_epsilon", 1e-6),
    rope_base=("rotary_emb_base", 10000.0),
    dynamic_ntk=("use_dynamic_ntk", True),
    logn=("use_logn_attn", True),
    tied=("tie_word_embeddings", False),
)
FORM = {"rotary_pct": 1.0, "no_bias": True, "scale_attn_weights": True}


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "qwen"."""
    reader.skip("emb_dropout_prob", "attn_dropout_prob", "bf16", "fp16", "fp32", "use_flash_attn", "softmax_in_fp32")
    reader.skip("use_cache_quantization", "use_cache_kernel", "onnx_safe", "max_position_embeddings")
    for key, value in FORM.items():
        reader.expect(key, value)
    sizes = KEYS.read(reader)
    return build(hidden=sizes.pop("both") // 2, **sizes)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return KEYS.write(spec) | FORM


LAYER: Names = {
    "attention.pre": "ln_1",
    "attention.op.qkv": "attn.c_attn",
    "attention.op.out": "attn.c_proj",
    "ffn.pre": "ln_2",
    "ffn.op.gate_up": ("mlp.w2", "mlp.w1"),
    "ffn.op.down": "mlp.c_proj",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, gptj.TOP)


FAMILY = Family(
    name="qwen",
    title="Qwen",
    paper="https://arxiv.org/abs/2309.16609",
    origin=Origin(
        published="2023-08",
        parents=("llama",),
        brought="Chinese and English with a vocabulary for both",
        reference=Recorded("the published model file"),
        counts={"qwen-1.8b": "1.837B", "qwen-7b": "7.721B", "qwen-14b": "14.167B", "qwen-72b": "72.288B"},
    ),
    build=build,
    sizes={
        "qwen-1.8b": {"vocab": 151936, "dim": 2048, "layers": 24, "heads": 16, "hidden": 5504, "context": 8192},
        "qwen-7b": {"vocab": 151936, "dim": 4096, "layers": 32, "heads": 32, "hidden": 11008, "context": 8192},
        "qwen-14b": {"vocab": 152064, "dim": 5120, "layers": 40, "heads": 40, "hidden": 13696, "context": 2048},
        "qwen-72b": {"vocab": 152064, "dim": 8192, "layers": 80, "heads": 64, "hidden": 24576, "context": 32768}
        | {"rope_base": 1e6, "dynamic_ntk": False, "logn": False},
    },
    tiny={key: value for key, value in llama.FAMILY.tiny.items() if key != "kv_heads"},
    format=Format(
        model_type="qwen",
        architecture="QWenLMHeadModel",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=(r"\.rotary_emb\.inv_freq$",),
    ),
)
