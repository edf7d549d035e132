"""Runs that begin alike: a longer run takes over the steps that it has in common with a shorter one."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from etymon.errors import CheckpointError, TrainingError
from etymon.files import atomic_directory, write_json, write_text
from etymon.train.checkpoint import RECORD, checkpoint_path, list_checkpoints, read_trainer
from etymon.train.config import Budget, TrainConfig
from etymon.train.metrics import metrics_line, read_metrics
from etymon.train.schedules import AnySchedule, in_steps, momentum_at

# settings, besides the schedule, whose meaning may depend on how long a run is
LENGTHS = ("average", "batch_warmup", "context_warmup")


def shared_steps(schedule: AnySchedule, shorter: int, longer: int) -> int:
    """Return how many first updates have the same rates and momentum in runs of `shorter` and of `longer` updates.

    A warm-up of a fixed number of steps and a stable phase (WSD) share all but the decay; a cosine shares nothing.
    Lengths in tokens must have become steps before (`in_steps`).
    """
    steps = range(min(shorter, longer))

    def at(step: int, total: int) -> tuple[float, float | None]:
        return schedule.factor(step, total), momentum_at(schedule, step, total)

    return next((s for s in steps if at(s, shorter) != at(s, longer)), len(steps))


def fork(source: Path, run: Path, step: int, steps: int) -> None:
    """Begin the run `run` of `steps` updates with the first `step` updates of the run `source`.

    Hägele et al. 2024 (arXiv:2405.18392): one stable phase serves several lengths. `fit(..., resume=True)` on `run`
    goes on from there, and ends bitwise where a run of its own would have ended; it refuses a model, data or settings
    that are not those of `source`, but for the budget.

    Raises TrainingError where the schedules differ before `step` or `run` holds a run, CheckpointError where `source`
    has no whole checkpoint there.
    """
    if list_checkpoints(run):
        raise TrainingError(f"{run} already holds a run. Fork into another directory.")
    checkpoint = checkpoint_path(source, step)
    if not checkpoint.is_dir():
        raise CheckpointError(f"{source} has no checkpoint after {step} steps to fork from.")
    trainer = read_trainer(checkpoint)
    train = trainer.run.settings["train"]
    for name in LENGTHS:
        if train.get(name) is not None:
            raise TrainingError(f"{source} has {name}, which may depend on the length of the run: it cannot be forked.")
    schedule = _schedule(train, trainer.position.tokens / max(1, step))
    shared = shared_steps(schedule, trainer.run.total_steps, steps)
    if shared < step:
        raise TrainingError(
            f"a run of {steps} steps cannot begin with {step} steps of {source}, a run of {trainer.run.total_steps}: "
            f"their learning rates differ from step {shared} on."
        )
    settings = trainer.run.settings | {"train": train | {"budget": Budget(steps=steps).model_dump(mode="json")}}
    record = trainer.run.model_copy(update={"settings": settings, "total_steps": steps})
    rows = [row for row in read_metrics(source / "metrics.jsonl") if row["step"] <= step]
    write_text(run / "metrics.jsonl", "".join(map(metrics_line, rows)))
    with atomic_directory(checkpoint_path(run, step)) as directory:
        shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
        write_json(directory / RECORD, trainer.model_copy(update={"run": record}).model_dump(mode="json"))


def _schedule(train: dict[str, object], positions: float) -> AnySchedule:
    """Return the schedule of recorded settings, its lengths in steps; `positions` is the tokens of a step."""
    return in_steps(TrainConfig.model_validate(train).schedule, lambda tokens: math.ceil(tokens / positions))
