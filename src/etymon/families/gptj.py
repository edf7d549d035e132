"""GPT-J-6B (Wang & Komatsuzaki 2021).

What was new over GPT-3: attention and feed-forward layer side by side after one norm, rotary positions on the first 64
channels of each head, no biases in attention, an untied head with a bias. Published checkpoints rotate neighbouring
pairs; their rows are permuted when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator

from etymon.families.descent import attention_of, decoder, side_by_side
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys
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


KEYS = Keys(
    vocab=("vocab_size", 50400),
    dim=("n_embd", 4096),
    layers=("n_layer", 28),
    heads=("n_head", 16),
    hidden=("n_inner", None),
    context=("n_positions", 2048),
    rotary_dim=("rotary_dim", 64),
    eps=("layer_norm_epsilon", 1e-5),
    activation=("activation_function", "gelu_new"),
    tied=("tie_word_embeddings", False),
    gelu_tanh="gelu_new",
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gptj"."""
    reader.expect("rotary", True)
    reader.expect("scale_attn_weights", True)
    reader.skip("n_ctx")
    return build(**KEYS.read(reader))


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
        counts={"gpt-j-6b": "6.051B"},
    ),
    build=build,
    sizes={"gpt-j-6b": {"dim": 4096, "layers": 28, "heads": 16}},
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64, "rotary_dim": 4},
    format=Format(
        model_type="gptj",
        architecture="GPTJForCausalLM",
        read=read,
        write=KEYS.write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
        skipped=(r"\.attn\.(masked_)?bias$", r"\.attn\.causal_mask$", r"\.embed_positions$"),
    ),
)
