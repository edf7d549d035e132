"""LongLLaMA (Tworkowski et al. 2023, "Focused Transformer", arXiv:2307.03170).

What was new over LLaMA: the input is read in windows, and three layers also see all that lies before their window, in a
memory whose keys are not turned. OpenLLaMA and Code Llama, trained further so, keep their names for tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import llama
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import table
from etymon.families.weights import Rule
from etymon.spec import Attention, Block, MemoryAttention, ModelSpec, Rope, Windows


@extends(llama.build)
def build(
    *,
    name: str = "longllama",
    layers: int,
    memory_layers: tuple[int, ...],
    window: int = 2048,
    last: int = 1024,
    memory_positions: bool = True,
    context: int | None = None,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a LongLLaMA: a LLaMA read in windows of `window` positions, the end of an input in one of at
    most `last`. Layers among `memory_layers` see what lies before, and without `memory_positions` turn nothing at all.
    """
    beyond = [i for i in memory_layers if not 0 <= i < layers]
    if beyond:
        raise ConfigError(f"longllama: there is no layer {beyond[0]}, only 0 to {layers - 1}")
    spec = llama.build(name=name, layers=layers, context=context or 4 * window, **dimensions)

    def remembering(block: Block) -> Block:
        sub, ffn = block.subs
        assert isinstance(sub.op, Attention)
        fields = {f.name: getattr(sub.op, f.name) for f in dataclasses.fields(sub.op)}
        op = MemoryAttention(**fields | ({} if memory_positions else {"rope": None}))
        return dataclasses.replace(block, subs=(dataclasses.replace(sub, op=op), ffn))

    blocks = (remembering(block) if i in memory_layers else block for i, block in enumerate(spec.trunk.blocks))
    stack = dataclasses.replace(spec.trunk, blocks=tuple(blocks), visibility=Windows(size=window, last=last))
    return dataclasses.replace(spec, family="longllama", decoder=stack)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "longllama"."""
    for key in ("mem_dtype", "mem_attention_grouping", "torch_attention", "gradient_checkpoint_every_ith"):
        reader.take(key, object, None)  # how the reference stores its memory, and what it computes at once
    reader.expect("rope_scaling", None)
    reader.expect("num_key_value_heads", None)
    sizes = llama.read_sizes(reader)
    return build(
        **sizes | {"context": None},
        window=sizes["context"],
        last=reader.take("last_context_length", int, 1024),
        memory_layers=tuple(reader.take("mem_layers", list, [])),
        memory_positions=reader.take("mem_positionals", bool, True),
        rope_base=reader.take("rope_theta", float, 10000.0),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    ops = [op for block in spec.trunk.blocks if isinstance(op := block.subs[0].op, Attention)]
    memories, windows = [op for op in ops if isinstance(op, MemoryAttention)], spec.trunk.visibility
    assert isinstance(windows, Windows)
    rope = next((op.rope for op in ops if op.rope is not None), Rope(dim=ops[0].head_dim))
    sizes = llama.write_sizes(spec) | {"max_position_embeddings": windows.size}
    for key in ("num_key_value_heads", "head_dim"):
        del sizes[key]
    return sizes | {
        "last_context_length": windows.last,
        "mem_layers": [i for i, op in enumerate(ops) if isinstance(op, MemoryAttention)],
        "mem_positionals": all(op.rope is not None for op in memories),
        "mem_dtype": "float32",
        "rope_theta": rope.base,
    }


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, llama.LAYER, llama.TOP)


FAMILY = Family(
    name="longllama",
    title="LongLLaMA",
    paper="https://arxiv.org/abs/2307.03170",
    origin=Origin(
        published="2023-07",
        parents=("llama",),
        brought="three layers that see a memory of everything before the window",
        reference=Recorded("CStanKonrad/long_llama"),
        counts={"longllama-3b": 3_426_473_600, "longllama-code-7b": 6_738_546_688},
    ),
    build=build,
    sizes={
        "longllama-3b": {
            "vocab": 32000,
            "dim": 3200,
            "layers": 26,
            "heads": 32,
            "hidden": 8640,
            "eps": 1e-6,
            "memory_layers": (6, 12, 18),
        },
        "longllama-code-7b": {
            "vocab": 32016,
            "dim": 4096,
            "layers": 32,
            "heads": 32,
            "hidden": 11008,
            "rope_base": 1e6,
            "window": 4096,
            "memory_layers": (8, 16, 24),
        },
    },
    tiny={
        "vocab": 97,
        "dim": 32,
        "layers": 3,
        "heads": 4,
        "hidden": 48,
        "window": 64,
        "last": 64,
        "memory_layers": (0, 2),
    },
    format=Format(
        model_type="longllama",
        architecture="LongLlamaForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=llama.FAMILY.tensors.skipped,
    ),
)
