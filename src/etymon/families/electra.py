"""ELECTRA (Clark et al. 2020, arXiv:2003.10555).

What was new over BERT: a small generator replaces masked tokens, and the model itself, a discriminator, says of every
token whether it was replaced. Embeddings narrower than the stream are projected.
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
from etymon.spec import LM, Classify, Discriminator, Factorised, Head, Hidden, ModelSpec, Span, Tag

DETECTOR = "ElectraForPreTraining"


def build(
    *,
    name: str = "electra",
    vocab: int = 30522,
    dim: int,
    layers: int = 12,
    heads: int,
    hidden: int | None = None,
    width: int | None = None,
    context: int = 512,
    segments: int = 2,
    eps: float = 1e-12,
    activation: str = "gelu",
    generator: bool = False,
    head: Head | None = None,
) -> ModelSpec:
    """Return the spec of an ELECTRA whose embeddings are `width` wide: the discriminator, the generator, or one with
    another `head`."""
    width = width or dim
    own = bert.masked_lm(width, "gelu", eps) if generator else Discriminator(activation=activation)
    return bert.build(
        name=name,
        family="electra",
        vocab=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        hidden=hidden,
        context=context,
        segments=segments,
        eps=eps,
        activation=activation,
        projection=Factorised(width=width) if width != dim else None,
        head=head or own,
    )


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "electra"."""
    dimensions = bert.read_encoder(reader)
    detector = Discriminator(activation=dimensions["activation"])
    head = bert.read_head(
        reader, "Electra", default=Discriminator, pooler=None, classifier="gelu", others={DETECTOR: detector}
    )
    for key in ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout"):
        reader.take(key, object, None)  # of a head that these models do not have
    reader.take("generator_size", object, None)  # the generator is a checkpoint of its own
    width = reader.take("embedding_size", int, 128)
    return build(**dimensions, width=width, generator=head is None, head=head)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    config = {"embedding_size": spec.embed.width(spec.dim)}
    if isinstance(spec.head, Discriminator):
        return bert.write_encoder(spec) | config | {"architectures": [DETECTOR]}
    return bert.write_encoder(spec, "Electra") | config


HEADS: dict[type[Head], Names] = {
    LM: {
        "head.projection.dense": "generator_predictions.dense",
        "head.projection.norm": "generator_predictions.LayerNorm",
        "head.linear": "generator_lm_head",
    },
    Discriminator: {
        "head.dense": "discriminator_predictions.dense",
        "head.linear": "discriminator_predictions.dense_prediction",
    },
    Classify: {"head.dense": "classifier.dense", "head.linear": "classifier.out_proj"},
    **{kind: bert.HEADS[kind] for kind in (Tag, Span)},
    Hidden: {},
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return bert.encoder_weights(spec, "electra", HEADS[type(spec.head)])


_GENERATOR = {"generator": True}
FAMILY = Family(
    name="electra",
    title="ELECTRA",
    paper="https://arxiv.org/abs/2003.10555",
    origin=Origin(
        published="2020-03",
        parents=("bert",),
        brought="learns from every token: which ones did a small generator replace?",
        reference=Running(),
        counts={
            "electra-small-discriminator": 13_549_057,
            "electra-base-discriminator": 109_483_009,
            "electra-large-discriminator": 335_142_913,
            "electra-small-generator": 13_546_682,
            "electra-base-generator": 33_740_602,
            "electra-large-generator": 51_295_290,
        },
    ),
    build=build,
    sizes={
        "electra-small-discriminator": {"dim": 256, "heads": 4, "width": 128},
        "electra-base-discriminator": {"dim": 768, "heads": 12},
        "electra-large-discriminator": {"dim": 1024, "heads": 16, "layers": 24},
        "electra-small-generator": _GENERATOR | {"dim": 256, "heads": 4, "width": 128},
        "electra-base-generator": _GENERATOR | {"dim": 256, "heads": 4, "width": 768},
        "electra-large-generator": _GENERATOR | {"dim": 256, "heads": 4, "width": 1024, "layers": 24},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "width": 16, "context": 64},
    format=Format(
        model_type="electra",
        architecture="ElectraForPreTraining",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="generator_lm_head.weight",
        prefix="electra.",
        skipped=(r"\.position_ids$",),
    ),
)
