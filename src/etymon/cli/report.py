"""`etymon report`: the report of a run, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write report.html and report.md of a run, finished or not.

    etymon report runs/demo
    """
    from etymon.evaluate import write_report

    for path in write_report(run):
        print(path)
