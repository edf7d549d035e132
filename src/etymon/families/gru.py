"""GRU language models (Cho et al. 2014, arXiv:1406.1078; compared with the LSTM by Chung et al., arXiv:1412.3555).

What was new over the LSTM: one vector is both memory and output, with two gates instead of three. No size is standard.
"""

from __future__ import annotations

from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.recurrent import read_with, recurrent_spec, weights, write
from etymon.spec import GRU, ModelSpec


def build(
    *,
    name: str = "gru",
    vocab: int,
    dim: int,
    layers: int,
    width: int | None = None,
    context: int = 1024,
    bias: bool = True,
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of a GRU model: embeddings of width `dim`, `layers` of `width` channels (default: dim)."""
    op = GRU(width=width or dim, bias=bias)
    return recurrent_spec(op, name=name, family="gru", vocab=vocab, dim=dim, layers=layers, context=context, tied=tied)


FAMILY = Family(
    name="gru",
    title="GRU",
    paper="https://arxiv.org/abs/1412.3555",
    origin=Origin(
        published="2014-06",
        parents=("lstm",),
        brought="gates like the LSTM's with one state less",
        reference=Running("torch's own modules, and recorded outputs of pytorch/examples"),
    ),
    build=build,
    sizes={},
    tiny={"vocab": 97, "dim": 32, "layers": 2, "context": 64},
    format=Format(
        model_type="gru",
        architecture="RNNModel",
        read=read_with(build),
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="decoder.weight",
    ),
)
