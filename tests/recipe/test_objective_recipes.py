"""Every recipe of an objective loads, fits, and trains, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from etymon.objectives import OBJECTIVES
from etymon.recipe.loading import load_recipe
from etymon.recipe.run import open_run
from etymon.recipe.stages import run_stages
from etymon.train import read_metrics

RECIPES = Path(__file__).parents[2] / "recipes"
FOUND = sorted((RECIPES / "objectives").glob("*.yaml"))
SMALL = ("model.dim=32", "model.layers=1", "model.heads=2", "tokenizer.vocab_size=480", "minutes=null")


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_it_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for i in range(12):
        text = f"Text {i} says that the cat sat on mat {i + 1}. Then it left. 第{i}篇文档。\n" * 12
        (tmp_path / "texts" / f"{i}.txt").write_text(text, encoding="utf-8")
    pairs = [{"en": f"{i} moons over the sea", "zh": f"海上有{i}个月亮"} for i in range(80)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    rows = [
        f"the soup was {word} {i},{label}\n" for i in range(40) for word, label in (("fine", "good"), ("cold", "bad"))
    ]
    (tmp_path / "labelled.csv").write_text("text,label\n" + "".join(rows))
    said = ("follows", "open", "contradicts")
    rows = [f'{{"premise": "moon {i}", "hypothesis": "{said[i % 3]}", "label": "{said[i % 3]}"}}\n' for i in range(40)]
    (tmp_path / "inference.jsonl").write_text("".join(rows))
    settings = [*SMALL, "run=run", "pretrain.context=48", "pretrain.batch_size=4", "pretrain.budget={steps: 2}"]
    if load_recipe(path).data is not None:
        settings += ["data.sources=[texts]", "data.held_out=0.2"]
    with open_run(load_recipe(path, settings)) as run:
        run_stages(run, until="pretrain")
    assert read_metrics(tmp_path / "run" / "pretrain" / "metrics.jsonl")[-1]["step"] == 2


def test_every_objective_has_a_recipe() -> None:
    named = set()
    for path in (*FOUND, *RECIPES.glob("*.yaml"), *(RECIPES / "pretrain").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        named |= {name for name in OBJECTIVES if f"kind: {name}" in text or f"objective: {name}" in text}
    # clm is every decoder's own, seq2seq that of marian
    assert named | {"clm", "seq2seq"} == set(OBJECTIVES)
