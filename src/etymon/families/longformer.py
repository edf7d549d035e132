"""Longformer (Beltagy et al. 2020, arXiv:2004.05150).

What was new over RoBERTa, from whose weights it was trained on: each token sees only a window, so that the cost grows
linearly with the length, and a few tokens of the user's choice (`global_attention_mask`) see and are seen by all, with
projections of their own. A published window of 512 reaches 256 tokens to either side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etymon.errors import ConfigError
from etymon.families import bert, roberta
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names
from etymon.families.weights import Rule
from etymon.spec import Attention, Block, Classify, GlobalLocalAttention, ModelSpec, Op, Span


@extends(roberta.build)
def build(*, window: int | Sequence[int] = 512, context: int = 4096, **dimensions: Any) -> ModelSpec:
    """Return the spec of a Longformer; `window` is that of all layers or of each."""
    named: dict[str, Any] = {"name": "longformer", "family": "longformer"}
    spec = roberta.build(**named | dimensions, context=context)
    windows = [window] * len(spec.trunk.blocks) if isinstance(window, int) else list(window)
    if len(windows) != len(spec.trunk.blocks) or any(size < 2 or size % 2 for size in windows):
        raise ConfigError(f"window={window} must be an even number above 0, for all layers or for each")

    def slide(i: int, op: Op) -> Op:
        assert isinstance(op, Attention)
        return GlobalLocalAttention(heads=op.heads, head_dim=op.head_dim, reach=windows[i] // 2)

    return _with_attention(spec, slide)


def _with_attention(spec: ModelSpec, change: Callable[[int, Op], Op]) -> ModelSpec:
    def changed(i: int, block: Block) -> Block:
        attention, ffn = block.subs
        return dataclasses.replace(block, subs=(dataclasses.replace(attention, op=change(i, attention.op)), ffn))

    stack = dataclasses.replace(
        spec.trunk, blocks=tuple(changed(i, block) for i, block in enumerate(spec.trunk.blocks))
    )
    return dataclasses.replace(spec, encoder=stack)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "longformer"."""
    head = bert.read_head(reader, "Longformer")
    reader.expect("attention_mode", "longformer")
    reader.expect("ignore_attention_mask", False)
    reader.take("onnx_export", bool, False)
    window: Any = reader.take("attention_window", object, 512)
    dimensions, padding = bert.read_encoder(reader), reader.take("pad_token_id", int, 1)
    dimensions["context"] -= padding + 1
    if isinstance(head, Classify | Span):
        raise ConfigError(f"{reader.where}: this head chooses its global tokens by itself, which is not supported here")
    return build(**dimensions, window=window, padding=padding, head=head)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    windows: list[int] = []

    def widen(i: int, op: Op) -> Op:
        assert isinstance(op, GlobalLocalAttention)
        windows.append(2 * op.reach)
        return Attention(heads=op.heads, kv_heads=op.heads, head_dim=op.head_dim, bias="qkvo")

    return roberta.writing("Longformer")(_with_attention(spec, widen)) | {"attention_window": windows}


LAYER: Names = {
    **bert.LAYER,
    "attention.op.q_global": "attention.self.query_global",
    "attention.op.kv_global": ("attention.self.key_global", "attention.self.value_global"),
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return roberta.weights(spec, "longformer", LAYER)


FAMILY = Family(
    name="longformer",
    title="Longformer",
    paper="https://arxiv.org/abs/2004.05150",
    origin=Origin(
        published="2020-04",
        parents=("roberta",),
        brought="sliding windows and a few global tokens: texts of 4,096 tokens",
        reference=Running(),
        counts={"longformer-base-4096": 148_711_257, "longformer-large-4096": 434_653_273},
    ),
    build=build,
    sizes={
        "longformer-base-4096": {"dim": 768, "layers": 12, "heads": 12},
        "longformer-large-4096": {"dim": 1024, "layers": 24, "heads": 16},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 96, "window": (6, 10)},
    format=Format(
        model_type="longformer",
        architecture="LongformerForMaskedLM",
        tokenizer="LongformerTokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="lm_head.decoder.weight",
        prefix="longformer.",
        skipped=(r"\.position_ids$", r"^longformer\.pooler\.", r"^lm_head\.decoder\.bias$"),
    ),
)
