"""The parts of a run that compute something of their own: memory, the dial, the run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

import etymon
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.recipe import memory
from etymon.recipe.budget import share_of
from etymon.recipe.document import parse_recipe_text, with_settings
from etymon.recipe.loading import recipe_from
from etymon.recipe.run import changed_keys, open_run
from etymon.recipe.schema import PretrainSection, Recipe

TEXT = "name: x\nminutes: 2\nmodel: {family: llama, dim: 32, layers: 2, heads: 2, hidden: 64}\n"


def recipe(*settings: str) -> Recipe:
    return recipe_from(with_settings(parse_recipe_text(TEXT), settings))


def test_activation_estimate_is_near_what_autograd_keeps():
    import torch

    spec = family_named("llama").spec(vocab=256, dim=128, layers=4, heads=4, hidden=352, context=128)
    model = etymon.build(spec)
    ids = torch.randint(256, (8, 128))
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(ids, logits=False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = sum(size for place, size in kept.items() if place not in weights)
    estimated = memory.FP32 * 8 * 128 * memory.activations_per_token(spec)
    assert 0.6 < estimated / measured < 1.7


def test_memory_that_cannot_fit_is_refused_and_micro_batches_help():
    big = recipe("model={family: llama, size: llama2-70b}", "pretrain.context=4096")
    with pytest.raises(ConfigError, match=r"pretrain needs about .* TB|pretrain needs about .* GB"):
        memory.check_memory(big, big.model.spec(vocab=4096, context=256), "cpu")  # type: ignore[union-attr]
    spec = family_named("llama").spec(vocab=256, dim=128, layers=4, heads=4, hidden=352, context=128)
    whole, parts = PretrainSection(batch_size=64), PretrainSection(batch_size=64, micro_batch=4)
    assert (
        memory.training_memory(spec, parts, 128).activations < memory.training_memory(spec, whole, 128).activations / 8
    )


def test_the_dial_shares_what_is_left():
    both = [PretrainSection()]
    first = share_of(600, 60, "pretrain", both)
    second = share_of(600, 60 + first, "sft", [])
    assert first > second > 30
    assert 400 < 60 + first + second < 540  # the rest is for evaluation
    assert share_of(600, 10_000, "sft", []) > 0  # a machine that is too slow still trains a little
    fixed = PretrainSection.model_validate({"budget": {"minutes": 4}})
    assert share_of(600, 0, "pretrain", [fixed]) == pytest.approx(600 - 15 - 72 - 240)


def test_only_what_weights_depend_on_binds_a_run():
    base = recipe()
    assert changed_keys(base, recipe("serve.port=9", "evaluate.questions=3", "pretrain.log_every=1", "name=y")) == []
    changed = changed_keys(base, recipe("pretrain.optimizer.lr=0.5", "seed=3"))
    assert any(line.startswith("pretrain.optimizer.lr: 0.02 -> 0.5") for line in changed)
    assert any(line.startswith("seed: 0 -> 3") for line in changed)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"thesis\.tex"), open_run(recipe(f"run={tmp_path}"), fresh=True):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_fresh_removes_the_run_and_nothing_else(tmp_path: Path):
    with open_run(recipe(f"run={tmp_path}")) as run:
        run.finish("data", "f", 1.0)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "pretrain").mkdir()
    with pytest.raises(ConfigError, match="seed: 0 -> 1"), open_run(recipe(f"run={tmp_path}", "seed=1")):
        pass
    with open_run(recipe(f"run={tmp_path}", "seed=1"), fresh=True) as run:
        assert not run.done and not (tmp_path / "pretrain").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_has_done_nothing_takes_another_recipe(tmp_path: Path):
    with open_run(recipe(f"run={tmp_path}")):
        pass
    with open_run(recipe(f"run={tmp_path}", "seed=1")) as run:
        assert run.recipe.seed == 1


def test_two_processes_do_not_share_a_run(tmp_path: Path):
    with (
        open_run(recipe(f"run={tmp_path}")),
        pytest.raises(ConfigError, match="Another process"),
        open_run(recipe(f"run={tmp_path}")),
    ):
        pass
