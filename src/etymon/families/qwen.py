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
from etymon.families.family import Family, extends
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import DoublingScaling, Gated, LogScale, ModelSpec


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


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "qwen"."""
    for key in (
        *("emb_dropout_prob", "attn_dropout_prob", "bf16", "fp16", "fp32", "use_flash_attn", "softmax_in_fp32"),
        *("use_cache_quantization", "use_cache_kernel", "onnx_safe", "max_position_embeddings"),
    ):
        reader.take(key, object, None)
    reader.expect("scale_attn_weights", True)
    reader.expect("no_bias", True)
    reader.expect("rotary_pct", 1.0)
    return build(
        vocab=reader.take("vocab_size", int),
        dim=reader.take("hidden_size", int),
        layers=reader.take("num_hidden_layers", int),
        heads=reader.take("num_attention_heads", int),
        head_dim=reader.take("kv_channels", int, 128),
        hidden=reader.take("intermediate_size", int) // 2,
        context=reader.take("seq_length", int, 2048),
        eps=reader.take("layer_norm_epsilon", float, 1e-6),
        rope_base=reader.take("rotary_emb_base", float, 10000.0),
        dynamic_ntk=reader.take("use_dynamic_ntk", bool, True),
        logn=reader.take("use_logn_attn", bool, True),
        tied=reader.take("tie_word_embeddings", bool, False),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, ffn, norm = attention_of(spec), spec.trunk.blocks[0].subs[1].op, spec.trunk.final_norm
    assert attention.rope is not None and isinstance(ffn, Gated) and norm is not None
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.dim,
        "num_hidden_layers": len(spec.trunk.blocks),
        "num_attention_heads": attention.heads,
        "kv_channels": attention.head_dim,
        "intermediate_size": 2 * ffn.hidden,
        "seq_length": spec.context,
        "layer_norm_epsilon": norm.eps,
        "rotary_emb_base": attention.rope.base,
        "rotary_pct": 1.0,
        "use_dynamic_ntk": attention.rope.scaling is not None,
        "use_logn_attn": attention.scores is not None,
        "no_bias": True,
        "tie_word_embeddings": spec.tied,
    }


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
    ),
    model_type="qwen",
    architecture="QWenLMHeadModel",
    build=build,
    sizes={
        "qwen-1.8b": {"vocab": 151936, "dim": 2048, "layers": 24, "heads": 16, "hidden": 5504, "context": 8192},
        "qwen-7b": {"vocab": 151936, "dim": 4096, "layers": 32, "heads": 32, "hidden": 11008, "context": 8192},
        "qwen-14b": {"vocab": 152064, "dim": 5120, "layers": 40, "heads": 40, "hidden": 13696, "context": 2048},
        "qwen-72b": {"vocab": 152064, "dim": 8192, "layers": 80, "heads": 64, "hidden": 24576, "context": 32768}
        | {"rope_base": 1e6, "dynamic_ntk": False, "logn": False},
    },
    tiny={key: value for key, value in llama.FAMILY.tiny.items() if key != "kv_heads"},
    read=read,
    write=write,
    weights=weights,
    skipped=(r"\.rotary_emb\.inv_freq$",),
)
