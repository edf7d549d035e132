"""Denoisers as recipes name them: what cannot be is refused with its line, and a checkpoint's training goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import etymon
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.nn import build
from etymon.objectives import UL2Config, trained_spec
from etymon.recipe.inputs import control_tokens
from etymon.recipe.loading import load_recipe, write_recipe
from etymon.recipe.run import open_run
from etymon.recipe.stages import check_inputs, run_stages
from etymon.spec import Causal
from etymon.text import DEFAULT_SPECIAL, Tokenizer


def recipe(folder: Path, objective: Any, model: dict[str, Any]) -> Path:
    (folder / "docs").mkdir(exist_ok=True)
    for i in range(12):
        text = f"Text {i} says that the cat sat on mat {i + 1}. Then it left. " * 12
        (folder / "docs" / f"{i}.txt").write_text(text)
    values: dict[str, Any] = {
        "name": "denoiser",
        "run": str(folder / "run"),
        "data": {"sources": [str(folder / "docs")], "held_out": 0.2},
        "model": model,
        "pretrain": {"context": 32, "batch_size": 4, "budget": {"steps": 3}, "objective": objective},
        "evaluate": {"documents": 1, "questions": 0},
        "quantize": None,
    }
    if "load" not in model:
        values["tokenizer"] = {"vocab_size": 420}
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


BART: dict[str, Any] = {"family": "bart", "dim": 32, "layers": 1, "heads": 2}
LLAMA: dict[str, Any] = {"family": "llama", "dim": 32, "layers": 1, "heads": 2, "hidden": 48}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            {"kind": "denoising", "noises": [{"kind": "token_deletion", "rate": 1.0}]},
            r"r.yaml:\d+: .*rate.*less than 1",
        ),
        ({"kind": "denoising", "noises": ["token_deletions"]}, r"r.yaml:\d+: .*token_deletions"),
        ({"kind": "denoising", "noises": []}, r"r.yaml:\d+: .*noises.*at least 1 item"),
        ({"kind": "prefix_lm", "rate": 0.7}, r"r.yaml:\d+: .*rate.*less than or equal to 0.5"),
        ({"kind": "prefix_lm", "sight": "half"}, r"r.yaml:\d+: .*sight"),
        (
            {"kind": "ul2", "mixture": [{"kind": "spans", "mode": "S", "rate": 0.5, "span": 3}]},
            r"r.yaml:\d+: pretrain.objective.mixture\[0\].mode: expected 'R' or 'X'; got 'S'",
        ),
        ({"kind": "ul2", "mixture": [{"kind": "spans", "mode": "R", "rate": 0.5, "span": 0}]}, r"r.yaml:\d+: .*span"),
        ({"kind": "fim", "rate": 1.2}, r"r.yaml:\d+: .*rate.*less than or equal to 1"),
        ({"kind": "fim", "spm": -0.1}, r"r.yaml:\d+: .*spm.*greater than or equal to 0"),
        ({"kind": "infilling", "sentences": 0.6, "documents": 0.5}, r"r.yaml:\d+: .*sum to more than 1"),
        ({"kind": "infilling", "shortest": 0}, r"r.yaml:\d+: .*shortest.*greater than 0"),
        ({"kind": "ul2", "mixture": []}, r"r.yaml:\d+: pretrain.objective.mixture: .*at least 1 item"),
        ({"kind": "ul2", "mixture": "ul2rr"}, r"r.yaml:\d+: .*unknown mixture 'ul2rr'.*Did you mean 'ul2r'"),
    ],
)
def test_what_cannot_be_is_said_with_its_line(objective: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe(tmp_path, objective, BART))


@pytest.mark.parametrize(
    ("objective", "model", "expected"),
    [
        ({"kind": "denoising", "noises": ["document_rotation", "token_masking"], "language": "en_XX"}, BART, "en_XX"),
        ({"kind": "prefix_lm", "sight": "causal"}, LLAMA, "<|endoftext|>"),
        ({"kind": "fim", "rate": 0.9}, LLAMA, "<|fim_middle|>"),
        ("ul2", BART, "[NLG]"),
    ],
)
def test_a_recipe_of_its_own(objective: Any, model: dict[str, Any], expected: str, tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, objective, model))
    write_recipe(loaded, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml").pretrain == loaded.pretrain
    check_inputs(loaded, "cpu")
    assert expected in control_tokens(loaded)


def test_a_causal_checkpoint_goes_on_with_ul2r_and_says_how_it_sees(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["Text says that the cat sat."], 300, special_tokens=(*DEFAULT_SPECIAL, "<extra_id_0>"))
    family = family_named("llama")
    spec = family.spec(**(family.tiny | {"vocab": tokenizer.vocab_size}))
    etymon.save(build(spec, seed=1), tokenizer, tmp_path / "checkpoint")
    model = {"load": str(tmp_path / "checkpoint")}
    with pytest.raises(ConfigError, match=r"no control token \[NLU\], \[S2S\], \[NLG\]. Set `modes: none`"):
        check_inputs(load_recipe(recipe(tmp_path, {"kind": "ul2", "mixture": "ul2r"}, model)), "cpu")
    one = [{"kind": "prefix", "rate": 0.5}]  # there is one sentinel
    settings = {"kind": "ul2", "mixture": one, "modes": "none", "sight": "full"}
    with open_run(load_recipe(recipe(tmp_path, settings, model))) as run:
        run_stages(run, until="pretrain")
    assert (tmp_path / "run" / "pretrain" / "COMPLETE").exists()
    *_, checkpoint = sorted((tmp_path / "run" / "pretrain" / "checkpoints").iterdir())
    trained, _ = etymon.load(checkpoint)
    assert trained.prefixed and trained_spec(trained.spec) == trained.spec
    assert trained_spec(trained.spec, UL2Config(sight="causal")) == replace(
        trained.spec, decoder=replace(trained.spec.trunk, visibility=Causal())
    )
    path = recipe(tmp_path, "prefix_lm", {"load": str(checkpoint)})
    path.write_text(path.read_text() + "sft: {sources: [builtin], budget: {steps: 1}, train_on: last}\n")
    with pytest.raises(ConfigError, match=r"r.yaml:\d+: sft.train_on is last.*Set `train_on: assistant`"):
        check_inputs(load_recipe(path), "cpu")
