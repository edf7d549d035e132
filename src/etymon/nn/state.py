"""What a model remembers between calls: one row per sequence, preallocated, owned by the operators that use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeyValues:
    """The keys and values of one attention operator, each [rows, kv_heads, capacity, head_dim]."""

    keys: Tensor
    values: Tensor

    def rows(self, start: int, stop: int) -> KeyValues:
        """Return a view on some rows."""
        return KeyValues(self.keys[start:stop], self.values[start:stop])

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of one row onto another."""
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def append(self, keys: Tensor, values: Tensor, columns: int | Tensor) -> tuple[Tensor, Tensor]:
        """Write `keys` and `values` [rows, time, kv_heads, head_dim] and return all columns that are in use.

        `columns` is the first column when it is the same for every row, else a [rows, time] tensor of columns.
        """
        time = keys.shape[1]
        if isinstance(columns, int):
            stop = columns + time
            self.keys[:, :, columns:stop] = keys.transpose(1, 2)
            self.values[:, :, columns:stop] = values.transpose(1, 2)
        else:
            stop = int(columns.max()) + 1
            index = torch.arange(keys.shape[0], device=keys.device)[:, None]
            self.keys.transpose(1, 2)[index, columns] = keys
            self.values.transpose(1, 2)[index, columns] = values
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.keys.nbytes + self.values.nbytes


class SourceKeyValues(KeyValues):
    """The keys and values that one cross-attention made of the source, written once per sequence."""

    def rows(self, start: int, stop: int) -> SourceKeyValues:
        """Return a view on some rows."""
        return SourceKeyValues(self.keys[start:stop], self.values[start:stop])

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy one row onto another, whole: `length` counts the decoder's tokens."""
        self.keys[target], self.values[target] = self.keys[source], self.values[source]


class State:
    """The memory of `rows` sequences in every operator of a model, and how many tokens each row holds.

    `lengths` is a CPU tensor [rows]. A view made by `rows` shares storage and lengths with its origin. `source` [rows,
    columns] on the CPU, there for decoders behind an encoder, says which columns hold a token of the row's source.
    """

    def __init__(
        self, cells: Sequence[KeyValues], lengths: Tensor, capacity: int, source: Tensor | None = None
    ) -> None:
        self.cells = cells
        self.lengths = lengths
        self.capacity = capacity
        self.source = source

    def rows(self, start: int, stop: int) -> State:
        """Return a view on rows start..stop-1; a model call on it appends to these rows only."""
        cells = [cell.rows(start, stop) for cell in self.cells]
        source = None if self.source is None else self.source[start:stop]
        return State(cells, self.lengths[start:stop], self.capacity, source)

    def truncate(self, row: int, length: int) -> None:
        """Forget everything after the first `length` tokens of a row."""
        assert 0 <= length <= int(self.lengths[row]), "cannot truncate to more than is held"
        self.lengths[row] = length

    def copy_row(self, source: int, target: int) -> None:
        """Make row `target` hold what row `source` holds."""
        length = int(self.lengths[source])
        for cell in self.cells:
            cell.copy_row(source, target, length)
        self.lengths[target] = length
        if self.source is not None:
            self.source[target] = self.source[source]

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(cell.nbytes for cell in self.cells)
