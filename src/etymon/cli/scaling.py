"""`etymon scaling`: sweeps over sizes and budgets, and the laws that they give."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from etymon.cli.options import DryRun, Fresh, RecipeArgument, Settings

HELP = """Which size is best for a budget of compute, found by training small models.

A sweep trains several [bold]sizes[/bold] with several [bold]budgets[/bold] of FLOPs, all through the one training loop.
Three fits then say how the best size and number of tokens grow with compute, each with an interval:

  [bold]envelope[/bold]    fixed sizes, several lengths; the lowest of all curves

  [bold]isoflop[/bold]     fixed compute, several sizes; the minimum of a parabola

  [bold]parametric[/bold]  L(N, D) = E + A/N^alpha + B/D^beta over all runs

[bold]A first sweep[/bold] (the built-in text, two CPU cores, under 15 minutes):

  etymon scaling run recipes/scaling.yaml

  etymon scaling predict runs/scaling 1e15

Where the three disagree, none is to be trusted; a prediction far beyond the largest budget is a guess.
docs/scaling.md says more.
"""
app = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode="rich")
Source = Annotated[
    Path, typer.Argument(metavar="SWEEP|CSV", help="A sweep's directory, or a CSV file: parameters, tokens, loss.")
]
REPLICATES = 400
Replicates = Annotated[int, typer.Option(min=0, help="Bootstrap replicates behind the intervals.")]


@app.command()
def run(
    recipe: RecipeArgument,
    settings: Settings = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    replicates: Replicates = REPLICATES,
) -> None:
    """Train every size with every budget of a recipe's section `scaling`, fit the laws, write the report.

    Runs that are done are kept, so the same command goes on with a sweep that was stopped, or that has a new budget.

      etymon scaling run recipes/scaling.yaml --dry-run

      etymon scaling run recipes/scaling.yaml data.sources=notes/ run=runs/my-sweep
    """
    from rich.console import Console

    from etymon.recipe.loading import load_recipe
    from etymon.recipe.run import open_run
    from etymon.scaling import Points, fit_laws
    from etymon.scaling.check import run_check
    from etymon.scaling.listing import print_fits, print_plan
    from etymon.scaling.report import write_report
    from etymon.scaling.sweep import check_sweep, run_sweep

    loaded = load_recipe(recipe, settings or ())
    if dry_run:
        print_plan(loaded, Console(highlight=False))
        return
    check_sweep(loaded)
    with open_run(loaded, fresh=fresh) as opened:
        fits = fit_laws(Points.of(run_sweep(opened)), replicates)
        run_check(opened, fits)
        write_report(opened.path, fits)
    print_fits(fits, Console(highlight=False))
    print(f"\n{opened.path}: done")
    print(f"  read:    {opened.path / 'report.html'}")
    print(f"  predict: etymon scaling predict {opened.path} {10 * float(fits.points.budgets.max()):.0e}")


@app.command()
def fit(source: Source, replicates: Replicates = REPLICATES) -> None:
    """Fit the three laws to the runs of a sweep, finished or not, or to a CSV file of points.

    Budgets of a CSV file are its column `budget`, or FLOPs to two digits: points of one budget make an IsoFLOP profile.

      etymon scaling fit runs/scaling

      etymon scaling fit points.csv
    """
    from rich.console import Console

    from etymon.scaling import Points, fit_laws, read_points
    from etymon.scaling.listing import print_fits

    print_fits(fit_laws(Points.of(read_points(source)), replicates), Console(highlight=False))


@app.command()
def predict(
    source: Source,
    flops: Annotated[list[float], typer.Argument(metavar="FLOPS...", help="Budgets, such as 1e15.")],
    replicates: Replicates = REPLICATES,
) -> None:
    """Say the best size, its tokens and its loss for a budget of FLOPs, by each of the three ways.

    etymon scaling predict runs/scaling 1e14 1e15
    """
    import math

    from rich.console import Console

    from etymon.errors import ConfigError
    from etymon.scaling import Points, fit_laws, read_points
    from etymon.scaling.listing import print_predictions

    for budget in flops:
        if not (math.isfinite(budget) and budget > 0):
            raise ConfigError(f"FLOPS {budget}: expected a positive number, such as 1e15.")
    print_predictions(fit_laws(Points.of(read_points(source)), replicates), flops, Console(highlight=False))


@app.command()
def plot(
    sweep: Annotated[Path, typer.Argument(help="A sweep's directory.")],
    markdown: Annotated[
        Path | None,
        typer.Option(help="A page whose tables, and images/scaling.svg, are filled too."),
    ] = None,
    replicates: Replicates = REPLICATES,
) -> None:
    """Write the report of a sweep, finished or not: report.html, report.md, scaling.svg and fits.json.

    etymon scaling plot runs/scaling
    """
    from etymon.scaling import Points, fit_laws, read_points
    from etymon.scaling.report import fill_page, write_report

    for path in write_report(sweep, fit_laws(Points.of(read_points(sweep)), replicates)):
        print(path)
    if markdown is not None:
        fill_page(sweep, markdown, markdown.parent / "images" / "scaling.svg")
        print(markdown)
