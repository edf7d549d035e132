"""A generator trained beside its discriminator: optimised once, checkpointed, resumed bitwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import etymon
from etymon.data import PretrainLoader, TokenShards
from etymon.errors import CheckpointError
from etymon.families import family_named
from etymon.nn import Model, build
from etymon.objectives import ReplacedTokens, choose_objective
from etymon.text import Tokenizer
from etymon.train import AdamWConfig, Budget, Constant, MuonConfig, TrainConfig, fit
from etymon.train.optimizers import build_optimizers
from etymon.train.together import together


class Stop:
    """Ends the run after some steps, as a kill would."""

    every = 1

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, model: Model, step: int, final: bool) -> dict[str, float | str]:
        if step == self.after:
            raise KeyboardInterrupt
        return {}


def run(path: Path, shards: TokenShards, tokenizer: Tokenizer, optimizer: Any, **given: Any) -> tuple[Model, Model]:
    family = family_named("electra")
    spec = family.spec(**(family.tiny | {"vocab": tokenizer.vocab_size}))
    model, objective = build(spec, seed=1), choose_objective(spec, tokenizer)
    assert isinstance(objective, ReplacedTokens)
    config = TrainConfig(
        budget=Budget(steps=8),
        optimizer=optimizer,
        schedule=Constant(warmup=1),
        precision="fp32",
        compile="off",
        checkpoint_every=2,
    )
    fit(model, PretrainLoader(shards, 4, 32), objective, config, path, tokenizer=tokenizer, **given)
    assert objective.generator is not None
    return model, objective.generator


@pytest.mark.parametrize("optimizer", [AdamWConfig(lr=1e-2), MuonConfig()], ids=["adamw", "muon"])
def test_a_resumed_run_ends_bitwise_where_the_other_does(
    optimizer: Any, shards: TokenShards, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", shards, tokenizer, optimizer)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", shards, tokenizer, optimizer, hooks=[Stop(5)])
    resumed = run(tmp_path / "killed", shards, tokenizer, optimizer, resume=True)
    for a, b in zip(whole, resumed, strict=True):
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q), name
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000008"
    for path, expected in ((checkpoint, whole[0]), (checkpoint / "generator", whole[1])):
        loaded, _ = etymon.load(path)
        assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), expected.parameters(), strict=True))
    fresh = build(whole[1].spec, seed=0)
    moved = [not torch.equal(p, q) for p, q in zip(whole[1].parameters(), fresh.parameters(), strict=True)]
    assert all(moved)


def test_a_damaged_companion_is_noticed(shards: TokenShards, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from etymon.train.checkpoint import read_trainer

    run(tmp_path, shards, tokenizer, AdamWConfig())
    checkpoint = tmp_path / "checkpoints" / "step-000008"
    weights = next((checkpoint / "generator").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"generator/.*damaged"):
        read_trainer(checkpoint)
    (checkpoint / "trainer.json").write_text(
        (checkpoint / "trainer.json").read_text().replace(f"generator/{weights.name}", "../../../outside")
    )
    with pytest.raises(CheckpointError, match="lies outside the checkpoint"):
        read_trainer(checkpoint)


def test_shared_parameters_are_updated_once(tokenizer: Tokenizer) -> None:
    family = family_named("electra")
    spec = family.spec(**(family.tiny | {"vocab": tokenizer.vocab_size}))
    model, objective = build(spec), choose_objective(spec, tokenizer)
    trained = together(model, objective.companions(model))
    for config in (AdamWConfig(), MuonConfig()):
        groups = [group for optimizer in build_optimizers(trained, config) for group in optimizer.param_groups]
        given = [id(p) for group in groups for p in group["params"]]
        assert len(given) == len(set(given)) == len(list(trained.parameters()))
    assert together(model, {}) is model
