"""`etymon lineage` in a terminal."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from etymon.cli.main import app
from etymon.errors import ConfigError


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["lineage", *arguments], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.output


def test_the_whole_tree() -> None:
    output = run()
    lines = output.splitlines()
    assert lines[0].startswith("1998-08  n-gram")
    (llama,) = (line for line in lines if "2023-02  LLaMA" in line)
    assert "rotary positions, gated silu, RMSNorm" in llama and llama.strip("│ ").startswith(("├", "╰"))
    assert any("Vicuna" in line for line in lines)


def test_one_node() -> None:
    output = run("llama")
    assert "2023-02" in output and "→ GPT-3 2020 → LLaMA 2023" in output
    assert "reference-verified: transformers" in output and "llama-65b 65.3B" in output
    assert "Gated(silu)" in output
    assert "nothing is published about its form" in run("gpt4")
    assert "Llama 2" in run("llama2-70b")


def test_differences() -> None:
    assert "attention.rope" in run("diff", "gpt3", "llama")
    told = json.loads(run("diff", "gpt3", "llama", "--json"))
    assert {"field": "norm", "before": "LayerNorm", "after": "RMSNorm"} in told["changes"]
    assert not any(change["field"] == "dim" for change in told["changes"])
    sizes = json.loads(run("diff", "llama-7b", "llama2-70b", "--json"))
    assert {"field": "attention.kv_heads", "before": "32", "after": "8"} in sizes["changes"]
    assert "have the same design" in run("diff", "llama", "vicuna")


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'llama'"):
        run("lama")
    with pytest.raises(ConfigError, match="GPT-4 has no spec"):
        run("diff", "llama", "gpt4")
    with pytest.raises(ConfigError, match="There is no model"):
        run("diff", "llama", "lamma")


def test_a_picture_is_written(tmp_path) -> None:
    assert "wrote" in run("--svg", str(tmp_path / "tree.svg"))
    assert (tmp_path / "tree.svg").read_text(encoding="utf-8").startswith("<svg")
