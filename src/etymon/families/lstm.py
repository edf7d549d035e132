"""LSTM language models (Sundermeyer et al. 2012; the sizes are those of Zaremba et al. 2014, arXiv:1409.2329).

What was new over the recurrent model of 2010: gates that let a memory, and its gradient, pass unchanged over many
tokens.
"""

from __future__ import annotations

from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.recurrent import read_with, recurrent_spec, weights, write
from etymon.spec import LSTM, ModelSpec


def build(
    *,
    name: str = "lstm",
    vocab: int,
    dim: int,
    layers: int,
    width: int | None = None,
    context: int = 1024,
    bias: bool = True,
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of an LSTM model: embeddings of width `dim`, `layers` of `width` channels (default: dim)."""
    op = LSTM(width=width or dim, bias=bias)
    return recurrent_spec(op, name=name, family="lstm", vocab=vocab, dim=dim, layers=layers, context=context, tied=tied)


FAMILY = Family(
    name="lstm",
    title="LSTM",
    paper="https://arxiv.org/abs/1409.2329",
    origin=Origin(
        published="2012-09",
        parents=("rnnlm",),
        brought="memory behind gates (1997) that dropout can regularise, as a language model",
        reference=Running("torch's own modules, and recorded outputs of pytorch/examples"),
        counts={"lstm-ptb-small": 4_653_200, "lstm-ptb-medium": "19.8M", "lstm-ptb-large": "66M"},
    ),
    build=build,
    sizes={
        "lstm-ptb-small": {"vocab": 10000, "dim": 200, "layers": 2},
        "lstm-ptb-medium": {"vocab": 10000, "dim": 650, "layers": 2},
        "lstm-ptb-large": {"vocab": 10000, "dim": 1500, "layers": 2},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "width": 48, "context": 64},
    format=Format(
        model_type="lstm",
        architecture="RNNModel",
        read=read_with(build),
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="decoder.weight",
    ),
)
