"""DeepSeek-V3 (DeepSeek-AI 2024, arXiv:2412.19437); R1 (arXiv:2501.12948) was trained from it.

What was new over V2: experts are scored by sigmoids, and balanced by a correction of the scores that choose them
instead of by a loss; weights sum to one before they are scaled; groups are as good as their two best experts. A further
layer that predicts the token after the next serves training and speculation only: it is read as sequential heads, apart
from the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import deepseek_v2
from etymon.families.descent import feed_forward_of, with_mixtures
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.weights import Rule
from etymon.spec import Groups, ModelSpec, MoE, TopK, YarnScaling


@extends(deepseek_v2.build)
def build(
    *,
    name: str = "deepseek_v3",
    vocab: int = 129280,
    layers: int,
    dense_layers: int = 3,
    groups: int = 1,
    groups_kept: int = 1,
    renormalise: bool = True,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a DeepSeek-V3 of these dimensions."""
    spec = deepseek_v2.build(name=name, vocab=vocab, layers=layers, dense_layers=dense_layers, **dimensions)
    moe = feed_forward_of(spec, MoE)
    if moe is None:
        return dataclasses.replace(spec, family="deepseek_v3")
    assert isinstance(moe.router, TopK)
    limits = Groups(count=groups, keep=groups_kept, best=2) if groups > 1 else None
    router = dataclasses.replace(moe.router, scores="sigmoid", correction=True, groups=limits, renormalise=renormalise)
    moe = dataclasses.replace(moe, router=router)
    return with_mixtures(spec, "deepseek_v3", moe, range(dense_layers, layers))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "deepseek_v3"."""
    sizes = deepseek_v2.read_sizes(reader)
    reader.expect("topk_method", "noaux_tc")
    reader.expect("scoring_func", "sigmoid")
    reader.expect("rope_interleave", True)
    for key in ("num_nextn_predict_layers", "num_mtp_layers"):
        reader.take(key, int, None)  # layers after the last one, which are read apart from the model
    return build(
        **sizes,
        groups=reader.take("n_group", int, 8),
        groups_kept=reader.take("topk_group", int, 4),
        renormalise=reader.take("norm_topk_prob", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return deepseek_v2.write_sizes(spec) | {"num_nextn_predict_layers": 0, "rope_interleave": True}


AHEAD = {
    "embedding_norm": "enorm",
    "hidden_norm": "hnorm",
    "projection": "eh_proj",
    "stack.final_norm": "shared_head.norm",
}


def ahead(spec: ModelSpec, depth: int) -> Iterator[Rule]:
    """List the tensors of so many layers behind the last one."""
    layers = len(spec.trunk.blocks)
    single = dataclasses.replace(spec, decoder=dataclasses.replace(spec.trunk, blocks=spec.trunk.blocks[-1:]))
    block = [rule for rule in deepseek_v2.weights(single) if rule.ours.startswith("decoder.blocks.0.")]
    for number in range(depth):
        ours, theirs = f"heads.{number}", f"model.layers.{layers + number}"
        for slot, name in AHEAD.items():
            yield Rule(f"{ours}.{slot}.weight", (f"{theirs}.{name}.weight",))
        for rule in block:
            published = tuple(name.replace("model.layers.0", theirs, 1) for name in rule.published)
            yield Rule(rule.ours.replace("decoder", f"{ours}.stack", 1), published, rule.ops)


_YARN = YarnScaling(factor=40.0, original_context=4096, mscale=1.0, mscale_all=1.0)
_671B = {
    "dim": 7168,
    "layers": 61,
    "heads": 128,
    "hidden": 18432,
    "context": 163840,
    "query_rank": 1536,
    "experts": 256,
    "k": 8,
    "expert_hidden": 2048,
    "shared": 1,
    "scale": 2.5,
    "groups": 8,
    "groups_kept": 4,
    "rope_scaling": _YARN,
}
FAMILY = Family(
    name="deepseek_v3",
    title="DeepSeek-V3",
    paper="https://arxiv.org/abs/2412.19437",
    origin=Origin(
        published="2024-12",
        parents=("deepseek_v2",),
        brought="experts balanced without a loss, trained in eight bits; R1 learned to reason from it",
        reference=Running(),
        counts={"deepseek-v3": "671.03B", "deepseek-r1": "671.03B"},
        claims={
            "deepseek-v3": "685B, with a layer that predicts a second token",
            "deepseek-r1": "685B, with a layer that predicts a second token",
        },
    ),
    build=build,
    sizes={"deepseek-v3": _671B, "deepseek-r1": _671B},
    tiny=deepseek_v2.FAMILY.tiny
    | {"experts": 6, "groups": 2, "groups_kept": 1, "dense_layers": 1, "shared": 1, "scale": 2.5},
    format=Format(
        model_type="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=deepseek_v2.weights,
        skipped=(*deepseek_v2.FAMILY.tensors.skipped, r"^model\.layers\.\d+\.(embed_tokens|shared_head\.head)\."),
        ahead=ahead,
    ),
)
