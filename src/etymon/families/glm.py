"""GLM (Du et al. 2021, arXiv:2103.10360).

What was new over GPT-2: a text whose blanks are filled in, one after the other, by one network: the text sees itself,
each filling sees the text and what was filled in before. Positions have two axes: a filling's tokens stand at their
blank, and a second table counts them. Where the text ends is said by every call (`attention_mask` [batch]), or found by
the id `begin`, which published configs do not name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LM, Attention, Block, Dense, Embed, Infill, LayerNorm, Learned, ModelSpec, Stack, Sub


def build(
    *,
    name: str = "glm",
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    context: int = 1024,
    eps: float = 1e-5,
    begin: int | None = None,
    blanks: tuple[int, ...] = (),
) -> ModelSpec:
    """Return the spec of a GLM of these dimensions; a filling begins with the id `begin`, at one of `blanks`."""
    if dim % heads:
        raise ConfigError(f"glm: dim={dim} must be a multiple of heads={heads}")
    norm = LayerNorm(eps=eps)
    attention = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, bias="qkvo")
    ffn = Dense(hidden=4 * dim, activation="gelu_tanh")
    block = Block(subs=(Sub(op=attention, pre=norm), Sub(op=ffn, pre=norm)))
    return ModelSpec(
        name=name,
        family="glm",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(position=Learned(length=context + 1, axes=2)),
        decoder=Stack(blocks=(block,) * layers, final_norm=norm, visibility=Infill(begin=begin, blanks=blanks)),
        head=LM(tied=True),
    )


KEYS = Keys(
    vocab="vocab_size",
    dim="hidden_size",
    layers="num_layers",
    heads="num_attention_heads",
    context="max_sequence_length",
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "glm" that has the key "block_position_encoding"."""
    reader.expect("block_position_encoding", True)
    reader.expect("relative_encoding", False)
    reader.expect("attention_scale", 1.0)
    reader.skip("checkpoint_activations", "checkpoint_num_layers", "parallel_output")  # of training and its machines
    reader.skip(*(f"{part}_dropout_prob" for part in ("attention", "embedding", "output")))
    reader.skip("output_predict", "pool_token", "spell_length", "spell_func")  # of heads that this model does not have
    begin, blanks = reader.take("sop_token_id", int, None), reader.take("blank_token_ids", list, [])
    return build(**KEYS.read(reader), begin=begin, blanks=tuple(blanks))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made; ours are the ids that published ones do not name."""
    rule = spec.trunk.visibility
    assert isinstance(rule, Infill)
    ids = {"sop_token_id": rule.begin, "blank_token_ids": list(rule.blanks)} if rule.begin is not None else {}
    return KEYS.write(spec) | ids | {"block_position_encoding": True, "attention_scale": 1.0}


LAYER: Names = {
    "attention.pre": "input_layernorm",
    "attention.op.qkv": "attention.query_key_value",
    "attention.op.out": "attention.dense",
    "ffn.pre": "post_attention_layernorm",
    "ffn.op.up": "mlp.dense_h_to_4h",
    "ffn.op.down": "mlp.dense_4h_to_h",
}
TOP: Names = {
    "embed.tokens": "word_embeddings",
    "embed.positions": "transformer.position_embeddings",
    "embed.blocks": "transformer.block_position_embeddings",
    "layers": "transformer.layers.{}",
    "decoder.final_norm": "transformer.final_layernorm",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order, those of one model-parallel rank."""
    return table(spec, LAYER, TOP)


_ENGLISH = {"vocab": 30592, "context": 512}
_LARGER = {"vocab": 50304, "context": 1024}
FAMILY = Family(
    name="glm",
    title="GLM",
    paper="https://arxiv.org/abs/2103.10360",
    origin=Origin(
        published="2021-03",
        parents=("gpt2", "bert"),
        brought="blanks of a text filled in from left to right, with positions of two axes",
        reference=Recorded("THUDM/GLM"),
        counts={
            "glm-base": 109_338_624,
            "glm-large": 334_688_256,
            "glm-515m": "515M",
            "glm-2b": 1_920_122_880,
            "glm-10b": 9_880_682_496,
        },
    ),
    build=build,
    sizes={
        "glm-base": _ENGLISH | {"dim": 768, "layers": 12, "heads": 12},
        "glm-large": _ENGLISH | {"dim": 1024, "layers": 24, "heads": 16},
        "glm-515m": _ENGLISH | {"dim": 1152, "layers": 30, "heads": 18},
        "glm-2b": _LARGER | {"dim": 2048, "layers": 36, "heads": 32},
        "glm-10b": _LARGER | {"dim": 4096, "layers": 48, "heads": 64},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="glm",
        sign="block_position_encoding",
        architecture="GLMForConditionalGeneration",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        renamed={r"^glm\.": ""},
    ),
)
