"""UniLM (Dong et al. 2019, arXiv:1905.03197).

What was new over BERT: one network is an encoder, a language model in either direction and a sequence-to-sequence
model, by who sees whom. Every call says that: `attention_mask` [batch, time, time] (a source that sees itself, then a
target in which each token sees the source and those before it), and `token_type_ids` that differ by task: 0 and 1 with
both sides in sight, 2 from left to right, 3 from right to left, 4 and 5 for source and target.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from etymon.families import bert
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.spec import Classify, Head, Hidden, ModelSpec

build = partial(bert.build, family="unilm", segments=6, eps=1e-5)
ARCHITECTURES = ("BertForPreTrainingLossMask", "BertForSeq2SeqDecoder", "BertModel", "BertForSequenceClassification")


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of UniLM, which may name no model type.

    Raises ConfigError for the variations of its code that no published checkpoint uses.
    """
    architecture, classes = bert.read_architecture(reader, ARCHITECTURES)
    for key in ("relax_projection", "ffn_type", "num_qkv"):
        reader.expect(key, 0)
    for key in ("new_pos_ids", "seg_emb"):
        reader.expect(key, False)
    for key in ("fp32_embedding", "label_smoothing", "task_idx"):
        reader.take(key, object, None)  # precision, training, and a part of the projection above
    dimensions = bert.read_encoder(reader, eps=1e-5, segments=6)
    heads: dict[str, Head] = {"BertModel": Hidden(pooler="tanh"), ARCHITECTURES[3]: Classify(classes=classes)}
    return build(**dimensions, head=heads.get(architecture))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    kind = {Hidden: ARCHITECTURES[2], Classify: ARCHITECTURES[3]}.get(type(spec.head), ARCHITECTURES[0])
    return bert.write_encoder(spec) | {"architectures": [kind], "relax_projection": 0, "ffn_type": 0, "num_qkv": 0}


_LARGE = {"dim": 1024, "layers": 24, "heads": 16}
FAMILY = Family(
    name="unilm",
    title="UniLM",
    paper="https://arxiv.org/abs/1905.03197",
    origin=Origin(
        published="2019-05",
        parents=("bert",),
        brought="one encoder that understands and generates, by masks that say who sees whom",
        reference=Recorded("microsoft/unilm"),
        counts={"unilm1-base-cased": 108_343_876, "unilm1-large-cased": 333_614_404},
        claims={"unilm1-large-cased": "340M, as for BERT"},
    ),
    build=build,
    sizes={
        "unilm1-base-cased": {"vocab": 28996, "dim": 768, "layers": 12, "heads": 12},
        "unilm1-large-cased": _LARGE | {"vocab": 28996},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="unilm",
        sign="relax_projection",
        architecture="BertForPreTrainingLossMask",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=bert.weights,
        head_name=bert.FAMILY.tensors.head_name,
        prefix="bert.",
        skipped=bert.FAMILY.tensors.skipped,
        renamed=bert.FAMILY.tensors.renamed,
    ),
)
