"""XLM (Lample & Conneau 2019, arXiv:1901.07291).

What was new over BERT: one model for many languages, whose vectors are added to the tokens (`langs`), masked or causal
language modelling on all of them, and translation language modelling on pairs of sentences. Where the positions are
sines ("sinusoidal_embeddings"), the published files hold their table all the same, so it is read like a learned one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import bert
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys, feed_forward
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import (
    LM,
    Bidirectional,
    Embed,
    Head,
    Hidden,
    LayerNorm,
    Learned,
    ModelSpec,
    Stack,
)


def build(
    *,
    name: str = "xlm",
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    languages: int = 0,
    context: int = 512,
    eps: float = 1e-12,
    activation: str = "gelu",
    causal: bool = False,
    tied: bool = True,
    head: Head | None = None,
) -> ModelSpec:
    """Return the spec of an XLM of these dimensions; a `causal` one predicts the next token, others masked ones."""
    blocks = (bert.block(dim, heads, 4 * dim, activation, eps),) * layers
    return ModelSpec(
        name=name,
        family="xlm",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(position=Learned(length=context), languages=languages, norm=LayerNorm(eps=eps)),
        encoder=None if causal else Stack(blocks=blocks, final_norm=None, visibility=Bidirectional()),
        decoder=Stack(blocks=blocks, final_norm=None) if causal else None,
        head=head or LM(tied=tied, bias=True),
    )


KEYS = Keys(
    dim="emb_dim",
    layers="n_layers",
    heads="n_heads",
    context=("max_position_embeddings", 512),
    eps=("layer_norm_eps", 1e-12),
)


def read_sizes(reader: ConfigReader) -> dict[str, Any]:
    """Read the dimensions that XLM and MASS have in common, as `build` names them.

    Raises ConfigError for an adaptive softmax, which is not supported.
    """
    reader.expect("asm", False)
    reader.skip("asm_cutoffs", "asm_div_value", "embed_init_std", "sinusoidal_embeddings")
    reader.skip("unk_index", "mask_index", "bos_index", "eos_index", "pad_index", "mask_token_id")  # the tokenizer's
    reader.skip("lang_id", "id2lang", "lang2id")
    languages = reader.take("n_langs", int, 1)
    return KEYS.read(reader) | {
        "vocab": reader.take("n_words", int, None) or reader.take("vocab_size", int),
        "languages": languages if reader.take("use_lang_emb", bool, True) and languages > 1 else 0,
        "activation": "gelu" if reader.take("gelu_activation", bool, True) else "relu",
    }


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "xlm"."""
    architecture, _ = bert.read_architecture(reader, ("XLMWithLMHeadModel", "XLMModel"))
    reader.expect("is_encoder", True)
    reader.skip(*(f"summary_{x}" for x in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")))
    reader.skip("start_n_top", "end_n_top")  # of heads that these models do not have
    tied, causal = reader.take("tie_word_embeddings", bool, True), reader.take("causal", bool, False)
    head = Hidden() if architecture == "XLMModel" else None
    return build(**read_sizes(reader), causal=causal, tied=tied, head=head)


def write_sizes(spec: ModelSpec) -> dict[str, Any]:
    """Write what `read_sizes` reads."""
    return KEYS.write(spec) | {
        "vocab_size": spec.vocab,
        "n_langs": spec.embed.languages or 1,
        "use_lang_emb": spec.embed.languages > 0,
        "gelu_activation": feed_forward(spec).activation == "gelu",
        "sinusoidal_embeddings": False,
        "asm": False,
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    architecture = "XLMModel" if isinstance(spec.head, Hidden) else "XLMWithLMHeadModel"
    tied = {"tie_word_embeddings": spec.tied or isinstance(spec.head, Hidden)}
    return write_sizes(spec) | tied | {"architectures": [architecture], "causal": spec.decoder is not None}


LAYER: Names = {
    "attention.op.qkv": ("attentions.{}.q_lin", "attentions.{}.k_lin", "attentions.{}.v_lin"),
    "attention.op.out": "attentions.{}.out_lin",
    "attention.post": "layer_norm1.{}",
    "ffn.op.up": "ffns.{}.lin1",
    "ffn.op.down": "ffns.{}.lin2",
    "ffn.post": "layer_norm2.{}",
}
TOP: Names = {
    "embed.tokens": "transformer.embeddings",
    "embed.positions": "transformer.position_embeddings",
    "embed.languages": "transformer.lang_embeddings",
    "embed.norm": "transformer.layer_norm_emb",
    "layers": "transformer",
    "head.linear": "pred_layer.proj",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP)


_1024 = {"dim": 1024, "heads": 8}
FAMILY = Family(
    name="xlm",
    title="XLM",
    paper="https://arxiv.org/abs/1901.07291",
    origin=Origin(
        published="2019-01",
        parents=("bert",),
        brought="one encoder for many languages, aligned by translated pairs of sentences",
        reference=Running(),
        counts={
            "xlm-mlm-en-2048": 667_119_041,
            "xlm-mlm-ende-1024": 142_422_203,
            "xlm-clm-ende-1024": 142_422_203,
            "xlm-mlm-xnli15-1024": 249_071_384,
            "xlm-mlm-100-1280": 571_696_960,
        },
    ),
    build=build,
    sizes={
        "xlm-mlm-en-2048": {"vocab": 30145, "dim": 2048, "layers": 12, "heads": 16},
        "xlm-mlm-ende-1024": _1024 | {"vocab": 64699, "layers": 6, "languages": 2},
        "xlm-clm-ende-1024": _1024 | {"vocab": 64699, "layers": 6, "languages": 2, "causal": True},
        "xlm-mlm-xnli15-1024": _1024 | {"vocab": 95000, "layers": 12, "languages": 15},
        "xlm-mlm-100-1280": {"vocab": 200000, "dim": 1280, "layers": 16, "heads": 16},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "languages": 3, "context": 64},
    format=Format(
        model_type="xlm",
        architecture="XLMWithLMHeadModel",
        tokenizer="XLMTokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="pred_layer.proj.weight",
        prefix="transformer.",
        skipped=(r"\.position_ids$", r"^pred_layer\."),
    ),
)
