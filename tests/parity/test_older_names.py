"""Checkpoints of a family's first releases, whose configs have other names: equal to the reference all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from references import REFERENCES, randomised

import etymon
from etymon.errors import EtymonError

KEPT = ("hidden_size", "vocab_size", "layer_norm_epsilon", "alibi", "bias", "bos_token_id", "eos_token_id")
ALWAYS = {"apply_residual_connection_post_layernorm": False, "n_head": 4, "n_layer": 2, "hidden_dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("falcon-7b", {"model_type": "RefinedWebModel", "multi_query": True, "parallel_attn": True}),
        ("falcon-40b", {"model_type": "RefinedWeb", "n_head_kv": 2, "parallel_attn": True}),
        ("falcon-rw", {"model_type": "RefinedWebModel"}),
        ("falcon-rw", {"model_type": "RefinedWebModel", "multi_query": False, "parallel_attn": False}),
    ],
)
def test_falcon_as_refined_web(name: str, older: dict[str, Any], tmp_path: Path) -> None:
    (reference,) = [row for row in REFERENCES if row.name == name]
    theirs = randomised(reference)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in KEPT} | ALWAYS | older))
    ours, _ = etymon.load(tmp_path)
    ids = torch.arange(40).view(2, 20)
    expected = theirs(ids).logits.detach()
    assert float((ours(ids).logits.detach() - expected).abs().max() / expected.abs().max()) < 1e-5
    etymon.save(ours, None, tmp_path / "again", format="hf")
    assert torch.equal(type(theirs).from_pretrained(tmp_path / "again")(ids).logits, expected)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"apply_residual_connection_post_layernorm": True}))
    with pytest.raises(EtymonError, match="apply_residual_connection_post_layernorm"):
        etymon.load(tmp_path)
