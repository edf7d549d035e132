"""`etymon models`: what there is, by what it has, and what a model is."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import etymon
from etymon.cli.main import app
from etymon.errors import ConfigError
from etymon.families import family_named


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.output


def listed(*arguments: str) -> dict[str, dict]:
    return {row["size"]: row for row in json.loads(run("list", "--json", *arguments))}


def test_filters_are_computed_from_specs() -> None:
    assert "mixtral-8x7b" in listed("--filter", "moe") and "llama-7b" not in listed("--filter", "moe")
    assert {"bert-base-uncased", "albert-base-v2"} <= listed("--filter", "encoder").keys()
    assert "t5-small" in listed("--filter", "seq2seq") and "t5-small" not in listed("--filter", "decoder")
    assert {"llama2-70b", "llama3-8b"} <= listed("--filter", "gqa").keys()
    assert "llama2-7b" not in listed("--filter", "gqa")
    assert {"falcon-7b", "starcoder"} <= listed("--filter", "mqa").keys()
    assert {"mamba-130m"} <= listed("--filter", "ssm").keys() <= listed("--filter", "recurrent").keys()
    assert {"bloom-560m", "mpt-7b"} <= listed("--filter", "alibi").keys()
    assert "gpt-j-6b" in listed("--filter", "parallel", "--filter", "rope")
    assert "gpt3-175b" in listed("--filter", "windowed") and "gpt2" not in listed("--filter", "windowed")
    assert (
        listed("--filter", "shared-weights").keys()
        == listed("--filter", "factorised", "--filter", "shared-weights").keys()
    )


def test_dates() -> None:
    after = listed("--filter", "moe", "--after", "2022")
    assert "mixtral-8x7b" in after and all(row["published"] >= "2022" for row in after.values())
    before = listed("--before", "2019-02")
    assert "openai-gpt" in before and "gpt2" not in before
    assert listed("--after", "2019-02", "--before", "2019-03").keys() >= {"gpt2"}
    assert listed("--filter", "decoder")["llama2-7b"]["published"] == "2023-07", "a size has its own date"


def test_order_and_numbers() -> None:
    rows = json.loads(run("list", "--json", "--sort", "parameters"))
    assert [row["parameters"] for row in rows] == sorted(row["parameters"] for row in rows)
    mixtral = next(row for row in rows if row["size"] == "mixtral-8x7b")
    assert mixtral["parameters"] == 46_702_792_704 and mixtral["active"] == 12_879_925_248
    assert "46.7B" in run("list", "--filter", "moe")


def test_errors_name_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"No model has 'moee'; known: .*gqa.* Did you mean 'moe'"):
        run("list", "--filter", "moee")
    with pytest.raises(ConfigError, match=r"--after soon: expected a year"):
        run("list", "--after", "soon")
    with pytest.raises(ConfigError, match=r"--sort size: expected one of"):
        run("list", "--sort", "size")


def test_what_a_published_size_is() -> None:
    output = run("show", "mixtral-8x7b")
    assert "published" in output and output.count("46,702,792,704") == 2 and "12,879,925,248 active" in output
    assert "Mixtral, 2023-12, from Mistral" in output
    assert "What differs from Mistral" in output and "MoE(experts 8" in output


def test_what_a_paper_counts_otherwise_is_told_with_the_reason() -> None:
    output = run("show", "falcon-7b")
    assert "the paper says" in output and "7.217B, with the tied head counted again (ours -4.1%)" in output


def test_a_gguf_file_can_be_shown(tmp_path) -> None:
    family = family_named("llama")
    spec = family.spec(**(family.tiny | {"dim": 64, "hidden": 64}))
    etymon.save(etymon.build(spec, seed=0), None, tmp_path / "tiny.gguf", format="gguf", quantization="f16")
    assert "width 64" in run("show", str(tmp_path / "tiny.gguf"))
