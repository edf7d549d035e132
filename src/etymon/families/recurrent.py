"""What the recurrent families share: a stack of one layer repeated, in the form of PyTorch's word-language-model
example (https://github.com/pytorch/examples/tree/main/word_language_model), whose tensor names and arguments they
read and write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from etymon.families.descent import decoder
from etymon.families.reader import ConfigReader
from etymon.families.weights import Rule, affine
from etymon.spec import GRU, LM, LSTM, Block, Elman, ModelSpec, Sub

Recurrence = Elman | LSTM | GRU


def recurrent_spec(
    op: Recurrence, *, name: str, family: str, vocab: int, dim: int, layers: int, context: int, tied: bool
) -> ModelSpec:
    """Return the spec of `layers` of `op` one above the other, without residuals, on embeddings of width `dim`."""
    block = Block(subs=(Sub(op=op, alpha=0.0),))
    blocks, head = (block,) * layers, LM(tied=tied, bias=True)
    return decoder(blocks, None, head, name=name, family=family, vocab=vocab, dim=dim, context=context)


def recurrence(spec: ModelSpec) -> Recurrence:
    """Return the layer of a spec that `recurrent_spec` made."""
    op = spec.trunk.blocks[0].subs[0].op
    assert isinstance(op, Elman | LSTM | GRU)
    return op


def read_with(build: Callable[..., ModelSpec]) -> Callable[[ConfigReader], ModelSpec]:
    """Return the reader of configs that hold the example's arguments."""

    def read(reader: ConfigReader) -> ModelSpec:
        return build(
            vocab=reader.take("ntoken", int),
            dim=reader.take("ninp", int),
            width=reader.take("nhid", int),
            layers=reader.take("nlayers", int),
            bias=reader.take("bias", bool, True),
            context=reader.take("bptt", int, 1024),
            tied=reader.take("tie_weights", bool, False),
        )

    return read


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the example's arguments."""
    op = recurrence(spec)
    return {
        "ntoken": spec.vocab,
        "ninp": spec.dim,
        "nhid": op.width,
        "nlayers": len(spec.trunk.blocks),
        "bias": op.bias,
        "bptt": spec.context,
        "tie_weights": spec.tied,
    }


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors as torch names them."""
    op = recurrence(spec)
    yield Rule("embed.tokens.weight", ("encoder.weight",))
    for i in range(len(spec.trunk.blocks)):
        for ours, theirs in (("input", "ih"), ("recur", "hh")):
            for kind in ("weight", "bias") if op.bias else ("weight",):
                yield Rule(f"decoder.blocks.{i}.recurrence.op.{ours}.{kind}", (f"rnn.{kind}_{theirs}_l{i}",))
    if spec.tied:
        yield Rule("head.linear.bias", ("decoder.bias",))
    else:
        yield from affine("head.linear", "decoder", bias=True)
