"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825).

What was new over LLaMA 2: grouped queries at this size, and attention that sees the last `window` positions only (4096
in the first version, unlimited from v0.2 on). Zephyr and many others have the same form.
"""

from __future__ import annotations

from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, with_windows
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.spec import ModelSpec


@extends(llama.build)
def build(*, name: str = "mistral", layers: int, window: int | None = None, **dimensions: Any) -> ModelSpec:
    """Return the spec of a Mistral: a LLaMA of these dimensions with attention windows."""
    spec = llama.build(name=name, layers=layers, **dimensions)
    return with_windows(spec, "mistral", [window] * layers)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "mistral"."""
    sizes = llama.read_sizes(reader, context=131072)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    window = reader.take("sliding_window", int, None)
    return build(**sizes, rope_base=rope.base, rope_scaling=rope.scaling, window=window)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    return llama.write_sizes(spec) | {
        "rope_parameters": write_rope(attention.rope),
        "sliding_window": attention.window,
    }


_7B = {"vocab": 32000, "dim": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "hidden": 14336, "eps": 1e-5}
FAMILY = Family(
    name="mistral",
    title="Mistral",
    paper="https://arxiv.org/abs/2310.06825",
    origin=Origin(
        published="2023-09",
        parents=("llama",),
        brought="better than Llama 2 of twice its size; a window that slides",
        reference=Running(),
        counts={
            "mistral-7b-v0.1": 7_241_732_096,
            "mistral-7b-v0.2": 7_241_732_096,
            "mistral-7b-v0.3": 7_248_023_552,
            "zephyr-7b-beta": 7_241_732_096,
        },
    ),
    build=build,
    sizes={
        "mistral-7b-v0.1": _7B | {"context": 32768, "window": 4096},
        "mistral-7b-v0.2": _7B | {"context": 32768, "rope_base": 1e6},
        "mistral-7b-v0.3": _7B | {"context": 32768, "rope_base": 1e6, "vocab": 32768},
        "zephyr-7b-beta": _7B | {"context": 32768, "window": 4096},
    },
    tiny=llama.FAMILY.tiny | {"window": 16},
    format=Format(
        model_type="mistral",
        architecture="MistralForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=llama.weights,
        skipped=llama.FAMILY.tensors.skipped,
    ),
)
