"""Bad input to the command line: one clear message, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import etymon
from etymon.cli.main import main
from etymon.families import family_named
from etymon.text import Tokenizer

RECIPE = {
    "name": "small",
    "data": {"sources": ["docs"]},
    "tokenizer": {"vocab_size": 300},
    "model": {"family": "llama", "dim": 32, "layers": 2, "heads": 2, "hidden": 64},
    "pretrain": {"context": 32, "batch_size": 2, "budget": {"steps": 2}},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good recipe and its documents."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "0.csv").write_text("text,label\na,b\n")
    for i in range(4):
        (tmp_path / "docs" / f"{i}.txt").write_text(f"文件 {i}: the quick brown fox jumps over the lazy dog. " * 5)
    write(RECIPE)
    return tmp_path


def write(recipe: dict[str, object], name: str = "r.yaml") -> None:
    Path(name).write_text(yaml.safe_dump(recipe, allow_unicode=True))


@pytest.fixture
def checkpoint(here: Path) -> Path:
    """A tiny Hugging Face checkpoint with a tokenizer."""
    tokenizer = Tokenizer.train(["the quick brown fox 你好"], 300)
    family = family_named("llama")
    etymon.save(etymon.build(family.spec(**(family.tiny | {"vocab": 300}))), tokenizer, here / "hf", format="hf")
    return here / "hf"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line, which must exit with 2 and a message without a traceback; return the message."""
    before = sys.argv
    sys.argv = ["etymon", *arguments]
    try:
        with pytest.raises(SystemExit) as exit:
            main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    assert exit.value.code == 2, captured
    assert "Traceback" not in captured.err and captured.err.count("error: ") == 1
    return captured.err


def test_missing_files(capsys: pytest.CaptureFixture[str], here: Path):
    assert "no such recipe" in refused(capsys, "run", "missing.yaml")
    assert "no file or folder nowhere" in refused(capsys, "run", "r.yaml", "data.sources=nowhere")
    assert "no file or folder no.jsonl" in refused(
        capsys, "run", "r.yaml", "sft={sources: no.jsonl, budget: {steps: 1}}"
    )
    assert "no such directory" in refused(capsys, "chat", "nowhere")
    assert "no such run directory" in refused(capsys, "report", "nowhere")
    assert "no such directory" in refused(capsys, "run", "r.yaml", "tokenizer={load: nowhere}")
    assert "holds no prepared documents" in refused(capsys, "data", "stats", "nowhere")
    assert not (here / "runs" / "small" / "data").exists()


def test_unknown_recipe_key(capsys: pytest.CaptureFixture[str], here: Path):
    write(RECIPE | {"pretrian": {}})
    assert "Did you mean 'pretrain'?" in refused(capsys, "run", "r.yaml")
    assert not (here / "runs").exists()


def test_wrong_type(capsys: pytest.CaptureFixture[str], here: Path):
    assert "pretrain.batch_size: expected a valid integer; got 'many'" in refused(
        capsys, "train", "r.yaml", "batch_size=many"
    )
    assert not (here / "runs").exists()


def test_empty_corpus(capsys: pytest.CaptureFixture[str], here: Path):
    for file in (here / "docs").iterdir():
        file.write_text(" \n")
    assert "The corpus is empty" in refused(capsys, "run", "r.yaml")
    assert not (here / "runs" / "small" / "data").exists()


def test_bytes_that_are_not_utf8(capsys: pytest.CaptureFixture[str], here: Path):
    for i in range(4):
        (here / "docs" / f"{i}.txt").write_bytes(b"caf\xe9 " * 20)
    assert "undecodable" in refused(capsys, "run", "r.yaml")
    setting = "data.sources.0={path: docs, errors: error}"
    message = refused(capsys, "run", "r.yaml", setting)
    assert "0.txt" in message and "utf-8" in message.lower()


def test_truncated_safetensors(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors" in refused(capsys, "chat", str(checkpoint))
    assert "model.safetensors" in refused(capsys, "quantize", str(checkpoint), "--out", "small")
    assert not Path("small").exists()


def test_a_config_key_that_nobody_reads(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_thetaa": 1.0}))
    assert "rope_thetaa" in refused(capsys, "serve", str(checkpoint))
    assert "rope_thetaa" in refused(
        capsys, "run", "r.yaml", f"model={{load: {checkpoint}}}", f"tokenizer={{load: {checkpoint}}}"
    )


def test_a_tokenizer_that_is_too_large_for_the_model(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    message = refused(capsys, "run", "r.yaml", "model.vocab=100", f"tokenizer={{load: {checkpoint}}}")
    assert "do not belong together" in message


def test_a_checkpoint_whose_context_is_too_short(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    settings = (f"model={{load: {checkpoint}}}", f"tokenizer={{load: {checkpoint}}}", "pretrain.context=4096")
    assert "pretrain.context is 4096, but the model's context is 64" in refused(capsys, "run", "r.yaml", *settings)


def test_options(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    assert "--port" in refused(capsys, "serve", str(checkpoint), "--port", "99999")
    assert "temperature" in refused(capsys, "chat", str(checkpoint), "--temperature", "-1")
    assert "expected train or held_out" in refused(capsys, "data", "show", str(checkpoint), "--split", "x")
    assert "--device" in refused(capsys, "chat", str(checkpoint), "--device", "tpu")
    assert "Evaluate" in refused(capsys, "evaluate", str(checkpoint))
    assert "Give --out" in refused(capsys, "quantize", str(checkpoint))
    assert "Did you mean 'llama2-7b'?" in refused(capsys, "models", "show", "llama2-7")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]):
    sys.argv, before = ["etymon", "run", "missing.yaml", "--debug"], sys.argv
    try:
        with pytest.raises(SystemExit):
            main()
    finally:
        sys.argv = before
    assert "Traceback" in capsys.readouterr().err


def test_usage_errors_exit_with_2():
    done = subprocess.run([sys.executable, "-m", "etymon", "rum"], capture_output=True, text=True)
    assert done.returncode == 2 and "No such command" in done.stderr and "Traceback" not in done.stderr


def test_interrupts_are_clean(here: Path):
    """Ctrl-C while documents are being read: exit code 130 and no traceback."""
    code = (
        "import sys, etymon.data.prepare as p, etymon.recipe.stages as s\n"
        "def interrupted(*a, **k): raise KeyboardInterrupt\n"
        "s.prepare_documents = interrupted\n"
        "sys.argv = ['etymon', 'run', 'r.yaml']\n"
        "from etymon.cli.main import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ("law", "--adapter law: pass NAME=PATH"),
        ("=law", "pass NAME=PATH"),
        ("law=gone", "gone/adapter_config.json: the"),
    ],
)
def test_adapters_are_named_and_there(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], adapter: str, says: str
) -> None:
    assert says in refused(capsys, "serve", str(checkpoint), "--port", "0", "--adapter", adapter)


BERT = "model={family: bert, dim: 32, layers: 1, heads: 2}"
CLASSES = "pretrain.objective={kind: classification, labels: [a, b]}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        # objectives that do not fit the model or the data
        (["pretrain.objective=mlm"], "llama is pretrained by clm: leave pretrain.objective out"),
        (["pretrain.objective=rtd"], "setting 'pretrain.objective': objective rtd: llama-custom has no head that says"),
        ([BERT, "tokenizer.vocab_size=400", "pretrain.objective=clm"], "bert is pretrained by mlm"),
        ([BERT, "tokenizer.vocab_size=262"], "the control tokens of the objective mlm take"),
        (["pretrain.objective=3"], "expected a mapping such as {kind: clm}; got 3"),
        (["pretrain.objective=classification"], "pretrain.objective.labels is missing: the classes, as the rows call"),
        (["pretrain.objective={kind: classification, labels: [a]}"], "labels: expected at least 2 items; got 1"),
        (["pretrain.labelled=[docs/0.csv]"], "pretrain.labelled: objective clm trains on documents, not on texts with"),
        ([BERT, "tokenizer.vocab_size=400", CLASSES, "data=null", "pretrain.labelled=[none.csv]"], "folder none.csv"),
        # numbers that cannot be
        (["pretrain.optimizer={kind: adamw, lr: .inf}"], "pretrain.optimizer.lr: expected a finite number; got inf"),
        (["pretrain.clip=.inf"], "pretrain.clip: expected a finite number; got inf"),
        (["pretrain.dropout=.nan"], "pretrain.dropout"),
        (["scale=0"], "scale: expected greater than 0; got 0"),
        (["scale=10"], "scale: expected less than or equal to 1; got 10"),
        # optimizers and schedules
        (["pretrain.optimizer=adamw"], "pretrain.optimizer: expected a mapping such as {kind: adamw}; got 'adamw'"),
        (["pretrain.schedule=cosin"], "pretrain.schedule: expected a mapping such as {kind: cosine}; got 'cosin'"),
        (["pretrain.optimizer.groups=[{match: nowhere, lr: 1}]"], "(match: 'nowhere') is about no parameter"),
        (["pretrain.optimizer.groups=[{match: '', frozen: true}]"], "every parameter is frozen"),
        # lengths
        (["pretrain.schedule={kind: cosine, warmup: 10k}"], "expected steps (2000), a part of the run (0.02) or {tok"),
        (["pretrain.schedule={kind: cosine, warmup: {minutes: 3}}"], "warmup: expected steps (2000), a part of"),
        (["pretrain.schedule={kind: cosine, warmup: 1.5}"], "warmup: expected less than 1; got 1.5"),
        (["pretrain.schedule={kind: linear, warmup: 3}"], "schedule.warmup takes 3 steps, but the budget ends the run"),
        (["pretrain.batch_warmup={start: 1, length: {tokens: 4000000000}}"], "batch_warmup.length takes 125,000,000"),
        (["pretrain.context_warmup={contexts: [16], length: 3}"], "context_warmup.length takes 3 steps"),
        (
            ["pretrain.log_every=often"],
            "pretrain.log_every: expected steps (100) or a part of the run (0.1); got 'often'",
        ),
        (["pretrain.checkpoint_every=1.5"], "pretrain.checkpoint_every: expected less than 1; got 1.5"),
        (["pretrain.context_warmup={contexts: 16}"], "pretrain.context_warmup.contexts: expected a list; got 16"),
        (["tokenizer=4096"], "tokenizer: expected a mapping such as {vocab_size, sample_bytes} or {load}; got 4096"),
        # files
        (["model={family: t5, dim: 32}"], "model: t5 takes layers, heads, hidden as well: give a number for each, or"),
        (["data.sources=[docs, nowhere]"], "setting 'data.sources': There is no file or folder nowhere"),
        (["scaling={sizes: [{dim: 16}], budgets: [1, 2, 3]}"], "scaling.sizes: expected at least 4 items; got 1"),
    ],
)
def test_what_cannot_be_is_one_message_and_leaves_nothing(
    settings: list[str], says: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert says in refused(capsys, "run", "r.yaml", *settings)
    assert not (here / "runs").exists()


def test_a_fault_that_only_the_model_knows_has_its_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    own = {"kind": "adamw", "groups": [{"match": "nowhere", "lr": 0.1}]}
    write(RECIPE | {"pretrain": RECIPE["pretrain"] | {"optimizer": own}})  # type: ignore[operator]
    line = next(n for n, text in enumerate(Path("r.yaml").read_text().splitlines(), 1) if "groups" in text)
    for command in ("run", "train", "evaluate"):
        assert f"r.yaml:{line}: pretrain.optimizer.groups[0]" in refused(capsys, command, "r.yaml")
    write(RECIPE | {"scaling": {"sizes": [{"dim": d} for d in (16, 32, 48, 64)], "budgets": [1e9, 2e9, 4e9]}})
    assert "r.yaml:" in (said := refused(capsys, "scaling", "run", "r.yaml")) and "pretrain.budget" in said
    assert not (here / "runs").exists()


def test_what_is_there_is_not_overwritten(capsys: pytest.CaptureFixture[str], checkpoint: Path, here: Path) -> None:
    before = Path("r.yaml").read_text()
    assert "r.yaml: is a file" in refused(capsys, "average", str(checkpoint), "--out", "r.yaml")
    said = refused(capsys, "average", str(checkpoint), "--out", "docs")
    assert "docs holds other files (0.csv, 0.txt, 1.txt) and no model" in said
    assert Path("r.yaml").read_text() == before and (here / "docs" / "0.txt").exists()


def test_labels_that_are_no_numbers(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    Path("p.jsonl").write_text('{"sentence1": "a b", "sentence2": "c d", "score": NaN}\n' * 4)
    objective = "pretrain.objective={kind: contrastive, loss: {kind: cosent}}"
    said = refused(capsys, "run", "r.yaml", BERT, "tokenizer.vocab_size=400", objective, "pretrain.pairs=[p.jsonl]")
    assert "p.jsonl:1 has no number as its label" in said
    assert not (here / "runs").exists()
