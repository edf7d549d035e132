"""What a sweep and its laws look like in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from etymon.recipe.schema import Recipe
from etymon.scaling.estimate import Fits
from etymon.scaling.plan import section_of
from etymon.scaling.points import flops_name
from etymon.scaling.report import apart, rows_of_laws, rows_of_predictions
from etymon.scaling.sweep import check_sweep


def print_plan(recipe: Recipe, console: Console) -> None:
    """Check the recipe as a sweep would, and print its runs. Raises what the checks raise."""
    section = section_of(recipe)
    runs = check_sweep(recipe)
    table = Table(
        "parameters",
        *(f"{flops_name(budget)} FLOPs" for budget in section.budgets),
        title="steps (tokens per parameter)",
    )
    for size in dict.fromkeys(planned.size for planned in runs):
        own = {planned.budget: planned for planned in runs if planned.size == size}
        cells = (
            f"{own[b].steps:,} ({own[b].tokens / size.parameters:.3g})" if b in own else "–" for b in section.budgets
        )
        table.add_row(size.name, *cells)
    console.print(table)
    total = sum(planned.flops for planned in runs)
    console.print(f"{len(runs)} runs, {flops_name(total)} FLOPs in all; runs of one size share their stable phase.")


def print_fits(fits: Fits, console: Console) -> None:
    """Print the three laws, where they disagree, and what has none."""
    top = flops_name(float(fits.points.budgets.max()))
    table = Table("way", "a: N ∝ C^a", "b: D ∝ C^b", f"best size for {top}", "its tokens", box=None, pad_edge=False)
    for row in rows_of_laws(fits):
        table.add_row(*(cell.replace(" to ", "–") for cell in row[:5]))
    console.print(table)
    if fits.parametric is not None:
        law = fits.parametric
        console.print(f"L = {law.E:.3g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}")
    if len(fits.estimates) > 1:
        console.print(f"exponents a differ by {apart(fits)}; in brackets: 95% intervals")
    for problem in fits.problems.values():
        console.print(f"no law from {problem}")


def print_predictions(fits: Fits, budgets: list[float], console: Console) -> None:
    """Print the best size, its tokens and its loss for each budget, by each way."""
    table = Table("FLOPs", "way", "best size", "its tokens", "its loss (parametric)", box=None, pad_edge=False)
    for row in rows_of_predictions(fits, budgets):
        table.add_row(*(cell.replace(" to ", "–") for cell in row))
    console.print(table)
    for problem in fits.problems.values():
        console.print(f"no law from {problem}")
    top = float(fits.points.budgets.max())
    far = max(budgets) / top
    if far > 10:
        console.print(
            f"The largest budget of the runs is {flops_name(top)} FLOPs: {far:,.0f} times beyond it is a guess."
        )
