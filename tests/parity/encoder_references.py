"""Tiny random references with an encoder: encoders alone, and encoders in front of a decoder; and how to compare.

Rows of further families stand in files named encoder_references_*.py, as ENCODERS and SEQ2SEQ.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import etymon

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Reference:
    name: str
    make: Callable[[], Any]
    segments: bool = True
    position_shift: int = 0  # what the reference's position_ids are ahead of ours
    spread: float = 0.2  # of the random parameters
    kinds: Mapping[str, int] = field(default_factory=dict)  # further arguments per token, and how many values they have

    def __str__(self) -> str:
        return self.name


_ENCODER: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
}


def _make(model: str, config: str, sizes: dict[str, Any], **changes: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**(sizes | changes)))


def _roberta(model: str, **changes: Any) -> Callable[[], Any]:
    return _make(model, model.split("For")[0].removesuffix("Model") + "Config", _ENCODER, type_vocab_size=1, **changes)


def _t5(untied: bool, model: str = "T5ForConditionalGeneration", **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        sizes = {"vocab_size": 97, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2}
        sizes |= {"num_heads": 4, "relative_attention_num_buckets": 12, "relative_attention_max_distance": 20}
        config = getattr(transformers, model.removesuffix("ForConditionalGeneration") + "Config")
        options = {"tie_word_embeddings": False} if untied else {}
        theirs = getattr(transformers, model)(config(**(sizes | {"decoder_start_token_id": 0} | options | changes)))
        if untied:  # the class ties the head of every fresh model; files with two tensors stay untied
            theirs.lm_head.weight = nn.Parameter(torch.zeros(97, 32))
        return theirs

    return make


ENCODERS = [
    Reference("bert", _make("BertForMaskedLM", "BertConfig", _ENCODER)),
    Reference(
        "bert-relu-eps", _make("BertForMaskedLM", "BertConfig", _ENCODER, hidden_act="relu", layer_norm_eps=1e-3)
    ),
    Reference("bert-classify", _make("BertForSequenceClassification", "BertConfig", _ENCODER, num_labels=3)),
    Reference("bert-hidden", _make("BertModel", "BertConfig", _ENCODER)),
    Reference("roberta", _roberta("RobertaForMaskedLM"), False, 2),
    Reference("roberta-padding-0", _roberta("RobertaForMaskedLM", pad_token_id=0), False, 1),
    Reference("roberta-classify", _roberta("RobertaForSequenceClassification", num_labels=3), False, 2),
    Reference("xlm-roberta", _roberta("XLMRobertaForMaskedLM"), False, 2),
    Reference("electra", _make("ElectraForPreTraining", "ElectraConfig", _ENCODER, embedding_size=16)),
    Reference("electra-wide", _make("ElectraForPreTraining", "ElectraConfig", _ENCODER, embedding_size=32)),
    Reference("electra-generator", _make("ElectraForMaskedLM", "ElectraConfig", _ENCODER, embedding_size=40)),
    Reference("albert", _make("AlbertForMaskedLM", "AlbertConfig", _ENCODER, embedding_size=16)),
    Reference("albert-square", _make("AlbertForMaskedLM", "AlbertConfig", _ENCODER, embedding_size=32)),
]
_BART = {"decoder_start_token_id": 2, "forced_eos_token_id": None}
_MARIAN = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": None}
_UNLIKE = {"encoder_attention_heads": 8, "decoder_attention_heads": 2}
UNSCALED = 0.12  # unscaled scores of larger weights amplify the rounding of either side
SEQ2SEQ = [
    Reference("t5", _t5(False), spread=UNSCALED),
    Reference("t5-v1.1", _t5(True, feed_forward_proj="gated-gelu"), spread=UNSCALED),
    Reference("t5-ul2", _t5(True, feed_forward_proj="gated-silu", d_kv=8, layer_norm_epsilon=1e-3), spread=UNSCALED),
    Reference("mt5", _t5(True, "MT5ForConditionalGeneration", feed_forward_proj="gated-gelu"), spread=UNSCALED),
    Reference("bart", _make("BartForConditionalGeneration", "BartConfig", _SEQ2SEQ, **_BART)),
    Reference(
        "bart-scaled-relu",
        _make(
            "BartForConditionalGeneration",
            "BartConfig",
            _SEQ2SEQ,
            scale_embedding=True,
            activation_function="relu",
            **_BART,
            **_UNLIKE,
        ),
    ),
    Reference(
        "mbart",
        _make("MBartForConditionalGeneration", "MBartConfig", _SEQ2SEQ, scale_embedding=True, forced_eos_token_id=None),
    ),
    Reference("marian", _make("MarianMTModel", "MarianConfig", _SEQ2SEQ, **_MARIAN)),
    Reference(
        "transformer",
        _make(
            "MarianMTModel",
            "MarianConfig",
            _SEQ2SEQ,
            scale_embedding=True,
            activation_function="relu",
            **_MARIAN,
            **_UNLIKE,
        ),
    ),
]


def randomised(reference: Reference, seed: int = 0) -> Any:
    """The reference model with every trained parameter random, and its final logits' bias."""
    torch.manual_seed(seed)
    model = reference.make().eval()
    tensors = dict(model.named_parameters())
    if hasattr(model, "final_logits_bias"):
        tensors["final_logits_bias"] = model.final_logits_bias
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.requires_grad or name == "final_logits_bias":
                is_norm = tensor.dim() == 1 and "norm" in name.lower() and name.endswith("weight")
                tensor.copy_(torch.randn(tensor.shape) * reference.spread + (1.0 if is_norm else 0.0))
    return model


for _file in sorted(Path(__file__).parent.glob("encoder_references_*.py")):
    _rows = importlib.import_module(_file.stem)
    ENCODERS += getattr(_rows, "ENCODERS", [])
    SEQ2SEQ += getattr(_rows, "SEQ2SEQ", [])


def load_pair(reference: Reference, factory: pytest.TempPathFactory) -> tuple[Reference, Any, Any]:
    """The reference model, and ours as loaded from what it saved."""
    theirs = randomised(reference)
    directory = factory.mktemp(reference.name)
    theirs.save_pretrained(directory)
    ours, _ = etymon.load(directory)
    return reference, theirs, ours


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Ids that are no padding: the reference gives that row of its embedding no gradient."""
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))
