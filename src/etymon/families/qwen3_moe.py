"""The mixtures of Qwen3 (Yang et al. 2025, arXiv:2505.09388).

What was new over Qwen2-MoE: twice as many experts, chosen weights that sum to one, and no shared expert; over Qwen3,
the experts.
"""

from __future__ import annotations

from typing import Any

from etymon.families import llama, qwen2_moe, qwen3
from etymon.families.descent import attention_of, with_mixtures, with_windows
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.spec import Gated, ModelSpec, MoE, TopK


@extends(qwen3.build)
def build(
    *,
    name: str = "qwen3_moe",
    layers: int,
    experts: int = 128,
    k: int = 8,
    expert_hidden: int,
    renormalise: bool = True,
    dense_layers: tuple[int, ...] = (),
    activation: str = "silu",
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Qwen3 whose feed-forward layers, but those of `dense_layers`, are mixtures."""
    spec = qwen3.build(name=name, layers=layers, activation=activation, **dimensions)
    expert = Gated(hidden=expert_hidden, activation=activation)
    moe = MoE(experts=experts, expert=expert, router=TopK(k=k, renormalise=renormalise))
    return with_mixtures(spec, "qwen3_moe", moe, set(range(layers)) - set(dense_layers))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "qwen3_moe"."""
    sizes = llama.read_sizes(reader, context=32768)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    reader.take("max_window_layers", int, None)  # in published files, of no effect
    used, window = reader.take("use_sliding_window", bool, False), reader.take("sliding_window", int, None)
    bias = reader.take("attention_bias", bool, False)
    mixtures = qwen2_moe.read_mixtures(reader, sizes["layers"], experts=128, k=8)
    spec = build(**sizes, **mixtures, rope_base=rope.base, rope_scaling=rope.scaling, attention_bias=bias)
    return with_windows(spec, "qwen3_moe", [window if used else None] * sizes["layers"])


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    rest = {
        "rope_parameters": write_rope(attention.rope),
        "attention_bias": attention.bias != "",
        "use_sliding_window": attention.window is not None,
        "sliding_window": attention.window,
    }
    return llama.write_sizes(spec) | qwen2_moe.write_mixtures(spec) | rest


_SIZE = {"vocab": 151936, "context": 40960, "kv_heads": 4}
FAMILY = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    paper="https://arxiv.org/abs/2505.09388",
    origin=Origin(
        published="2025-04",
        parents=("qwen3", "qwen2_moe"),
        brought="more experts still, none of them shared",
        reference=Running(),
        counts={"qwen3-30b-a3b": 30_532_122_624, "qwen3-235b-a22b": 235_093_634_560},
    ),
    build=build,
    sizes={
        "qwen3-30b-a3b": _SIZE | {"dim": 2048, "layers": 48, "heads": 32, "hidden": 6144, "expert_hidden": 768},
        "qwen3-235b-a22b": _SIZE | {"dim": 4096, "layers": 94, "heads": 64, "hidden": 12288, "expert_hidden": 1536},
    },
    tiny=llama.FAMILY.tiny | {"head_dim": 16, "experts": 4, "k": 2, "expert_hidden": 24},
    format=Format(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        tokenizer="Qwen2Tokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=qwen2_moe.weights,
    ),
)
