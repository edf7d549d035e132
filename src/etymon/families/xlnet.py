"""XLNet (Yang et al. 2019, arXiv:1906.08237).

What was new over BERT: tokens are predicted in a random order, each from those before it in that order, by a second
stream that knows the place it predicts but not what stands there; so no token needs to be masked. Transformer-XL's
memory of earlier segments and its distances are kept, and scores know whether two tokens are of the same segment.

A call's order is its `perm_mask`, what it predicts its `target_mapping`; a state is the reference's `mems`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import bert
from etymon.families.descent import attention_of
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import ACTIVATIONS
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.weights import Concat, Reshape, Rule, Transpose, affine
from etymon.spec import (
    LM,
    Attention,
    Bidirectional,
    Block,
    Causal,
    Dense,
    Embed,
    Head,
    Hidden,
    LayerNorm,
    ModelSpec,
    Permuted,
    RelativeSinusoids,
    Stack,
    Sub,
)

ATTENTION: dict[str, Causal | Bidirectional] = {"bi": Bidirectional(), "uni": Causal()}


def build(
    *,
    name: str = "xlnet",
    vocab: int = 32000,
    dim: int,
    layers: int,
    heads: int,
    hidden: int | None = None,
    context: int = 512,
    clamp: int | None = None,
    attention: str = "bi",
    eps: float = 1e-12,
    activation: str = "gelu",
    head: Head | None = None,
) -> ModelSpec:
    """Return the spec of an XLNet of these dimensions; `attention` is "bi", or "uni" where no token sees later ones."""
    if dim % heads:
        raise ConfigError(f"xlnet: dim={dim} must be a multiple of heads={heads}")
    if attention not in ATTENTION:
        raise ConfigError(f"xlnet: attention={attention!r} must be 'bi' or 'uni'")
    norm, scores = LayerNorm(eps=eps), RelativeSinusoids(clamp=clamp, segments=True)
    op = Attention(heads=heads, kv_heads=heads, head_dim=dim // heads, scores=scores)
    ffn = Dense(hidden=hidden or 4 * dim, activation=activation)
    return ModelSpec(
        name=name,
        family="xlnet",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(),
        encoder=Stack(
            blocks=(Block(subs=(Sub(op=op, post=norm), Sub(op=ffn, post=norm))),) * layers,
            final_norm=None,
            visibility=Permuted(within=ATTENTION[attention]),
        ),
        head=head or LM(tied=True, bias=True),
    )


IGNORED = "mem_len reuse_len use_mems_eval use_mems_train summary_type summary_use_proj summary_activation".split()


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "xlnet". How much it remembers is up to whoever makes a state."""
    architecture, _ = bert.read_architecture(reader, ("XLNetLMHeadModel", "XLNetModel"))
    dim, heads = reader.take("d_model", int, 1024), reader.take("n_head", int, 16)
    for key in (*IGNORED, "summary_last_dropout", "start_n_top", "end_n_top", "ff_dropout", "init", "init_range"):
        reader.take(key, object, None)  # memory between calls, and heads that language models do not have
    reader.expect("d_head", dim // heads)
    reader.expect("same_length", False)
    reader.expect("bi_data", False)
    reader.expect("untie_r", True)
    reader.expect("tie_word_embeddings", True)
    clamp, activation = reader.take("clamp_len", int, -1), reader.take("ff_activation", str, "gelu")
    return build(
        vocab=reader.take("vocab_size", int, reader.take("n_token", int, 32000)),
        dim=dim,
        layers=reader.take("n_layer", int, 24),
        heads=heads,
        hidden=reader.take("d_inner", int, 4096),
        context=reader.take("max_position_embeddings", int, 512),
        clamp=clamp if clamp > 0 else None,
        attention=reader.take("attn_type", str, "bi"),
        eps=reader.take("layer_norm_eps", float, 1e-12),
        activation=ACTIVATIONS.get(activation, activation),
        head=Hidden() if architecture == "XLNetModel" else None,
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, ffn, norm = attention_of(spec), spec.trunk.blocks[0].subs[1].op, spec.trunk.blocks[0].subs[0].post
    assert isinstance(ffn, Dense) and isinstance(norm, LayerNorm) and isinstance(attention.scores, RelativeSinusoids)
    assert isinstance(spec.trunk.visibility, Permuted)
    return {
        "architectures": ["XLNetLMHeadModel" if isinstance(spec.head, LM) else "XLNetModel"],
        "vocab_size": spec.vocab,
        "d_model": spec.dim,
        "n_layer": len(spec.trunk.blocks),
        "n_head": attention.heads,
        "d_head": attention.head_dim,
        "d_inner": ffn.hidden,
        "ff_activation": {"gelu_tanh": "gelu_new"}.get(ffn.activation, ffn.activation),
        "attn_type": "uni" if isinstance(spec.trunk.visibility.within, Causal) else "bi",
        "clamp_len": attention.scores.clamp or -1,
        "layer_norm_eps": norm.eps,
        "mem_len": None,
    }


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order, where heads have a dimension of their own."""
    op, dim = attention_of(spec), spec.dim
    flat = Reshape((dim, op.heads, op.head_dim), (dim, op.query_width))
    yield Rule("encoder.query.weight", ("transformer.mask_emb",), (Reshape((1, 1, dim), (1, dim)),))
    yield Rule("embed.tokens.weight", ("transformer.word_embedding.weight",))
    for i in range(len(spec.trunk.blocks)):
        ours, theirs = f"encoder.blocks.{i}", f"transformer.layer.{i}"
        op_ours, op_theirs = f"{ours}.attention.op", f"{theirs}.rel_attn"
        qkv = tuple(f"{op_theirs}.{part}" for part in "qkv")
        yield Rule(f"{op_ours}.qkv.weight", qkv, (flat, Transpose(), Concat((op.query_width,) * 3)))
        yield Rule(f"{op_ours}.out.weight", (f"{op_theirs}.o",), (flat,))
        yield Rule(f"{op_ours}.scores.distances.weight", (f"{op_theirs}.r",), (flat, Transpose()))
        for own, published in {"u": "r_w_bias", "v": "r_r_bias", "s": "r_s_bias"}.items():
            yield Rule(f"{op_ours}.scores.{own}.weight", (f"{op_theirs}.{published}",))
        segments = Reshape((2, op.heads, op.head_dim), (2, op.query_width))
        yield Rule(f"{op_ours}.scores.segments.weight", (f"{op_theirs}.seg_embed",), (segments,))
        yield from affine(f"{ours}.attention.post", f"{op_theirs}.layer_norm", bias=True)
        yield from affine(f"{ours}.ffn.op.up", f"{theirs}.ff.layer_1", bias=True)
        yield from affine(f"{ours}.ffn.op.down", f"{theirs}.ff.layer_2", bias=True)
        yield from affine(f"{ours}.ffn.post", f"{theirs}.ff.layer_norm", bias=True)
    if isinstance(spec.head, LM):
        yield Rule("head.linear.bias", ("lm_loss.bias",))


FAMILY = Family(
    name="xlnet",
    title="XLNet",
    paper="https://arxiv.org/abs/1906.08237",
    origin=Origin(
        published="2019-06",
        parents=("bert", "transformer_xl"),
        brought="prediction in any order, by a second stream that sees no token it predicts",
        reference=Running(),
        counts={"xlnet-base-cased": 116_750_336, "xlnet-large-cased": 360_300_800},
        claims={
            "xlnet-base-cased": "110M, without the projections of distances",
            "xlnet-large-cased": "340M, as for BERT: without the projections of distances",
        },
    ),
    build=build,
    sizes={
        "xlnet-base-cased": {"dim": 768, "layers": 12, "heads": 12},
        "xlnet-large-cased": {"dim": 1024, "layers": 24, "heads": 16},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 64, "clamp": 7},
    objective="plm",
    format=Format(
        model_type="xlnet",
        architecture="XLNetLMHeadModel",
        tokenizer="XLNetTokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="lm_loss.weight",
        prefix="transformer.",
    ),
)
