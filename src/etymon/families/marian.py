"""The original Transformer (Vaswani et al. 2017, arXiv:1706.03762), in Marian's format.

What was new over recurrent networks: attention alone carries information between tokens. Norms follow each sublayer,
positions are fixed sines (all of them, then all cosines), and one table embeds source and target and reads the result.
"""

from __future__ import annotations

from typing import Any

from etymon.families import bart
from etymon.families.family import Family
from etymon.families.reader import ConfigReader
from etymon.spec import Embed, ModelSpec, Sinusoidal


def build(*, name: str = "transformer", activation: str = "relu", start: int = 0, **dimensions: Any) -> ModelSpec:
    """Return the spec of a Transformer of these dimensions, which are BART's."""
    scale = dimensions.pop("scale", dimensions["dim"] ** 0.5)
    embed = Embed(position=Sinusoidal(), scale=scale)
    return bart.build(name=name, family="marian", activation=activation, start=start, embed=embed, **dimensions)


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
    model_type="marian",
    architecture="MarianMTModel",
    build=build,
    sizes={
        "transformer-base": _V | {"dim": 512, "layers": 6, "heads": 8},
        "transformer-big": _V | {"dim": 1024, "layers": 6, "heads": 16},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    read=read,
    write=write,
    weights=bart.weights,
    copies=bart.COPIES,
    skipped=(r"\.embed_positions\.weight$",),
)
