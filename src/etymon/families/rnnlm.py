"""RNNLM (Mikolov et al. 2010, "Recurrent neural network based language model"), Elman's network over words.

What was new over Bengio's model: the past is one vector that every word rewrites, instead of the last few words. The
paper's network has sigmoids, no biases and no matrix between the word vectors and the layer, which is the product of
both here; its factorised softmax and n-gram features are left out. No size is standard (30 to 500 channels).
"""

from __future__ import annotations

from typing import Any

from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.recurrent import read_with, recurrence, recurrent_spec, weights
from etymon.families.recurrent import write as write_arguments
from etymon.spec import Elman, ModelSpec


def build(
    *,
    name: str = "rnnlm",
    vocab: int,
    dim: int,
    layers: int = 1,
    width: int | None = None,
    context: int = 1024,
    activation: str = "sigmoid",
    bias: bool = True,
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of an Elman network: embeddings of width `dim`, `layers` of `width` channels (default: dim)."""
    op = Elman(width=width or dim, activation=activation, bias=bias)
    return recurrent_spec(
        op, name=name, family="rnnlm", vocab=vocab, dim=dim, layers=layers, context=context, tied=tied
    )


def read(reader: ConfigReader) -> ModelSpec:
    """Read a config of model type "rnnlm", whose `rnn_type` names the activation."""
    kind = reader.take("rnn_type", str, "RNN_SIGMOID")
    return read_with(lambda **dimensions: build(activation=kind.removeprefix("RNN_").lower(), **dimensions))(reader)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the config of a spec that `build` made."""
    op = recurrence(spec)
    assert isinstance(op, Elman)
    return {"rnn_type": f"RNN_{op.activation.upper()}"} | write_arguments(spec)


FAMILY = Family(
    name="rnnlm",
    title="RNNLM",
    paper="https://www.isca-archive.org/interspeech_2010/mikolov10_interspeech.html",
    origin=Origin(
        published="2010-09",
        parents=("nnlm",),
        brought="the past as one vector that every word rewrites, instead of the last few words",
        reference=Recorded("pytorch/examples"),
    ),
    build=build,
    sizes={},
    tiny={"vocab": 97, "dim": 32, "width": 48, "context": 64},
    format=Format(
        model_type="rnnlm",
        architecture="RNNModel",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="decoder.weight",
    ),
)
