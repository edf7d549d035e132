"""StarCoder (Li et al. 2023, arXiv:2305.06161) and SantaCoder (Allal et al. 2023, arXiv:2301.03988).

What was new over GPT-2: one head of keys and values for all query heads, a context of 8192.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import gpt2
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.keys import Keys
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import table
from etymon.families.weights import Regroup, Rule
from etymon.spec import ModelSpec


@extends(gpt2.build)
def build(*, name: str = "gpt_bigcode", kv_heads: int = 1, **dimensions: Any) -> ModelSpec:
    """Return the spec of a StarCoder of these dimensions."""
    spec = gpt2.build(name=name, **dimensions)
    return with_blocks(spec, "gpt_bigcode", lambda block: with_attention(block, kv_heads=kv_heads))


KEYS = Keys(
    vocab=("vocab_size", 50257),
    dim=("n_embd", 768),
    layers=("n_layer", 12),
    heads=("n_head", 12),
    context=("n_positions", 1024),
    hidden=("n_inner", None),
    eps=("layer_norm_epsilon", 1e-5),
    activation=("activation_function", "gelu_pytorch_tanh"),
    tied=("tie_word_embeddings", True),
)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gpt_bigcode"."""
    reader.expect("scale_attn_weights", True)
    reader.skip("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads", "n_ctx")
    reader.skip("inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache")
    reader.skip("validate_runner_input")
    sizes = KEYS.read(reader)
    return build(**sizes, kv_heads=1 if reader.take("multi_query", bool, True) else sizes["heads"])


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    return KEYS.write(spec) | {"multi_query": attention_of(spec).kv_heads == 1}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; with as many key heads as heads, every head's q, k and v stand together."""
    attention = attention_of(spec)
    by_head = (Regroup(attention.heads, (attention.head_dim,) * 3),) if attention.kv_heads > 1 else ()
    return table(spec, gpt2.LAYER, gpt2.TOP, {"attention.op.qkv": by_head})


_SIZE = {"vocab": 49152, "context": 8192}
FAMILY = Family(
    name="gpt_bigcode",
    title="StarCoder",
    paper="https://arxiv.org/abs/2305.06161",
    origin=Origin(
        published="2023-05",
        parents=("santacoder", "gpt2"),
        brought="code with permission: trained on licensed repositories, fills in the middle",
        reference=Running(),
        counts={
            "starcoder": "15.517B",
            "starcoderbase-7b": "7.327B",
            "starcoderbase-3b": "3.043B",
            "starcoderbase-1b": "1.137B",
        },
    ),
    build=build,
    sizes={
        "starcoder": _SIZE | {"dim": 6144, "layers": 40, "heads": 48},
        "starcoderbase-7b": _SIZE | {"dim": 4096, "layers": 42, "heads": 32},
        "starcoderbase-3b": _SIZE | {"dim": 2816, "layers": 36, "heads": 22},
        "starcoderbase-1b": _SIZE | {"dim": 2048, "layers": 24, "heads": 16},
    },
    tiny=gpt2.FAMILY.tiny,
    format=Format(
        model_type="gpt_bigcode",
        architecture="GPTBigCodeForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
        skipped=(r"\.attn\.(masked_)?bias$",),
    ),
)
