"""RoBERTa (Liu et al. 2019, arXiv:1907.11692).

What was new over BERT: the recipe (ten times the text, no next-sentence task, masks drawn anew every time), a
byte-level vocabulary, no segments, and positions that count the tokens that are not padding. The table's first two
rows stand for no position: `position_ids` begin at 0 here, at 2 in the published code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import bert
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names
from etymon.families.weights import Rule
from etymon.spec import LM, Classify, Head, Hidden, Learned, ModelSpec, Span, Tag


def build(
    *,
    name: str = "roberta",
    family: str = "roberta",
    vocab: int = 50265,
    dim: int,
    layers: int,
    heads: int,
    hidden: int | None = None,
    context: int = 512,
    segments: int = 1,
    eps: float = 1e-5,
    activation: str = "gelu",
    padding: int = 1,
    head: Head | None = None,
) -> ModelSpec:
    """Return the spec of a RoBERTa of these dimensions; `padding` is the id of the padding token."""
    return bert.build(
        name=name,
        family=family,
        vocab=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        hidden=hidden,
        context=context,
        segments=segments,
        eps=eps,
        activation=activation,
        position=Learned(length=context, offset=padding + 1, padding=padding),
        head=head or bert.masked_lm(dim, "gelu", eps),
    )


def reading(prefix: str, family: str) -> Any:
    """Return the function that reads a `config.json` whose architectures begin with `prefix`."""

    def read(reader: ConfigReader) -> ModelSpec:
        head = bert.read_head(reader, prefix)
        dimensions, padding = bert.read_encoder(reader), reader.take("pad_token_id", int, 1)
        dimensions["context"] -= padding + 1
        return build(family=family, **dimensions, padding=padding, head=head)

    return read


def writing(prefix: str) -> Any:
    """Return the function that writes the `config.json` of a spec that `build` made."""

    def write(spec: ModelSpec) -> dict[str, Any]:
        position = spec.embed.position
        assert isinstance(position, Learned)
        return bert.write_encoder(spec, prefix) | {
            "pad_token_id": position.padding,
            "bos_token_id": 0,
            "eos_token_id": 2,
        }

    return write


HEADS: dict[type[Head], Names] = {
    LM: {
        "head.projection.dense": "lm_head.dense",
        "head.projection.norm": "lm_head.layer_norm",
        "head.linear": "lm_head",
    },
    Classify: {"head.dense": "classifier.dense", "head.linear": "classifier.out_proj"},
    **{kind: bert.HEADS[kind] for kind in (Tag, Span, Hidden)},
}


def weights(spec: ModelSpec, prefix: str = "roberta", layer: Names = bert.LAYER) -> Iterator[Rule]:
    """List the tensors in published order."""
    return bert.encoder_weights(spec, prefix, HEADS[type(spec.head)], layer)


SKIPPED = (r"\.position_ids$", r"^roberta\.pooler\.", r"^lm_head\.decoder\.bias$")
FAMILY = Family(
    name="roberta",
    title="RoBERTa",
    paper="https://arxiv.org/abs/1907.11692",
    origin=Origin(
        published="2019-07",
        parents=("bert",),
        brought="BERT trained longer on more text, without next-sentence prediction",
        reference=Running(),
        counts={"roberta-base": 124_697_433, "roberta-large": 355_412_057, "distilroberta-base": 82_170_201},
    ),
    build=build,
    sizes={
        "roberta-base": {"dim": 768, "layers": 12, "heads": 12},
        "roberta-large": {"dim": 1024, "layers": 24, "heads": 16},
        "distilroberta-base": {"dim": 768, "layers": 6, "heads": 12},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="roberta",
        architecture="RobertaForMaskedLM",
        tokenizer="RobertaTokenizer",
        read=reading("Roberta", "roberta"),
        write=writing("Roberta"),
    ),
    tensors=Tensors(
        weights=weights,
        head_name="lm_head.decoder.weight",
        prefix="roberta.",
        skipped=SKIPPED,
    ),
)
