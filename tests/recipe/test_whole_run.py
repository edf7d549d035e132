"""A whole run in seconds: documents and conversations in English and Chinese to a served model and its report."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import etymon
from etymon.cli.main import main
from etymon.errors import ConfigError, TrainingError
from etymon.recipe import stages
from etymon.recipe.loading import load_recipe
from etymon.recipe.run import open_run
from etymon.recipe.stages import run_stages
from etymon.text import Tokenizer

WORDS = "the cat sat on a mat and saw green tea while rain fell on old stones".split()
CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


def write_sources(folder: Path) -> None:
    rng = random.Random(0)
    (folder / "文档").mkdir(parents=True)
    for i in range(30):
        english = " ".join(rng.choices(WORDS, k=60))
        (folder / "文档" / f"{i}.txt").write_text(f"{english}\n{''.join(rng.choices(CHARACTERS, k=80))}\n")
    with (folder / "chats.jsonl").open("w") as file:
        for i in range(40):
            question = f"What is {i} plus 1?" if i % 2 else f"{i} 加一等于几？"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": str(i + 1)}]
            split = "held_out" if i % 4 == 0 else "train"
            row = {"messages": messages, "kind": "add", "answer": str(i + 1), "split": split}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_recipe(folder: Path) -> Path:
    recipe = {
        "name": "tiny",
        "run": str(folder / "run"),
        "data": {"sources": [str(folder / "文档")], "held_out": 0.2},
        "tokenizer": {"vocab_size": 400},
        "model": {"family": "llama", "dim": 32, "layers": 2, "heads": 2, "hidden": 64},
        "pretrain": {"context": 64, "batch_size": 4, "budget": {"steps": 6}, "evaluate_every": 0.5},
        "sft": {"sources": [str(folder / "chats.jsonl")], "batch_size": 2, "budget": {"steps": 4}},
        "evaluate": {"questions": 3, "max_tokens": 4, "sample_tokens": 4},
        "engine": {"slots": 4},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return path


def call(*arguments: str) -> int:
    """Run the command line in this process; return its exit code."""
    before = sys.argv
    sys.argv = ["etymon", *arguments]
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_sources(folder)
    assert call("run", str(write_recipe(folder))) == 0
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run, to damage."""
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run"


def test_the_run_leaves_everything(folder: Path):
    run = folder / "run"
    for name in (
        *(
            "recipe.yaml",
            "environment.json",
            "report.html",
            "report.md",
            "data/manifest.json",
            "tokenizer/tokenizer.json",
        ),
        *("pretrain/metrics.jsonl", "sft/metrics.jsonl", "sft/packing.json", "model/spec.json", "hf/config.json"),
        *("int8/quantization.json", "evaluate/bits_per_byte.json", "evaluate/tasks-fine-tuned.json"),
        *("evaluate/samples-pretrained.json", "evaluate/timings.json", "evaluate/model.json"),
    ):
        assert (run / name).is_file(), name
    models = [entry["model"] for entry in json.loads((run / "evaluate/bits_per_byte.json").read_text())["models"]]
    assert models == ["pretrained", "fine-tuned", "int8"]
    assert {"memorised", "held_out"} == {
        split["split"] for split in json.loads((run / "evaluate/tasks-fine-tuned.json").read_text())["splits"]
    }
    assert json.loads((run / "evaluate/int8.json").read_text())["drift"]["positions"] > 0
    rows = [json.loads(line) for line in (run / "pretrain/metrics.jsonl").read_text().splitlines()]
    assert any("held_out_bits_per_byte" in row and "→" in row["sample"] for row in rows)


def test_the_run_s_models_load_and_agree(folder: Path):
    import torch

    run = folder / "run"
    model, tokenizer = etymon.load(run / "model")
    other, _ = etymon.load(run / "hf")
    assert isinstance(tokenizer, Tokenizer)
    ids = torch.tensor([tokenizer.encode("the cat 天地")])
    torch.testing.assert_close(model(ids).logits, other(ids).logits)
    assert etymon.load(run / "int8")[0](ids).logits.shape == model(ids).logits.shape


def test_the_service_answered_http_and_openai_s_client(folder: Path):
    service = json.loads((folder / "run/evaluate/service.json").read_text())
    assert service["ok"] and service["model"] == "tiny"
    assert service["openai_client"] == service["answer"]


def test_what_is_complete_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*") if p.suffix in (".safetensors", ".jsonl")}
    assert call("run", str(folder / "run")) == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert "pretraining: done before, kept" in capsys.readouterr().err


def test_a_changed_recipe_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert call("run", str(folder / "tiny.yaml"), "pretrain.optimizer.lr=0.5") == 2
    message = capsys.readouterr().err
    assert "pretrain.optimizer.lr: 0.02 -> 0.5" in message and "--fresh" in message


def test_changed_documents_are_refused(folder: Path, copy: Path):
    source = folder / "文档" / "0.txt"
    text, stat = source.read_text(), source.stat()
    source.write_text(text + "more")
    try:
        with (
            pytest.raises(ConfigError, match="have changed since"),
            open_run(load_recipe(copy)) as run,
        ):
            run_stages(run)
    finally:
        source.write_text(text)
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_interrupted_run_goes_on_to_the_same_weights(folder: Path, copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Stop in the middle of pretraining, as a kill would, and continue with `etymon run`."""
    for name in ("pretrain", "sft", "model", "hf", "int8", "evaluate"):
        shutil.rmtree(copy / name)
    state = json.loads((copy / "stages.json").read_text())
    state["stages"] = {name: state["stages"][name] for name in ("data", "tokenizer")}
    (copy / "stages.json").write_text(json.dumps(state))

    class Stop:
        every = 1

        def __call__(self, model: object, step: int, final: bool) -> dict[str, float | str]:
            if step == 4:
                raise TrainingError("stopped")
            return {}

    real = stages.fit
    monkeypatch.setattr(stages, "fit", lambda *a, hooks, **k: real(*a, hooks=[*hooks, Stop()], **k))
    with pytest.raises(TrainingError, match="stopped"), open_run(load_recipe(copy)) as run:
        run_stages(run)
    monkeypatch.undo()
    with open_run(load_recipe(copy, ["pretrain.log_every=1"])) as run:
        run_stages(run, until="model")
    for name in ("model/model.safetensors", "hf/model.safetensors"):
        assert (copy / name).read_bytes() == (folder / "run" / name).read_bytes()


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(folder: Path, tmp_path: Path):
    run = tmp_path / "long"
    command = [sys.executable, "-m", "etymon", "train", str(folder / "tiny.yaml"), "--stage", "pretrain"]
    settings = [f"run={run}", "budget.steps=100000", "log_every=1", "checkpoint_every=100000", "evaluate_every=100000"]
    with subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, text=True) as process:
        metrics = run / "pretrain" / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < 3):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error and "--resume" in error
    assert len(list((run / "pretrain" / "checkpoints").glob("step-*"))) == 2  # the first, and the interrupted one
    assert not (run / "pretrain" / "COMPLETE").exists()


def test_train_wants_to_be_told_to_resume(folder: Path, copy: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(copy / "sft")
    (copy / "pretrain" / "COMPLETE").unlink()
    assert call("train", str(copy), "--stage", "pretrain") == 2
    assert "--resume" in capsys.readouterr().err
    assert call("train", str(copy), "--stage", "pretrain", "--resume") == 0


def test_a_stage_whose_files_are_gone_is_done_again(copy: Path):
    (copy / "model" / "spec.json").unlink()
    (copy / "report.html").unlink()
    with open_run(load_recipe(copy)) as run:
        run_stages(run)
    assert (copy / "model" / "spec.json").exists() and (copy / "report.html").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "other"
    assert call("run", str(folder / "tiny.yaml"), f"run={target}", "--dry-run") == 0
    assert not target.exists()
    plan = " ".join(capsys.readouterr().out.split())
    for part in ("46,240 parameters", "20,640 outside", "30 files", "6 steps", "1,536 tokens", "muon, learning rate"):
        assert part in plan, part
    for part in ("memory about", "⟦1<|end|>⟧", "report.html"):
        assert part in plan, part
    assert call("run", str(folder / "run"), "--dry-run") == 0
    prepared = " ".join(capsys.readouterr().out.split())
    assert "documents to train on" in prepared and "exists: would go on" in prepared
    assert call("run", str(folder / "tiny.yaml"), "seed=3", "--dry-run") == 0
    assert "would be refused without --fresh: pretrain.seed: 0 -> 3" in " ".join(capsys.readouterr().out.split())


def test_fine_tuning_alone_continues_from_a_checkpoint(folder: Path, tmp_path: Path):
    run = tmp_path / "tuned"
    text = {
        "name": "tuned",
        "run": str(run),
        "data": None,
        "pretrain": None,
        "model": {"load": str(folder / "run" / "hf")},
        "sft": {"sources": [str(folder / "chats.jsonl")], "batch_size": 2, "budget": {"steps": 2}},
        "evaluate": {"questions": 1, "max_tokens": 2, "sample_tokens": 2},
        "engine": {"slots": 2},
    }
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(text))
    assert call("run", str(path)) == 0
    assert (run / "report.html").exists() and (run / "model" / "spec.json").exists()
    assert (run / "tokenizer" / "tokenizer.json").exists()


# -- the other commands, on this run -----------------------------------------------------------------------------------


def test_commands_on_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = str(folder / "run")
    for arguments, expected in (
        (("data", "stats", run), "held_out"),
        (("data", "show", run, "-n", "1"), "──"),
        (("tokenizer", "encode", run, "the 天"), "天"),
        (("tokenizer", "measure", run, str(folder / "文档")), "bytes per token"),
        (("models", "show", run), "46,240 in all"),
        (("report", run), "report.html"),
        (("quantize", run, "--out", str(tmp_path / "small")), "of weights"),
        (("evaluate", run + "/hf", "--documents", str(folder / "文档/1.txt")), "bits per byte"),
        (("evaluate", run + "/model", "--conversations", str(folder / "chats.jsonl"), "--questions", "2"), "right"),
    ):
        assert call(*arguments) == 0, arguments
        assert expected in capsys.readouterr().out, arguments
    assert (tmp_path / "small" / "quantization.json").exists()


@pytest.mark.parametrize("int8", [False, True])
def test_chat_on_a_run(folder: Path, int8: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n/exit\n"))
    options = ["--int8"] if int8 else []
    assert call("chat", str(folder / "run"), "--temperature", "0", "--max-tokens", "3", *options) == 0
    assert capsys.readouterr().out


def test_serve_answers_on_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    command = [sys.executable, "-m", "etymon", "serve", str(folder / "run"), "--port", "0", "--api-key", "k", "--int8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "answers at http://127.0.0.1:" in line, process.stderr.read() if process.stderr else ""
        url = line.split()[3]
        import httpx

        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 401
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, headers={"Authorization": "Bearer k"})
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] >= 1
        os.kill(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert "Traceback" not in error
