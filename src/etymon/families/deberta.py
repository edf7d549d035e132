"""DeBERTa (He et al. 2020, arXiv:2006.03654).

What was new over RoBERTa: no position is added to the input; instead content and distance meet crosswise in the scores
of every layer, content to position and position to content. The absolute positions of the paper's mask decoder, which
only pretraining used, are not part of the published classes and not here. A config that names no architecture is read
as the encoder alone; heads in the old and the new form (`legacy`) compute the same and are written in the new one.

The file is long because its reader, writer and heads serve the second version too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import bert
from etymon.families.descent import attention_of, with_attention
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.keys import ACTIVATIONS
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import LM, Classify, Disentangled, Head, Hidden, ModelSpec, Own, RelativeTable, Span, Tag

TERMS = ("c2p", "p2c")


@extends(bert.build)
def build(
    *,
    vocab: int = 50265,
    context: int = 512,
    segments: int = 0,
    eps: float = 1e-7,
    span: int | None = None,
    terms: tuple[str, ...] = TERMS,
    absolute: bool = False,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a DeBERTa of these dimensions. Distances up to `span` (default: the context) have a vector;
    `terms` are those of the scores, `absolute` adds learned positions to the input as well."""
    if not set(terms) <= set(TERMS) or not terms:
        raise ConfigError(f"terms of the scores are {terms}; known: {', '.join(TERMS)}, at least one")
    named: dict[str, Any] = {"name": "deberta", "family": "deberta"}
    spec = bert.build(**named | dimensions, vocab=vocab, context=context, segments=segments, eps=eps)
    scores = Disentangled(keys=Own(bias=False) if "c2p" in terms else None, queries=Own() if "p2c" in terms else None)
    scale = (attention_of(spec).head_dim * (1 + len(terms))) ** -0.5
    block = with_attention(spec.trunk.blocks[0], bias="qvo", scale=scale, scores=scores)
    stack = dataclasses.replace(
        spec.trunk, blocks=(block,) * len(spec.trunk.blocks), relative=RelativeTable(span=span or context)
    )
    embed = spec.embed if absolute else dataclasses.replace(spec.embed, position=None)
    return dataclasses.replace(spec, embed=embed, encoder=stack)


def read_encoder(reader: ConfigReader) -> dict[str, Any]:
    """Read the keys that all DeBERTas have, as arguments of `build`."""
    terms: Any = reader.take("pos_att_type", object, [])
    span = reader.take("max_relative_positions", int, -1)
    dimensions = bert.read_encoder(reader, eps=1e-7, segments=0)
    reader.expect("relative_attention", True)
    reader.expect("embedding_size", dimensions["dim"])
    reader.expect("pooler_hidden_size", dimensions["dim"])
    for key in ("padding_idx", "pooler_dropout", "cls_dropout"):
        reader.take(key, object, None)  # of training alone
    reader.take("legacy", bool, True)  # which of two names the tensors of the same head have
    return dimensions | {
        "terms": tuple(t.strip() for t in (terms.lower().split("|") if isinstance(terms, str) else terms)),
        "absolute": reader.take("position_biased_input", bool, True),
        "span": span if span > 0 else None,
    }


def read_head(reader: ConfigReader, prefix: str, others: dict[str, Head | None] | None = None) -> Head | None:
    """Read which head a model has, among those of classes that begin with `prefix`, and `others`."""
    activation = reader.take("pooler_hidden_act", str, "gelu")
    classifier = ACTIVATIONS.get(activation, activation)
    return bert.read_head(reader, prefix, default=Hidden, pooler=None, classifier=classifier, others=others)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "deberta"."""
    reader.expect("talking_head", False)
    return build(**read_encoder(reader), head=read_head(reader, "Deberta"))


def write_encoder(spec: ModelSpec, prefix: str | None) -> dict[str, Any]:
    """Write the keys that all DeBERTas have; `prefix` is that of the class where its name has one."""
    attention, relative = attention_of(spec), spec.trunk.relative
    assert isinstance(attention.scores, Disentangled) and isinstance(relative, RelativeTable)
    terms = zip(TERMS, (attention.scores.keys, attention.scores.queries), strict=True)
    return bert.write_encoder(spec, prefix) | {
        "relative_attention": True,
        "pos_att_type": [term for term, kind in terms if kind is not None],
        "max_relative_positions": relative.max_distance or relative.span,
        "position_biased_input": spec.embed.position is not None,
        "pooler_hidden_act": spec.head.activation if isinstance(spec.head, Classify) else "gelu",
        "legacy": False,
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return write_encoder(spec, "Deberta")


LAYER: Names = {
    "attention.op.qkv": "attention.self.in_proj",
    "attention.op.q_bias": "attention.self.q_bias",
    "attention.op.v_bias": "attention.self.v_bias",
    "attention.op.scores.keys": "attention.self.pos_proj",
    "attention.op.scores.queries": "attention.self.pos_q_proj",
    "attention.op.out": "attention.output.dense",
    "attention.post": "attention.output.LayerNorm",
    "ffn.op.up": "intermediate.dense",
    "ffn.op.down": "output.dense",
    "ffn.post": "output.LayerNorm",
}
TOP: Names = {
    "embed.tokens": "deberta.embeddings.word_embeddings",
    "embed.positions": "deberta.embeddings.position_embeddings",
    "embed.segments": "deberta.embeddings.token_type_embeddings",
    "embed.norm": "deberta.embeddings.LayerNorm",
    "layers": "deberta.encoder.layer.{}",
    "encoder.relative.table": "deberta.encoder.rel_embeddings",
    "encoder.relative.norm": "deberta.encoder.LayerNorm",
}
HEADS: dict[type[Head], Names] = {
    LM: {
        "head.projection.dense": "lm_predictions.lm_head.dense",
        "head.projection.norm": "lm_predictions.lm_head.LayerNorm",
        "head.linear": "lm_predictions.lm_head",
    },
    Classify: {"head.dense": "pooler.dense", "head.linear": "classifier"},
    **{kind: bert.HEADS[kind] for kind in (Tag, Span)},
    Hidden: {},
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; queries, keys and values of each head lie together."""
    attention = attention_of(spec)
    heads = Regroup(attention.heads, (attention.head_dim,) * 3)
    return table(spec, LAYER, {**TOP, **HEADS[type(spec.head)]}, {"attention.op.qkv": (heads,)})


RENAMED = {
    r"^cls\.predictions\.transform\.": "lm_predictions.lm_head.",
    r"^cls\.predictions\.bias$": "lm_predictions.lm_head.bias",
}
SKIPPED = (
    r"\.position_ids$",
    r"^deberta\.embeddings\.position_embeddings\.",
    r"^(lm_predictions|mask_predictions|pooler|classifier|qa_outputs)\.",
    r"^cls\.predictions\.decoder\.bias$",
)
FAMILY = Family(
    name="deberta",
    title="DeBERTa",
    paper="https://arxiv.org/abs/2006.03654",
    origin=Origin(
        published="2020-06",
        parents=("roberta",),
        brought="content and distance meet crosswise in the scores",
        reference=Running(),
        counts={"deberta-base": 139_244_121, "deberta-large": 406_264_921, "deberta-xlarge": 758_905_945},
        claims={
            "deberta-base": "134M; how it is counted is not told",
            "deberta-large": "390M; how it is counted is not told",
            "deberta-xlarge": "750M, rounded",
        },
    ),
    build=build,
    sizes={
        "deberta-base": {"dim": 768, "layers": 12, "heads": 12},
        "deberta-large": {"dim": 1024, "layers": 24, "heads": 16},
        "deberta-xlarge": {"dim": 1024, "layers": 48, "heads": 16},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64, "segments": 2, "span": 12},
    format=Format(
        model_type="deberta",
        architecture="DebertaForMaskedLM",
        tokenizer="DebertaTokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="cls.predictions.decoder.weight",
        prefix="deberta.",
        skipped=SKIPPED,
        renamed=RENAMED,
    ),
)
