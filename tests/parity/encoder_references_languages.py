"""Rows of XLM and ERNIE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from encoder_references import _ENCODER, Reference, _make

_XLM: dict[str, Any] = {
    "vocab_size": 97,
    "emb_dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "n_langs": 5,
}
_TASKS: dict[str, Any] = {"use_task_id": True, "task_type_vocab_size": 3}


def _xlm(model: str = "XLMWithLMHeadModel", **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        theirs = getattr(transformers, model)(transformers.XLMConfig(**(_XLM | changes)))
        theirs.requires_grad_(True)  # tables of sines too, which are in its files and may differ from the formula
        return theirs

    return make


LANGS = {"langs": 5}
ENCODERS = [
    Reference("xlm", _xlm(), False, kinds=LANGS),
    Reference("xlm-without-langs", _xlm(), False),
    Reference("xlm-one-language", _xlm(n_langs=1), False),
    Reference(
        "xlm-relu-sines-eps", _xlm(gelu_activation=False, sinusoidal_embeddings=True, layer_norm_eps=1e-3), False
    ),
    Reference("xlm-untied", _xlm(tie_word_embeddings=False), False, kinds=LANGS),
    Reference("xlm-hidden", _xlm("XLMModel"), False, kinds=LANGS),
    Reference("ernie", _make("ErnieForMaskedLM", "ErnieConfig", _ENCODER, **_TASKS), kinds={"task_type_ids": 3}),
    Reference("ernie-default-task", _make("ErnieForMaskedLM", "ErnieConfig", _ENCODER, **_TASKS)),
    Reference("ernie-without-tasks", _make("ErnieForMaskedLM", "ErnieConfig", _ENCODER, hidden_act="relu")),
    Reference(
        "ernie-classify",
        _make("ErnieForSequenceClassification", "ErnieConfig", _ENCODER, num_labels=3, **_TASKS),
        kinds={"task_type_ids": 3},
    ),
    Reference("ernie-hidden", _make("ErnieModel", "ErnieConfig", _ENCODER, **_TASKS), kinds={"task_type_ids": 3}),
]
