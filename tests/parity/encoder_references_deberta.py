"""Rows of Longformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from encoder_references import _ENCODER, Reference
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


ENCODERS = [
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
