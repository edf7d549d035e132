"""A sweep: documents and tokenizer prepared once, then one run after another through `fit`.

A sweep that was killed goes on where it was, every run bitwise. Runs of one size share what their schedules have in
common (Hägele et al. 2024, arXiv:2405.18392): the longer one takes over the shorter one's stable phase.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

import etymon
from etymon.data import Loader, TokenShards
from etymon.errors import CheckpointError, ConfigError, TrainingError
from etymon.objectives import Objective, choose_objective
from etymon.recipe import hooks
from etymon.recipe.progress import heading, say
from etymon.recipe.run import Run
from etymon.recipe.schema import Recipe
from etymon.recipe.stages import check_inputs, device_of, run_stages, shards_path
from etymon.scaling.plan import Planned, plan, pretraining, run_recipe, section_of
from etymon.scaling.points import Point, write_points
from etymon.text import Tokenizer
from etymon.train import Budget, FitResult, TrainConfig, TrainingInterrupted, fit, fork, read_metrics, shared_steps
from etymon.train.checkpoint import list_checkpoints
from etymon.train.schedules import in_steps

NEVER = 1 << 40  # steps: a hook that is called at the ends alone
CHECKPOINTS = 2  # up to where a longer run forks off
KEPT = 16


def run_sweep(run: Run) -> list[Point]:
    """Do every run of the sweep that is not done, and return what they measured; `points.jsonl` holds it too.

    Raises what the stages and `fit` raise; TrainingError names the run of a loss that is not finite.
    """
    check_sweep(run.recipe)
    run_stages(run, until="tokenizer")
    runs = plan(run.recipe, Tokenizer.load(run.path / "tokenizer"), corpus_tokens(run))
    total, done = sum(p.flops for p in runs), 0.0
    points: list[Point] = []
    for number, planned in enumerate(runs, 1):
        share = f"{done / total:.0%} of all FLOPs done"
        heading(f"run {number} of {len(runs)}: {planned.name}, {planned.steps:,} steps ({share})")
        points.append(train(run, planned, [p for p in runs if p.size == planned.size and p.steps < planned.steps]))
        write_points(points, run.path)
        say(f"{planned.name}: held-out loss {points[-1].loss:.4f}")
        done += planned.flops
        gc.collect()
    return points


def check_sweep(recipe: Recipe) -> list[Planned]:
    """Raise what can be known to be wrong with a sweep before anything is computed or written; return its runs, as far
    as they are known by then."""
    runs = plan(recipe, None, None)
    for planned in runs:
        check_inputs(run_recipe(recipe, planned), device_of(recipe))
    return runs


def corpus_tokens(run: Run) -> int:
    """Return the number of tokens of the training text."""
    return TokenShards(shards_path(run, "train")).n_tokens


def train(run: Run, planned: Planned, shorter: Sequence[Planned] = ()) -> Point:
    """Do one run, or what is missing of it, and return what it measured. `shorter` are runs of the same size that may
    have begun it already."""
    section = pretraining(run.recipe)
    tokenizer = Tokenizer.load(run.path / "tokenizer")
    device = device_of(run.recipe)
    model = etymon.build(planned.size.spec, device=device, dtype=torch.float32, seed=run.recipe.seed)
    context = section.context or model.spec.context
    shards = TokenShards(shards_path(run, "train"), tokenizer=tokenizer)
    objective = choose_objective(model.spec, tokenizer, section.objective)
    loader = objective.loader(shards, section.batch_size, context, section.seed)
    config = _config(run, planned)
    folder = planned.folder(run.path)
    if not list_checkpoints(folder):
        _begin_like(planned, shorter, config, run.path)
    try:
        result = fit(
            model,
            loader,
            objective,
            config,
            folder,
            resume=True,
            hooks=[_held_out(run, objective, shards, context)],
            tokenizer=tokenizer,
        )
    except TrainingInterrupted:
        raise
    except TrainingError as error:
        raise TrainingError(f"{planned.name}: {error}") from None
    return _point(planned, result, loader)


def _config(run: Run, planned: Planned) -> TrainConfig:
    """Return the settings of a run: those of the recipe, with a checkpoint where longer runs fork off."""
    section = pretraining(run.recipe)
    config = section.train_config(Budget(steps=planned.steps))
    every = max(1, _forks_at(config, planned) // CHECKPOINTS)
    return config.model_copy(update={"checkpoint_every": every, "keep": KEPT})


def _forks_at(config: TrainConfig, planned: Planned) -> int:
    """Return the step up to which a run is the beginning of every longer one."""
    schedule = in_steps(config.schedule, lambda tokens: -(-tokens // planned.batch))
    return shared_steps(schedule, planned.steps, 2 * planned.steps) // CHECKPOINTS * CHECKPOINTS


def _begin_like(planned: Planned, shorter: Sequence[Planned], config: TrainConfig, sweep: Path) -> None:
    """Take over what the longest of the shorter runs has in common with this one, where anything is left of it."""
    for other in sorted(shorter, key=lambda p: -p.steps):
        step = _forks_at(config, other)
        if step == 0:
            continue
        try:
            fork(other.folder(sweep), planned.folder(sweep), step, planned.steps)
        except (CheckpointError, TrainingError):
            continue  # the checkpoint is gone, or was made otherwise: the run begins anew and ends the same
        say(f"the first {step:,} steps are those of {other.name}")
        return


def _held_out(run: Run, objective: Objective, training: TokenShards, context: int) -> hooks.HeldOut:
    path = shards_path(run, "held_out")
    if not path.exists():
        raise ConfigError(f"{run.path}: no document is held out, so runs cannot be compared. Raise data.held_out.")
    section, tokens = pretraining(run.recipe), section_of(run.recipe).held_out_tokens
    shards = TokenShards(path)
    windows = hooks.held_out_windows(objective, shards, section.batch_size, context, training)
    return hooks.HeldOut(windows, NEVER, None, section.micro_batch, objective, tokens)


def _point(planned: Planned, result: FitResult, loader: Loader) -> Point:
    last = read_metrics(result.run / "metrics.jsonl")[-1]
    return Point(
        planned.size.name,
        planned.size.parameters,
        planned.tokens,
        planned.flops,
        planned.budget,
        float("nan") if last["held_out_loss"] is None else float(last["held_out_loss"]),
        result.seconds,
        planned.steps / loader.steps_per_epoch,
    )
