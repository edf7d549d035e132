"""GPT (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training").

The transformer's decoder alone, trained on text: norms after each residual sum, learned positions, GELU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import gpt2
from etymon.families.descent import with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule, Transpose
from etymon.spec import Block, LayerNorm, ModelSpec, Sub


@extends(gpt2.build)
def build(*, name: str = "gpt1", vocab: int = 40478, context: int = 512, eps: float = 1e-5, **rest: Any) -> ModelSpec:
    """Return the spec of a GPT of these dimensions."""
    norm = LayerNorm(eps=eps)
    spec = gpt2.build(name=name, vocab=vocab, context=context, eps=eps, **rest)
    spec = with_blocks(spec, "gpt1", lambda block: Block(subs=tuple(Sub(op=s.op, post=norm) for s in block.subs)))
    return dataclasses.replace(spec, decoder=dataclasses.replace(spec.trunk, final_norm=None))


KEYS = Keys(
    vocab=("vocab_size", 40478),
    dim=("n_embd", 768),
    layers=("n_layer", 12),
    heads=("n_head", 12),
    context=("n_positions", 512),
    eps=("layer_norm_epsilon", 1e-5),
    activation=("afn", "gelu"),
    tied=("tie_word_embeddings", True),
    gelu_tanh="gelu",  # which is what the published code means by it
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "openai-gpt"."""
    reader.skip("n_special", "predict_special_tokens", "n_ctx")
    sizes = KEYS.read(reader)
    return build(**sizes | {"activation": {"gelu": "gelu_tanh"}.get(sizes["activation"], sizes["activation"])})


LAYER: Names = {
    "attention.op.qkv": "attn.c_attn",
    "attention.op.out": "attn.c_proj",
    "attention.post": "ln_1",
    "ffn.op.up": "mlp.c_fc",
    "ffn.op.down": "mlp.c_proj",
    "ffn.post": "ln_2",
}
TOP: Names = {
    "embed.tokens": "transformer.tokens_embed",
    "embed.positions": "transformer.positions_embed",
    "layers": "transformer.h.{}",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; matrices are stored [in, out]."""
    matrices = ("attention.op.qkv", "attention.op.out", "ffn.op.up", "ffn.op.down")
    return table(spec, LAYER, TOP, dict.fromkeys(matrices, (Transpose(),)))


FAMILY = Family(
    name="gpt1",
    title="GPT",
    paper="https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf",
    origin=Origin(
        published="2018-06",
        parents=("marian",),
        brought="the decoder alone, pretrained on books, then fine-tuned for every task",
        reference=Running(),
        counts={"openai-gpt": "116.5M"},
    ),
    build=build,
    sizes={"openai-gpt": {"dim": 768, "layers": 12, "heads": 12}},
    tiny=gpt2.FAMILY.tiny,
    format=Format(
        model_type="openai-gpt",
        architecture="OpenAIGPTLMHeadModel",
        read=read,
        write=KEYS.write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
        skipped=(r"\.attn\.bias$", r"\.position_ids$"),
    ),
)
