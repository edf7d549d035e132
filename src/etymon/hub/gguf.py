"""GGUF files: metadata and tensors in one file, read as untrusted input.

The format is ggml's, `docs/gguf.md`: little-endian, a magic, counts, typed key-value pairs, tensor descriptions, and
the tensors' bytes at aligned offsets.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from etymon.errors import CheckpointError
from etymon.files import atomic_path
from etymon.hub.ggml import OTHERS, STORAGES, Storage

_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LEAST_PAIR, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes that even the smallest one takes


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `shape` with the fastest axis last, `start` counted from the beginning of the file."""

    shape: tuple[int, ...]
    storage: Storage
    start: int

    @property
    def nbytes(self) -> int:
        """The number of bytes it takes."""
        return math.prod(self.shape) // self.storage.values * self.storage.nbytes


class _Cursor:
    """Reads numbers and strings one after the other, never beyond the end."""

    def __init__(self, raw: memoryview | mmap.mmap) -> None:
        self.raw, self.at = raw, 0

    def need(self, size: int, what: str) -> None:
        if size > len(self.raw) - self.at:
            left = len(self.raw) - self.at
            raise CheckpointError(f"truncated or corrupted: {what} needs {size} bytes at {self.at}, {left} are left")

    def take(self, size: int, what: str) -> bytes:
        self.need(size, what)
        self.at += size
        return self.raw[self.at - size : self.at]  # type: ignore[return-value]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number("Q", what), what)
        try:
            return bytes(raw).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"corrupted: {what} is not UTF-8") from None

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind in _NUMBERS:
            value = self.number(_NUMBERS[kind], what)
            # 1e-5 in single precision is 9.99999975e-06 in double: the shortest number that is the same is meant
            return float(str(np.float32(value))) if _NUMBERS[kind] == "f" else value
        if kind != _ARRAY:
            raise CheckpointError(f"corrupted: {what} is of type {kind}, which there is not")
        inner, count = self.number("I", what), self.number("Q", what)
        if inner in _NUMBERS:
            code = _NUMBERS[inner]
            self.need(count * struct.calcsize(f"<{code}"), what)
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"), what)))
        if inner != _STRING:
            raise CheckpointError(f"corrupted: {what} is an array of type {inner}, which there is not")
        self.need(count * 8, what)
        return [self.string(what) for _ in range(count)]


class GGUF:
    """An open file: `metadata` by key, and tensors by name, read one at a time."""

    def __init__(self, path: Path, raw: memoryview | mmap.mmap) -> None:
        self.path = path
        self._raw = raw
        try:
            self.metadata, self.entries = _header(raw)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return set(self.entries)

    def read(self, name: str) -> Tensor:
        """Read one tensor, unpacked to fp32 unless it is stored in another floating-point type."""
        entry = self.entries[name]
        raw = bytearray(self._raw[entry.start : entry.start + entry.nbytes])
        return entry.storage.read(torch.frombuffer(raw, dtype=torch.uint8), entry.shape)


def _header(raw: memoryview | mmap.mmap) -> tuple[dict[str, Any], dict[str, Entry]]:
    cursor = _Cursor(raw)
    if bytes(cursor.take(4, "the magic")) != _MAGIC:
        raise CheckpointError("it does not begin with 'GGUF': not a GGUF file")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        raise CheckpointError(f"GGUF version {version} is not read here (2 and 3 are, little-endian)")
    tensors, pairs = cursor.number("Q", "the count of tensors"), cursor.number("Q", "the count of keys")
    cursor.need(tensors * _LEAST_TENSOR + pairs * _LEAST_PAIR, f"a header of {tensors} tensors and {pairs} keys")
    metadata: dict[str, Any] = {}
    for i in range(pairs):
        key = cursor.string(f"key {i}")
        metadata[key] = cursor.value(cursor.number("I", f"key {key!r}"), f"key {key!r}")
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & alignment - 1:
        raise CheckpointError(f"corrupted: general.alignment = {alignment!r} is no power of two")
    described = {}
    for i in range(tensors):
        name = cursor.string(f"tensor {i}")
        axes = cursor.number("I", f"tensor {name!r}")
        if axes > 4 or name in described:
            raise CheckpointError(f"corrupted: tensor {name!r} has {axes} axes or comes twice")
        shape = tuple(cursor.number("Q", f"tensor {name!r}") for _ in range(axes))[::-1]
        described[name] = (shape, cursor.number("I", f"tensor {name!r}"), cursor.number("Q", f"tensor {name!r}"))
    body = -(-cursor.at // alignment) * alignment
    entries = {name: _entry(name, *parts, body, alignment, len(raw)) for name, parts in described.items()}
    return metadata, entries


def _entry(name: str, shape: tuple[int, ...], code: int, offset: int, body: int, alignment: int, end: int) -> Entry:
    storage = STORAGES.get(code)
    if storage is None:
        known = ", ".join(storage.name for storage in STORAGES.values())
        raise CheckpointError(f"tensor {name!r} is stored as {OTHERS.get(code, f'type {code}')}; read are {known}")
    if math.prod(shape) == 0 or (shape or (1,))[-1] % storage.values:
        raise CheckpointError(f"corrupted: tensor {name!r} of shape {list(shape)} is no whole blocks of {storage.name}")
    entry = Entry(shape, storage, body + offset)
    if offset % alignment or entry.start + entry.nbytes > end:
        raise CheckpointError(
            f"truncated or corrupted: tensor {name!r} should lie at {entry.start}, {entry.nbytes} bytes, but the file "
            f"has {end}"
        )
    return entry


@contextmanager
def open_gguf(path: Path) -> Iterator[GGUF]:
    """Open a file. Raises CheckpointError when it is missing, no GGUF file, truncated, corrupted or of an odd kind."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            yield GGUF(path, raw)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing") from None
    except ValueError as error:
        if isinstance(error, CheckpointError) or path.stat().st_size:
            raise
        raise CheckpointError(f"{path}: the file is empty") from None


# -- writing ----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor, Storage]]) -> None:
    """Write a file, whole or not at all. `tensors` is gone through twice: once for the sizes, once for the numbers.

    A value of `metadata` is a str, bool, int, float, or a list of one of them.
    """
    head = [struct.pack("<4sI", _MAGIC, _VERSION), b"", struct.pack("<Q", len(metadata))]
    for key, value in metadata.items():
        head += [_packed(key), _typed(value)]
    count = offset = 0
    for name, tensor, storage in tensors:
        count += 1
        shape = tuple(tensor.shape)[::-1]
        described = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, storage.code, offset)
        head += [_packed(name), described]
        offset += _aligned(tensor.numel() // storage.values * storage.nbytes)
    head[1] = struct.pack("<Q", count)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _padded(file, b"".join(head))
        for _, tensor, storage in tensors:
            _padded(file, storage.write(tensor.detach().cpu()).numpy().tobytes())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _padded(file: BinaryIO, raw: bytes) -> None:
    file.write(raw)
    file.write(bytes(_aligned(len(raw)) - len(raw)))


def _packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _kind(value: Any) -> int:
    match value:
        case bool():
            return 7
        case int():
            return 4 if value >= 0 else 5
        case float():
            return 6
        case str():
            return _STRING
    raise AssertionError(f"metadata cannot hold {type(value).__name__}")


def _typed(value: Any) -> bytes:
    if isinstance(value, Sequence) and not isinstance(value, str):
        kind = max((_kind(item) for item in value), default=4)
        items = b"".join(_packed(v) if kind == _STRING else struct.pack(f"<{_NUMBERS[kind]}", v) for v in value)
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    kind = _kind(value)
    return struct.pack("<I", kind) + (_packed(value) if kind == _STRING else struct.pack(f"<{_NUMBERS[kind]}", value))
