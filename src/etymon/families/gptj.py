"""GPT-J-6B (Wang & Komatsuzaki 2021).

What was new over GPT-3: attention and feed-forward layer side by side after one norm, rotary positions on the first 64
channels of each head, no biases in attention, an untied head with a bias. Published checkpoints rotate neighbouring
pairs; their rows are permuted when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import attention_of, decoder, side_by_side
from etymon.families.family import Family
from etymon.families.gpt2 import ACTIVATIONS
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Operation, PermuteRotary, Rule
from etymon.spec import LM, Attention, Dense, LayerNorm, ModelSpec, Rope


def build(
    *,
    name: str = "gptj",
    vocab: int = 50400,
    dim: int,
    layers: int,
    heads: int,
    hidden: int | None = None,
    context: int = 2048,
    rotary_dim: int = 64,
    eps: float = 1e-5,
    activation: str = "gelu_tanh",
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of a GPT-J; the first `rotary_dim` channels of each head turn."""
    norm = LayerNorm(eps=eps)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, rope=Rope(dim=rotary_dim))
    ffn = Dense(hidden=hidden or 4 * dim, activation=activation)
    blocks, head = (side_by_side(norm, attention, ffn),) * layers, LM(tied=tied, bias=True)
    return decoder(blocks, norm, head, name=name, family="gptj", vocab=vocab, dim=dim, context=context)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gptj"."""
    activation = reader.take("activation_function", str, "gelu_new")
    reader.expect("rotary", True)
    reader.expect("scale_attn_weights", True)
    for key in (
        *("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
        *("n_ctx", "gradient_checkpointing"),
    ):
        reader.take(key, object, None)  # a head that language models do not have; bookkeeping
    return build(
        vocab=reader.take("vocab_size", int, 50400),
        dim=reader.take("n_embd", int, 4096),
        layers=reader.take("n_layer", int, 28),
        heads=reader.take("n_head", int, 16),
        hidden=reader.take("n_inner", int, None),
        context=reader.take("n_positions", int, 2048),
        rotary_dim=reader.take("rotary_dim", int, 64),
        eps=reader.take("layer_norm_epsilon", float, 1e-5),
        activation=ACTIVATIONS.get(activation, activation),
        tied=reader.take("tie_word_embeddings", bool, False),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, ffn = (sub.op for sub in spec.trunk.blocks[0].subs)
    norm = spec.trunk.final_norm
    assert isinstance(attention, Attention) and isinstance(ffn, Dense) and norm is not None and attention.rope
    return {
        "vocab_size": spec.vocab,
        "n_embd": spec.dim,
        "n_layer": len(spec.trunk.blocks),
        "n_head": attention.heads,
        "n_inner": ffn.hidden,
        "n_positions": spec.context,
        "rotary_dim": attention.rope.dim,
        "layer_norm_epsilon": norm.eps,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(ffn.activation, ffn.activation),
        "tie_word_embeddings": spec.tied,
    }


LAYER: Names = {
    "pre": "ln_1",
    "attention.op.qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attention.op.out": "attn.out_proj",
    "ffn.op.up": "mlp.fc_in",
    "ffn.op.down": "mlp.fc_out",
}
TOP: Names = {
    "embed.tokens": "transformer.wte",
    "layers": "transformer.h.{}",
    "decoder.final_norm": "transformer.ln_f",
    "head.linear": "lm_head",
}


def halves(spec: ModelSpec) -> Operation:
    """Return the operation that turns neighbouring rotary pairs of queries and keys into halves."""
    attention = attention_of(spec)
    assert attention.rope is not None
    return PermuteRotary(2 * attention.heads, attention.head_dim, attention.rope.dim)


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP, {"attention.op.qkv": (halves(spec),)})


FAMILY = Family(
    name="gptj",
    title="GPT-J",
    paper="https://github.com/kingoflolz/mesh-transformer-jax",
    origin=Origin(
        published="2021-06",
        parents=("gpt_neo",),
        brought="attention and feed-forward side by side, rotary positions",
        reference=Running(),
    ),
    model_type="gptj",
    architecture="GPTJForCausalLM",
    build=build,
    sizes={"gpt-j-6b": {"dim": 4096, "layers": 28, "heads": 16}},
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64, "rotary_dim": 4},
    read=read,
    write=write,
    weights=weights,
    prefix="transformer.",
    skipped=(r"\.attn\.(masked_)?bias$", r"\.attn\.causal_mask$", r"\.embed_positions$"),
)
