"""The dial: what becomes of a published recipe's numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from etymon.errors import ConfigError
from etymon.nn import build, count
from etymon.recipe.loading import dump_recipe, load_recipe
from etymon.recipe.run import open_run
from etymon.recipe.scale import compared, published_spec
from etymon.train.optimizers import plan_groups

RECIPES = Path(__file__).parents[2] / "recipes" / "pretrain"


def at(name: str, scale: float, *settings: str):
    return load_recipe(RECIPES / f"{name}.yaml", [f"scale={scale}", *settings])


def parts(recipe, published):
    """What became of the parameters outside the embeddings, and of the width."""
    small, large = published_spec(recipe), published_spec(published)
    return count(small).non_embedding / count(large).non_embedding, small.dim / large.dim


@pytest.mark.parametrize("scale", [0.5, 0.1, 0.03, 0.01, 0.003])
@pytest.mark.parametrize("name", ["gpt2", "bert-base", "tinyllama-1.1b"])
def test_the_parameters_follow_the_dial_and_the_rest_the_parameters(name, scale):
    published = load_recipe(RECIPES / f"{name}.yaml")
    recipe = at(name, scale)
    parameters, width = parts(recipe, published)
    assert parameters == pytest.approx(scale, rel=0.35)
    small, large = published_spec(recipe), published_spec(published)
    assert small.dim % 64 == 0  # heads keep their size
    shape, was = small.dim / small.trunk.depth, large.dim / large.trunk.depth
    assert 0.4 < shape / was < 2.5
    share = small.vocab * small.dim / (large.vocab * large.dim)
    assert (
        share == pytest.approx(parameters, rel=0.05) or small.vocab == 576
    )  # 256 bytes, the control tokens, and 256 merges
    new, old = recipe.pretrain, published.pretrain
    assert new.optimizer.lr == pytest.approx(old.optimizer.lr / width, rel=1e-3)
    assert new.optimizer.model_copy(update={"lr": 1.0}) == old.optimizer.model_copy(update={"lr": 1.0})
    assert new.batch_size * new.context == pytest.approx(max(1024, parameters * old.batch_size * old.context), rel=0.1)
    runs = [s.warmups(s.context).sizes(s.budget.steps) for s in (new, old)]
    tokens = [sizes.positions(s.budget.steps) for sizes, s in zip(runs, (new, old), strict=True)]
    assert tokens[0] / tokens[1] == pytest.approx(parameters, rel=0.01)  # tokens per parameter stay
    assert new.schedule.warmup == pytest.approx(old.schedule.warmup / old.budget.steps, rel=1e-3)
    assert (new.objective, new.dropout, new.clip) == (old.objective, old.dropout, old.clip)
    assert new.context == small.context == max(64, 32 * round(old.context * width / 32))


def test_a_base_width_says_how_rates_follow_the_width():
    recipe = at("gpt2", 0.01, "pretrain.optimizer.base_width=768")
    assert (recipe.pretrain.optimizer.lr, recipe.pretrain.optimizer.base_width) == (6e-4, 768)
    rates = {group.lr for group in plan_groups(build(published_spec(recipe), device="meta"), recipe.pretrain.optimizer)}
    assert rates == {6e-4, 6e-4 * 768 / 192}


def test_lengths_in_tokens_become_parts_of_the_run():
    section = at("gpt3-125m", 0.01).pretrain
    # the batch is a line over tokens from 2**15 to 2**19: the updates of t tokens are an integral of 1 / batch
    slope = (2**19 - 2**15) / 4e9
    warmup = math.log1p(375e6 * slope / 2**15) / slope
    total = math.log(2**19 / 2**15) / slope + (300e9 - 4e9) / 2**19
    assert section.schedule.warmup == pytest.approx(warmup / total, rel=0.04)
    assert section.schedule.length == pytest.approx(1 - 40e9 / 2**19 / total, rel=1e-3)
    assert section.batch_warmup.start < section.batch_size / 8
    assert section.batch_warmup.length == pytest.approx(math.log(16) / slope / total, rel=0.04)
    assert at("opt-125m", 0.01).pretrain.schedule.length is None  # its line ends with the run


def test_contexts_grow_as_they_did():
    section = at("bert-base", 0.03).pretrain
    assert section.context == 160
    assert (section.context_warmup.contexts, section.context_warmup.length) == ((40,), 0.9)


def test_key_heads_windows_and_factorised_embeddings_are_in_proportion():
    llama = at("tinyllama-1.1b", 0.01).model.dimensions
    assert (llama["heads"], llama["kv_heads"], llama["dim"]) == (7, 1, 448)
    assert at("gpt3-125m", 0.01).model.dimensions["window"] == 64  # 256 of 2,048, and 64 of 512
    assert at("electra-small", 0.2).model.dimensions["width"] == 64


def test_the_run_ends_after_ten_minutes_unless_the_recipe_says():
    assert at("gpt2", 0.01).pretrain.budget.minutes == pytest.approx(8.55)
    assert at("gpt2", 0.01, "minutes=2").pretrain.budget.minutes < 2
    assert at("gpt2", 0.01, "minutes=null").pretrain.budget.minutes is None


def test_the_run_s_recipe_has_the_numbers_and_is_not_scaled_again(tmp_path):
    recipe = at("gpt2", 0.01, f"run={tmp_path / 'run'}")
    with open_run(recipe):
        pass
    again = load_recipe(tmp_path / "run")
    assert dump_recipe(again) == dump_recipe(recipe)
    assert (again.scale, again.scaled_by, again.model.dimensions["dim"]) == (1, 0.01, 192)
    with pytest.raises(ConfigError, match=r"scaled by 0\.01 already"):
        load_recipe(tmp_path / "run", ["scale=0.5"])


def test_published_and_scaled_stand_side_by_side():
    rows = {name.strip(): (before, after) for name, before, after in compared(at("gpt2", 0.01))}
    assert rows["width"] == ("768", "192")
    assert rows["warmup"] == ("2,000 updates", "0.333% of the run")
    assert rows["tokens"][0].endswith("3,698 per parameter") and rows["tokens"][1].endswith("3,698 per parameter")


@pytest.mark.parametrize("scale", ["0", "-1", "1.5", "big"])
def test_impossible_scales_are_refused_with_their_line(scale, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text((RECIPES / "gpt2.yaml").read_text().replace("scale: 1 #", f"scale: {scale} #"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml:6: scale"):
        load_recipe(path)


def test_a_scale_that_leaves_nothing_says_the_least():
    with pytest.raises(ConfigError, match=r"Take at least 0\.00029"):
        at("gpt2", 1e-5)
    assert at("gpt2", 0.0003).model.dimensions["heads"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pretrain.budget={minutes: 1}"], "the length of the published run"),
        (["tokenizer={load: somewhere}"], "tokenizer.load"),
        (["model={load: somewhere}", "tokenizer={load: somewhere}"], "pretrain a new model"),
        (["model={family: lstm, dim: 32, layers: 1}"], "family lstm has others"),
    ],
)
def test_what_cannot_be_scaled_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        at("gpt2", 0.1, *settings)
