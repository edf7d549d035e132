"""Heads that look ahead, trained beside their model or alone, kept with it, and guessing well for the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from typer.testing import CliRunner

import etymon
from etymon.cli.main import app
from etymon.data import IGNORED, PretrainLoader, TokenShards
from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.hub import read_future_heads
from etymon.nn import Model, build
from etymon.nn.future import FutureHeads
from etymon.objectives import CausalLM, MultiToken, MultiTokenConfig, Residual, Sequential, choose_objective
from etymon.recipe.loading import load_recipe
from etymon.recipe.run import open_run
from etymon.recipe.stages import run_stages
from etymon.text import Tokenizer
from etymon.train import AdamWConfig, Budget, Constant, MuonConfig, TrainConfig, fit, held_out_loss, read_metrics


def small(family: str, tokenizer: Tokenizer, **dimensions: Any) -> Model:
    """Randomised everywhere: what starts at zero would hide gradients."""
    named = family_named(family)
    model = build(named.spec(**named.tiny | {"vocab": tokenizer.vocab_size} | dimensions), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return model


def run(
    model: Model,
    shards: TokenShards,
    tokenizer: Tokenizer,
    path: Path,
    config: MultiTokenConfig,
    *,
    steps: int = 6,
    optimizer: Any = AdamWConfig(lr=1e-2),
    **given: Any,
) -> FutureHeads:
    objective = choose_objective(model.spec, tokenizer, config)
    assert isinstance(objective, MultiToken)
    settings = TrainConfig(
        budget=Budget(steps=steps),
        optimizer=optimizer,
        schedule=Constant(warmup=1),
        precision="fp32",
        compile="off",
        log_every=1,
        checkpoint_every=2 if steps < 20 else steps,
    )
    fit(model, PretrainLoader(shards, 4, 32), objective, settings, path, tokenizer=tokenizer, **given)
    assert objective.heads is not None
    return objective.heads


def test_each_head_counts_what_the_settings_say(tokenizer: Tokenizer, shards: TokenShards) -> None:
    """Loss and gradient against all logits; the model's own part is that of `clm`."""
    model, config = small("llama", tokenizer), MultiTokenConfig(heads=Residual(count=3, weight=0.5, decay=0.8))
    objective = MultiToken(config)
    batch = PretrainLoader(shards, 4, 40).batch(0)
    assert int(batch.documents.max()) > 0, "documents end within rows"
    assert objective.losses(model, batch).keys() == {"loss"}, "without companions"
    heads = objective.companions(model)["future_heads"]
    with torch.no_grad():
        for p in heads.parameters():
            p.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    losses, parameters = objective.losses(model, batch), [*model.parameters(), *heads.parameters()]
    gradients = torch.autograd.grad(objective.loss(model, batch), parameters)

    hidden = model(batch.input_ids, position_ids=batch.position_ids, documents=batch.documents).last_hidden_state
    expected = CausalLM().loss(model, batch)
    assert torch.equal(losses["loss"], expected)
    weights, biases = heads.linear.weight.chunk(3), heads.linear.bias.chunk(3)
    future = torch.zeros(())
    for i in range(3):
        logits = model.head(hidden + F.silu(hidden @ weights[i].T + biases[i])).log_softmax(-1)
        for row, place in (batch.targets != IGNORED).nonzero().tolist():
            start = place - 1 - i
            if start >= 0 and batch.documents[row, start] == batch.documents[row, place]:
                future = future - 0.5 * 0.8**i * logits[row, start, batch.targets[row, place]]
    assert torch.allclose(losses["future_loss"], future, rtol=1e-5)
    for ours, naive in zip(gradients, torch.autograd.grad(expected + future, parameters), strict=True):
        assert torch.allclose(ours, naive, rtol=1e-3, atol=1e-4)


def test_a_model_overfits_and_its_metrics_are_those_of_clm(
    tokenizer: Tokenizer, shards: TokenShards, tmp_path: Path
) -> None:
    model, loader = small("llama", tokenizer), PretrainLoader(shards, 4, 32)
    before = held_out_loss(model, loader, 1)
    heads = run(model, shards, tokenizer, tmp_path, MultiTokenConfig(), steps=80)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(before, rel=1e-5)
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"] and rows[-1]["future_loss"] < 0.3 * rows[0]["future_loss"]
    objective = MultiToken()
    objective.heads = heads
    assert held_out_loss(model, loader, 1, objective=objective) == held_out_loss(model, loader, 1)


class Stop:
    """Ends the run after some steps, as a kill would."""

    every = 1

    def __call__(self, model: Model, step: int, final: bool) -> dict[str, float | str]:
        if step == 5:
            raise KeyboardInterrupt
        return {}


@pytest.mark.parametrize(
    ("heads", "trunk", "optimizer"),
    [
        (Residual(count=2), "trained", MuonConfig()),
        (Residual(count=2), "frozen", AdamWConfig(lr=1e-2)),
        (Sequential(depth=2), "trained", MuonConfig()),
    ],
    ids=["trained-muon", "frozen-adamw", "sequential-muon"],
)
def test_a_resumed_run_ends_bitwise_where_the_other_does(
    heads: Any, trunk: Any, optimizer: Any, shards: TokenShards, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config, found = MultiTokenConfig(heads=heads, trunk=trunk), []
    for path, hooks in ((tmp_path / "whole", []), (tmp_path / "killed", [Stop()])):
        model = small("llama", tokenizer)
        given: dict[str, Any] = {"optimizer": optimizer}
        if hooks:
            with pytest.raises(KeyboardInterrupt):
                run(model, shards, tokenizer, path, config, hooks=hooks, **given)
            model, given = small("llama", tokenizer), given | {"resume": True}
        trained = run(model, shards, tokenizer, path, config, **given)
        found.append([*model.parameters(), *trained.parameters()])
        kept = read_future_heads(path / "checkpoints" / "step-000006")
        assert all(torch.equal(p, q) for p, q in zip(kept.parameters(), trained.parameters(), strict=True))
        loaded, _ = etymon.load(path / "checkpoints" / "step-000006")
        assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_nothing_of_a_frozen_trunk_moves(tokenizer: Tokenizer, shards: TokenShards, tmp_path: Path) -> None:
    """Not even what no gradient trains: the corrections of DeepSeek's routers."""
    model, untouched = small("deepseek_v3", tokenizer), small("deepseek_v3", tokenizer)
    heads = run(model, shards, tokenizer, tmp_path, MultiTokenConfig(heads=Residual(decay=0.8), trunk="frozen"))
    state, before = model.state_dict(), untouched.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters()) and model.training
    assert all(bool(p.any()) for p in heads.parameters())
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["future_loss"] < rows[0]["future_loss"]


@pytest.mark.parametrize("heads", [{"kind": "residual", "count": 4}, "sequential"], ids=["residual", "sequential"])
def test_a_recipe_ends_in_a_model_with_its_heads(heads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if heads == "sequential":  # which beside two layers are not worth their time
        monkeypatch.setattr("etymon.engine.speculation.worth", lambda share, tokens, rows, cost, device: 1)
    (tmp_path / "docs").mkdir()
    for i in range(12):
        (tmp_path / "docs" / f"{i}.txt").write_text(
            "The cat sat on the mat, and then the dog ran to the house. " * (i + 4)
        )
    values: dict[str, Any] = {
        "name": "ahead",
        "run": str(tmp_path / "run"),
        "data": {"sources": [str(tmp_path / "docs")], "held_out": 0.2},
        "tokenizer": {"vocab_size": 300},
        "model": {"family": "llama", "dim": 32, "layers": 2, "heads": 2, "hidden": 64},
        "pretrain": {
            "objective": {"kind": "mtp", "heads": heads},
            "context": 64,
            "batch_size": 8,
            "budget": {"steps": 80},
        },
        "quantize": None,
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    with open_run(load_recipe(path)) as opened:
        run_stages(opened, until="model")
    row = read_metrics(tmp_path / "run" / "pretrain" / "metrics.jsonl")[-1]
    assert {"loss", "future_loss", "held_out_bits_per_byte", "sample"} <= row.keys()

    directory = tmp_path / "run" / "model"
    model, tokenizer = etymon.load(directory)
    asked = [Request("The cat", Sampling(temperature=0.0, max_tokens=40))]
    engine = Engine(model, tokenizer, EngineConfig(speculation=f"heads:{directory}"))
    (guessed,), (plain,) = engine.generate(asked), Engine(model, tokenizer).generate(asked)
    assert guessed.ids == plain.ids
    assert engine.metrics.accepted > 0.7 * engine.metrics.drafted > 10
    result = CliRunner().invoke(app, ["generate", str(directory), "The cat", "--speculation", f"heads:{directory}"])
    assert result.exit_code == 0 and plain.text[:40] in result.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{kind: mtp, heads: {kind: residual, count: 0}}", r"r.yaml:4: pretrain.objective.heads.count: "),
        ("{kind: mtp, heads: {kind: residual, weight: 0}}", r"r.yaml:4: pretrain.objective.heads.weight: "),
        ("{kind: mtp, heads: {kind: residual, decay: 1.5}}", r"r.yaml:4: pretrain.objective.heads.decay: "),
        ("{kind: mtp, trunk: melted}", r"r.yaml:4: pretrain.objective.trunk: "),
        ("{kind: mtp, trunk: frozen}\n  optimizer: {kind: mezo}", "mezo moves all weights by one loss"),
    ],
)
def test_what_cannot_be_is_said_with_its_line(settings: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: {family: llama, dim: 32, layers: 2, heads: 2, hidden: 48}\n"
        f"pretrain:\n  objective: {settings}\n  budget: {{steps: 1}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_an_encoder_is_refused(tokenizer: Tokenizer) -> None:
    for family in ("bert", "t5"):
        with pytest.raises(ConfigError, match="objective mtp"):
            choose_objective(small(family, tokenizer).spec, tokenizer, "mtp")
