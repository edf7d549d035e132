"""Token shards: a corpus as numbers on disk, opened by memory map in no time and read at any place in O(1).

A directory holds, for each shard `NNNNN`,

- `shard-NNNNN.bin`: the token ids, `uint16` or `uint32` little endian, documents one after another, each
  ending with EOS;
- `shard-NNNNN.idx`: `uint64` little endian, two rows of `documents + 1`: where each document starts in the
  shard (tokens), then how many UTF-8 bytes of text the documents before it had; the last column is the end;

and `manifest.json`: format, dtype, vocabulary size, the tokenizer's fingerprint, the counts, and the size and
SHA-256 of every file. A document is never cut by a shard.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from etymon.data.documents import Document
from etymon.errors import DataError
from etymon.files import atomic_directory, write_json

FORMAT = "etymon-token-shards-1"
ENCODE_DOCUMENTS = 256
ENCODE_CHARACTERS = 1 << 20


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == ENCODE_DOCUMENTS or characters >= ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(documents: Iterable[Document], tokenizer: Encoder) -> Iterator[tuple[list[int], int]]:
    """Yield each document's ids, EOS included, and its size in UTF-8 bytes."""
    assert tokenizer.eos_id is not None
    for batch in _batches(documents):
        texts = [document.text for document in batch]
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            yield [*ids, tokenizer.eos_id], len(text.encode("utf-8"))


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}"


class _ShardWriter:
    """One `.bin` as it grows, and the columns of its `.idx`."""

    def __init__(self, directory: Path, number: int, dtype: str) -> None:
        self.name = _shard_name(number)
        self._directory = directory
        self._dtype = dtype
        self._bin = (directory / f"{self.name}.bin").open("wb")
        self.tokens, self.bytes = [0], [0]

    def add(self, ids: list[int], n_bytes: int) -> None:
        self._bin.write(np.asarray(ids, dtype=self._dtype).tobytes())
        self.tokens.append(self.tokens[-1] + len(ids))
        self.bytes.append(self.bytes[-1] + n_bytes)

    def close(self) -> dict[str, Any]:
        """Finish both files and return the shard's entry in the manifest."""
        self._bin.close()
        index = self._directory / f"{self.name}.idx"
        index.write_bytes(np.asarray([self.tokens, self.bytes], dtype="<u8").tobytes())
        return {
            "name": self.name,
            "documents": len(self.tokens) - 1,
            "tokens": self.tokens[-1],
            "bytes": self.bytes[-1],
            "sha256": {"bin": _sha256(self._directory / f"{self.name}.bin"), "idx": _sha256(index)},
        }

    def abandon(self) -> None:
        self._bin.close()


def write_shards(
    documents: Iterable[Document],
    tokenizer: Encoder,
    directory: str | Path,
    *,
    shard_tokens: int = 1 << 27,
    progress: Callable[[int], None] | None = None,
) -> TokenShards:
    """Encode `documents` into token shards at `directory`, which appears whole or not at all.

    A shard is closed once it holds `shard_tokens`. `progress` is called with the number of UTF-8 bytes of each
    document as it is written. Raises `DataError` for a tokenizer without EOS and when there are no documents.
    """
    if tokenizer.eos_id is None:
        raise DataError(
            "The tokenizer has no end-of-text token (eos_id is None), and every document of token shards ends "
            "with one. Use a tokenizer that has one, such as `etymon tokenizer` trains."
        )
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    with atomic_directory(directory) as temporary:
        shards: list[dict[str, Any]] = []
        writer: _ShardWriter | None = None
        try:
            for ids, n_bytes in _encoded(documents, tokenizer):
                writer = writer or _ShardWriter(temporary, len(shards), dtype)
                writer.add(ids, n_bytes)
                if progress is not None:
                    progress(n_bytes)
                if writer.tokens[-1] >= shard_tokens:
                    shards.append(writer.close())
                    writer = None
            if writer is not None:
                shards.append(writer.close())
                writer = None
        finally:
            if writer is not None:
                writer.abandon()
        if not shards:
            raise DataError(f"There are no documents to write to {directory}: the corpus is empty.")
        manifest = {
            "format": FORMAT,
            "dtype": {"<u2": "uint16", "<u4": "uint32"}[dtype],
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "tokenizer": tokenizer.fingerprint,
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "bytes": sum(shard["bytes"] for shard in shards),
            "shards": shards,
        }
        write_json(temporary / "manifest.json", manifest)
    return TokenShards(directory, tokenizer=tokenizer)


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / "manifest.json"
    if not path.is_file():
        raise DataError(f"{directory} holds no token shards: {path} is missing. Write them with `etymon data`.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}). Write the shards again with `etymon data`.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DataError(f"{path} is not a manifest of token shards: format is {found!r}, expected {FORMAT!r}.")
    return manifest


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise TypeError(f"{value!r} is no count")
    return value


def _check_file(path: Path, expected_bytes: int) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing though the manifest lists it. Write the shards again.")
    found = path.stat().st_size
    if found != expected_bytes:
        raise DataError(
            f"{path} has {found:,} bytes but its manifest says {expected_bytes:,}: it is truncated or was "
            "changed. Write the shards again."
        )


class TokenShards:
    """Token shards opened by memory map; `n_tokens`, `n_documents` and `n_bytes` (UTF-8 bytes of the text).

    Opening checks the size of every file, and their SHA-256 with `verify=True`. With a `tokenizer`, its
    fingerprint must be the one that wrote the shards. Raises `DataError`.
    """

    def __init__(self, directory: str | Path, *, tokenizer: Encoder | None = None, verify: bool = False) -> None:
        self.directory = Path(directory)
        self.manifest = _read_manifest(self.directory)
        try:
            self._open()
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self.directory / 'manifest.json'} lacks or garbles a field ({error!r}). Write the shards again."
            ) from None
        if tokenizer is not None and tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise DataError(
                f"{self.directory} was written with another tokenizer (fingerprint {self.tokenizer_fingerprint[:12]}…, "
                f"this one has {tokenizer.fingerprint[:12]}…): its ids would mean other text. "
                "Write the shards again with this tokenizer."
            )
        if verify:
            self.verify()

    def _open(self) -> None:
        manifest = self.manifest
        dtypes = {"uint16": "<u2", "uint32": "<u4"}
        if manifest["dtype"] not in dtypes:
            raise DataError(f"{self.directory}: dtype is {manifest['dtype']!r}, expected uint16 or uint32.")
        dtype = np.dtype(dtypes[manifest["dtype"]])
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.tokenizer_fingerprint: str = manifest["tokenizer"]
        self._ids: list[NDArray[Any]] = []
        self._starts: list[NDArray[Any]] = []
        self._bytes: list[NDArray[Any]] = []
        self._first_token, self._first_document = [0], [0]
        self.n_bytes = 0
        for number, shard in enumerate(manifest["shards"]):
            tokens, documents = _count(shard["tokens"]), _count(shard["documents"])
            ids_path, index_path = (self.directory / f"{_shard_name(number)}.{kind}" for kind in ("bin", "idx"))
            _check_file(ids_path, tokens * dtype.itemsize)
            _check_file(index_path, 2 * (documents + 1) * 8)
            index = np.memmap(index_path, dtype="<u8", mode="r", shape=(2, documents + 1)).view(np.ndarray)
            if index[0, 0] != 0 or index[0, -1] != tokens or index[1, -1] != shard["bytes"]:
                raise DataError(f"{index_path} does not agree with the manifest. Write the shards again.")
            self._ids.append(np.memmap(ids_path, dtype=dtype, mode="r").view(np.ndarray))
            self._starts.append(index[0].view("<i8"))
            self._bytes.append(index[1].view("<i8"))
            self._first_token.append(self._first_token[-1] + tokens)
            self._first_document.append(self._first_document[-1] + documents)
            self.n_bytes += shard["bytes"]
        self.n_tokens = self._first_token[-1]
        self.n_documents = self._first_document[-1]
        if not self.n_tokens:
            raise DataError(f"{self.directory} holds no tokens.")

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest; raise `DataError` naming the one that differs."""
        for number, shard in enumerate(self.manifest["shards"]):
            for kind in ("bin", "idx"):
                path = self.directory / f"{_shard_name(number)}.{kind}"
                if _sha256(path) != shard["sha256"][kind]:
                    raise DataError(f"{path} is corrupted: its SHA-256 is not the manifest's. Write the shards again.")

    @property
    def fingerprint(self) -> str:
        """A hash of the content: the same documents and tokenizer give the same."""
        content = [self.tokenizer_fingerprint, *(shard["sha256"] for shard in self.manifest["shards"])]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        """The number of documents."""
        return self.n_documents

    def _locate(self, document: int) -> tuple[int, int]:
        if not 0 <= document < self.n_documents:
            raise IndexError(f"document {document} of {self.n_documents}")
        shard = bisect_right(self._first_document, document) - 1
        return shard, document - self._first_document[shard]

    def document(self, i: int) -> NDArray[Any]:
        """Return the ids of document `i` with its EOS: a read-only view, uint16 or uint32 `[tokens]`."""
        shard, local = self._locate(i)
        start, stop = self._starts[shard][local : local + 2]
        return self._ids[shard][start:stop]

    def document_bytes(self, i: int) -> int:
        """Return how many UTF-8 bytes of text document `i` has."""
        shard, local = self._locate(i)
        start, stop = self._bytes[shard][local : local + 2]
        return int(stop - start)

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with the tokens from `start` on of the stream of all documents, across shards."""
        assert 0 <= start <= start + len(out) <= self.n_tokens
        done = 0
        shard = bisect_right(self._first_token, start) - 1
        while done < len(out):
            local = start + done - self._first_token[shard]
            piece = self._ids[shard][local : local + len(out) - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1

    def starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the places in `range(start, stop)` of the stream where a document starts."""
        found: list[NDArray[np.int64]] = []
        shard = bisect_right(self._first_token, start) - 1
        while shard < len(self._ids) and self._first_token[shard] < stop:
            base = self._first_token[shard]
            starts = self._starts[shard][:-1]
            low, high = np.searchsorted(starts, np.array([start - base, stop - base], dtype=np.int64))
            found.append(starts[low:high] + base)
            shard += 1
        return found[0] if len(found) == 1 else np.concatenate(found) if found else np.empty(0, np.int64)
