"""ChatGLM-6B (THUDM 2023; the form is that of arXiv:2210.02414).

What was new over GLM-130B: GELU without a gate, and rotary positions on two axes: one half of each head turns by the
position, the other by the place within the blank. A prompt ends with the ids [gMASK] and `begin`; the text before
`begin` sees itself, and what follows stands at [gMASK]. Chat is all filling in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import chatglm2, glm130b
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.weights import Rule, SwapQuarters
from etymon.spec import Attention, Infill, ModelSpec


@extends(glm130b.build)
def build(**dimensions: Any) -> ModelSpec:
    """Return the spec of a ChatGLM of these dimensions; the published code takes `alpha` of 28 layers for any depth."""
    return glm130b.build(**({"family": "chatglm", "axes": 2, "gated": False, "alpha": 56**0.5} | dimensions))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "chatglm", of the first generation or (`chatglm2.py`) of a later one."""
    if "multi_query_attention" in reader:
        return chatglm2.read(reader)
    reader.expect("position_encoding_2d", True)
    reader.expect("quantization_bit", 0)
    reader.expect("pre_seq_len", None)
    reader.expect("prefix_projection", False)
    sizes = glm130b.KEYS.read(reader)
    first = 150000 if sizes["vocab"] == 150528 else 130000  # the special ids of either release
    gmask = reader.take("gmask_token_id", int, first + 1)
    mask = reader.take("mask_token_id", int, first)
    begin = reader.take("bos_token_id", int, first + 4)
    return build(**sizes, begin=begin, blanks=(gmask, mask), tied=reader.take("tie_word_embeddings", bool, True))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    rule = spec.trunk.visibility
    assert isinstance(rule, Infill)
    ids = dict(zip(("gmask_token_id", "mask_token_id"), rule.blanks, strict=False))
    begin = {} if rule.begin is None else {"bos_token_id": rule.begin}
    config = glm130b.KEYS.write(spec) | ids | begin
    return config | {"position_encoding_2d": True, "tie_word_embeddings": spec.tied}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    attention = spec.trunk.blocks[0].subs[0].op
    assert isinstance(attention, Attention)
    yield from glm130b.stack_weights(spec, (SwapQuarters(2 * attention.heads, attention.head_dim),))
    if not spec.tied:
        yield Rule("head.linear.weight", ("lm_head.weight",))


FAMILY = Family(
    name="chatglm",
    title="ChatGLM-6B",
    paper="https://github.com/THUDM/ChatGLM-6B",
    origin=Origin(
        published="2023-03",
        parents=("glm130b",),
        brought="rotary positions on two axes, and chat as the filling of a blank",
        reference=Recorded("THUDM/chatglm-6b"),
        counts={"chatglm-6b": "6.173B"},
    ),
    build=build,
    sizes={
        "chatglm-6b": {
            "vocab": 130528,
            "dim": 4096,
            "layers": 28,
            "heads": 32,
            "hidden": 16384,
            "begin": 130004,
            "blanks": (130001, 130000),
        },
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 64},
    format=Format(
        model_type="chatglm",
        architecture="ChatGLMForConditionalGeneration",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=(r"rotary_emb\.inv_freq$",),
    ),
)
