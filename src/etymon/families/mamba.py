"""Mamba (Gu & Dao 2023, arXiv:2312.00752).

What was new over transformers: no attention. One layer per block, a selective state space behind a short convolution,
so that generation takes the same time and memory at any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families.descent import decoder
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys, op_of
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LM, Block, ModelSpec, RMSNorm, SelectiveSSM, Sub


def build(
    *,
    name: str = "mamba",
    vocab: int = 50280,
    dim: int,
    layers: int,
    inner: int | None = None,
    state: int = 16,
    rank: int | None = None,
    kernel: int = 4,
    context: int = 2048,
    eps: float = 1e-5,
    activation: str = "silu",
    bias: bool = False,
    conv_bias: bool = True,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a Mamba of these dimensions: `inner` channels (2 dim) with `state` numbers of memory each."""
    op = SelectiveSSM(
        inner=inner or 2 * dim,
        state=state,
        rank=rank or -(-dim // 16),
        kernel=kernel,
        activation=activation,
        bias=bias,
        conv_bias=conv_bias,
    )
    norm = RMSNorm(eps=eps)
    block = Block(subs=(Sub(pre=norm, op=op),))
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, name=name, family="mamba", vocab=vocab, dim=dim, context=context)


# How fresh weights are drawn, and how the reference computes: nothing that changes the function.
INITIAL = ("time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor")
RUNNING = ("residual_in_fp32", "rescale_prenorm_residual", "use_mambapy", "use_associative_scan", "chunk_size")


KEYS = Keys(
    measures={
        "state": (int, lambda spec: op_of(spec, SelectiveSSM).state),
        "kernel": (int, lambda spec: op_of(spec, SelectiveSSM).kernel),
        "bias": (bool, lambda spec: op_of(spec, SelectiveSSM).bias),
        "conv_bias": (bool, lambda spec: op_of(spec, SelectiveSSM).conv_bias),
    },
    vocab=("vocab_size", 50280),
    dim=("hidden_size", 768),
    layers=("num_hidden_layers", 32),
    state=("state_size", 16),
    kernel=("conv_kernel", 4),
    context=("max_position_embeddings", 2048),
    eps=("layer_norm_epsilon", 1e-5),
    bias=("use_bias", False),
    conv_bias=("use_conv_bias", True),
    tied=("tie_word_embeddings", True),
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "mamba"."""
    reader.skip(*INITIAL, *RUNNING)
    sizes = KEYS.read(reader)
    inner = int(reader.take("expand", float, 2.0) * sizes["dim"])
    reader.expect("intermediate_size", inner)
    rank = reader.take("time_step_rank", object, "auto")
    activation = reader.take("hidden_act", str, "silu")
    return build(**sizes, inner=inner, rank=rank if isinstance(rank, int) else None, activation=activation)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    op = op_of(spec, SelectiveSSM)
    expand, rest = divmod(op.inner, spec.dim)
    return KEYS.write(spec) | {
        "expand": op.inner / spec.dim if rest else expand,
        "time_step_rank": op.rank,
        "hidden_act": op.activation,
    }


LAYER: Names = {
    "ssm.pre": "norm",
    "ssm.op.log_decay": "mixer.A_log",
    "ssm.op.skip": "mixer.D",
    "ssm.op.conv": "mixer.conv1d",
    "ssm.op.into": "mixer.in_proj",
    "ssm.op.select": "mixer.x_proj",
    "ssm.op.step": "mixer.dt_proj",
    "ssm.op.out": "mixer.out_proj",
}
TOP: Names = {
    "embed.tokens": "backbone.embeddings",
    "layers": "backbone.layers.{}",
    "decoder.final_norm": "backbone.norm_f",
    "head.linear": "lm_head",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, TOP)


FAMILY = Family(
    name="mamba",
    title="Mamba",
    paper="https://arxiv.org/abs/2312.00752",
    origin=Origin(
        published="2023-12",
        parents=("s4",),
        brought="a state space that chooses what to remember, in linear time",
        reference=Running(),
        counts={
            "mamba-130m": "129M",
            "mamba-370m": "372M",
            "mamba-790m": "793M",
            "mamba-1.4b": "1.372B",
            "mamba-2.8b": "2.768B",
        },
    ),
    build=build,
    sizes={
        "mamba-130m": {"dim": 768, "layers": 24},
        "mamba-370m": {"dim": 1024, "layers": 48},
        "mamba-790m": {"dim": 1536, "layers": 48},
        "mamba-1.4b": {"dim": 2048, "layers": 48},
        "mamba-2.8b": {"dim": 2560, "layers": 64},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "state": 8, "context": 64},
    format=Format(
        model_type="mamba",
        architecture="MambaForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="backbone.",
    ),
)
