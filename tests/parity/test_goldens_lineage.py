"""Families whose reference is not in transformers, against recorded outputs of their published model files."""

from __future__ import annotations

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
