"""What a model remembers between calls: one row per sequence, preallocated, owned by the operators that use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from etymon.errors import DataError


class Cell(Protocol):
    """What one operator remembers of every row. `truncates` says whether it can forget the last tokens of a row."""

    truncates: ClassVar[bool]

    def rows(self, start: int, stop: int) -> Cell:
        """Return a view on some rows."""

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Make one row hold what another one, of `length` tokens, holds."""

    def reset(self, row: int) -> None:
        """Forget everything that a row holds."""

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""


class Mixer(nn.Module):
    """An operator through which positions see others: it is called with the stream, the layout and its own cell."""

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Cell:
        """Allocate what it remembers of `rows` sequences of up to `capacity` tokens."""
        raise NotImplementedError

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the parameters that are neither matrices nor norms."""


@dataclass
class KeyValues:
    """The keys and values of one attention operator, each [rows, kv_heads, capacity, head_dim]."""

    truncates: ClassVar[bool] = True
    keys: Tensor
    values: Tensor

    def rows(self, start: int, stop: int) -> KeyValues:
        """Return a view on some rows."""
        return KeyValues(self.keys[start:stop], self.values[start:stop])

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of one row onto another."""
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def reset(self, row: int) -> None:
        """Nothing to do: columns beyond a row's length are never read."""

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


@dataclass
class Vectors:
    """What a recurrence carries from token to token: tensors [rows, ...] of fixed size, and the value they begin at."""

    truncates: ClassVar[bool] = False
    tensors: tuple[Tensor, ...]
    initial: tuple[float, ...]

    @classmethod
    def new(cls, *tensors: Tensor, initial: tuple[float, ...] | None = None) -> Vectors:
        """Fill freshly allocated tensors with their initial values, 0 by default."""
        initial = initial or (0.0,) * len(tensors)
        for tensor, value in zip(tensors, initial, strict=True):
            tensor.fill_(value)
        return cls(tensors, initial)

    def read(self) -> tuple[Tensor, ...]:
        """Return the tensors, safe from later writes where a backward pass may need them."""
        return tuple(t.clone() for t in self.tensors) if torch.is_grad_enabled() else self.tensors

    def write(self, *tensors: Tensor) -> None:
        """Replace what is held; no gradient flows through it into earlier calls."""
        for held, tensor in zip(self.tensors, tensors, strict=True):
            held.copy_(tensor.detach())

    def rows(self, start: int, stop: int) -> Vectors:
        """Return a view on some rows."""
        return type(self)(tuple(t[start:stop] for t in self.tensors), self.initial)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy one row onto another."""
        for tensor in self.tensors:
            tensor[target] = tensor[source]

    def reset(self, row: int) -> None:
        """Let a row begin anew."""
        for tensor, value in zip(self.tensors, self.initial, strict=True):
            tensor[row] = value

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(tensor.nbytes for tensor in self.tensors)


class SourceKeyValues(KeyValues):
    """The keys and values that one cross-attention made of the source, written once per sequence."""

    def rows(self, start: int, stop: int) -> SourceKeyValues:
        """Return a view on some rows."""
        return SourceKeyValues(self.keys[start:stop], self.values[start:stop])

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy one row onto another, whole: `length` counts the decoder's tokens."""
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def reset(self, row: int) -> None:
        """Nothing to do: a source stays until another one is written over it."""


class State:
    """The memory of `rows` sequences in every operator of a model, and how many tokens each row holds.

    `lengths` is a CPU tensor [rows]. A view made by `rows` shares storage and lengths with its origin. `source` [rows,
    columns] on the CPU, there for decoders behind an encoder, says which columns hold a token of the row's source;
    `windows` [rows], likewise, in which column the window of each row begins, there for stacks of Windows.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        lengths: Tensor,
        capacity: int,
        source: Tensor | None = None,
        windows: Tensor | None = None,
    ) -> None:
        self.cells = cells
        self.lengths = lengths
        self.capacity = capacity
        self.source = source
        self.windows = windows

    def rows(self, start: int, stop: int) -> State:
        """Return a view on rows start..stop-1; a model call on it appends to these rows only."""
        cells = [cell.rows(start, stop) for cell in self.cells]
        source = None if self.source is None else self.source[start:stop]
        windows = None if self.windows is None else self.windows[start:stop]
        return State(cells, self.lengths[start:stop], self.capacity, source, windows)

    def truncate(self, row: int, length: int) -> None:
        """Forget everything after the first `length` tokens of a row.

        Raises DataError where an operator cannot (see `truncates`), unless nothing or everything is to be forgotten.
        """
        held = int(self.lengths[row])
        assert 0 <= length <= held, "cannot truncate to more than is held"
        if length == 0:
            for cell in self.cells:
                cell.reset(row)
        elif length < held and not self.truncates:
            raise DataError(
                f"this state cannot go back from {held} to {length} tokens: copy the row before it reads on"
            )
        self.lengths[row] = length
        if length == 0 and self.windows is not None:
            self.windows[row] = 0

    @property
    def truncates(self) -> bool:
        """Whether rows can go back to any earlier length; a recurrence can only begin anew."""
        return self.windows is None and all(cell.truncates for cell in self.cells)

    def copy_row(self, source: int, target: int) -> None:
        """Make row `target` hold what row `source` holds."""
        length = int(self.lengths[source])
        for cell in self.cells:
            cell.copy_row(source, target, length)
        self.lengths[target] = length
        for held in (self.source, self.windows):
            if held is not None:
                held[target] = held[source]

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(cell.nbytes for cell in self.cells)
