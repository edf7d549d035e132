"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860).

What was new over the Transformer: the keys and values of earlier segments stay within sight, and scores know how far
apart two tokens are instead of where they stand: (q + u) k + (q + v) W r, with the sinusoids r of the distance.

The reference begins with a memory of `mem_len` zero vectors, which takes its share of attention; ours is empty, as in
the authors' own code. A new state whose `lengths` are set to `mem_len` holds the reference's.

The file is long because the published config has many keys that only say how the run was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families.descent import attention_of
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LM, Attention, Block, Dense, Embed, LayerNorm, ModelSpec, RelativeSinusoids, Stack, Sub


def build(
    *,
    name: str = "transformer_xl",
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    head_dim: int | None = None,
    hidden: int,
    context: int = 512,
    window: int | None = None,
    clamp: int | None = None,
    pre_norm: bool = False,
    eps: float = 1e-5,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a Transformer-XL of these dimensions; each position sees the last `window` ones, and distances
    beyond `clamp` count as that. With `pre_norm` nothing is normalised after the last block."""
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim or dim // heads,
        scores=RelativeSinusoids(clamp=clamp),
        window=window,
    )
    norm, ffn = LayerNorm(eps=eps), Dense(hidden=hidden, activation="relu")
    pre, post = (norm, None) if pre_norm else (None, norm)
    block = Block(subs=(Sub(pre=pre, op=attention, post=post), Sub(pre=pre, op=ffn, post=post)))
    return ModelSpec(
        name=name,
        family="transformer_xl",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(scale=dim**0.5),
        decoder=Stack(blocks=(block,) * layers, final_norm=None),
        head=LM(tied=tied, bias=True),
    )


TRAINING = "adaptive sample_softmax init init_range proj_init_std dropatt tie_projs proj_share_all_but_first".split()


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "transfo-xl". Raises ConfigError for an adaptive vocabulary."""
    dim = reader.take("d_model", int, 1024)
    if reader.take("div_val", int, 4) != 1 or reader.take("cutoffs", list, [20000, 40000, 200000]):
        raise ConfigError(
            f"{reader.where}: an adaptive vocabulary (div_val, cutoffs) is not supported here, only div_val = 1 "
            "without cutoffs"
        )
    reader.expect("d_embed", dim)
    reader.expect("attn_type", 0)
    reader.expect("untie_r", True)
    reader.expect("ext_len", 0)
    reader.expect("tie_weight", True)
    for key in TRAINING:
        reader.take(key, object, None)
    memory, clamp = reader.take("mem_len", int, 1600), reader.take("clamp_len", int, 1000)
    same_length = reader.take("same_length", bool, True)
    if same_length and not memory:
        raise ConfigError(f"{reader.where}: same_length with mem_len = 0 hides all tokens from one another")
    return build(
        vocab=reader.take("vocab_size", int, 267735),
        dim=dim,
        layers=reader.take("n_layer", int, 18),
        heads=reader.take("n_head", int, 16),
        head_dim=reader.take("d_head", int, 64),
        hidden=reader.take("d_inner", int, 4096),
        context=reader.take("tgt_len", int, max(memory, 512)),
        window=memory if same_length else None,
        clamp=clamp if clamp > 0 else None,
        pre_norm=reader.take("pre_lnorm", bool, False),
        eps=reader.take("layer_norm_epsilon", float, 1e-5),
        tied=reader.take("tie_word_embeddings", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made. How long a memory is kept is up to whoever makes a state:
    it is written only where it bounds what a position sees."""
    attention, ffn, first = attention_of(spec), spec.trunk.blocks[0].subs[1].op, spec.trunk.blocks[0].subs[0]
    norm = first.pre or first.post
    assert isinstance(ffn, Dense) and isinstance(norm, LayerNorm) and isinstance(attention.scores, RelativeSinusoids)
    return {
        "vocab_size": spec.vocab,
        "cutoffs": [],
        "div_val": 1,
        "adaptive": False,
        "d_model": spec.dim,
        "d_embed": spec.dim,
        "d_head": attention.head_dim,
        "d_inner": ffn.hidden,
        "n_layer": len(spec.trunk.blocks),
        "n_head": attention.heads,
        "mem_len": attention.window or 0,
        "same_length": attention.window is not None,
        "clamp_len": attention.scores.clamp or -1,
        "pre_lnorm": first.pre is not None,
        "layer_norm_epsilon": norm.eps,
        "tgt_len": spec.context,
        "tie_word_embeddings": spec.tied,
    }


LAYER: Names = {
    "attention.op.qkv": "dec_attn.qkv_net",
    "attention.op.scores.u.weight": "dec_attn.r_w_bias",
    "attention.op.scores.v.weight": "dec_attn.r_r_bias",
    "attention.op.scores.distances": "dec_attn.r_net",
    "attention.op.out": "dec_attn.o_net",
    "ffn.op.up": "pos_ff.CoreNet.0",
    "ffn.op.down": "pos_ff.CoreNet.3",
    **{f"attention.{place}": "dec_attn.layer_norm" for place in ("pre", "post")},
    **{f"ffn.{place}": "pos_ff.layer_norm" for place in ("pre", "post")},
}
TOP: Names = {
    "embed.tokens": "transformer.word_emb.emb_layers.0",
    "layers": "transformer.layers.{}",
    "head.linear": "crit.out_layers.0",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP)


FAMILY = Family(
    name="transformer_xl",
    title="Transformer-XL",
    paper="https://arxiv.org/abs/1901.02860",
    origin=Origin(
        published="2019-01",
        parents=("marian",),
        brought="sight of earlier segments, and scores that know distances",
        reference=Recorded("transformers 4.36.2"),
        counts={"transformer-xl-enwik8-12l": "41.1M", "transformer-xl-enwik8-24l": "277.3M"},
    ),
    build=build,
    sizes={
        "transformer-xl-enwik8-12l": {"vocab": 204, "dim": 512, "layers": 12, "heads": 8, "hidden": 2048},
        "transformer-xl-enwik8-24l": {"vocab": 204, "dim": 1024, "layers": 24, "heads": 8, "hidden": 3072},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 64, "clamp": 7, "window": 9},
    format=Format(
        model_type="transfo-xl",
        architecture="TransfoXLLMHeadModel",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="crit.out_layers.0.weight",
        prefix="transformer.",
        skipped=(r"\.pos_emb\.inv_freq$",),
    ),
)
