"""XLM-R (Conneau et al. 2019, arXiv:1911.02116).

What was new over RoBERTa: one model for a hundred languages, by a SentencePiece vocabulary of 250,000 and 2.5 TB
of text.
"""

from __future__ import annotations

from functools import partial

from etymon.families import roberta
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running

_V = {"vocab": 250002}
FAMILY = Family(
    name="xlm-roberta",
    title="XLM-R",
    paper="https://arxiv.org/abs/1911.02116",
    origin=Origin(
        published="2019-11",
        parents=("roberta", "xlm"),
        brought="one hundred languages in one vocabulary",
        reference=Running(),
        counts={"xlm-roberta-base": 278_295_186, "xlm-roberta-large": 560_142_482},
    ),
    build=partial(roberta.build, family="xlm-roberta"),
    sizes={
        "xlm-roberta-base": _V | {"dim": 768, "layers": 12, "heads": 12},
        "xlm-roberta-large": _V | {"dim": 1024, "layers": 24, "heads": 16},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="xlm-roberta",
        architecture="XLMRobertaForMaskedLM",
        tokenizer="XLMRobertaTokenizer",
        read=roberta.reading("XLMRoberta", "xlm-roberta"),
        write=roberta.writing("XLMRoberta"),
    ),
    tensors=Tensors(
        weights=roberta.weights,
        head_name="lm_head.decoder.weight",
        prefix="roberta.",
        skipped=roberta.SKIPPED,
    ),
)
