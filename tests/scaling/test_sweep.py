"""A sweep from its recipe to its page: one after another through `fit`, resumable, with forks that change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from etymon.cli.main import app
from etymon.errors import ConfigError
from etymon.nn import flops_per_token
from etymon.recipe.loading import load_recipe
from etymon.recipe.run import Run, open_run
from etymon.recipe.stages import run_stages
from etymon.scaling import read_points
from etymon.scaling.plan import Planned, plan
from etymon.scaling.sweep import run_sweep, train
from etymon.train.checkpoint import list_checkpoints

SIZES = [{"dim": dim, "hidden": 2 * dim} for dim in (8, 16, 24, 40)]


def recipe(folder: Path, run: str = "sweep", **changes: Any) -> Path:
    texts = folder / "texts"
    if not texts.exists():
        texts.mkdir()
        for i in range(40):
            (texts / f"{i}.txt").write_text(f"Text {i} says that the cat sat on mat {i + 1}. Then it left. " * 8)
    values: dict[str, Any] = {
        "name": "sweep",
        "run": str(folder / run),
        "data": {"sources": [str(texts)], "held_out": 0.2},
        "tokenizer": {"vocab_size": 300},
        "model": {"family": "llama", "dim": 8, "layers": 1, "heads": 1, "hidden": 16, "tied": True},
        "pretrain": {
            "context": 16,
            "batch_size": 4,
            "precision": "fp32",
            "schedule": {"kind": "wsd", "warmup": 2, "decay": 0.5},
        },
        "scaling": {
            "sizes": SIZES,
            "budgets": [2e7, 4e7, 8e7],
            "tokens_per_parameter": [0.01, 500],
            "epochs": 50,
            "check": 1.6e8,
            "held_out_tokens": 512,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep, by the command line."""
    folder = tmp_path_factory.mktemp("sweep")
    result = CliRunner().invoke(
        app, ["scaling", "run", str(recipe(folder)), "--replicates", "40"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "parametric" in result.output and "report.html" in result.output
    return folder / "sweep"


def runs_of(sweep: Path) -> list[Planned]:
    return plan(load_recipe(sweep), None, None)


def test_every_run_spends_its_budget_as_flops_are_counted(done: Path):
    points = read_points(done)
    assert len(points) == 10 and len({p.size for p in points}) == 4
    for planned, point in zip(runs_of(done), points, strict=True):
        assert point.tokens == planned.steps * 64 and point.budget == planned.budget
        assert point.flops == point.tokens * flops_per_token(planned.size.spec, 16)
        assert point.flops == pytest.approx(point.budget, rel=0.25)  # half a step of few
        assert (planned.folder(done) / "COMPLETE").exists() and 0 < point.loss < 6
    largest = [p for p in points if p.budget == 8e7]
    assert min(p.loss for p in largest) < min(p.loss for p in points if p.budget == 2e7)
    assert not list(done.glob("runs/*/*/data")) and (done / "data" / "shards").is_dir()  # prepared once


def test_a_run_that_took_over_another_s_beginning_is_bitwise_its_own(done: Path, tmp_path: Path):
    every = runs_of(done)
    planned = next(p for p in reversed(every) if (p.size.name, 4e7) in {(o.size.name, o.budget) for o in every})
    assert planned.budget == 8e7
    assert list_checkpoints(planned.folder(done))[0].name != "step-000000"  # it did not begin anew
    alone = Run(tmp_path, load_recipe(done))
    for part in ("data", "tokenizer"):
        shutil.copytree(done / part, tmp_path / part)
    train(alone, planned)
    own, shared = (list_checkpoints(planned.folder(folder))[-1] for folder in (tmp_path, done))
    assert own.name == shared.name
    assert (own / "model.safetensors").read_bytes() == (shared / "model.safetensors").read_bytes()


def test_a_sweep_that_was_killed_goes_on(done: Path, tmp_path: Path):
    sweep = tmp_path / "sweep"
    shutil.copytree(done, sweep)
    expected = [p.loss for p in read_points(done)]
    planned = runs_of(done)[-2]
    (sweep / "points.jsonl").unlink()
    (planned.folder(sweep) / "COMPLETE").unlink()
    shutil.rmtree(list_checkpoints(planned.folder(sweep))[-1])
    shutil.rmtree(runs_of(done)[-1].folder(sweep))
    with open_run(load_recipe(sweep)) as run:
        assert [p.loss for p in run_sweep(run)] == expected
    weights = [list_checkpoints(planned.folder(folder))[-1] / "model.safetensors" for folder in (done, sweep)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_another_budget_adds_runs_and_keeps_those_that_are_there(done: Path, tmp_path: Path):
    sweep = tmp_path / "sweep"
    shutil.copytree(done, sweep)
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("runs/*/*/COMPLETE")}
    with open_run(load_recipe(sweep, ["scaling.budgets=[2e7, 3e7, 4e7, 8e7]"])) as run:
        assert len(run_sweep(run)) == 13
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_was_foretold_was_written_down_before_it_was_measured(done: Path):
    check = json.loads((done / "check.json").read_text())
    assert check["budget"] == 1.6e8 and check["measured"]["budget"] == 1.6e8
    assert check["measured"]["loss"] > 0 and check["foretold"]["value"] > 0
    assert check["measured"]["loss"] not in [p.loss for p in read_points(done)]  # no law is fitted to it


def test_the_page_and_the_picture(done: Path):
    html, markdown, svg = (
        (done / name).read_text(encoding="utf-8") for name in ("report.html", "report.md", "scaling.svg")
    )
    for title in ("Training curves and their envelope", "IsoFLOP profiles", "three ways"):
        assert title in html and title in svg
    assert "<script" not in html and "http://" not in html.replace("http://www.w3.org", "")
    assert "var(--c1)" in svg and "prefers-color-scheme: dark" in svg and svg.count("<svg") == 1
    for point in read_points(done):
        assert f"| {point.size} |" in markdown and f"{point.loss:.4f}" in html
    assert "foretold" in markdown and "nan" not in markdown.lower()
    assert json.loads((done / "fits.json").read_text())["laws"]


def test_fit_predict_and_plot_from_the_command_line(done: Path, tmp_path: Path):
    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["scaling", *arguments, "--replicates", "0"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "a: N" in call("fit", str(done))
    told = call("predict", str(done), "1e9", "1e12")
    assert "1e12" in told and "is a guess" in told
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- sweep -->\nOF ANOTHER\n<!-- /sweep -->\nafter\n")
    call("plot", str(done), "--markdown", str(page))
    text = page.read_text()
    assert (
        text.startswith("before\n<!-- sweep -->")
        and text.endswith("<!-- /sweep -->\nafter\n")
        and "OF ANOTHER" not in text
    )
    assert "(images/scaling.svg)" in text and (tmp_path / "images" / "scaling.svg").is_file()
    page.write_text("nothing")
    with pytest.raises(ConfigError, match="not both there"):
        call("plot", str(done), "--markdown", str(page))
    with pytest.raises(ConfigError, match="FLOPS 0"):
        call("predict", str(done), "0")


def test_a_sweep_is_not_one_run(tmp_path: Path):
    for command in (["run"], ["run", "--dry-run"], ["train"]):
        with pytest.raises(ConfigError, match="is a sweep of 4 sizes, not one run"):
            CliRunner().invoke(app, [command[0], str(recipe(tmp_path)), *command[1:]], catch_exceptions=False)
    assert not (tmp_path / "sweep" / "data").exists()
    path = recipe(tmp_path, scaling=None, pretrain__budget={"steps": 4})
    with pytest.raises(ConfigError, match="has no section `scaling`"):
        CliRunner().invoke(app, ["scaling", "run", str(path)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling__budgets": [1e8, 4e7, 2e7]}, r"sweep.yaml:\d+: scaling.budgets: budgets must rise"),
        ({"scaling__budgets": [1e7, 2e7]}, r"sweep.yaml:\d+: scaling.budgets: .*at least 3 items"),
        ({"scaling__budgets": [-1.0, 2e7, 4e7]}, r"sweep.yaml:\d+: scaling.budgets\[0\]: .*greater than 0"),
        ({"scaling__sizes": SIZES[:3]}, r"sweep.yaml:\d+: scaling.sizes: .*at least 4 items"),
        ({"scaling__sizes": [*SIZES, SIZES[1]]}, r"sweep.yaml:\d+: scaling.sizes: size 4 is the same as size 1"),
        ({"scaling__sizes": [*SIZES, {"dims": 4}]}, r"scaling.sizes\[4\]: .*dims"),
        ({"scaling__sizes": [*SIZES, {"dim": 0}]}, r"scaling.sizes\[4\]: llama: dim"),
        ({"scaling__check": 1e7}, r"sweep.yaml:\d+: scaling: check 1e\+07 must be more than the largest budget"),
        ({"scaling__tokens_per_parameter": [3, 2]}, r"tokens_per_parameter goes from 3 to 2"),
        ({"scaling__budget": [1e7]}, r"sweep.yaml:\d+: unknown key 'scaling.budget'. Did you mean 'scaling.budgets'"),
        ({"minutes": 3}, "Remove `minutes` and `pretrain.budget`"),
        ({"pretrain__budget": {"steps": 3}}, "Remove `minutes` and `pretrain.budget`"),
        ({"model": {"load": "there"}, "tokenizer": {"load": "there"}}, "takes `model.family`"),
    ],
)
def test_impossible_sweeps_are_refused_with_their_line(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe(tmp_path, **changes))


def test_sweeps_that_cannot_tell_anything_are_refused_before_anything_is_computed(tmp_path: Path):
    with pytest.raises(ConfigError, match="with 2e7 FLOPs only 0 of 4 sizes see between"):
        plan(load_recipe(recipe(tmp_path, scaling__tokens_per_parameter=[1e5, 1e6])), None, None)
    with pytest.raises(ConfigError, match=r"set data.held_out"):
        plan(load_recipe(recipe(tmp_path, data={"sources": [str(tmp_path / "texts")], "held_out": 0.0})), None, None)
    short = recipe(tmp_path, scaling__epochs=0.01)
    loaded = load_recipe(short)
    assert plan(loaded, None, None)
    with open_run(loaded) as run:  # how much text there is is known once it is read
        run_stages(run, until="tokenizer")
        with pytest.raises(ConfigError, match=r"at most 0.01 epochs"):
            run_sweep(run)


def test_a_run_whose_loss_is_not_finite_is_named(tmp_path: Path):
    from etymon.errors import TrainingError

    wild = {"kind": "adamw", "lr": 1e30}
    with (
        open_run(load_recipe(recipe(tmp_path, pretrain__optimizer=wild, pretrain__clip=None))) as run,
        pytest.raises(TrainingError, match=r"3.06k at 2e7 FLOPs: step \d+: the loss is .* nan"),
    ):
        run_sweep(run)
