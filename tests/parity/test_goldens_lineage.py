"""Families whose reference is not in transformers, against recorded outputs of their published model files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import etymon

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("name", ["qwen"])
def test_recorded_logits(name: str, tmp_path: Path) -> None:
    recorded = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.split(".", 2)[2]: value for key, value in recorded.items() if key.startswith("weights.")}
    save_file(weights, tmp_path / "model.safetensors")
    shutil.copy(GOLDENS / f"{name}.config.json", tmp_path / "config.json")
    model, _ = etymon.load(tmp_path)
    ids, expected = recorded["call0.kwargs.input_ids"], recorded["final_output"]
    error = (model(ids).logits - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    etymon.save(model, None, tmp_path / "again", format="hf")
    written = load_file(tmp_path / "again" / "model.safetensors")
    kept = {key for key in weights if not key.endswith("inv_freq")}
    assert written.keys() == kept
    assert all(torch.equal(written[key], weights[key]) for key in kept)


@pytest.mark.parametrize("case", ["both.9", "both.20", "both.40", "ntk.20", "logn.20", "neither.20"])
@torch.no_grad()
def test_qwen_beyond_its_context(case: str, tmp_path: Path) -> None:
    """Recorded from the same model file with the same weights and a context of 8."""
    recorded, long = load_file(GOLDENS / "qwen.safetensors"), load_file(GOLDENS / "qwen-long.safetensors")
    weights = {key.split(".", 2)[2]: value for key, value in recorded.items() if key.startswith("weights.")}
    save_file(weights, tmp_path / "model.safetensors")
    kind, _, length = case.partition(".")
    changes = {"seq_length": 8, "use_dynamic_ntk": kind in ("both", "ntk"), "use_logn_attn": kind in ("both", "logn")}
    config = json.loads((GOLDENS / "qwen.config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = etymon.load(tmp_path)
    ids = long["ids"][:, : int(length)]
    error = (model(ids).logits - long[case]).abs().max() / long[case].abs().max()
    assert error < 1e-5
    etymon.save(model, None, tmp_path / "again", format="hf")
    assert etymon.load(tmp_path / "again")[0].spec.decoder == model.spec.decoder
    if case == "both.20":  # decoding goes on within the doubling of the prompt
        state, parts = model.new_state(2, 16), []
        for chunk in long["ids"][:, :16].split([10, 1, 1, 1, 1, 1, 1], 1):
            parts.append(model(chunk, state=state).logits)
        error = (torch.cat(parts, 1) - long["decoded.16"]).abs().max() / long["decoded.16"].abs().max()
        assert error < 1e-5
