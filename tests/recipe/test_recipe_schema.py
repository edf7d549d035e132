"""What a recipe says, and how its faults are told."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from etymon.errors import ConfigError
from etymon.families import families
from etymon.recipe.document import parse_recipe_text, read_recipe_text, with_settings
from etymon.recipe.loading import dump_recipe, load_recipe, recipe_from
from etymon.recipe.schema import Recipe, dimension_types

SMALL = """name: small
minutes: 2
model:
  family: llama
  dim: 64
  layers: 2
  heads: 4
  hidden: 128
"""


def recipe(text: str = SMALL, *settings: str, under: str | None = None) -> Recipe:
    return recipe_from(with_settings(parse_recipe_text(text, "r.yaml"), settings, under=under))


def fault(text: str = SMALL, *settings: str) -> str:
    with pytest.raises(ConfigError) as error:
        recipe(text, *settings)
    return str(error.value)


def test_resolved_recipe_is_explicit_and_reads_back_to_itself():
    resolved = recipe()
    text = dump_recipe(resolved)
    assert recipe_from(parse_recipe_text(text)) == resolved
    assert resolved.pretrain is not None
    assert resolved.pretrain.context == 256 and resolved.run == "runs/small"
    assert "evaluate_every: 0.1" in text and "weight_decay" in text


def test_secrets_are_not_stored():
    assert "hunter2" not in dump_recipe(recipe(SMALL, "serve.api_keys=[hunter2]"))


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("pretrian: {}\n", ["r.yaml:9", "'pretrian'", "Did you mean 'pretrain'?"]),
        ("pretrain:\n  optimizer:\n    lrr: 3\n", ["r.yaml:11", "Did you mean 'pretrain.optimizer.lr'?"]),
        ("evalute_every: 3\n", ["Did you mean 'pretrain.evaluate_every'"]),
        ("data:\n  sources:\n  - path: x\n    encodng: gbk\n", ["r.yaml:12", "'data.sources[0].encoding'?"]),
    ],
)
def test_unknown_key_names_its_line_and_the_nearest_known_key(addition: str, expected: list[str]):
    message = fault(SMALL + addition)
    assert all(part in message for part in expected), message


def test_unknown_dimension_of_a_family():
    message = fault(SMALL.replace("heads:", "headz:"))
    assert "headz" in message and "Did you mean 'heads'?" in message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("pretrain.optimizer.lr=abc", "pretrain.optimizer.lr: expected a valid number; got 'abc'"),
        ("pretrain.batch_size=[1]", "pretrain.batch_size: expected a valid integer; got a list"),
        ("model.heads=x", "heads: expected a valid integer"),
        ("model.heads=0", "heads: expected greater than or equal to 1"),
        ("seed=-1", "seed: expected greater than or equal to 0; got -1"),
        ("model=3", "model"),
        ("sft=true", "sft: "),
    ],
)
def test_wrong_type_says_what_was_expected(setting: str, expected: str):
    assert expected in fault(SMALL, setting)


def test_bad_union_kind_lists_the_known_ones():
    message = fault(SMALL, "pretrain.optimizer.kind=adamv")
    assert "'adamv'" in message and "'adamw', 'muon'" in message and "Did you mean 'adamw'?" in message


def test_several_faults_are_told_at_once():
    message = fault(SMALL + "sede: 1\n", "pretrain.batch_size=x", "minutes=-1")
    assert "3 faults" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("pretrain.context=128", "model.context=64"), "pretrain.context is 128, but the model's context is 64"),
        (("engine.context=512", "model.context=64"), "engine.context is 512"),
        (("pretrain.batch_size=10", "pretrain.micro_batch=4"), "not a multiple of micro_batch 4"),
        (("model.vocab=300",), "model.vocab is 300, but the tokenizer may have 4096 tokens"),
        (("minutes=null",), "how long is pretrain?"),
        (("data=null",), "pretrain has no documents"),
        (("pretrain=null",), "nothing trains this new model"),
        (("model={load: x}", "tokenizer={vocab_size: 500}"), "a new tokenizer would make them noise"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_the_door(settings: tuple[str, ...], expected: str):
    assert expected in fault(SMALL, *settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\nname: y\n", "r.yaml:2: name stands here a second time"),
        ("name: [x\n", "r.yaml:2: not valid YAML"),
        ("- a\n", "a recipe is a mapping of settings, not a list"),
        ("name: x\n", "model is missing"),
        ("", "2 faults"),
        ("name: ../../x\nmodel: {family: llama}\n", "name: "),
        ("name: x\nmodel: {family: lama}\n", "Did you mean 'llama'?"),
        ("name: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_faulty_yaml(text: str, expected: str):
    assert expected in fault(text)


def test_missing_and_undecodable_recipe_files(tmp_path: Path):
    (tmp_path / "other.yaml").write_text(SMALL)
    with pytest.raises(ConfigError, match=r"no such recipe.*other\.yaml"):
        load_recipe(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_recipe_text(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="holds no run"):
        load_recipe(tmp_path)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_are_parsed_as_yaml_and_validated():
    r = recipe(SMALL, "pretrain.optimizer.lr=3e-4", "pretrain.compile=on", "name=名字", "model.tied=true")
    assert r.pretrain is not None
    assert r.pretrain.optimizer.lr == 3e-4 and r.pretrain.compile == "on" and r.name == "名字"


def test_a_setting_changes_one_part_of_a_default():
    plain, changed = recipe(SMALL + "sft: {}\n"), recipe(SMALL, "sft.optimizer.lr=0.5")
    assert plain.sft is not None and changed.sft is not None
    assert changed.sft.optimizer == plain.sft.optimizer.model_copy(update={"lr": 0.5})
    other = recipe(SMALL, "pretrain.optimizer={kind: adamw, lr: 0.1}")
    assert other.pretrain is not None and other.pretrain.optimizer.kind == "adamw"


def test_settings_reach_into_lists_by_place():
    r = recipe(
        SMALL + "data: {sources: [a.txt, b.txt]}\n", "data.sources.1.encoding=gb18030", "data.sources[2]=builtin"
    )
    assert r.data is not None
    assert [s.kind for s in r.data.sources] == ["files", "files", "builtin"]
    assert r.data.sources[1].encoding == "gb18030"  # type: ignore[union-attr]


def test_settings_of_a_stage_may_leave_its_name_out():
    r = recipe(SMALL, "optim.lr=3e-4", "seed=5", under="pretrain")
    assert r.pretrain is not None
    assert r.pretrain.optimizer.lr == 3e-4 and r.seed == 5 and r.pretrain.seed == 5


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("minutes", "of the form section.key=value"),
        ("=3", "of the form section.key=value"),
        ("data.sources=[", "not valid YAML"),
        ("name.x=1", "name is text, which has no 'x'"),
        ("data.sources.7.path=x", "is a list of 1"),
        ("pretrain.optimizer.lrr=1", "setting 'pretrain.optimizer.lrr'"),
    ],
)
def test_faulty_settings(setting: str, expected: str):
    assert expected in fault(SMALL + "data: {sources: [a]}\n", setting)


def test_the_tokenizer_of_a_loaded_model_is_its_own():
    r = recipe("name: x\nmodel: {load: some/model}\npretrain: null\ndata: null\nsft: {budget: {steps: 3}}\n")
    assert r.tokenizer.load == "some/model"  # type: ignore[union-attr]


def test_settings_of_the_only_stage_that_trains(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: {load: some/model}\npretrain: null\ndata: null\nsft: {budget: {steps: 3}}\n")
    r = load_recipe(path, ["batch_size=3"], under="pretrain")
    assert r.pretrain is None and r.sft is not None and r.sft.batch_size == 3


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_the_recipes_of_the_repository_are_valid(path: Path):
    assert load_recipe(path).stages


@pytest.mark.parametrize("family", sorted(families()))
def test_every_family_s_dimensions_have_types(family: str) -> None:
    known = inspect.signature(families()[family].build).parameters.keys() - {"name"}
    assert dimension_types(family).model_fields.keys() == known
