"""Galactica (Taylor et al. 2022, arXiv:2211.09085).

What was new over GPT-3: no biases, norms without parameters, GELU, a vocabulary for science. Published as OPT, whose
files load as models of that family.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import opt
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.spec import ModelSpec


@extends(opt.build)
def build(*, name: str = "galactica", vocab: int = 50000, **dimensions: Any) -> ModelSpec:
    """Return the spec of a Galactica of these dimensions."""
    plain: dict[str, Any] = {"bias": False, "affine": False, "activation": "gelu"}
    return dataclasses.replace(opt.build(name=name, vocab=vocab, **(plain | dimensions)), family="galactica")


FAMILY = Family(
    name="galactica",
    title="Galactica",
    paper="https://arxiv.org/abs/2211.09085",
    origin=Origin(
        published="2022-11",
        parents=("opt",),
        brought="a corpus of science: papers, references, molecules, proofs",
        reference=Running(),
        counts={
            "galactica-125m": "124.9M",
            "galactica-1.3b": "1.315B",
            "galactica-6.7b": "6.656B",
            "galactica-30b": "29.968B",
            "galactica-120b": "121.329B",
        },
    ),
    build=build,
    sizes={
        "galactica-125m": {"dim": 768, "layers": 12, "heads": 12},
        "galactica-1.3b": {"dim": 2048, "layers": 24, "heads": 32},
        "galactica-6.7b": {"dim": 4096, "layers": 32, "heads": 32},
        "galactica-30b": {"dim": 7168, "layers": 48, "heads": 56},
        "galactica-120b": {"dim": 10240, "layers": 96, "heads": 80},
    },
    tiny=opt.FAMILY.tiny,
    format=Format(
        model_type="opt",
        architecture="OPTForCausalLM",
        write=opt.write,
    ),
    tensors=Tensors(
        weights=opt.weights,
    ),
)
