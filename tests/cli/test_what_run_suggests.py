"""`etymon run` ends with the commands that its model can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from etymon.cli.run import _uses
from etymon.recipe.loading import load_recipe
from etymon.text import DEFAULT_SPECIAL, Tokenizer

SMALL = {"dim": 32, "layers": 1, "heads": 2}
ONE = {"budget": {"steps": 1}}
TRAIN: dict[str, Any] = {"context": 32, **ONE}
PAIRS = TRAIN | {"pairs": ["pairs.jsonl"], "objective": "contrastive"}
CLASSES = TRAIN | {"labelled": ["rows.csv"], "objective": {"kind": "classification", "labels": ["a", "b"]}}
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("llama", {"pretrain": TRAIN}, ["write: etymon generate {} \"Once upon a time\"", "serve: etymon serve {}"]),
    ("llama", {"pretrain": TRAIN, "sft": ONE}, ["chat:  etymon chat {}", "serve: etymon serve {}"]),
    ("llama", {"pretrain": PAIRS}, ["embed: etymon embed {} \"a text\" \"another text\"", "serve: etymon serve {}"]),
    ("t5", {"pretrain": TRAIN}, ["write: etymon generate {} \"a text to read\"", "serve: etymon serve {}"]),
    ("bert", {"pretrain": TRAIN}, ["fill:  etymon generate {} \"a text with a <|mask|> in it\""]),
    ("bert", {"pretrain": PAIRS}, ["embed: etymon embed {} \"a text\" \"another text\""]),
    ("bert", {"pretrain": CLASSES}, ["judge: etymon generate {} \"a text\""]),
    ("electra", {"pretrain": TRAIN}, ["judge: etymon generate {} \"a text\""]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "stages", "expected"), CASES)
def test_what_fits_the_model(family: str, stages: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    hidden = {"hidden": 48} if family in ("llama", "t5") else {}
    values = {"name": "r", "tokenizer": {"vocab_size": 400}, "model": {"family": family, **SMALL, **hidden}, **stages}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    Tokenizer.train(["one two"], 300, special_tokens=(*DEFAULT_SPECIAL, "<|mask|>")).save(tmp_path / "tokenizer")
    assert list(_uses(load_recipe(tmp_path / "r.yaml"), tmp_path)) == [line.format(tmp_path) for line in expected]
