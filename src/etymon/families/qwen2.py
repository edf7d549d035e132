"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671, arXiv:2412.15115).

What was new over Qwen: grouped queries, and windows on the layers above `max_window_layers` where they are switched on.
Over LLaMA: biases on queries, keys and values only.
"""

from __future__ import annotations

from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, with_attention, with_blocks, with_windows
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.spec import Attention, ModelSpec


@extends(llama.build)
def build(
    *,
    name: str = "qwen2",
    layers: int,
    window: int | None = None,
    window_from: int = 0,
    eps: float = 1e-6,
    rope_base: float = 1e6,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Qwen2; layers from number `window_from` on see `window` positions only."""
    spec = llama.build(name=name, layers=layers, eps=eps, rope_base=rope_base, **dimensions)
    spec = with_blocks(spec, "qwen2", lambda block: with_attention(block, bias="qkv"))
    return with_windows(spec, "qwen2", [window if i >= window_from else None for i in range(layers)])


def read_windows(reader: ConfigReader, layers: int) -> list[int | None]:
    """Read the attention window of every layer."""
    used = reader.take("use_sliding_window", bool, False)
    window, first = reader.take("sliding_window", int, None), reader.take("max_window_layers", int, 28)
    kinds = reader.take("layer_types", list, None)
    if kinds is not None:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    return [window if used and i >= first else None for i in range(layers)]


def write_windows(spec: ModelSpec) -> dict[str, Any]:
    """Write what `read_windows` reads."""
    windows = [sub.op.window for block in spec.trunk.blocks for sub in block.subs if isinstance(sub.op, Attention)]
    used = [window for window in windows if window is not None]
    return {
        "use_sliding_window": bool(used),
        "sliding_window": used[0] if used else None,
        "max_window_layers": next((i for i, window in enumerate(windows) if window is not None), len(windows)),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "qwen2"."""
    sizes = llama.read_sizes(reader, context=32768)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    spec = build(**sizes, rope_base=rope.base, rope_scaling=rope.scaling)
    return with_windows(spec, "qwen2", read_windows(reader, sizes["layers"]))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    return llama.write_sizes(spec) | write_windows(spec) | {"rope_parameters": write_rope(attention.rope)}


_SIZE = {"vocab": 151936, "context": 32768}
_72B = {"vocab": 152064, "dim": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "context": 32768}
FAMILY = Family(
    name="qwen2",
    title="Qwen2",
    paper="https://arxiv.org/abs/2407.10671",
    origin=Origin(
        published="2024-06",
        parents=("qwen",),
        brought="thirty languages, grouped queries at every size",
        reference=Running(),
        counts={
            "qwen2-0.5b": 494_032_768,
            "qwen2-1.5b": 1_543_714_304,
            "qwen2-7b": 7_615_616_512,
            "qwen2-72b": 72_706_203_648,
        },
    ),
    build=build,
    sizes={
        "qwen2-0.5b": _SIZE | {"dim": 896, "layers": 24, "heads": 14, "kv_heads": 2, "hidden": 4864, "tied": True},
        "qwen2-1.5b": _SIZE | {"dim": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "hidden": 8960, "tied": True},
        "qwen2-7b": _SIZE | {"vocab": 152064, "dim": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "hidden": 18944},
        "qwen2-72b": _72B | {"hidden": 29568},
    },
    tiny=llama.FAMILY.tiny,
    format=Format(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        tokenizer="Qwen2Tokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=llama.weights,
    ),
)
