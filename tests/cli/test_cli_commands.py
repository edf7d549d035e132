"""The command tree: what it prints, and that it starts without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import etymon
from etymon.cli.main import app

COMMANDS = (
    *("run", "train", "evaluate", "quantize", "convert", "serve", "chat", "generate", "embed", "report"),
    "version",
    *("data prepare", "data stats", "data show", "tokenizer train", "tokenizer encode", "tokenizer measure"),
    *("models list", "models show", "models compare", "lineage", "lineage diff"),
)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom etymon.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'pydantic', 'numpy', 'etymon.recipe.schema'} & sys.modules.keys(), sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str):
    text = run(*command.split(), "--help")
    assert "Usage" in text
    if command != "version":
        assert f"etymon {command}" in text, "a help text has an example"


def test_version():
    assert run("version").strip() == etymon.__version__


def test_models_are_listed_with_their_sizes():
    text = run("models", "list")
    assert "llama2-7b" in text and "6.74B" in text and "gpt2-xl" in text


def test_a_published_model_is_shown_as_a_tree():
    text = run("models", "show", "llama2-7b")
    assert "6,738,415,616 in all" in text and "32 × block" in text and "heads=32" in text
    assert "27 GB" in text and "13.5 GB" in text  # fp32 and bf16


def test_prepare_show_and_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    for i in range(12):
        Path(f"notes/{i}.md").write_text(f"第 {i} 篇：春眠不觉晓，处处闻啼鸟。 Document number {i} says hello.\n" * 3)
    assert "notes" in run("data", "prepare", "notes", "--out", "prepared", "--held-out", "0.2")
    assert "held_out" in run("data", "stats", "prepared")
    assert "春眠不觉晓" in run("data", "show", "prepared", "-n", "1")
    assert "tokens" in run("tokenizer", "train", "notes", "--vocab-size", "320", "--out", "tok")
    assert "'晓'" in run("tokenizer", "encode", "tok", "晓") or "\\x" in run("tokenizer", "encode", "tok", "晓")
    assert "notes" in run("tokenizer", "measure", "tok", "notes")
