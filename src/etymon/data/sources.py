"""Where documents come from: settings that name a source, and reading it as a stream."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from etymon.config import Config
from etymon.data import builtin
from etymon.data.documents import Document
from etymon.data.rows import ROW_SUFFIXES, TEXT_SUFFIXES, BadInput, Counts, find_files, read_rows, read_text
from etymon.errors import DataError, suggest


class FilesSource(Config):
    """Files of the user: a file, a folder (walked whole) or a glob (`**` crosses folders).

    `.jsonl .ndjson .json .parquet` (`.gz` too) hold a document per row, its text in the field `text`; every other
    file is text. A folder gives the files of known suffixes, or those that match one of `include`.
    """

    kind: Literal["files"] = "files"
    path: str = Field(min_length=1, description="A file, a folder or a glob")
    include: tuple[str, ...] = Field(default=(), description="Patterns for files of a folder, such as '*.py'")
    text: str = Field(default="text", description="Name of the field or column that holds the text")
    name: str | None = Field(default=None, description="What reports call this source; the path if not given")
    encoding: str = Field(default="utf-8", description="Encoding of text files (rows are UTF-8): gb18030, latin-1 …")
    errors: BadInput = Field(
        default="skip", description="Text that cannot be decoded: error, skip (counted) or replace (counted)"
    )
    max_chars: int = Field(default=32_768, ge=256, description="A longer text file becomes several documents")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            info = codecs.lookup(value)
            "a".encode(value)  # refuses what is not text, such as base64
        except (LookupError, ValueError):
            raise ValueError(
                f"unknown text encoding {value!r}; Python's names are used, such as utf-8 or gb18030"
            ) from None
        return "utf-8-sig" if info.name == "utf-8" else value


class BuiltinSource(Config):
    """Text that every Python machine has: the standard library's source, reference pages, topics, and worked tasks."""

    kind: Literal["builtin"] = "builtin"
    parts: tuple[builtin.Part, ...] = Field(default=builtin.PARTS, min_length=1, description="Which parts to read")


Source = Annotated[FilesSource | BuiltinSource, Field(discriminator="kind")]


def as_source(value: FilesSource | BuiltinSource | str | Path) -> FilesSource | BuiltinSource:
    """Return settings as they are, `"builtin"` as the built-in corpus, any other string as a path."""
    if isinstance(value, FilesSource | BuiltinSource):
        return value
    return BuiltinSource() if value == "builtin" else FilesSource(path=str(value))


def source_name(source: FilesSource | BuiltinSource) -> str:
    """Return what reports call `source`."""
    return "builtin" if isinstance(source, BuiltinSource) else source.name or source.path


def read_documents(
    sources: Iterable[FilesSource | BuiltinSource | str | Path], counts: Counts | None = None
) -> Iterator[Document]:
    """Yield the documents of `sources` in order, as read: `prepare_documents` normalises and deduplicates them.

    One document is in memory at a time. What is left out is counted in `counts`. Raises `DataError` for a path
    that is missing, rows that are not JSON or lack the field, and (policy `error`) undecodable text.
    """
    counts = Counts() if counts is None else counts
    for source in map(as_source, sources):
        if isinstance(source, BuiltinSource):
            yield from builtin.documents(source.parts)
        else:
            yield from _read_files(source, counts)


def _read_files(source: FilesSource, counts: Counts) -> Iterator[Document]:
    name = source_name(source)
    files, left_out = find_files(source.path, source.include, TEXT_SUFFIXES + ROW_SUFFIXES)
    for file in left_out:
        counts.add(name, "files_not_included", str(file))
    counts.add(name, "files", n=len(files))
    for file in files:
        if file.name.lower().endswith(ROW_SUFFIXES):
            yield from _read_row_file(file, source, name, counts)
        else:
            pieces = read_text(
                file, source.max_chars, encoding=source.encoding, errors=source.errors, counts=counts, source=name
            )
            for number, text in enumerate(pieces):
                yield Document(f"{file}#{number}" if number else str(file), text, name)


def _read_row_file(file: Path, source: FilesSource, name: str, counts: Counts) -> Iterator[Document]:
    rows = read_rows(file, errors=source.errors, counts=counts, source=name, columns=[source.text])
    for place, row in rows:
        text = _text_of(row, source.text, place)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no UTF-8 can hold
            if source.errors == "error":
                raise DataError(
                    f"{place} spells half of a surrogate pair (\\ud800 to \\udfff), which is not a character. "
                    "Correct it, or set `errors` to skip or replace."
                ) from None
            counts.add(name, "undecodable_replaced" if source.errors == "replace" else "undecodable", place)
            if source.errors == "skip":
                continue
            text = text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
        yield Document(place, text, name)


def _text_of(row: Any, field: str, place: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{place} is a JSON {type(row).__name__}; expected an object with the field {field!r}.")
    if field not in row:
        names = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"{place} has no field {field!r}; its fields are {names}.{suggest(field, row)} Set `text` to the name "
            "of the field that holds the text."
        )
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{place}: the field {field!r} is a {type(value).__name__}; expected a string.")
    return value
