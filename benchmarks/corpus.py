"""The text that both sides train on: the standard library's sources, or a file; one tokenizer, one held-out set."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etymon.data import Document, TokenShards, held_out, write_shards
from etymon.errors import DataError
from etymon.text import Tokenizer

HELD_OUT = 0.05
PIECE = 20_000  # characters of a document of a text file


@dataclass(frozen=True)
class Corpus:
    """`shards` are the training documents, each ended by EOS; `held_out` is [windows, context + 1].

    A held-out window lies inside one document. So it is the same question to a model that was trained on windows over
    the plain stream and to one whose attention never left a document.
    """

    tokenizer: Tokenizer
    shards: TokenShards
    held_out: Tensor

    def stream(self) -> NDArray[np.uint16]:
        """Return all training tokens in a row, the form in which nanoGPT reads them."""
        ids = np.empty(self.shards.n_tokens, dtype=np.uint16)
        self.shards.read(0, ids)
        return ids


def prepare(
    directory: Path, *, text: Path | None, vocab: int, context: int, windows: int, limit: int | None = None
) -> Corpus:
    """Read, split, train the tokenizer on the training side, encode. `limit` bounds the characters that are read."""
    documents = list(_limited(_pieces(text) if text else _library(), limit))
    parts = {True: list[Document](), False: list[Document]()}
    for document in documents:
        parts[held_out(document.id, HELD_OUT)].append(document)
    tokenizer = Tokenizer.train((document.text for document in parts[False]), vocab)
    shards = write_shards(parts[False], tokenizer, directory / "train")
    return Corpus(tokenizer, shards, _windows(parts[True], tokenizer, context, windows))


def _library() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not {"site-packages", "dist-packages", "test", "tests"} & set(name.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield Document(name.as_posix(), text, "library")


def _pieces(path: Path) -> Iterator[Document]:
    if not path.is_file():
        raise DataError(f"--text {path}: no such file. Give a UTF-8 text file.")
    lines: list[str] = []
    size = number = 0
    with path.open(encoding="utf-8", errors="replace") as f:
        for line in f:
            lines.append(line)
            size += len(line)
            if size >= PIECE:
                yield Document(f"{path.name}#{number}", "".join(lines), "file")
                lines, size, number = [], 0, number + 1
    if lines:
        yield Document(f"{path.name}#{number}", "".join(lines), "file")


def _limited(documents: Iterator[Document], limit: int | None) -> Iterator[Document]:
    size = 0
    for document in documents:
        yield document
        size += len(document.text)
        if limit is not None and size >= limit:
            return


def _windows(documents: list[Document], tokenizer: Tokenizer, context: int, wanted: int) -> Tensor:
    """Return `wanted` windows spread evenly over all that lie inside one held-out document."""
    found: list[list[int]] = []
    for ids in tokenizer.encode_batch([document.text for document in documents]):
        found += [ids[i : i + context + 1] for i in range(0, len(ids) - context, context)]
    if len(found) < wanted:
        raise DataError(
            f"the held-out text has {len(found)} windows of {context} tokens, {wanted} are wanted: too small"
        )
    return torch.tensor([found[i * len(found) // wanted] for i in range(wanted)])
