"""StarCoder (Li et al. 2023, arXiv:2305.06161) and SantaCoder (Allal et al. 2023, arXiv:2301.03988).

What was new over GPT-2: one head of keys and values for all query heads, a context of 8192.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import gpt2
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, extends
from etymon.families.gpt_neo import TOP
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import ModelSpec


@extends(gpt2.build)
def build(*, name: str = "gpt_bigcode", kv_heads: int = 1, **dimensions: Any) -> ModelSpec:
    """Return the spec of a StarCoder of these dimensions."""
    spec = gpt2.build(name=name, **dimensions)
    return with_blocks(spec, "gpt_bigcode", lambda block: with_attention(block, kv_heads=kv_heads))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gpt_bigcode"."""
    activation = reader.take("activation_function", str, "gelu_pytorch_tanh")
    reader.expect("scale_attn_weights", True)
    for key in (
        *("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads", "n_ctx"),
        *("inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache"),
        "validate_runner_input",
    ):
        reader.take(key, object, None)  # precision and buffers of the scores, bookkeeping
    heads = reader.take("n_head", int, 12)
    return build(
        vocab=reader.take("vocab_size", int, 50257),
        dim=reader.take("n_embd", int, 768),
        layers=reader.take("n_layer", int, 12),
        heads=heads,
        kv_heads=1 if reader.take("multi_query", bool, True) else heads,
        context=reader.take("n_positions", int, 1024),
        hidden=reader.take("n_inner", int, None),
        eps=reader.take("layer_norm_epsilon", float, 1e-5),
        activation=gpt2.ACTIVATIONS.get(activation, activation),
        tied=reader.take("tie_word_embeddings", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    published = gpt2.write(spec)
    del published["scale_attn_by_inverse_layer_idx"]
    activation = published["activation_function"]
    return published | {
        "multi_query": attention_of(spec).kv_heads == 1,
        "activation_function": {"gelu_new": "gelu_pytorch_tanh"}.get(activation, activation),
    }


LAYER: Names = {
    "attention.pre": "ln_1",
    "attention.op.qkv": "attn.c_attn",
    "attention.op.out": "attn.c_proj",
    "ffn.pre": "ln_2",
    "ffn.op.up": "mlp.c_fc",
    "ffn.op.down": "mlp.c_proj",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; with as many key heads as heads, every head's q, k and v stand together."""
    attention = attention_of(spec)
    by_head = (Regroup(attention.heads, (attention.head_dim,) * 3),) if attention.kv_heads > 1 else ()
    return table(spec, LAYER, TOP, {"attention.op.qkv": by_head})


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
    ),
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    build=build,
    sizes={
        "starcoder": _SIZE | {"dim": 6144, "layers": 40, "heads": 48},
        "starcoderbase-7b": _SIZE | {"dim": 4096, "layers": 42, "heads": 32},
        "starcoderbase-3b": _SIZE | {"dim": 2816, "layers": 36, "heads": 22},
        "starcoderbase-1b": _SIZE | {"dim": 2048, "layers": 24, "heads": 16},
    },
    tiny=gpt2.FAMILY.tiny,
    read=read,
    write=write,
    weights=weights,
    prefix="transformer.",
    skipped=(r"\.attn\.(masked_)?bias$",),
)
