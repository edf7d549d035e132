"""`etymon train`: the training stages of a recipe."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from etymon.cli.options import DryRun, Fresh, RecipeArgument, Settings


class TrainingStage(StrEnum):
    """The stages that train."""

    PRETRAIN = "pretrain"
    SFT = "sft"


def train(
    recipe: RecipeArgument,
    settings: Settings = None,
    stage: Annotated[
        TrainingStage | None, typer.Option(help="Train up to this stage; the last one of the recipe if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Train: prepare data and tokenizer where they are not, then pretrain and fine-tune.

    A setting whose first part is no section of the recipe is meant for the stage that is trained.

      etymon train recipes/demo.yaml optim.lr=3e-4 --stage pretrain

      etymon train recipes/demo.yaml --resume
    """
    from rich.console import Console

    from etymon.errors import ConfigError
    from etymon.recipe.loading import load_recipe
    from etymon.recipe.plan import print_plan
    from etymon.recipe.run import open_run
    from etymon.recipe.stages import check, run_stages

    loaded = load_recipe(recipe, settings or (), under=stage.value if stage else "pretrain")
    if not loaded.stages:
        raise ConfigError(f"{recipe} trains nothing: it has neither `pretrain` nor `sft`.")
    last = stage.value if stage else list(loaded.stages)[-1]
    if last not in loaded.stages:
        raise ConfigError(f"{recipe} has no stage {last}: give it a section `{last}`.")
    if dry_run:
        print_plan(loaded, Console(highlight=False))
        return
    begun = [name for name in loaded.stages if list((loaded.directory / name).glob("checkpoints/step-*"))]
    if begun and not resume and not fresh and not (loaded.directory / last / "COMPLETE").exists() and last in begun:
        raise ConfigError(
            f"{loaded.directory / last} holds a run that was interrupted. Go on with --resume, start over with "
            "--fresh, or give another directory: run=runs/other."
        )
    check(loaded)
    with open_run(loaded, fresh=fresh) as opened:
        run_stages(opened, until=last)
        print(f"\n{opened.path / last}: done. Go on with: etymon run {opened.path}")
