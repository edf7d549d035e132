from __future__ import annotations

from pathlib import Path

import torch
from typer.testing import CliRunner

import etymon
from etymon.cli.main import app
from etymon.errors import ConfigError
from etymon.families import family_named


def test_convert(tmp_path: Path) -> None:
    family = family_named("llama")
    model = etymon.build(family.spec(**family.tiny), seed=1)
    etymon.save(model, None, tmp_path / "a")
    there = ["convert", str(tmp_path / "a"), str(tmp_path / "b.gguf"), "--format", "gguf", "--quantization", "f32"]
    back = ["convert", str(tmp_path / "b.gguf"), str(tmp_path / "c"), "--delta", str(tmp_path / "a")]
    for arguments in (there, back):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    doubled, _ = etymon.load(tmp_path / "c")
    for name, tensor in model.state_dict().items():
        assert torch.equal(doubled.state_dict()[name], 2 * tensor), name
    wrong = CliRunner().invoke(app, ["convert", str(tmp_path / "a"), str(tmp_path / "d"), "--format", "ggml"])
    assert isinstance(wrong.exception, ConfigError)
