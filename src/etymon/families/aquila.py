"""Aquila (Beijing Academy of Artificial Intelligence 2023).

LLaMA's form, trained on Chinese and English with a vocabulary of 100008.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import llama
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.spec import ModelSpec


@extends(llama.build)
def build(*, name: str = "aquila", vocab: int = 100008, **dimensions: Any) -> ModelSpec:
    """Return the spec of an Aquila: a LLaMA of these dimensions."""
    return dataclasses.replace(llama.build(name=name, vocab=vocab, **dimensions), family="aquila")


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "aquila"."""
    return dataclasses.replace(llama.read(reader), family="aquila")


FAMILY = Family(
    name="aquila",
    title="Aquila",
    paper="https://github.com/FlagAI-Open/Aquila2",
    origin=Origin(
        published="2023-06",
        parents=("llama",),
        brought="Chinese and English data under a licence that allows commerce",
        reference=Recorded("FlagAI's aquila2"),
        counts={"aquila-7b": "7.296B"},
        claims={"aquila-7b": "7B, by name"},
    ),
    build=build,
    sizes={
        "aquila-7b": {"dim": 4096, "layers": 32, "heads": 32, "hidden": 11008, "context": 2048, "eps": 1e-5},
    },
    tiny=llama.FAMILY.tiny,
    format=Format(
        model_type="aquila",
        architecture="AquilaForCausalLM",
        read=read,
        write=llama.write,
    ),
    tensors=Tensors(
        weights=llama.weights,
        skipped=llama.FAMILY.tensors.skipped,
    ),
)
