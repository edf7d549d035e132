"""CodeGen 2 (Nijkamp et al. 2023, arXiv:2305.02309).

CodeGen's form, trained to fill in the middle too, and published in eight shards instead of four. Its configs, which
have the same model type, are read by `codegen.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import codegen, gptj
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Recorded
from etymon.spec import ModelSpec


@extends(gptj.build)
def build(*, name: str = "codegen2", **dimensions: Any) -> ModelSpec:
    """Return the spec of a CodeGen 2: a GPT-J of these dimensions."""
    return dataclasses.replace(gptj.build(name=name, **dimensions), family="codegen2")


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return gptj.KEYS.write(spec) | {"mp_num": 8}


FAMILY = Family(
    name="codegen2",
    title="CodeGen 2",
    paper="https://arxiv.org/abs/2305.02309",
    origin=Origin(
        published="2023-05",
        parents=("codegen",),
        brought="one model for writing, infilling and reading code",
        reference=Recorded("the published model file"),
        counts={"codegen2-1b": "1.015B", "codegen2-3.7b": "3.641B", "codegen2-7b": "6.863B", "codegen2-16b": "16.032B"},
    ),
    build=build,
    sizes={
        "codegen2-1b": {"vocab": 51200, "dim": 2048, "layers": 16, "heads": 16},
        "codegen2-3.7b": {"vocab": 51200, "dim": 4096, "layers": 16, "heads": 16},
        "codegen2-7b": {"vocab": 51200, "dim": 4096, "layers": 32, "heads": 16},
        "codegen2-16b": {"vocab": 51200, "dim": 6144, "layers": 34, "heads": 24},
    },
    tiny=gptj.FAMILY.tiny | {"heads": 8},
    format=Format(
        model_type="codegen",
        architecture="CodeGenForCausalLM",
        write=write,
    ),
    tensors=Tensors(
        weights=codegen.weights,
        prefix="transformer.",
        skipped=gptj.FAMILY.tensors.skipped,
    ),
)
