"""What a benchmark leaves behind: a table in the terminal, a page and its data in `results/`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from etymon.errors import EtymonError
from etymon.evaluate.environment import environment
from etymon.files import write_json, write_text

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Table:
    """A titled table; the first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Report:
    """The outcome of one benchmark: `lines` say what was measured and what came out, `data` is everything, as JSON."""

    name: str
    title: str
    settings: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    picture: str = ""  # an SVG document

    def publish(self, directory: Path | None) -> None:
        """Print the report and, where a directory is given, write `NAME-DATE.md`, `.json` and the picture into it."""
        machine = environment().to_dict() | {"transformers": version("transformers")}
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(f"\n[bold]{self.title}[/bold]")
        for table in self.tables:
            console.print(_rich(table))
        for line in self.lines:
            console.print(line, markup=False, highlight=False)
        if directory is None:
            return
        stem = f"{self.name}-{machine['created'][:10]}"
        if self.picture:
            write_text(directory / f"{stem}.svg", self.picture)
        write_text(directory / f"{stem}.md", self._page(machine, stem))
        write_json(directory / f"{stem}.json", {"settings": self.settings, "machine": machine, **self.data})
        console.print(f"written: {directory / stem}.md, .json" + (", .svg" if self.picture else ""), highlight=False)

    def _page(self, machine: dict[str, Any], stem: str) -> str:
        packages = machine["packages"]
        parts = [f"# {self.title}", *(_markdown(table) for table in self.tables), *self.lines]
        if self.picture:
            parts.append(f"![{self.title}]({stem}.svg)")
        parts.append(
            f"{machine['created']} · {machine['cpu']}, {machine['cores_usable']} cores, {machine['threads']} threads, "
            f"{machine['cpu_capability']} · Python {machine['python']}, torch {packages['torch']}, "
            f"transformers {machine['transformers']}, etymon {packages.get('etymon', '?')} "
            f"({(machine['commit'] or 'no checkout')[:12]})"
        )
        parts.append("Settings: " + ", ".join(f"{key} {value}" for key, value in self.settings.items()))
        return "\n\n".join(parts) + "\n"


def _rich(table: Table) -> RichTable:
    result = RichTable(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        result.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in table.rows:
        result.add_row(*row)
    return result


def _markdown(table: Table) -> str:
    lines = [f"**{table.title}**", "", "| " + " | ".join(table.columns) + " |"]
    lines.append("|" + "|".join("---:" if i else "---" for i in range(len(table.columns))) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines)


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has; read them with `parse`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch, on every side")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count; each has everybody once")
    parser.add_argument("--quick", action="store_true", help="a microscopic run that only shows that all works")
    parser.add_argument("--realtime", action="store_true", help="take the cores from others during samples (as root)")
    parser.add_argument("--results", type=Path, help=f"where to write (default {RESULTS}; nothing with --quick)")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options, and set the threads."""
    options = parser.parse_args(argv)
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    options.results = options.results or (None if options.quick else RESULTS)
    torch.set_num_threads(options.threads)
    return options


def command(main: Callable[[], Report]) -> None:
    """Run a benchmark from the command line: what the user got wrong is one line and exit code 2."""
    try:
        main()
    except EtymonError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
