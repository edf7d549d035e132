"""Files as people keep them: text, JSON Lines, JSON and Parquet, plain or gzipped, read in bounded memory."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

from etymon.errors import DataError

BadInput = Literal["error", "skip", "replace"]
T = TypeVar("T")

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".txt.gz", ".md.gz")
LINES_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
JSON_SUFFIXES = (".json", ".json.gz")
PARQUET_SUFFIXES = (".parquet",)
ROW_SUFFIXES = LINES_SUFFIXES + JSON_SUFFIXES + PARQUET_SUFFIXES
TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")

EXAMPLES = 5
CHUNK = 1 << 20


@dataclass
class Counts:
    """What was read and what was left out, by reason, with the first few places of each reason."""

    by_source: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, source: str, reason: str, place: str | None = None, n: int = 1) -> None:
        """Count `n` of `reason` for `source`; `place` is remembered if it is among the first."""
        self.by_source.setdefault(source, Counter())[reason] += n
        if place is not None:
            places = self.examples.setdefault(reason, [])
            if len(places) < EXAMPLES:
                places.append(place)

    def total(self, reason: str) -> int:
        """Return the count of `reason` over all sources."""
        return sum(counts[reason] for counts in self.by_source.values())

    def to_dict(self) -> dict[str, Any]:
        """Return `{"sources": {source: {reason: n}}, "examples": {reason: [place]}}`."""
        return {"sources": {name: dict(counts) for name, counts in self.by_source.items()}, "examples": self.examples}


def find_files(path: str, include: tuple[str, ...], known: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the files that `path` (a file, a folder or a glob) means, sorted, and those left out of a folder.

    A folder is walked whole, hidden entries excepted; `include` are glob patterns on a file's name or its path in
    the folder, and without them the files whose names end in one of `known` are taken. Raises `DataError` when
    nothing is found.
    """
    expanded = os.path.expanduser(path)
    root = Path(expanded)
    if root.is_file():
        return [root], []
    if root.is_dir():
        entries = sorted(_walk(root))
        taken = {file: _included(file.relative_to(root), include, known) for file in entries}
        found = [file for file in entries if taken[file]]
        if not found:
            wanted = ", ".join(include or known)
            raise DataError(
                f"The folder {path} has {len(entries)} files, none of which matches {wanted}. Set `include` to "
                "patterns such as '*.py', or name the files."
            )
        return found, [file for file in entries if not taken[file]]
    if any(character in expanded for character in "*?["):
        found = sorted(file for file in map(Path, glob.glob(expanded, recursive=True)) if file.is_file())
        if not found:
            raise DataError(f"No file matches {path} (looked from {Path.cwd()}).")
        return found, []
    raise DataError(f"There is no file or folder {path} (looked from {Path.cwd()}).")


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder) / name for name in files if not name.startswith("."))


def _included(file: Path, include: tuple[str, ...], known: tuple[str, ...]) -> bool:
    if include:
        return any(file.match(pattern) for pattern in include)
    return file.name.lower().endswith(known)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open `path`, through gzip where its name says so; what the system or gzip refuses is a `DataError`."""
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as f:
                yield cast(BinaryIO, f)
        else:
            with path.open("rb") as f:
                yield f
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}). Compress it again or decompress it.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _undecodable(path: Path, encoding: str) -> UnicodeDecodeError | None:
    """Read `path` through once and return what is wrong with its encoding, at its place in the file."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with _open(path) as f:
        done = 0
        while True:
            chunk = f.read(CHUNK)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                start = done - held + error.start
                return UnicodeDecodeError(error.encoding, b"\xff" * (start + 1), start, start + 1, error.reason)
            if not chunk:
                return None
            done += len(chunk)


def _bad_encoding(place: str, encoding: str, detail: str) -> DataError:
    return DataError(
        f"{place} is not {encoding} text ({detail}). Set `encoding` (gb18030, latin-1, utf-16 …) if it has another, or "
        "`errors` to skip or replace."
    )


def read_text(
    path: Path, max_chars: int, *, encoding: str, errors: BadInput, counts: Counts, source: str
) -> Iterator[str]:
    """Yield a text file in pieces of at most `max_chars` characters, cut at empty lines where there are some.

    A file that is not of its encoding is left out whole (`skip`), read with U+FFFD in the bad places (`replace`),
    both counted, or a `DataError`.
    """
    if error := _undecodable(path, encoding):
        if errors == "error":
            raise _bad_encoding(str(path), encoding, f"byte {error.start:,}: {error.reason}")
        counts.add(source, "undecodable_replaced" if errors == "replace" else "undecodable", str(path))
        if errors == "skip":
            return
    with _open(path) as f:
        text = io.TextIOWrapper(f, encoding=encoding, errors="replace", newline=None)
        buffer = ""
        while chunk := text.read(CHUNK):
            buffer += chunk
            at = 0
            while len(buffer) - at > max_chars:
                cut = _cut(buffer, at, at + max_chars)
                yield buffer[at:cut]
                at = cut
            buffer = buffer[at:]
        if buffer:
            yield buffer


def _cut(text: str, start: int, stop: int) -> int:
    """Return where to end a piece that may reach `stop`: after an empty line, else a line, else a space."""
    middle = start + (stop - start) // 2
    for separator in ("\n\n", "\n", " "):
        at = text.rfind(separator, middle, stop)
        if at > start:
            return at + len(separator)
    return stop


def read_rows(
    path: Path, *, errors: BadInput, counts: Counts, source: str, columns: list[str] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield `(place, row)` for each row of a JSON Lines, JSON, Parquet, CSV or TSV file; `place` is `file:line`.

    A line that is not UTF-8 is skipped, replaced or a `DataError` as `errors` says; one that is not JSON is a
    `DataError` with its file and line. `columns` limits what is read of a Parquet file.
    """
    name = path.name.lower()
    if name.endswith(PARQUET_SUFFIXES):
        yield from _read_parquet(path, columns)
    elif name.endswith(JSON_SUFFIXES):
        yield from _read_json(path)
    elif name.endswith(TABLE_SUFFIXES):
        yield from _read_table(path, "\t" if ".tsv" in name else ",", errors, counts, source)
    else:
        with _open(path) as f:
            for number, line in enumerate(f, 1):
                place = f"{path}:{number}"
                text = _decode_line(line, place, errors, counts, source)
                if text is not None and text.strip():
                    yield place, _parse(text, place)


def read_each(
    files: Iterable[Path],
    make: Callable[[Any, str], T],
    *,
    errors: BadInput,
    counts: Counts,
    source: str,
    noun: str,
) -> Iterator[T]:
    """Yield what `make` makes of each row and its place, in all files of a source.

    Raises DataError for a row of which it makes none, unless these are skipped and counted as "not_a_" `noun`, and for
    a source that holds none at all.
    """
    read = 0
    for file in files:
        for place, row in read_rows(file, errors=errors, counts=counts, source=source):
            try:
                made = make(row, place)
            except DataError:
                if errors != "skip":
                    raise
                counts.add(source, f"not_a_{noun}", place)
                continue
            counts.add(source, "kept")
            read += 1
            yield made
    if not read:
        skipped = counts.total(f"not_a_{noun}")
        raise DataError(f"{source} holds no {noun}s ({skipped} rows were skipped as none).")


def _decode_line(line: bytes, place: str, errors: BadInput, counts: Counts, source: str) -> str | None:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if errors == "error":
            raise _bad_encoding(place, "UTF-8", f"byte {error.start:,} of the line: {error.reason}") from None
        counts.add(source, "undecodable_replaced" if errors == "replace" else "undecodable", place)
        return line.decode("utf-8-sig", errors="replace") if errors == "replace" else None


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        shown = text.strip()[:60]
        raise DataError(f"{place} is not JSON ({error}): {shown!r}. Each line must be one JSON object.") from None


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as f:
        data = f.read()
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}: {error.reason}).") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}). If it has an object on each line, name it .jsonl.") from None
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows):
        yield f"{path}[{number}]", row


def _read_table(path: Path, delimiter: str, errors: BadInput, counts: Counts, source: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a table whose first line names its columns; all values are strings."""
    with _open(path) as f:
        lines = (_decode_line(line, f"{path}:{n}", errors, counts, source) for n, line in enumerate(f, 1))
        reader = csv.reader((line for line in lines if line is not None), delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if row and len(row) != len(names):
                    raise DataError(f"{place} has {len(row)} values, but the first line names {len(names)} columns.")
                if row:
                    yield place, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num} is not a line of a table ({error}).") from None


def _read_parquet(path: Path, columns: list[str] | None) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"Reading {path} needs pyarrow: pip install 'etymon[parquet]'.") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [column for column in columns or [] if column not in names]
            if missing:
                raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, names))}.")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    yield f"{path}[{number}]", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({error}).") from None
