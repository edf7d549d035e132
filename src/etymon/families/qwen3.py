"""Qwen3 (Yang et al. 2025, arXiv:2505.09388).

What was new over Qwen2: queries and keys normalised per head, no biases, heads of a width of their own.
"""

from __future__ import annotations

from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, with_attention, with_blocks, with_windows
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.qwen2 import read_windows, write_windows
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.spec import ModelSpec, QKNorm, RMSNorm


@extends(llama.build)
def build(
    *,
    name: str = "qwen3",
    head_dim: int = 128,
    eps: float = 1e-6,
    rope_base: float = 1e6,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Qwen3 of these dimensions."""
    spec = llama.build(name=name, head_dim=head_dim, eps=eps, rope_base=rope_base, **dimensions)
    norm = QKNorm(norm=RMSNorm(eps=eps))
    return with_blocks(spec, "qwen3", lambda block: with_attention(block, qk_norm=norm))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "qwen3"."""
    sizes = llama.read_sizes(reader, context=32768, head_dim=128)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    bias = reader.take("attention_bias", bool, False)
    spec = build(**sizes, rope_base=rope.base, rope_scaling=rope.scaling, attention_bias=bias)
    return with_windows(spec, "qwen3", read_windows(reader, sizes["layers"]))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    rest = {"rope_parameters": write_rope(attention.rope), "attention_bias": attention.bias != ""}
    return llama.write_sizes(spec) | write_windows(spec) | rest


_SIZE = {"vocab": 151936, "context": 40960, "kv_heads": 8}
FAMILY = Family(
    name="qwen3",
    title="Qwen3",
    paper="https://arxiv.org/abs/2505.09388",
    origin=Origin(
        published="2025-04",
        parents=("qwen2",),
        brought="one model thinks at length or answers at once",
        reference=Running(),
        counts={
            "qwen3-0.6b": "0.596B",
            "qwen3-1.7b": "1.72B",
            "qwen3-4b": "4.02B",
            "qwen3-8b": "8.19B",
            "qwen3-14b": "14.77B",
            "qwen3-32b": "32.76B",
        },
    ),
    build=build,
    sizes={
        "qwen3-0.6b": _SIZE | {"dim": 1024, "layers": 28, "heads": 16, "hidden": 3072, "tied": True},
        "qwen3-1.7b": _SIZE | {"dim": 2048, "layers": 28, "heads": 16, "hidden": 6144, "tied": True},
        "qwen3-4b": _SIZE | {"dim": 2560, "layers": 36, "heads": 32, "hidden": 9728, "tied": True},
        "qwen3-8b": _SIZE | {"dim": 4096, "layers": 36, "heads": 32, "hidden": 12288},
        "qwen3-14b": _SIZE | {"dim": 5120, "layers": 40, "heads": 40, "hidden": 17408},
        "qwen3-32b": _SIZE | {"dim": 5120, "layers": 64, "heads": 64, "hidden": 25600},
    },
    tiny=llama.FAMILY.tiny | {"head_dim": 16},
    format=Format(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        tokenizer="Qwen2Tokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=llama.weights,
    ),
)
