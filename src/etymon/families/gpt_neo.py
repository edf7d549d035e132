"""GPT-Neo (Black et al. 2021).

An open GPT-3: windows of 256 on every second layer, scores that are not scaled, no biases on queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import gpt2
from etymon.families.descent import with_attention, with_blocks, with_windows
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import Attention, ModelSpec


@extends(gpt2.build)
def build(
    *, name: str = "gpt_neo", layers: int, context: int = 2048, window: int | None = 256, **rest: Any
) -> ModelSpec:
    """Return the spec of a GPT-Neo; `window` is that of the second, fourth, … layer."""
    spec = gpt2.build(name=name, layers=layers, context=context, **rest)
    spec = with_blocks(spec, "gpt_neo", lambda block: with_attention(block, bias="o", scale=1.0))
    return with_windows(spec, "gpt_neo", [window if i % 2 else None for i in range(layers)])


KEYS = Keys(
    vocab=("vocab_size", 50257),
    dim=("hidden_size", 2048),
    layers=("num_layers", 24),
    heads=("num_heads", 16),
    hidden=("intermediate_size", None),
    context=("max_position_embeddings", 2048),
    eps=("layer_norm_epsilon", 1e-5),
    activation=("activation_function", "gelu_new"),
    tied=("tie_word_embeddings", True),
    gelu_tanh="gelu_new",
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gpt_neo"."""
    sizes = KEYS.read(reader)
    window = reader.take("window_size", int, 256)
    types = reader.take("attention_types", list, [[["global", "local"], sizes["layers"] // 2]])
    kinds = [kind for pattern, times in types for kind in pattern * times]
    reader.skip("attention_layers", "resid_dropout", "embed_dropout")  # the first is the same, written out
    return with_windows(build(**sizes), "gpt_neo", [window if kind == "local" else None for kind in kinds])


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    windows = [sub.op.window for block in spec.trunk.blocks for sub in block.subs if isinstance(sub.op, Attention)]
    kinds = ["global" if window is None else "local" for window in windows]
    window = next((window for window in windows if window is not None), 256)
    return KEYS.write(spec) | {"attention_types": [[kinds, 1]], "window_size": window}


LAYER: Names = {
    **gpt2.LAYER,
    "attention.op.qkv": ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    "attention.op.out": "attn.attention.out_proj",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, gpt2.TOP)


FAMILY = Family(
    name="gpt_neo",
    title="GPT-Neo",
    paper="https://github.com/EleutherAI/gpt-neo",
    origin=Origin(
        published="2021-03",
        parents=("gpt3",),
        brought="the first open replication of GPT-3's small sizes",
        reference=Running(),
        counts={"gpt-neo-125m": "125.2M", "gpt-neo-1.3b": "1.316B", "gpt-neo-2.7b": "2.651B"},
    ),
    build=build,
    sizes={
        "gpt-neo-125m": {"dim": 768, "layers": 12, "heads": 12},
        "gpt-neo-1.3b": {"dim": 2048, "layers": 24, "heads": 16},
        "gpt-neo-2.7b": {"dim": 2560, "layers": 32, "heads": 20},
    },
    tiny=gpt2.FAMILY.tiny | {"window": 16},
    format=Format(
        model_type="gpt_neo",
        architecture="GPTNeoForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
        skipped=(r"\.attention\.(masked_)?bias$",),
    ),
)
