"""The original Transformer (Vaswani et al. 2017, arXiv:1706.03762), in Marian's format.

What was new over recurrent networks: attention alone carries information between tokens. Norms follow each sublayer,
positions are fixed sines (all of them, then all cosines), and one table embeds source and target and reads the result.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from etymon.families import bart
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.spec import ModelSpec, Sinusoidal

build = partial(bart.build, family="marian", activation="relu", start=0, position=Sinusoidal(), embed_norm=None)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "marian"."""
    dimensions = bart.read_dimensions(reader)
    reader.expect("decoder_vocab_size", dimensions["vocab"])
    if dimensions["start"] is None:
        dimensions["start"] = reader.take("pad_token_id", int)
    return build(**dimensions)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made; padding is the id with which a decoder begins."""
    return bart.write(spec) | {"pad_token_id": spec.start, "eos_token_id": 0, "forced_eos_token_id": 0}


_V = {"vocab": 37000, "context": 512}
FAMILY = Family(
    name="marian",
    title="Transformer",
    paper="https://arxiv.org/abs/1706.03762",
    origin=Origin(
        published="2017-06",
        parents=("bahdanau",),
        brought="attention is all there is: every position in one parallel step",
        reference=Running("transformers, and recorded outputs of torch.nn.Transformer"),
        counts={"transformer-base": 63_119_496, "transformer-big": 214_282_376},
        claims={"transformer-base": "65M; how it is counted is not told"},
    ),
    build=build,
    sizes={
        "transformer-base": _V | {"dim": 512, "layers": 6, "heads": 8, "scale": 512**0.5},
        "transformer-big": _V | {"dim": 1024, "layers": 6, "heads": 16, "scale": 32.0},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    objective="seq2seq",
    format=Format(
        model_type="marian",
        architecture="MarianMTModel",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=bart.weights,
        skipped=(r"\.embed_positions\.weight$",),
        copies=bart.COPIES,
    ),
)
