"""BLOOM (BigScience 2022, arXiv:2211.05100).

What was new over GPT-3: scores that fall with distance (ALiBi) instead of positions, a norm after the embedding, a
vocabulary of 250880 for 59 languages.
"""

from __future__ import annotations

from collections.abc import Iterator

from etymon.families.descent import attention_of, decoder
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import LM, ALiBi, Attention, Block, Dense, Embed, LayerNorm, ModelSpec, Sub


def build(
    *,
    name: str = "bloom",
    vocab: int = 250880,
    dim: int,
    layers: int,
    heads: int,
    context: int = 2048,
    eps: float = 1e-5,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a BLOOM of these dimensions; `context` is what it was trained at."""
    norm = LayerNorm(eps=eps)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, bias="qkvo", scores=ALiBi())
    ffn = Dense(hidden=4 * dim, activation="gelu_tanh")
    block = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=ffn)))
    embed = Embed(norm=norm)
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, embed=embed, name=name, family="bloom", vocab=vocab, dim=dim, context=context)


KEYS = Keys(
    vocab=("vocab_size", 250880),
    dim="hidden_size",
    layers="n_layer",
    heads="n_head",
    context=("seq_length", 2048),
    eps=("layer_norm_epsilon", 1e-5),
    tied=("tie_word_embeddings", True),
)
OLDER = {"hidden_size": "n_embed", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "bloom"."""
    reader.skip("slow_but_exact", "pretraining_tp", "skip_bias_add", "skip_bias_add_qkv", "bias_dropout_fusion")
    reader.skip("unk_token_id", "masked_softmax_fusion", "attention_softmax_in_fp32", "offset_alibi", "seed")
    reader.expect("apply_residual_connection_post_layernorm", False)
    for key, older in OLDER.items():
        reader.same(key, older)
    sizes = KEYS.read(reader)
    reader.expect("n_inner", None, 4 * sizes["dim"])
    return build(**sizes)


LAYER: Names = {
    "attention.pre": "input_layernorm",
    "attention.op.qkv": "self_attention.query_key_value",
    "attention.op.out": "self_attention.dense",
    "ffn.pre": "post_attention_layernorm",
    "ffn.op.up": "mlp.dense_h_to_4h",
    "ffn.op.down": "mlp.dense_4h_to_h",
}
TOP: Names = {
    "embed.tokens": "transformer.word_embeddings",
    "embed.norm": "transformer.word_embeddings_layernorm",
    "layers": "transformer.h.{}",
    "decoder.final_norm": "transformer.ln_f",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; the rows of every head's q, k and v stand together."""
    attention = attention_of(spec)
    return table(spec, LAYER, TOP, {"attention.op.qkv": (Regroup(attention.heads, (attention.head_dim,) * 3),)})


FAMILY = Family(
    name="bloom",
    title="BLOOM",
    paper="https://arxiv.org/abs/2211.05100",
    origin=Origin(
        published="2022-07",
        parents=("gpt3",),
        brought="forty-six languages, made by a thousand researchers in the open",
        reference=Running(),
        counts={
            "bloom-560m": "559.2M",
            "bloom-1b1": "1.065B",
            "bloom-1b7": "1.722B",
            "bloom-3b": "3.003B",
            "bloom-7b1": "7.069B",
            "bloom-176b": "176.247B",
        },
    ),
    build=build,
    sizes={
        "bloom-560m": {"dim": 1024, "layers": 24, "heads": 16},
        "bloom-1b1": {"dim": 1536, "layers": 24, "heads": 16},
        "bloom-1b7": {"dim": 2048, "layers": 24, "heads": 16},
        "bloom-3b": {"dim": 2560, "layers": 30, "heads": 32},
        "bloom-7b1": {"dim": 4096, "layers": 30, "heads": 32},
        "bloom-176b": {"dim": 14336, "layers": 70, "heads": 112},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="bloom",
        architecture="BloomForCausalLM",
        read=read,
        write=KEYS.write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
    ),
)
