"""NNLM (Bengio et al. 2003, "A Neural Probabilistic Language Model"), the first neural language model.

What was new over n-grams: words are vectors, so that what is learned of one serves its neighbours; one tanh layer over
the vectors of the last `order - 1` words, then a softmax over the vocabulary. The optional direct connections from the
vectors to the softmax are left out. A learned vector stands before the first word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.weights import Rule
from etymon.spec import LM, Block, Embed, ModelSpec, Stack, Sub, Window


def build(
    *,
    name: str = "nnlm",
    vocab: int,
    dim: int,
    hidden: int,
    order: int = 5,
    context: int = 1024,
    activation: str = "tanh",
) -> ModelSpec:
    """Return the spec of a model with word vectors of width `dim` and `hidden` units over `order - 1` words."""
    layer = Window(size=order - 1, width=hidden, activation=activation)
    return ModelSpec(
        name=name,
        family="nnlm",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(),
        decoder=Stack(blocks=(Block(subs=(Sub(op=layer, alpha=0.0),)),), final_norm=None),
        head=LM(tied=False, bias=True),
    )


def read(reader: ConfigReader) -> ModelSpec:
    """Read what `write` writes: there is no published format."""
    return build(
        vocab=reader.take("vocab_size", int),
        dim=reader.take("m", int),
        hidden=reader.take("h", int),
        order=reader.take("n", int),
        activation=reader.take("activation", str, "tanh"),
        context=reader.take("context", int, 1024),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the paper's letters: n words, h hidden units, m features."""
    op = spec.trunk.blocks[0].subs[0].op
    assert isinstance(op, Window)
    sizes = {"vocab_size": spec.vocab, "m": spec.dim, "h": op.width, "n": op.size + 1}
    return sizes | {"activation": op.activation, "context": spec.context}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors, by the paper's letters C, H and U with their biases d and b."""
    yield Rule("embed.tokens.weight", ("C",))
    yield Rule("decoder.blocks.0.window.op.start", ("start",))
    for ours, weight, bias in (("decoder.blocks.0.window.op.mix", "H", "d"), ("head.linear", "U", "b")):
        yield Rule(f"{ours}.weight", (weight,))
        yield Rule(f"{ours}.bias", (bias,))


FAMILY = Family(
    name="nnlm",
    title="NNLM",
    paper="https://www.jmlr.org/papers/v3/bengio03a.html",
    origin=Origin(
        published="2003-02",
        parents=("ngram",),
        brought="words as learned vectors, so that similar words share what is learnt",
        reference=Recorded("makemore's MLP"),
        counts={"nnlm-brown": 2_158_303},
    ),
    build=build,
    sizes={"nnlm-brown": {"vocab": 16383, "dim": 30, "hidden": 100, "order": 5}},
    tiny={"vocab": 97, "dim": 32, "hidden": 48, "order": 4, "context": 64},
    format=Format(
        model_type="nnlm",
        architecture="NNLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="U",
    ),
)
