"""`etymon data`: documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from etymon.cli.options import Sources, checked

if TYPE_CHECKING:
    from etymon.data import DocumentSet

app = typer.Typer(no_args_is_help=True, help="Prepare documents, count them, look at them.")
Folder = Annotated[str, typer.Argument(metavar="DOCUMENTS|RUN", help="Prepared documents, or a run directory.")]


@app.command()
def prepare(
    sources: Sources,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the prepared documents go.")],
    held_out: Annotated[float, typer.Option(help="Share of the documents kept for evaluation.")] = 0.05,
    min_chars: Annotated[int, typer.Option(help="Shorter documents are left out.")] = 16,
) -> None:
    """Read, normalise, deduplicate and split documents.

    etymon data prepare notes/ 'books/**/*.txt' web.jsonl.gz --out prepared
    """
    from etymon.data import DocumentsConfig, prepare_documents
    from etymon.data.sources import as_source
    from etymon.recipe.progress import Working

    read = tuple(as_source(source) for source in sources)
    config = checked(DocumentsConfig, sources=read, held_out=held_out, min_chars=min_chars)
    with Working("reading", "M characters", scale=1e6) as tick:
        documents = prepare_documents(config, out, progress=tick)
    _print_stats(documents)


@app.command()
def stats(folder: Folder) -> None:
    """Count what was read, what was left out and why.

    etymon data stats runs/demo
    """
    _print_stats(_open(folder))


@app.command()
def show(
    folder: Folder,
    n: Annotated[int, typer.Option("-n", min=1, help="How many documents.")] = 3,
    split: Annotated[str, typer.Option(help="train or held_out.")] = "train",
    characters: Annotated[int, typer.Option(min=1, help="How much of each.")] = 400,
) -> None:
    """Print the first documents.

    etymon data show runs/demo -n 5 --split held_out
    """
    from rich.console import Console

    from etymon.errors import ConfigError

    if split not in ("train", "held_out"):
        raise ConfigError(f"--split {split}: expected train or held_out.")
    chosen: Literal["train", "held_out"] = "train" if split == "train" else "held_out"
    console = Console(highlight=False, soft_wrap=True)
    for document, _ in zip(_open(folder).documents(chosen), range(n), strict=False):
        console.print(f"── {document.id} ({document.source}, {len(document.text):,} characters)", style="bold")
        console.print(document.text[:characters], markup=False)


def _open(folder: str) -> DocumentSet:
    from etymon.data import DocumentSet
    from etymon.recipe.target import is_run

    return DocumentSet(Path(folder) / "data" if is_run(folder) else folder)


def _print_stats(documents: DocumentSet) -> None:
    from rich.console import Console
    from rich.table import Table

    manifest = documents.manifest
    console = Console(highlight=False)
    splits = Table("split", "documents", "characters", "bytes")
    for name, split in manifest["splits"].items():
        splits.add_row(name, *(f"{split[key]:,}" for key in ("documents", "characters", "bytes")))
    console.print(splits)
    reasons = list(dict.fromkeys(reason for counts in manifest["sources"].values() for reason in counts))
    table = Table("source", *reasons)
    for name, counts in manifest["sources"].items():
        table.add_row(name, *(f"{counts.get(reason, 0):,}" for reason in reasons))
    console.print(table)
    for reason, places in manifest["examples"].items():
        console.print(f"{reason}: for example {', '.join(places[:3])}", markup=False)
