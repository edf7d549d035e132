"""Heads that tag every token or find a span, of encoders that have them: outputs, losses, gradients, saving back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoder_references import _ENCODER, Reference, randomised, relative, tokens
from encoder_references_deberta import _DISENTANGLED, _V2
from torch import Tensor

import etymon
from etymon.engine import Engine, Text
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.spec import Span, Tag

FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": _ENCODER,
    "Ernie": _ENCODER,
    "Roberta": _ENCODER,
    "XLMRoberta": _ENCODER,
    "Electra": _ENCODER | {"embedding_size": 16},
    "Albert": _ENCODER | {"embedding_size": 16},
    "Deberta": _DISENTANGLED,
    "DebertaV2": _DISENTANGLED | _V2,
}
ENDS = {"TokenClassification": Tag(classes=3), "QuestionAnswering": Span()}


def logits_of(output: Any) -> Tensor:
    return output.logits if "logits" in output else torch.stack((output.start_logits, output.end_logits), 2)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_token_heads(family: str, end: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], num_labels=3 if "Token" in end else 2)
    theirs = randomised(Reference(family, lambda: getattr(transformers, f"{family}For{end}")(config)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = etymon.load(tmp_path / "theirs")
    assert ours.spec.head == ENDS[end]
    ids = tokens(3, 30)
    mask = torch.arange(30).lt(torch.tensor([[30], [30], [21]])).long()
    if "Token" in end:
        labels = (ids % 3).masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4, -100)
        given = {"labels": labels}
    else:
        labels = torch.tensor([[3, 7], [0, 0], [12, 19]])
        given = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
    expected, got = theirs(ids, attention_mask=mask, **given), ours(ids, mask, labels=labels)
    assert relative(got.logits[mask.bool()], logits_of(expected)[mask.bool()]) < 1e-5
    alone = theirs(ids[:2], **{name: x[:2] for name, x in given.items()}), ours(ids[:2], labels=labels[:2])
    assert relative(alone[1].loss, alone[0].loss) < 1e-5
    alone[0].loss.backward()
    alone[1].loss.backward()
    head = theirs.classifier if "Token" in end else theirs.qa_outputs
    assert relative(ours.head.linear.weight.grad, head.weight.grad) < 1e-5
    etymon.save(ours, None, tmp_path / "ours", format="hf")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert torch.equal(logits_of(again(ids)), logits_of(theirs(ids)))
    judged = Engine(ours, None).classify([Text(row.tolist()) for row in (ids[0], ids[1, :9])])
    assert [len(logits) for logits in judged] == [30, 9]
    assert relative(judged[0], ours(ids[:1]).logits[0]) < 1e-5


def test_heads_that_choose_global_tokens_are_refused(tmp_path: Path) -> None:
    config = transformers.LongformerConfig(**_ENCODER, attention_window=8)
    transformers.LongformerForQuestionAnswering(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="chooses its global tokens by itself"):
        etymon.load(tmp_path)


def test_specs_of_token_heads_in_json() -> None:
    for head in ENDS.values():
        spec = dataclasses.replace(family_named("bert").spec(**family_named("bert").tiny), head=head)
        assert type(spec).from_dict(spec.to_dict()) == spec
