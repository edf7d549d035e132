"""Mamba-2 (Dao & Gu 2024, arXiv:2405.21060).

What was new over Mamba: one decay per head instead of one per channel and memory, so that training is products of
matrices; projections from the stream at once, and a gated norm before the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import mamba
from etymon.families.descent import decoder
from etymon.families.family import Family, Format, Tensors
from etymon.families.keys import Keys, op_of
from etymon.families.mamba import INITIAL, RUNNING
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LM, Block, DualSSM, ModelSpec, RMSNorm, Sub

UNLIMITED = (0.0, float("inf"))


def build(
    *,
    name: str = "mamba2",
    vocab: int = 50288,
    dim: int,
    layers: int,
    heads: int | None = None,
    head_dim: int = 64,
    groups: int = 1,
    state: int = 128,
    kernel: int = 4,
    context: int = 2048,
    eps: float = 1e-5,
    activation: str = "silu",
    bias: bool = False,
    conv_bias: bool = True,
    step_limit: tuple[float, float] | None = None,
    tied: bool = True,
) -> ModelSpec:
    """Return the spec of a Mamba-2 of these dimensions; the heads have 2 dim channels together by default."""
    op = DualSSM(
        heads=heads or 2 * dim // head_dim,
        head_dim=head_dim,
        state=state,
        groups=groups,
        kernel=kernel,
        activation=activation,
        bias=bias,
        conv_bias=conv_bias,
        eps=eps,
        step_limit=step_limit,
    )
    norm = RMSNorm(eps=eps)
    block = Block(subs=(Sub(pre=norm, op=op),))
    blocks, head = (block,) * layers, LM(tied=tied)
    return decoder(blocks, norm, head, name=name, family="mamba2", vocab=vocab, dim=dim, context=context)


KEYS = Keys(
    measures={
        "heads": (int, lambda spec: op_of(spec, DualSSM).heads),
        "head_dim": (int, lambda spec: op_of(spec, DualSSM).head_dim),
        "groups": (int, lambda spec: op_of(spec, DualSSM).groups),
        "state": (int, lambda spec: op_of(spec, DualSSM).state),
        "kernel": (int, lambda spec: op_of(spec, DualSSM).kernel),
        "bias": (bool, lambda spec: op_of(spec, DualSSM).bias),
        "conv_bias": (bool, lambda spec: op_of(spec, DualSSM).conv_bias),
    },
    vocab=("vocab_size", 32768),
    dim=("hidden_size", 4096),
    layers=("num_hidden_layers", 64),
    heads=("num_heads", 128),
    head_dim=("head_dim", 64),
    groups=("n_groups", 8),
    state=("state_size", 128),
    kernel=("conv_kernel", 4),
    context=("max_position_embeddings", 2048),
    eps=("layer_norm_epsilon", 1e-5),
    bias=("use_bias", False),
    conv_bias=("use_conv_bias", True),
    tied=("tie_word_embeddings", False),
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "mamba2"."""
    reader.skip(*INITIAL, *RUNNING, "time_step_rank")
    sizes = KEYS.read(reader)
    reader.expect("expand", sizes["heads"] * sizes["head_dim"] / sizes["dim"])
    # (the reference writes infinity as {"__float__": "Infinity"}, others as JSON's Infinity)
    limit = reader.take("time_step_limit", list, list(UNLIMITED))
    low, high = (float(x["__float__"] if isinstance(x, dict) else x) for x in limit)
    activation = reader.take("hidden_act", str, "silu")
    return build(**sizes, activation=activation, step_limit=None if (low, high) == UNLIMITED else (low, high))


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    op = op_of(spec, DualSSM)
    limit = {} if op.step_limit is None else {"time_step_limit": list(op.step_limit)}
    return KEYS.write(spec) | limit | {"expand": op.inner // spec.dim, "hidden_act": op.activation}


LAYER: Names = {**mamba.LAYER, "ssm.op.step_bias": "mixer.dt_bias", "ssm.op.norm": "mixer.norm.weight"}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, mamba.TOP)


FAMILY = Family(
    name="mamba2",
    title="Mamba-2",
    paper="https://arxiv.org/abs/2405.21060",
    origin=Origin(
        published="2024-05",
        parents=("mamba",),
        brought="state spaces and attention are two forms of one product",
        reference=Running(),
        counts={
            "mamba2-130m": "129M",
            "mamba2-370m": "368M",
            "mamba2-780m": "780M",
            "mamba2-1.3b": "1.344B",
            "mamba2-2.7b": "2.703B",
        },
    ),
    build=build,
    sizes={
        "mamba2-130m": {"dim": 768, "layers": 24},
        "mamba2-370m": {"dim": 1024, "layers": 48},
        "mamba2-780m": {"dim": 1536, "layers": 48},
        "mamba2-1.3b": {"dim": 2048, "layers": 48},
        "mamba2-2.7b": {"dim": 2560, "layers": 64},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 8, "head_dim": 8, "groups": 2, "state": 16, "context": 64},
    format=Format(
        model_type="mamba2",
        architecture="Mamba2ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="backbone.",
    ),
)
