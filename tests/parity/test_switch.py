"""What the Switch Transformer does where experts are full, and what its format cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoder_references import UNSCALED, Reference, _make, randomised
from encoder_references_switch import MODEL, SWITCH
from torch import Tensor

import etymon
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.nn import build


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.mark.parametrize("capacity", [1, 5])
def test_tokens_that_come_too_late_pass_by(capacity: int, tmp_path: Path) -> None:
    theirs = randomised(Reference("full", _make(*MODEL, SWITCH, expert_capacity=capacity), spread=UNSCALED))
    theirs.save_pretrained(tmp_path)
    ours, _ = etymon.load(tmp_path)
    ids = torch.randint(3, 97, (3, 40), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids, "decoder_input_ids": ids[:, 5:30], "labels": ids[:, 6:31].contiguous()}
    expected, got = theirs(**given), ours(**given)
    assert relative(got.logits, expected.logits) < 1e-5
    assert relative(got.encoder_last_hidden_state, expected.encoder_last_hidden_state) < 1e-5
    dropped = sum(ids[:, 5:30].numel() - int(moe.load.sum()) for name, moe in ours.mixtures() if "decoder" in name)
    assert dropped > 0
    expected.loss.backward()
    got.loss.backward()
    router = "decoder.block.1.layer.2.mlp.router.classifier.weight"
    gradient = theirs.get_parameter(router).grad
    assert relative(ours.decoder.blocks[1]["ffn"].op.router.weight.grad, gradient) < 1e-5


def test_the_format_holds_experts_with_relu_only(tmp_path: Path) -> None:
    family = family_named("switch")
    for changes in ({"feed_forward": "gated-gelu"}, {"capacity": None}):
        model = build(family.spec(**(family.tiny | changes)))
        with pytest.raises(ConfigError, match="ReLU and a capacity only"):
            etymon.save(model, None, tmp_path / "hf", format="hf")
