"""`etymon run`: every stage of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from etymon.cli.options import DryRun, Fresh, RecipeArgument, Settings

if TYPE_CHECKING:
    from etymon.recipe.schema import Recipe


def run(recipe: RecipeArgument, settings: Settings = None, fresh: Fresh = False, dry_run: DryRun = False) -> None:
    """Carry out a recipe, from documents to a served model.

    Stages that are complete are kept and training that was interrupted goes on, so the same command continues a run.

      etymon run recipes/demo.yaml minutes=2

      etymon run recipes/demo.yaml run=runs/other model.layers=8 pretrain.optimizer.lr=0.01

      etymon run runs/demo            (goes on with a run)

      etymon run recipes/demo.yaml --dry-run
    """
    from rich.console import Console

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
    for line in _uses(loaded, path):
        print(f"  {line}")


def _uses(recipe: Recipe, path: Path) -> Iterator[str]:
    """Yield the commands that show what the model of a run does."""
    from etymon.recipe.inputs import trained
    from etymon.spec import LM, Embedding
    from etymon.text import Tokenizer

    spec = trained(recipe)
    if isinstance(spec.head, Embedding):
        yield f'embed: etymon embed {path} "a text" "another text"'
    elif recipe.sft is not None:
        yield f"chat:  etymon chat {path}"
    elif spec.decoder is not None:
        text = "Once upon a time" if spec.encoder is None else "a text to read"
        yield f'write: etymon generate {path} "{text}"'
    elif isinstance(spec.head, LM):
        tokenizer = Tokenizer.load(path / "tokenizer")
        mask = "" if tokenizer.mask_id is None else tokenizer.decode([tokenizer.mask_id], skip_special=False)
        yield f'fill:  etymon generate {path} "a text with a {mask} in it"'
    else:
        yield f'judge: etymon generate {path} "a text"'
    if spec.decoder is not None:
        yield f"serve: etymon serve {path}"
