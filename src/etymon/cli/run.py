"""`etymon run`: every stage of a recipe."""

from __future__ import annotations

from etymon.cli.options import DryRun, Fresh, RecipeArgument, Settings


def run(recipe: RecipeArgument, settings: Settings = None, fresh: Fresh = False, dry_run: DryRun = False) -> None:
    """Carry out a recipe, from documents to a served model.

    Stages that are complete are kept and training that was interrupted goes on, so the same command continues a run.

      etymon run recipes/demo.yaml minutes=2

      etymon run recipes/demo.yaml run=runs/other model.layers=8 pretrain.optimizer.lr=0.01

      etymon run runs/demo            (goes on with a run)

      etymon run recipes/demo.yaml --dry-run
    """
    from rich.console import Console

    from etymon.recipe.inputs import decodes, trained
    from etymon.recipe.loading import load_recipe
    from etymon.recipe.plan import print_plan
    from etymon.recipe.run import open_run
    from etymon.recipe.stages import check, run_stages

    loaded = load_recipe(recipe, settings or ())
    if dry_run:
        print_plan(loaded, Console(highlight=False))
        return
    check(loaded)
    with open_run(loaded, fresh=fresh) as opened:
        run_stages(opened)
        path, seconds = opened.path, opened.seconds
    print(f"\n{path}: done, {seconds / 60:.1f} minutes in all")
    print(f"  read:  {path / 'report.html'}")
    if decodes(loaded):
        print(f"  chat:  etymon chat {path}")
        print(f"  serve: etymon serve {path}")
    else:
        print(f"  ask:   etymon {'embed' if trained(loaded).decoder is None else 'generate'} {path} 'a text'")
