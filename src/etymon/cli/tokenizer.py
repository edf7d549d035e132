"""`etymon tokenizer`: learn one, use one, measure one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etymon.cli.options import Sources

if TYPE_CHECKING:
    from etymon.text import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, encode with it, measure it.")
Where = Annotated[str, typer.Argument(metavar="TOKENIZER|RUN", help="A tokenizer directory, a run, or a hub id.")]


@app.command()
def train(
    sources: Sources,
    out: Annotated[Path, typer.Option("--out", "-o", help="The tokenizer's directory.")],
    vocab_size: Annotated[int, typer.Option(help="At most so many tokens.")] = 4096,
) -> None:
    """Learn a byte-level BPE vocabulary from documents.

    etymon tokenizer train notes/ --vocab-size 8192 --out tokenizer
    """
    from etymon.data import read_documents
    from etymon.files import atomic_directory
    from etymon.recipe.progress import Working
    from etymon.text import Tokenizer

    with Working("reading", "MB", scale=1e6) as tick:

        def texts():  # type: ignore[no-untyped-def]
            for document in read_documents(sources):
                tick(len(document.text.encode()))
                yield document.text

        tokenizer = Tokenizer.train(texts(), vocab_size)
    with atomic_directory(out) as folder:
        tokenizer.save(folder)
    print(f"{out}: {tokenizer.vocab_size:,} tokens")


@app.command()
def encode(
    where: Where, text: Annotated[str | None, typer.Argument(help="Standard input if not given.")] = None
) -> None:
    """Print the tokens of a text with their ids.

    etymon tokenizer encode runs/demo "def read(path): 你好"
    """
    tokenizer = _load(where)
    ids = tokenizer.encode(sys.stdin.read() if text is None else text)
    for id in ids:
        print(f"{id}\t{tokenizer.token_bytes(id).decode('utf-8', errors='backslashreplace')!r}")


@app.command()
def measure(where: Where, sources: Sources) -> None:
    """Print how many bytes of each source a token holds.

    etymon tokenizer measure runs/demo notes/ builtin
    """
    from rich.console import Console
    from rich.table import Table

    from etymon.data import read_documents

    tokenizer = _load(where)
    table = Table("source", "documents", "bytes", "tokens", "bytes per token")
    for source in sources:
        found = tokenizer.compression(document.text for document in read_documents([source]))
        counts = (f"{n:,}" for n in (found.documents, found.bytes, found.tokens))
        table.add_row(source, *counts, f"{found.bytes_per_token:.3f}")
    Console(highlight=False).print(table)


def _load(where: str) -> Tokenizer:
    from etymon.recipe.inputs import find_tokenizer
    from etymon.recipe.target import is_run

    return find_tokenizer(str(Path(where) / "tokenizer") if is_run(where) else where)
