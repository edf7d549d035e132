"""Rows of DeBERTa and Longformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from encoder_references import _ENCODER, Reference, _make
from torch import Tensor


def _longformer(model: str = "LongformerForMaskedLM", **changes: Any) -> Callable[[], Any]:
    # the reference pads to a multiple of the widest window, so the others must divide it
    sizes = _ENCODER | {"attention_window": [4, 12, 6], "max_position_embeddings": 202, "type_vocab_size": 1}
    return lambda: getattr(transformers, model)(transformers.LongformerConfig(**(sizes | changes)))


def some(ids: Tensor) -> dict[str, Tensor]:
    """A few tokens of each row, the first among them in every other row; a different number in each."""
    places = torch.arange(ids.shape[1])
    rows = torch.arange(ids.shape[0])[:, None]
    return {"global_attention_mask": ((places * (rows + 2) % 11 == 3) | ((places == 0) & (rows % 2 == 0))).long()}


_DISENTANGLED: dict[str, Any] = _ENCODER | {
    "relative_attention": True,
    "position_biased_input": False,
    "max_relative_positions": 12,
    "pos_att_type": "c2p|p2c",
    "legacy": False,
}
_V2 = {
    "max_relative_positions": 30,
    "position_buckets": 8,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
}


def _deberta(model: str = "ForMaskedLM", **changes: Any) -> Callable[[], Any]:
    config = transformers.DebertaConfig
    return lambda: getattr(transformers, f"Deberta{model}")(config(**(_DISENTANGLED | changes)))


def _deberta_v2(model: str = "ForMaskedLM", **changes: Any) -> Callable[[], Any]:
    config = transformers.DebertaV2Config
    return lambda: getattr(transformers, f"DebertaV2{model}")(config(**(_DISENTANGLED | _V2 | changes)))


_electra = partial(_make, "ElectraForSequenceClassification", "ElectraConfig", _ENCODER | {"embedding_size": 16})
_albert = partial(_make, "AlbertForSequenceClassification", "AlbertConfig", _ENCODER | {"embedding_size": 16})
_CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu"}
_OWN = {"share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"}
ENCODERS = [
    Reference("deberta", _deberta(), False),
    Reference("deberta-legacy", _deberta(legacy=True), False),
    Reference("deberta-c2p", _deberta(pos_att_type=["c2p"], max_relative_positions=-1), False),
    Reference("deberta-p2c-absolute", _deberta(pos_att_type="p2c", position_biased_input=True, type_vocab_size=2)),
    Reference("deberta-hidden", _deberta("Model"), False),
    Reference("deberta-classify", _deberta("ForSequenceClassification", num_labels=3), False),
    Reference("deberta-v3", _deberta_v2(), False),
    Reference("deberta-v3-hidden", _deberta_v2("Model", attention_head_size=8), False),
    Reference("deberta-v2", _deberta_v2(**_CONVOLUTION), False),
    Reference("deberta-v2-legacy", _deberta_v2(legacy=True, conv_kernel_size=5, pos_att_type="p2c"), False),
    Reference("deberta-v2-own", _deberta_v2(**_OWN, type_vocab_size=2, position_biased_input=True)),
    Reference("deberta-v2-own-buckets", _deberta_v2(share_att_key=False, pos_att_type="c2p"), False),
    Reference("deberta-v2-classify", _deberta_v2("ForSequenceClassification", pooler_hidden_act="relu"), False),
    Reference("electra-classify", _electra(num_labels=3)),
    Reference("albert-classify", _albert(num_labels=3)),
    Reference("longformer", _longformer(), False, 2),
    Reference("longformer-global", _longformer(), False, 2, kinds={"global_attention_mask": 2}),
    Reference(
        "longformer-hidden",
        _longformer("LongformerModel", attention_window=8),
        False,
        2,
        kinds={"global_attention_mask": 2},
    ),
]
