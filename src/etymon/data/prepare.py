"""From sources to a document set on disk: normal text, each once, split into training and held-out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from pydantic import Field

from etymon.config import Config
from etymon.data.documents import Document, Split, held_out, normalise, text_hash
from etymon.data.rows import Counts
from etymon.data.sources import BuiltinSource, Source, read_documents
from etymon.errors import DataError
from etymon.files import atomic_directory, write_json

FORMAT = "etymon-documents-1"
SPLITS: tuple[Split, ...] = ("train", "held_out")
BATCH = 1024
BATCH_CHARACTERS = 4 << 20


class DocumentsConfig(Config):
    """What becomes the corpus."""

    sources: tuple[Source, ...] = Field(default=(BuiltinSource(),), min_length=1)
    min_chars: int = Field(default=16, ge=1, description="Shorter documents are left out, and counted")
    held_out: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of documents kept for evaluation; the built-in corpus always keeps a twentieth",
    )


class SeenHashes:
    """The set of 128-bit hashes seen so far, in 16 bytes each; past four million they rest on disk."""

    RUN = 1 << 22

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runs: list[np.ndarray] = []  # each sorted; sizes fall, so that there are few

    def add(self, hashes: list[bytes]) -> list[bool]:
        """Add `hashes`; say of each whether it is new."""
        values = np.array(hashes, dtype="S16")
        unique, first = np.unique(values, return_index=True)
        new = np.zeros(len(values), dtype=np.bool_)
        new[first] = True
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            new[first[run[at] == unique]] = False
        if new.any():
            self._runs.append(np.sort(values[new]))
            self._merge()
        result: list[bool] = new.tolist()
        return result

    def _merge(self) -> None:
        runs = self._runs
        while len(runs) > 1 and len(runs[-2]) < self.RUN and len(runs[-1]) * 2 >= len(runs[-2]):
            runs[-2:] = [np.sort(np.concatenate(runs[-2:]))]
        if len(runs[-1]) >= self.RUN:
            with tempfile.TemporaryFile(dir=self._directory) as f:  # the map outlives the name and the handle
                runs[-1].tofile(f)
                f.flush()
                runs[-1] = np.memmap(f, dtype="S16", mode="r").view(np.ndarray)


class _SplitFile:
    """One JSONL file as it is written, with its counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = self.characters = self.bytes = 0
        self._file: TextIO = path.open("w", encoding="utf-8", newline="\n")

    def add(self, document: Document) -> None:
        row = {"id": document.id, "source": document.source, "text": document.text}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.documents += 1
        self.characters += len(document.text)
        self.bytes += len(document.text.encode("utf-8"))

    def close(self) -> None:
        self._file.close()

    def to_dict(self) -> dict[str, Any]:
        with self.path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        return {
            "file": self.path.name,
            "documents": self.documents,
            "characters": self.characters,
            "bytes": self.bytes,
            "sha256": digest,
        }


def _read_jsonl(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8", newline="\n") as f:
        for number, line in enumerate(f, 1):
            try:
                row = json.loads(line)
                yield Document(row["id"], row["text"], row["source"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number} is damaged ({error}). Prepare the documents again.") from None


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _clean(config: DocumentsConfig, counts: Counts, directory: Path) -> Iterator[tuple[Document, bytes]]:
    """Yield the documents that stay, normalised, with their hashes; count the rest by reason."""
    seen = SeenHashes(directory)
    for batch in _batches(read_documents(config.sources, counts)):
        kept: list[tuple[Document, bytes]] = []
        for document in batch:
            text = normalise(document.text)
            counts.add(document.source, "read")
            if len(text) < config.min_chars:
                counts.add(document.source, "too_short" if text.strip() else "empty", document.id)
            else:
                kept.append((Document(document.id, text, document.source, document.split), text_hash(text)))
        if not kept:
            continue
        for (document, digest), new in zip(kept, seen.add([digest for _, digest in kept]), strict=True):
            if new:
                counts.add(document.source, "kept")
                yield document, digest
            else:
                counts.add(document.source, "duplicate", document.id)


def prepare_documents(
    config: DocumentsConfig, directory: str | Path, *, progress: Callable[[int], None] | None = None
) -> DocumentSet:
    """Read, normalise, deduplicate and split; write `train.jsonl`, `held_out.jsonl` and `manifest.json`.

    Which side a document is on depends on its text alone, so adding documents moves none. A corpus so small that
    no hash falls on the held-out side gives up the document with the smallest hash. `progress` is called with the
    number of characters of each kept document. The directory appears whole or not at all. Raises `DataError`.
    """
    counts = Counts()
    with atomic_directory(directory) as temporary:
        files = {split: _SplitFile(temporary / f"{split}.jsonl") for split in SPLITS}
        smallest: tuple[bytes, Document] | None = None
        try:
            for document, digest in _clean(config, counts, temporary):
                split = document.split or ("held_out" if held_out(digest, config.held_out) else "train")
                files[split].add(document)
                if split == "train" and document.split is None and (smallest is None or digest < smallest[0]):
                    smallest = digest, document
                if progress is not None:
                    progress(len(document.text))
        finally:
            for file in files.values():
                file.close()
        _require_documents(counts, files)
        if config.held_out and not files["held_out"].documents and smallest is not None:
            files = _hold_out(smallest[1], files["train"], temporary)
        manifest = {
            "format": FORMAT,
            "settings": config.model_dump(mode="json"),
            "splits": {split: file.to_dict() for split, file in files.items()},
            **counts.to_dict(),
        }
        write_json(temporary / "manifest.json", manifest)
    return DocumentSet(directory)


def _require_documents(counts: Counts, files: dict[Split, _SplitFile]) -> None:
    if files["train"].documents:
        return
    reasons = ", ".join(
        f"{counts.total(reason)} {reason}"
        for reason in ("undecodable", "empty", "too_short", "duplicate")
        if counts.total(reason)
    )
    places = [place for places in counts.examples.values() for place in places][:3]
    if files["held_out"].documents:
        raise DataError("Every document fell on the held-out side: lower `held_out` or add documents.")
    raise DataError(
        f"The corpus is empty: {counts.total('read')} documents were read and none was kept"
        + (f" ({reasons}; for example {', '.join(places)})" if reasons else "")
        + ". Look at `sources`, and at `min_chars` and `encoding`."
    )


def _hold_out(chosen: Document, train: _SplitFile, directory: Path) -> dict[Split, _SplitFile]:
    """Move `chosen` to the held-out file; a corpus of a single document cannot be split."""
    if train.documents < 2:
        raise DataError(
            f"The corpus is a single document ({chosen.id}), so none can be held out. Add documents, cut it into "
            "several (`max_chars` of its source), or set `held_out` to 0."
        )
    old = train.path.rename(directory / "train.old")
    files = {split: _SplitFile(directory / f"{split}.jsonl") for split in SPLITS}
    for document in _read_jsonl(old):
        files["held_out" if document.text == chosen.text else "train"].add(document)
    for file in files.values():
        file.close()
    old.unlink()
    return files


class DocumentSet:
    """A prepared corpus on disk. `manifest` has settings, counts by source and reason, and hashes.

    Opening raises `DataError` unless it is one.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / "manifest.json"
        if not path.is_file():
            raise DataError(
                f"{directory} holds no prepared documents: {path} is missing. Prepare them with `etymon data`."
            )
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = self.manifest["format"]
        except (ValueError, KeyError, TypeError):
            found = None
        if found != FORMAT:
            raise DataError(f"{path} is not a manifest of documents: format is {found!r}, expected {FORMAT!r}.")

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the documents of `split`, in the order of the sources."""
        path = self.directory / self.manifest["splits"][split]["file"]
        if not path.is_file():
            raise DataError(f"{path} is missing though the manifest lists it. Prepare the documents again.")
        return _read_jsonl(path)

    def train(self) -> Iterator[Document]:
        """Yield the documents to train on."""
        return self.documents("train")

    def held_out(self) -> Iterator[Document]:
        """Yield the documents kept for evaluation."""
        return self.documents("held_out")

    def count(self, split: Split) -> int:
        """Return how many documents `split` has."""
        return int(self.manifest["splits"][split]["documents"])

    def n_bytes(self, split: Split) -> int:
        """Return how many UTF-8 bytes of text `split` has."""
        return int(self.manifest["splits"][split]["bytes"])
