"""RWKV-4 (Peng et al. 2023, arXiv:2305.13048).

What was new over transformers: attention whose weights depend on key and distance only, so that it is a recurrence with
a memory of three numbers per channel; every layer sees a position mixed with the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator

from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys, op_of
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LM, Block, ChannelMix, Embed, LayerNorm, ModelSpec, Stack, Sub, TimeMix


def build(
    *,
    name: str = "rwkv",
    vocab: int = 50277,
    dim: int,
    layers: int,
    width: int | None = None,
    hidden: int | None = None,
    context: int = 1024,
    eps: float = 1e-5,
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of an RWKV-4: `width` channels in time mixing (dim), `hidden` in channel mixing (4 dim)."""
    norm = LayerNorm(eps=eps)
    time_mix, channel_mix = TimeMix(hidden=width or dim), ChannelMix(hidden=hidden or 4 * dim)
    block = Block(subs=(Sub(pre=norm, op=time_mix), Sub(pre=norm, op=channel_mix)))
    return ModelSpec(
        name=name,
        family="rwkv",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(norm=norm),
        decoder=Stack(blocks=(block,) * layers, final_norm=LayerNorm(eps=1e-5)),
        head=LM(tied=tied),
    )


def _eps(spec: ModelSpec) -> float:
    """Return the epsilon of all norms but the last, whose own is fixed."""
    assert spec.embed.norm is not None
    return spec.embed.norm.eps


KEYS = Keys(
    measures={
        "eps": (float, _eps),
        "width": (int, lambda spec: op_of(spec, TimeMix).hidden),
        "hidden": (int, lambda spec: op_of(spec, ChannelMix).hidden),
    },
    vocab=("vocab_size", 50277),
    dim=("hidden_size", 4096),
    layers=("num_hidden_layers", 32),
    width=("attention_hidden_size", None),
    hidden=("intermediate_size", None),
    context=("context_length", 1024),
    eps=("layer_norm_epsilon", 1e-5),
    tied=("tie_word_embeddings", False),
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "rwkv"."""
    reader.skip("rescale_every")  # halves the stream now and then, against overflow; the last norm undoes it
    return build(**KEYS.read(reader))


MIXTURES = {"mix_key": "time_mix_key", "mix_value": "time_mix_value", "mix_gate": "time_mix_receptance"}


LAYER: Names = {
    "time_mix.pre": "ln1",
    "channel_mix.pre": "ln2",
    **{f"time_mix.op.{own}": f"attention.{name}" for own, name in MIXTURES.items()},
    "time_mix.op.decay": "attention.time_decay",
    "time_mix.op.bonus": "attention.time_first",
    "time_mix.op.key": "attention.key",
    "time_mix.op.value": "attention.value",
    "time_mix.op.gate": "attention.receptance",
    "time_mix.op.out": "attention.output",
    "channel_mix.op.mix_key": f"feed_forward.{MIXTURES['mix_key']}",
    "channel_mix.op.mix_gate": f"feed_forward.{MIXTURES['mix_gate']}",
    "channel_mix.op.key": "feed_forward.key",
    "channel_mix.op.gate": "feed_forward.receptance",
    "channel_mix.op.out": "feed_forward.value",
}
TOP: Names = {
    "embed.tokens": "rwkv.embeddings",
    "embed.norm": "rwkv.blocks.0.pre_ln",
    "layers": "rwkv.blocks.{}",
    "decoder.final_norm": "rwkv.ln_out",
    "head.linear": "head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP)


FAMILY = Family(
    name="rwkv",
    title="RWKV-4",
    paper="https://arxiv.org/abs/2305.13048",
    origin=Origin(
        published="2023-05",
        parents=("gpt2", "lstm"),
        brought="a recurrent network that trains in parallel like a Transformer",
        reference=Running(),
        counts={
            "rwkv4-169m": "169M",
            "rwkv4-430m": "430M",
            "rwkv4-1.5b": "1.515B",
            "rwkv4-3b": "2.985B",
            "rwkv4-7b": "7.393B",
            "rwkv4-14b": "14.15B",
        },
    ),
    build=build,
    sizes={
        "rwkv4-169m": {"dim": 768, "layers": 12},
        "rwkv4-430m": {"dim": 1024, "layers": 24},
        "rwkv4-1.5b": {"dim": 2048, "layers": 24},
        "rwkv4-3b": {"dim": 2560, "layers": 32},
        "rwkv4-7b": {"dim": 4096, "layers": 32},
        "rwkv4-14b": {"dim": 5120, "layers": 40},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "context": 64},
    format=Format(
        model_type="rwkv",
        architecture="RwkvForCausalLM",
        read=read,
        write=KEYS.write,
    ),
    tensors=Tensors(
        weights=weights,
        head_name="head.weight",
        prefix="rwkv.",
    ),
)
