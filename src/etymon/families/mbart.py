"""mBART (Liu et al. 2020, arXiv:2001.08210; mBART-50, arXiv:2008.00401).

What was new over BART: 25 (50) languages, norms before each sublayer and one more after each stack, and decoders that
begin with the id of the language wanted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from etymon.families import bart
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.spec import ModelSpec

build = partial(bart.build, family="mbart", norms="pre", start=None)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "mbart"."""
    return build(**bart.read_dimensions(reader) | {"start": None})


_LARGE: dict[str, Any] = {"dim": 1024, "layers": 12, "heads": 16, "scale": 32.0}
FAMILY = Family(
    name="mbart",
    title="mBART",
    paper="https://arxiv.org/abs/2001.08210",
    origin=Origin(
        published="2020-01",
        parents=("bart",),
        brought="denoising in twenty-five languages, for translation",
        reference=Running(),
        counts={"mbart-large-cc25": 611_101_867, "mbart-large-50": 611_129_542},
    ),
    build=build,
    sizes={
        "mbart-large-cc25": _LARGE | {"vocab": 250027},
        "mbart-large-50": _LARGE | {"vocab": 250054, "activation": "relu"},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="mbart",
        architecture="MBartForConditionalGeneration",
        tokenizer="MBartTokenizer",
        read=read,
        write=bart.write,
    ),
    tensors=Tensors(
        weights=bart.weights,
        copies=bart.COPIES,
    ),
)
