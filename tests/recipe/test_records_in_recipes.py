"""Recipes that train on pairs of texts and on labelled ones, from their files to a checkpoint."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import etymon
from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.errors import ConfigError, EtymonError
from etymon.recipe.loading import load_recipe
from etymon.recipe.plan import print_plan
from etymon.recipe.run import open_run
from etymon.recipe.stages import check_inputs, run_stages
from etymon.spec import Classify, Embedding, Mean
from etymon.train import read_metrics

NUMBERS = dict(zip("one two three four five six".split(), "一二三四五六", strict=True))
MODELS = {"marian": {"dim": 32, "layers": 1, "heads": 2}, "bert": {"dim": 32, "layers": 1, "heads": 2}}
MODELS["llama"] = MODELS["bert"] | {"hidden": 48}
FAST = {"kind": "adamw", "lr": 5e-3}
CLASSES = {"kind": "classification", "labels": ["food", "weather"]}


def recipe(folder: Path, family: str, *, rows: str = "", **pretrain: Any) -> Path:
    pairs = [{"en": a + " please" * i, "zh": NUMBERS[a]} for a in NUMBERS for i in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    kinds = (("bread", "food"), ("rain", "weather"))
    labelled = "".join(f"{word} number {i},{label}\n" for i in range(30) for word, label in kinds)
    (folder / "labelled.csv").write_text(rows or "text,label\n" + labelled)
    values = {
        "name": family,
        "run": str(folder / "run"),
        "tokenizer": {"vocab_size": 400},
        "model": {"family": family, **MODELS[family]},
        "pretrain": {"context": 24, "batch_size": 8, "optimizer": {"kind": "adamw", "lr": 1e-2},
                     "budget": {"steps": 10}, "evaluate_every": 0.5, **pretrain},
    }  # fmt: skip
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def pairs(folder: Path, **more: Any) -> list[dict[str, Any]]:
    return [{"path": str(folder / "pairs.jsonl"), "texts": ["en", "zh"], "held_out": 0.1, **more}]


def labelled(folder: Path) -> list[dict[str, Any]]:
    return [{"path": str(folder / "labelled.csv"), "held_out": 0.2}]


def test_a_translator_from_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "marian", pairs=pairs(tmp_path), budget={"steps": 110}, batch_size=12, optimizer=FAST)
    with open_run(load_recipe(path)) as run:
        run_stages(run)
    model, tokenizer = etymon.load(tmp_path / "run" / "model")
    assert tokenizer is not None
    engine = Engine(model, tokenizer, EngineConfig(slots=4))
    asked = [Request(source=f"{a} please", sampling=Sampling(temperature=0.0, max_tokens=6)) for a in NUMBERS]
    answers = [completion.text for completion in engine.generate(asked)]
    assert sum(text == chinese for text, chinese in zip(answers, NUMBERS.values(), strict=True)) >= 4
    rows = read_metrics(tmp_path / "run" / "pretrain" / "metrics.jsonl")
    assert rows[-1]["held_out_loss"] < 0.5 * rows[0]["held_out_loss"]
    said = capsys.readouterr()
    assert "36 records of texts" in said.out + said.err and "pretrained: seq2seq: loss " in said.out + said.err
    counts = json.loads((tmp_path / "run" / "data" / "records.json").read_text())
    assert counts["records"] == 36 and not (tmp_path / "run" / "data" / "manifest.json").exists()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_classifier_from_a_recipe(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, family, labelled=labelled(tmp_path), objective=CLASSES)
    with open_run(load_recipe(path)) as run:
        run_stages(run, until="evaluate")
    model, tokenizer = etymon.load(tmp_path / "run" / "model")
    assert isinstance(model.spec.head, Classify)
    logits = Engine(model, tokenizer, EngineConfig(slots=4)).classify(["rain number 5", "bread number 40"])
    assert [int(row.argmax()) for row in logits] == [1, 0]
    said = capsys.readouterr()
    assert "accuracy 100.0 % (" in said.out + said.err
    entry = json.loads((tmp_path / "run" / "evaluate" / "held_out.json").read_text())["models"][0]
    loss, accuracy = entry["measures"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "records.jsonl").read_text().splitlines()]
    held = [row["texts"][0] for row in rows if row["split"] == "held_out"]
    engine = Engine(etymon.load(tmp_path / "run" / "model")[0], tokenizer, EngineConfig(slots=4))
    right = [CLASSES["labels"][int(e.argmax())] == ("food" if "bread" in t else "weather")
             for e, t in zip(engine.classify(held), held, strict=True)]  # fmt: skip
    assert accuracy["value"] == pytest.approx(100 * sum(right) / len(held)) and accuracy["count"] == len(held)
    assert accuracy["interval"][0] < accuracy["value"] <= accuracy["interval"][1] and loss["value"] > 0
    assert (tmp_path / "run" / "hf").exists() == (family == "bert")
    with open_run(load_recipe(path)) as run:
        run_stages(run, until="evaluate")
    again = capsys.readouterr()
    assert "pretraining: done before" in again.out + again.err and "model: done before" in again.out + again.err


def test_an_embedder_from_a_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, "bert", pairs=pairs(tmp_path), objective="contrastive", micro_batch=4, budget={"steps": 3})
    with open_run(load_recipe(path)) as run:
        run_stages(run, until="evaluate")
    model, tokenizer = etymon.load(tmp_path / "run" / "model")
    assert model.spec.head == Embedding(pooling=Mean()) and not (tmp_path / "run" / "hf").exists()
    (vector,) = Engine(model, tokenizer, EngineConfig(slots=2)).embed(["one please"])
    assert abs(float(vector.norm()) - 1) < 1e-5


def sts(folder: Path) -> Path:
    """Pairs of numbers whose score says how near they are."""
    names = list(NUMBERS)
    rows = [f"{a} please\t{b} please\t{5 - abs(i - j)}\n" for i, a in enumerate(names) for j, b in enumerate(names)]
    (folder / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    return folder / "sts.tsv"


def values(folder: Path, model: str = "pretrained") -> dict[str, float]:
    entries = json.loads((folder / "run" / "evaluate" / "held_out.json").read_text())["models"]
    return {each["name"]: each["value"] for entry in entries if entry["model"] == model for each in entry["measures"]}


def test_spearman_of_held_out_and_of_other_scored_pairs(tmp_path: Path) -> None:
    scored = [{"path": str(sts(tmp_path)), "held_out": 0.3}]
    path = recipe(tmp_path, "bert", pairs=scored, objective={"kind": "contrastive", "loss": {"kind": "cosine"}},
                  budget={"steps": 3})  # fmt: skip
    with open_run(load_recipe(path, [f"evaluate.pairs={tmp_path / 'sts.tsv'}"])) as run:
        run_stages(run)
    found = values(tmp_path)
    assert list(found) == ["loss", "Spearman ×100", "Spearman ×100, sts.tsv"]
    engine = Engine(*etymon.load(tmp_path / "run" / "model"), EngineConfig(slots=1))
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "records.jsonl").read_text().splitlines()]
    for name, chosen in (
        ("Spearman ×100", [r for r in rows if r["split"] == "held_out"]),
        ("Spearman ×100, sts.tsv", rows),
    ):
        u, v = (np.stack([e.numpy() for e in engine.embed([r["texts"][side] for r in chosen])]) for side in (0, 1))
        cosines, scores = (u * v).sum(1), np.array([float(r["label"]) for r in chosen])
        ranked = [[(x > each).sum() + ((x == each).sum() + 1) / 2 for each in x] for x in (-cosines, -scores)]
        assert found[name] == pytest.approx(100 * np.corrcoef(*ranked)[0, 1], abs=0.5), name
    assert abs(values(tmp_path, "int8")["Spearman ×100, sts.tsv"] - found["Spearman ×100, sts.tsv"]) < 15
    report = (tmp_path / "run" / "report.md").read_text()
    table = report[report.index("| | pretrained | int8 | of |") :].split("\n\n")[0].splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == list(found)
    assert "Spearman ×100, sts.tsv" in (tmp_path / "run" / "report.html").read_text()


def test_what_tells_classes_is_measured_with_its_layer(tmp_path: Path) -> None:
    rows = [{"premise": f"number {a} please", "hypothesis": f"{b} {i}", "label": "same" if a == b else "other"}
            for i in range(8) for a in ("one", "six") for b in ("one", "six")]  # fmt: skip
    (tmp_path / "nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe(tmp_path, "bert", pairs=[{"path": str(tmp_path / "nli.jsonl"), "held_out": 0.3}], batch_size=4,
                  objective={"kind": "contrastive", "loss": {"kind": "softmax", "labels": ["same", "other"]}},
                  average={"kind": "ema", "decay": 0.5}, budget={"steps": 6})  # fmt: skip
    with open_run(load_recipe(path)) as run:
        run_stages(run, until="evaluate")
    found, logged = values(tmp_path), read_metrics(tmp_path / "run" / "pretrain" / "metrics.jsonl")
    assert set(found) == {"loss", "accuracy"} and found["loss"] != logged[0]["held_out_loss"]
    assert found["loss"] == pytest.approx(logged[-1]["held_out_loss"], rel=1e-5)  # by the trained layer, not a new one


def test_pairs_find_one_another(tmp_path: Path) -> None:
    path = recipe(tmp_path, "llama", pairs=pairs(tmp_path), objective="contrastive", budget={"steps": 12})
    with open_run(load_recipe(path, ["quantize=null"])) as run:
        run_stages(run, until="evaluate")
    first = next(name for name in values(tmp_path) if name.startswith("first among"))
    assert values(tmp_path)[first] <= values(tmp_path)["MRR ×100"]


def test_pairs_of_a_model_without_vectors_are_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, "marian", pairs=pairs(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluate\.pairs: .* gives no vectors"):
        check_inputs(load_recipe(path, [f"evaluate.pairs={sts(tmp_path)}"]), "cpu")
    path = recipe(tmp_path, "bert", pairs=pairs(tmp_path), objective="contrastive")
    with pytest.raises(EtymonError, match=r"pairs\.jsonl:1 has no number as its label"):
        check_inputs(
            load_recipe(path, [f"evaluate.pairs=[{{path: {tmp_path / 'pairs.jsonl'}, texts: [en, zh]}}]"]), "cpu"
        )


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, "marian", pairs=pairs(tmp_path))
    with open_run(load_recipe(path)) as run:
        run_stages(run, until="data")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"en": "one", "zh": "一"}) + "\n")
    with (
        open_run(load_recipe(path)) as run,
        pytest.raises(ConfigError, match=r"The files that the stage 'data' .* read have changed"),
    ):
        run_stages(run)


def test_what_is_too_long_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "marian", pairs=pairs(tmp_path), context=3, overlength="error", budget={"steps": 2})
    with open_run(load_recipe(path)) as run, pytest.raises(EtymonError, match=r"pairs.jsonl:\d+: its texts are longer"):
        run_stages(run)
    settings = ["pretrain.overlength=truncate", f"run={tmp_path / 'other'}"]
    with open_run(load_recipe(path, settings)) as run:
        run_stages(run, until="pretrain")
    said = capsys.readouterr()
    assert "over-long: " in said.out + said.err and "truncated" in said.out + said.err


def test_the_plan_shows_the_first_pair(tmp_path: Path) -> None:
    shown = io.StringIO()
    print_plan(load_recipe(recipe(tmp_path, "marian", pairs=pairs(tmp_path))), Console(file=shown, width=200))
    assert "'one' ↔ '一'" in shown.getvalue() and "objective seq2seq" in shown.getvalue()
    assert not (tmp_path / "run").exists()


FAULTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("marian", {}, "", "seq2seq trains on pairs of texts, and there are none. Give .*pairs: "),
    ("marian", {"pairs": ["absent.jsonl"]}, "", "There is no file or folder absent.jsonl"),
    ("marian", {"labelled": ["labelled.csv"]}, "", "trains on pairs of texts, not on texts with a class"),
    ("bert", {"pairs": ["pairs.jsonl"]}, "", "trains on documents, not on pairs"),
    ("bert", {"objective": CLASSES}, "", "classification trains on texts with a class each, and there are none"),
    ("bert", {"objective": CLASSES, "labelled": ["labelled.csv"]}, "text,label\na,bird\n",
     "labelled.csv:2 has the label 'bird'; the objective's are food, weather"),
    ("bert", {"objective": CLASSES, "labelled": ["labelled.csv"]}, "txt,label\na,food\n", "labelled.csv:2 has the f"),
    ("bert", {"objective": {"kind": "contrastive", "loss": {"kind": "simcse"}}, "pairs": ["labelled.csv"]}, "",
     r"Set pretrain.dropout: 0\.1"),
    ("llama", {"objective": "contrastive", "pairs": ["labelled.csv"]}, "", "the loss ranking reads two texts"),
    ("marian", {"pairs": ["labelled.csv"]}, "", "labelled.csv:2 has 1 texts; objective seq2seq reads pairs"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "pretrain", "rows", "message"), FAULTS)
def test_what_does_not_fit_is_said_at_the_door(
    family: str, pretrain: dict[str, Any], rows: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {} if pretrain.get("pairs") or pretrain.get("labelled") else {"data": {"sources": [str(tmp_path)]}}
    path = recipe(tmp_path, family, rows=rows, **pretrain)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | data))
    with pytest.raises(EtymonError, match=message):
        check_inputs(load_recipe(path), "cpu")
    assert not (tmp_path / "run").exists()


def test_a_recipe_reads_one_kind(tmp_path: Path) -> None:
    path = recipe(tmp_path, "marian", pairs=["a.jsonl"], labelled="b.csv")
    with pytest.raises(ConfigError, match="an objective reads one of them"):
        load_recipe(path)
    path = recipe(tmp_path, "bert", labelled="b.csv", objective=CLASSES | {"labels": ["a"]})
    with pytest.raises(ConfigError, match=r"r.yaml:\d+: pretrain.objective.*labels"):
        load_recipe(path)
