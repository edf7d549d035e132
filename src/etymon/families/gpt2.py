"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

What was new over GPT-1: the norm moved before each sublayer, one more norm after the last block, context 1024, a
byte-level vocabulary of 50257. Published matrices are stored [in, out].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families.descent import attention_of, decoder
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule, Transpose
from etymon.spec import LM, Attention, Block, Dense, Embed, LayerNorm, Learned, ModelSpec, Sub

KEYS = Keys(
    vocab=("vocab_size", 50257),
    dim=("n_embd", 768),
    layers=("n_layer", 12),
    heads=("n_head", 12),
    context=("n_positions", 1024),
    hidden=("n_inner", None),
    eps=("layer_norm_epsilon", 1e-5),
    activation=("activation_function", "gelu_new"),
    tied=("tie_word_embeddings", True),
    gelu_tanh="gelu_new",
)


def build(
    *,
    name: str = "gpt2",
    vocab: int = 50257,
    dim: int,
    layers: int,
    heads: int,
    context: int = 1024,
    hidden: int | None = None,
    eps: float = 1e-5,
    activation: str = "gelu_tanh",
    tied: bool = True,
    scale_by_depth: bool = False,
) -> ModelSpec:
    """Return the spec of a GPT-2 of these dimensions; `scale_by_depth` divides scores by the layer number (Mistral's
    GPT-2, `scale_attn_by_inverse_layer_idx`)."""
    if dim % heads:
        raise ConfigError(f"gpt2: dim={dim} must be a multiple of heads={heads}")
    norm, head_dim = LayerNorm(eps=eps), dim // heads
    ffn = Sub(pre=norm, op=Dense(hidden=hidden or 4 * dim, activation=activation))

    def block(layer: int) -> Block:
        scale = head_dim**-0.5 / layer if scale_by_depth else None
        attention = Attention(heads=heads, kv_heads=heads, head_dim=head_dim, bias="qkvo", scale=scale)
        return Block(subs=(Sub(pre=norm, op=attention), ffn))

    embed = Embed(position=Learned(length=context))
    blocks, head = tuple(block(i + 1) for i in range(layers)), LM(tied=tied)
    return decoder(blocks, norm, head, embed=embed, name=name, family="gpt2", vocab=vocab, dim=dim, context=context)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gpt2"."""
    sizes = KEYS.read(reader)
    reader.expect("n_ctx", sizes["context"])
    reader.expect("scale_attn_weights", True)
    reader.skip("reorder_and_upcast_attn")
    return build(**sizes, scale_by_depth=reader.take("scale_attn_by_inverse_layer_idx", bool, False))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return KEYS.write(spec) | {"scale_attn_by_inverse_layer_idx": attention_of(spec).scale is not None}


LAYER: Names = {
    "attention.pre": "ln_1",
    "attention.op.qkv": "attn.c_attn",
    "attention.op.out": "attn.c_proj",
    "ffn.pre": "ln_2",
    "ffn.op.up": "mlp.c_fc",
    "ffn.op.down": "mlp.c_proj",
}
TOP: Names = {
    "embed.tokens": "transformer.wte",
    "embed.positions": "transformer.wpe",
    "layers": "transformer.h.{}",
    "decoder.final_norm": "transformer.ln_f",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; the matrices are [in, out]."""
    return table(spec, LAYER, TOP, dict.fromkeys((name for name in LAYER if ".op." in name), (Transpose(),)))


FAMILY = Family(
    name="gpt2",
    title="GPT-2",
    paper="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    origin=Origin(
        published="2019-02",
        parents=("gpt1",),
        brought="tasks without fine-tuning, from a better scrape of the web",
        reference=Running(),
        counts={"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200},
    ),
    build=build,
    sizes={
        "gpt2": {"dim": 768, "layers": 12, "heads": 12},
        "gpt2-medium": {"dim": 1024, "layers": 24, "heads": 16},
        "gpt2-large": {"dim": 1280, "layers": 36, "heads": 20},
        "gpt2-xl": {"dim": 1600, "layers": 48, "heads": 25},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
        skipped=(r"\.attn\.(masked_)?bias$",),
    ),
)
