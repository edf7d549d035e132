"""Recipes of models that are no decoders alone: their own objective from documents to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import etymon
from etymon.errors import ConfigError
from etymon.objectives import MaskedLMConfig
from etymon.recipe.loading import load_recipe, write_recipe
from etymon.recipe.run import open_run
from etymon.recipe.stages import check_inputs, run_stages
from etymon.train import read_metrics

SMALL = {"dim": 32, "layers": 2, "heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "electra": SMALL,
    "t5": SMALL | {"hidden": 48, "head_dim": 16},
    "bart": SMALL,
}


def recipe(folder: Path, family: str, **changes: Any) -> Path:
    (folder / "docs").mkdir(exist_ok=True)
    for i in range(12):
        text = f"Text {i} says that the cat sat on mat {i + 1}. Then it left. " * 12
        (folder / "docs" / f"{i}.txt").write_text(text)
    values = {
        "name": family,
        "run": str(folder / "run"),
        "data": {"sources": [str(folder / "docs")], "held_out": 0.2},
        "tokenizer": {"vocab_size": 400},
        "model": {"family": family, **MODELS.get(family, SMALL)},
        "pretrain": {"context": 32, "batch_size": 4, "budget": {"steps": 4}, "evaluate_every": 0.5},
    }
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.mark.parametrize("family", MODELS)
def test_a_whole_run(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(load_recipe(recipe(tmp_path, family))) as run:
        run_stages(run)
    model, tokenizer = etymon.load(tmp_path / "run" / "model")
    assert model.spec.family == family and tokenizer is not None
    if family != "t5":
        assert tokenizer.mask_id == tokenizer.special["<|mask|>"]
    rows = read_metrics(tmp_path / "run" / "pretrain" / "metrics.jsonl")
    assert all("held_out_bits_per_byte" not in row for row in rows)
    assert "held_out_loss" in rows[-1]
    assert "| Held-out loss of its objective |" in (tmp_path / "run" / "report.md").read_text()
    assert not (tmp_path / "run" / "evaluate" / "service.json").exists()
    said = capsys.readouterr()
    expected = {"bert": "mlm: loss ", "electra": "rtd: loss ", "t5": "span_corruption: loss "}
    assert f"pretrained: {expected.get(family, 'denoising: loss ')}" in said.out + said.err
    first, small = json.loads((tmp_path / "run" / "evaluate" / "held_out.json").read_text())["models"]
    assert (first["model"], small["model"]) == ("pretrained", "int8")
    losses = [entry["measures"][0]["value"] for entry in (first, small)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] == pytest.approx(
        rows[-1]["held_out_loss"], rel=0.2 if family == "electra" else 0.05
    )
    names = [each["name"] for each in first["measures"]]
    assert names[1:] == (["tokens judged rightly", "replaced tokens found"] if family == "electra" else [])
    report = (tmp_path / "run" / "report.md").read_text()
    assert "### Held out, by the objective" in report and f"{losses[0]:.4f} nats per token" in report


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("marian", {}, "trains on pairs of texts"),
        ("t5", {"tokenizer": {"vocab_size": 300}}, "span_corruption take 362"),
        ("llama", {"pretrain": {"objective": "rtd", "context": 32, "budget": {"steps": 1}}}, "no head that says"),
        ("bert", {"sft": {"budget": {"steps": 1}}}, "Set `sft: null`"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_computed(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    MODELS.setdefault("llama", SMALL | {"hidden": 48})
    loaded = load_recipe(recipe(tmp_path, family, **changes))
    with pytest.raises(ConfigError, match=message):
        check_inputs(loaded, "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("mlmm", r"r.yaml:\d+: pretrain.objective: unknown objective 'mlmm'.*Did you mean 'mlm'"),
        (
            {"kind": "mlm", "rate": 1.5},
            r"r.yaml:\d+: pretrain.objective.rate: expected less than 1|less than 1; got 1.5",
        ),
        ({"kind": "mlm", "masked": 0.8, "replaced": 0.3}, "sum to more than 1"),
        ({"kind": "mlm", "rates": 0.2}, "Did you mean 'pretrain.objective.rate'"),
    ],
)
def test_what_cannot_be_is_said_with_its_line(objective: Any, message: str, tmp_path: Path) -> None:
    pretrain = {"objective": objective, "context": 32, "budget": {"steps": 1}}
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe(tmp_path, "bert", pretrain=pretrain))


def test_an_objective_takes_settings(tmp_path: Path) -> None:
    pretrain = {"objective": {"kind": "mlm", "rate": 0.4}, "context": 32, "budget": {"steps": 1}}
    loaded = load_recipe(recipe(tmp_path, "bert", pretrain=pretrain))
    assert loaded.pretrain is not None and loaded.pretrain.objective == MaskedLMConfig(rate=0.4)
    write_recipe(loaded, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml").pretrain == loaded.pretrain
