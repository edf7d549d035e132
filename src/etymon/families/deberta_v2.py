"""DeBERTa v2 and v3 (He et al. 2021, arXiv:2111.09543).

What was new over DeBERTa: a SentencePiece vocabulary of 128,000, far distances in logarithmic steps, and (v2) positions
projected by the same matrices as contents and a convolution beside the first layer; (v3) training as ELECTRA's
discriminator, whose head sees the first token beside each. Published files keep both heads of v3: an architecture of
"ReplacedTokenDetectionModel" reads the discriminator's, "DebertaV2ForMaskedLM" the generator's name, none neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import deberta
from etymon.families.descent import attention_of, with_attention
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.keys import ACTIVATIONS
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule, Taps
from etymon.spec import (
    AsContents,
    Attention,
    Block,
    Convolution,
    Discriminator,
    Disentangled,
    Head,
    LayerNorm,
    ModelSpec,
    Own,
    Rejoined,
    RelativeTable,
    Sub,
)

DETECTOR_CLASS = "ReplacedTokenDetectionModel"  # in the published code; no other has it


def detector(activation: str = "gelu", eps: float = 1e-7) -> Discriminator:
    """Return the head of v3, which says of every token whether it was replaced."""
    return Discriminator(activation=activation, context=LayerNorm(eps=eps))


@extends(deberta.build)
def build(
    *,
    vocab: int = 128100,
    buckets: int | None = 256,
    shared: bool = True,
    normalised: bool = True,
    kernel: int | None = None,
    conv_activation: str = "gelu",
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a DeBERTa v2 or v3. `buckets` are the vectors on either side where far distances share one, up
    to `span`; positions are projected as contents are where `shared`, and are `normalised`. `kernel` is the size of a
    convolution beside the first layer."""
    named: dict[str, Any] = {"name": "deberta-v2", "family": "deberta-v2", "vocab": vocab}
    spec = deberta.build(**named | dimensions)
    norm, relative = spec.embed.norm, spec.trunk.relative
    assert isinstance(relative, RelativeTable)
    if buckets is not None:
        relative = RelativeTable(span=buckets, max_distance=relative.span)
    old, kind = attention_of(spec).scores, AsContents() if shared else Own()
    assert isinstance(old, Disentangled)
    scores = Disentangled(keys=old.keys and kind, queries=old.queries and kind)
    blocks = tuple(with_attention(block, bias="qkvo", scores=scores) for block in spec.trunk.blocks)
    if kernel is not None:
        convolution = Sub(op=Convolution(kernel=kernel, activation=conv_activation), post=norm)
        blocks = (Block(subs=(*blocks[0].subs, convolution), wiring=Rejoined()), *blocks[1:])
    relative = dataclasses.replace(relative, norm=norm if normalised else None)
    return dataclasses.replace(spec, encoder=dataclasses.replace(spec.trunk, blocks=blocks, relative=relative))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "deberta-v2"."""
    dimensions, buckets = deberta.read_encoder(reader), reader.take("position_buckets", int, -1)
    reader.expect("attention_head_size", dimensions["dim"] // dimensions["heads"])
    kernel, activation = reader.take("conv_kernel_size", int, 0), reader.take("conv_act", str, "tanh")
    reader.expect("conv_groups", 1)
    kinds = [kind.strip() for kind in reader.take("norm_rel_ebd", str, "none").lower().split("|")]
    others: dict[str, Head | None] = {DETECTOR_CLASS: detector(dimensions["activation"], dimensions["eps"])}
    head = deberta.read_head(reader, "DebertaV2", others)
    return build(
        **dimensions,
        buckets=buckets if buckets > 0 else None,
        shared=reader.take("share_att_key", bool, False),
        normalised="layer_norm" in kinds,
        kernel=kernel if kernel > 0 else None,
        conv_activation=ACTIVATIONS.get(activation, activation),
        head=head,
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, _, *convolution = (sub.op for sub in spec.trunk.blocks[0].subs)
    relative = spec.trunk.relative
    assert isinstance(attention, Attention) and isinstance(attention.scores, Disentangled)
    assert isinstance(relative, RelativeTable)
    shared = isinstance(attention.scores.keys or attention.scores.queries, AsContents)
    config = {
        "position_buckets": -1 if relative.max_distance is None else relative.span,
        "share_att_key": shared,
        "norm_rel_ebd": "none" if relative.norm is None else "layer_norm",
    }
    for op in convolution:
        assert isinstance(op, Convolution)
        activation = {"gelu_tanh": "gelu_new"}.get(op.activation, op.activation)
        config |= {"conv_kernel_size": op.kernel, "conv_act": activation}
    if isinstance(spec.head, Discriminator):
        return deberta.write_encoder(spec, None) | config | {"architectures": [DETECTOR_CLASS]}
    return deberta.write_encoder(spec, "DebertaV2") | config


LAYER: Names = {
    **deberta.LAYER,
    "attention.op.qkv": tuple(f"attention.self.{x}_proj" for x in ("query", "key", "value")),
    "attention.op.scores.keys": "attention.self.pos_key_proj",
    "attention.op.scores.queries": "attention.self.pos_query_proj",
    "convolution.op.out": "conv.conv",
    "convolution.post": "conv.LayerNorm",
}
DETECTOR: Names = {
    "head.context": "mask_predictions.LayerNorm",
    "head.dense": "mask_predictions.dense",
    "head.linear": "mask_predictions.classifier",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; the convolution's have no layer in their names."""
    taps = [Taps(sub.op.kernel) for sub in spec.trunk.blocks[0].subs if isinstance(sub.op, Convolution)]
    head = deberta.HEADS.get(type(spec.head), DETECTOR)
    for rule in table(spec, LAYER, {**deberta.TOP, **head}, {"convolution.op.out": tuple(taps)}):
        names = tuple(name.replace(".layer.0.conv.", ".conv.") for name in rule.published)
        yield dataclasses.replace(rule, published=names)


_XL: dict[str, Any] = {"dim": 1536, "heads": 24, "kernel": 3}
_V3: dict[str, Any] = {"head": detector()}
_TINY: dict[str, Any] = {"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64, "segments": 2}
FAMILY = Family(
    name="deberta-v2",
    title="DeBERTa v2",
    paper="https://arxiv.org/abs/2111.09543",
    origin=Origin(
        published="2021-02",
        parents=("deberta", "electra"),
        brought="far distances share vectors; v3 detects replaced tokens",
        reference=Running("transformers; v3's head against its equations"),
        counts={
            "deberta-v2-xlarge": 887_085_156,
            "deberta-v2-xxlarge": 1_567_041_636,
            "deberta-v3-xsmall": 70_831_105,
            "deberta-v3-small": 141_897_217,
            "deberta-v3-base": 184_424_449,
            "deberta-v3-large": 435_064_833,
        },
        claims={"deberta-v2-xlarge": "900M, rounded", "deberta-v2-xxlarge": "1.5B, rounded"},
    ),
    build=build,
    sizes={
        "deberta-v2-xlarge": _XL | {"layers": 24},
        "deberta-v2-xxlarge": _XL | {"layers": 48},
        "deberta-v3-xsmall": _V3 | {"dim": 384, "layers": 12, "heads": 6},
        "deberta-v3-small": _V3 | {"dim": 768, "layers": 6, "heads": 12},
        "deberta-v3-base": _V3 | {"dim": 768, "layers": 12, "heads": 12},
        "deberta-v3-large": _V3 | {"dim": 1024, "layers": 24, "heads": 16},
    },
    tiny=_TINY | {"buckets": 8, "span": 30, "kernel": 3},
    format=Format(
        model_type="deberta-v2",
        architecture="DebertaV2ForMaskedLM",
        tokenizer="DebertaV2Tokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="cls.predictions.decoder.weight",
        prefix="deberta.",
        skipped=(*deberta.SKIPPED, r"^deberta\.embeddings\.word_embeddings\._weight$"),
        renamed=deberta.RENAMED | {r"^mask_predictions\.classifer\.": "mask_predictions.classifier."},
    ),
)
