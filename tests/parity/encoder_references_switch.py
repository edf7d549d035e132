"""Rows of the Switch Transformer."""

from __future__ import annotations

from encoder_references import UNSCALED, Reference, _make

SWITCH = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 3,
    "num_heads": 4,
    "num_experts": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
MODEL = ("SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig")
ENCODERS: list[Reference] = []
SEQ2SEQ = [
    Reference("switch", _make(*MODEL, SWITCH), spread=UNSCALED),
    Reference("switch-biased", _make(*MODEL, SWITCH, router_bias=True, num_sparse_decoder_layers=1), spread=UNSCALED),
]
