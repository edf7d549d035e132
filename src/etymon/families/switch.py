"""Switch Transformer (Fedus et al. 2021, arXiv:2101.03961).

What was new over T5: in every second layer the feed-forward layer is a mixture of up to 2,048 experts, of which a token
uses a single one; experts have a capacity, and tokens that come too late pass by. Capacity counts within one call: a
decoder that reads token by token drops nobody.

The file is long because nine sizes were published, and every expert's matrices are stored apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import t5
from etymon.families.descent import feed_forward_of, mixed_stack
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import Attention, BucketBias, Dense, Gated, ModelSpec, MoE, Seats, Stack, TopK


@extends(t5.build)
def build(
    *,
    name: str = "switch",
    layers: int,
    decoder_layers: int | None = None,
    experts: int,
    capacity: int | None = 64,
    every: int = 2,
    decoder_every: int | None = None,
    router_bias: bool = False,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a T5 whose layers `every` - 1, 2 * `every` - 1 … are mixtures, or all (1) or none (0) of them;
    `capacity` is how many tokens of a sequence an expert takes."""
    spec = t5.build(name=name, family="switch", layers=layers, decoder_layers=decoder_layers, **dimensions)
    expert = spec.trunk.blocks[0].subs[-1].op
    assert isinstance(expert, Dense | Gated) and spec.encoder is not None
    seats = None if capacity is None else Seats(tokens=capacity)
    moe = MoE(experts=experts, expert=expert, router=TopK(k=1, renormalise=False, bias=router_bias, capacity=seats))
    return dataclasses.replace(
        spec,
        encoder=mixed_stack(spec.encoder, moe, _sparse(layers, every)),
        decoder=mixed_stack(
            spec.trunk, moe, _sparse(decoder_layers or layers, every if decoder_every is None else decoder_every)
        ),
    )


def _sparse(layers: int, step: int) -> list[int]:
    """Return which layers are mixtures: every `step`th, beginning with the second."""
    return [i for i in range(layers) if step == 1 or (step > 1 and i % step == 1)]


def _mixtures(stack: Stack) -> list[int]:
    return [i for i, block in enumerate(stack.blocks) if isinstance(block.subs[-1].op, MoE)]


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "switch_transformers"."""
    for key in (*_TRAINING, *_DERIVED):
        reader.take(key, object, None)
    reader.expect("dense_act_fn", "relu")
    reader.expect("feed_forward_proj", "relu")
    reader.expect("router_dtype", "float32")
    reader.expect("router_type", "tokens_masked")
    reader.expect("num_selected_experts", 1)
    reader.expect("batch_prioritized_routing", False)
    layers = reader.take("num_layers", int, 12)
    decoder_layers = reader.take("num_decoder_layers", int, layers)
    return build(
        vocab=reader.take("vocab_size", int, 32128),
        dim=reader.take("d_model", int, 768),
        layers=layers,
        decoder_layers=decoder_layers,
        heads=reader.take("num_heads", int, 12),
        head_dim=reader.take("d_kv", int, 64),
        hidden=reader.take("d_ff", int, 2048),
        buckets=reader.take("relative_attention_num_buckets", int, 32),
        max_distance=reader.take("relative_attention_max_distance", int, 128),
        context=reader.take("n_positions", int, 512),
        eps=reader.take("layer_norm_epsilon", float, 1e-6),
        tied=reader.take("tie_word_embeddings", bool, True),
        start=reader.take("decoder_start_token_id", int, 0),
        experts=reader.take("num_experts", int, 8),
        capacity=reader.take("expert_capacity", int, 64),
        every=_step(layers, reader.take("num_sparse_encoder_layers", int, 3)),
        decoder_every=_step(decoder_layers, reader.take("num_sparse_decoder_layers", int, 3)),
        router_bias=reader.take("router_bias", bool, False),
    )


def _step(layers: int, sparse: int) -> int:
    return layers // sparse if sparse else 0


_TRAINING = ("router_jitter_noise", "router_z_loss_coef", "router_aux_loss_coef", "add_router_probs", "output_past")
_DERIVED = ("encoder_sparse_step", "decoder_sparse_step", "is_gated_act", "router_ignore_padding_tokens")


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made. Raises ConfigError for gated experts, for which the format
    has no names."""
    moe = feed_forward_of(spec, MoE)
    attention, _, _ = (sub.op for sub in spec.trunk.blocks[0].subs)
    assert moe is not None and isinstance(moe.router, TopK) and isinstance(attention, Attention)
    if not isinstance(moe.expert, Dense) or not isinstance(moe.router.capacity, Seats):
        raise ConfigError(f"{spec.name}: the published format of Switch has experts with ReLU and a capacity only")
    assert spec.encoder is not None and spec.trunk.final_norm is not None
    relative = spec.encoder.relative
    assert isinstance(relative, BucketBias)
    return {
        "vocab_size": spec.vocab,
        "d_model": spec.dim,
        "num_layers": spec.encoder.depth,
        "num_decoder_layers": spec.trunk.depth,
        "num_heads": attention.heads,
        "d_kv": attention.head_dim,
        "d_ff": moe.expert.hidden,
        "relative_attention_num_buckets": relative.buckets,
        "relative_attention_max_distance": relative.max_distance,
        "n_positions": spec.context,
        "layer_norm_epsilon": spec.trunk.final_norm.eps,
        "tie_word_embeddings": spec.tied,
        "is_encoder_decoder": True,
        "decoder_start_token_id": spec.start,
        "num_experts": moe.experts,
        "expert_capacity": moe.router.capacity.tokens,
        "num_sparse_encoder_layers": len(_mixtures(spec.encoder)),
        "num_sparse_decoder_layers": len(_mixtures(spec.trunk)),
        "router_bias": moe.router.bias,
    }


def _layer(names: Names, place: int) -> Names:
    """Return T5's names of a layer, with those of the mixture at this place of it."""
    mlp = f"layer.{place}.mlp"
    renamed = {slot: name.replace("DenseReluDense", "mlp") for slot, name in names.items() if isinstance(name, str)}
    return {
        **names,
        **renamed,
        "ffn.op.router": f"{mlp}.router.classifier",
        "ffn.op.experts.up": f"{mlp}.experts.expert_{{expert}}.wi",
        "ffn.op.experts.down": f"{mlp}.experts.expert_{{expert}}.wo",
    }


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, _layer(t5.LAYER, 2), t5.TOP, encoder_layer=_layer(t5.ENCODER_LAYER, 1))


_BASE = {"dim": 768, "layers": 12, "heads": 12, "hidden": 3072}
_LARGE = {"dim": 1024, "layers": 24, "heads": 16, "hidden": 4096}
_XXL = {"dim": 4096, "layers": 24, "heads": 64, "hidden": 10240, "feed_forward": "gated-gelu"}
_C = {"dim": 2080, "layers": 15, "heads": 32, "hidden": 6144, "experts": 2048, "every": 1}
FAMILY = Family(
    name="switch",
    title="Switch Transformer",
    paper="https://arxiv.org/abs/2101.03961",
    origin=Origin(
        published="2021-01",
        parents=("t5",),
        brought="one expert for each token is enough, and trillions of parameters",
        reference=Running(),
        counts={
            "switch-base-8": "619M",
            "switch-base-16": "1.07B",
            "switch-base-32": "1.98B",
            "switch-base-64": "3.79B",
            "switch-base-128": "7.4B",
            "switch-base-256": "14.7B",
            "switch-large-128": "26.3B",
            "switch-xxl-128": "395B",
            "switch-c-2048": "1571B",
        },
    ),
    build=build,
    sizes={
        **{f"switch-base-{n}": _BASE | {"experts": n} for n in (8, 16, 32, 64, 128, 256)},
        "switch-large-128": _LARGE | {"experts": 128},
        "switch-xxl-128": _XXL | {"experts": 128},
        "switch-c-2048": _C,
    },
    tiny=t5.FAMILY.tiny | {"experts": 4, "capacity": 8},
    objective="span_corruption",
    format=Format(
        model_type="switch_transformers",
        architecture="SwitchTransformersForConditionalGeneration",
        tokenizer="T5Tokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=t5.SKIPPED,
        copies=t5.COPIES,
    ),
)
