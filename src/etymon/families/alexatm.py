"""AlexaTM 20B (Soltan et al. 2022, arXiv:2208.01448).

What was new over BART: norms before each sublayer and one more at the end of both stacks, an encoder that began as a
RoBERTa of its own (its positions, segments and names), a fifth of the pretraining as causal language modelling behind
the id [CLM], and twelve languages. The published code's norm divides by the root of the mean square of what it has not
yet centred; that is what its checkpoint runs with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import bart, bert
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Row, Rule
from etymon.spec import CentredRMSNorm, Embed, Learned, ModelSpec


@extends(bart.build)
def build(*, segments: int = 2, eps: float = 1e-12, **dimensions: Any) -> ModelSpec:
    """Return the spec of an AlexaTM of these dimensions; `segments` are the encoder's."""
    defaults: dict[str, Any] = {
        "family": "alexatm",
        "norms": "pre",
        "norm": CentredRMSNorm(eps=eps),
        "embed_norm": None,
        "start": None,
    }
    spec = bart.build(**(defaults | dimensions))
    return dataclasses.replace(spec, encoder_embed=Embed(position=Learned(length=spec.context), segments=segments))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "alexatm"."""
    activation = reader.take("hidden_act", str, "gelu")
    reader.expect("position_embedding_type", "absolute")
    reader.expect("extra_pos_embeddings", 2)
    reader.expect("share_embeddings", True)
    reader.expect("tie_word_embeddings", True)
    for key in ("fp32_cast_layer_norm", "fp32_cast_query_key", "force_bos_token_to_be_generated", "num_hidden_layers"):
        reader.take(key, object, None)  # precision, generation, and the encoder's layers again
    hidden = reader.take("encoder_ffn_dim", int)
    reader.expect("intermediate_size", hidden)
    return build(
        vocab=reader.take("vocab_size", int),
        dim=reader.take("d_model", int),
        layers=reader.take("encoder_layers", int),
        decoder_layers=reader.take("decoder_layers", int),
        heads=reader.take("encoder_attention_heads", int),
        decoder_heads=reader.take("decoder_attention_heads", int),
        hidden=hidden,
        decoder_hidden=reader.take("decoder_ffn_dim", int),
        context=reader.take("max_position_embeddings", int),
        segments=reader.take("type_vocab_size", int, 2),
        eps=reader.take("layer_norm_eps", float, 1e-12),
        activation=bart.ACTIVATIONS.get(activation, activation),
        start=reader.take("decoder_start_token_id", int, None),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    assert spec.encoder is not None and spec.encoder_embed is not None and spec.encoder.final_norm is not None
    config = bart.write(spec)
    del config["scale_embedding"]
    return config | {
        "hidden_act": config.pop("activation_function"),
        "intermediate_size": config["encoder_ffn_dim"],
        "type_vocab_size": spec.encoder_embed.segments,
        "layer_norm_eps": spec.encoder.final_norm.eps,
    }


ENCODER_LAYER: Names = {  # as RoBERTa's, but for the norms
    **bert.LAYER,
    "attention.pre": "layer_norm",
    "ffn.pre": "intermediate.layer_norm",
}
TOP: Names = {
    "embed.tokens": "model.shared",
    "encoder_embed.positions": "model.encoder.position_embeddings",
    "encoder_embed.segments": "model.encoder.token_type_embeddings",
    "encoder.layers": "model.encoder.pre_ln_encoder.layer.{}",
    "encoder.final_norm": "model.encoder.pre_ln_encoder.layer_norm",
    **bart.side("decoder", "embed", "layernorm_output"),
    "head.linear.bias": "final_logits_bias",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, bart.LAYER, TOP, {"head.linear.bias": (Row(),)}, encoder_layer=ENCODER_LAYER)


FAMILY = Family(
    name="alexatm",
    title="AlexaTM",
    paper="https://arxiv.org/abs/2208.01448",
    origin=Origin(
        published="2022-08",
        parents=("bart",),
        brought="norms first, denoising mixed with causal language modelling, twelve languages",
        reference=Recorded("amazon-science/alexa-teacher-models"),
        counts={"alexatm-20b": 18_478_868_976},
        claims={"alexatm-20b": "19.75B, near what three copies of the token vectors would make"},
    ),
    build=build,
    sizes={
        "alexatm-20b": {"vocab": 150000, "dim": 4096, "layers": 46, "decoder_layers": 32, "heads": 32},
    },
    tiny={"vocab": 97, "dim": 32, "layers": 2, "heads": 4, "context": 64},
    format=Format(
        model_type="alexatm",
        architecture="AlexaTMSeq2SeqForConditionalGeneration",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=(r"\.position_ids$",),
        copies=("model.encoder.token_embeddings.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
    ),
)
