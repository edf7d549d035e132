"""A text with a blank and what fills it: where each token stands and whom it sees, from the ids or as it is given."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from etymon import spec
from etymon.errors import DataError
from etymon.nn.layout import Layout
from etymon.nn.state import Cell, Vectors


class Filling(Vectors):
    """Per row, the column at which its filling begins and the position at which it stands; -1 where there is none."""

    truncates: ClassVar[bool] = True  # a row that went back before its filling has none


class Infill:
    """Arranges the tokens of each call; a state remembers each row's filling, so that the next tokens go on with it."""

    def __init__(self, rule: spec.Infill) -> None:
        self.begin, self.blanks = rule.begin, rule.blanks

    def new_state(self, rows: int, device: torch.device) -> Vectors:
        """Allocate what is remembered of `rows` sequences."""
        tensors = (torch.empty(rows, dtype=torch.int64, device=device) for _ in range(2))
        return Filling(*tensors, initial=(-1, -1))

    def arrange(self, layout: Layout, ids: Tensor | None, separators: Tensor | None, cell: Cell | None) -> None:
        """Set the layout's positions, places and context, as far as they were not given, from `ids` [batch, time].

        `separators` [batch] are the columns at which fillings begin. Raises DataError for a text with a blank among
        packed documents, where every token's sight must be given.
        """
        columns = (layout.first + layout.offsets).expand(layout.batch, layout.time)
        none = columns.new_full((layout.batch,), -1)
        begins, stands = cell.read() if isinstance(cell, Filling) else (none, none)
        begins = torch.where(begins < columns[:, 0], begins, none)
        reading = begins < 0
        stands = torch.where(reading & (stands >= columns[:, 0]), none, stands)
        start = separators.to(columns) if separators is not None else self._start(layout, ids, columns)
        for blank in reversed(self.blanks):
            place = none if ids is None else _first(ids == blank, columns)
            stands = torch.where(reading & (place >= 0) & ((start < 0) | (place < start)), place, stands)
        begins = torch.where(reading, start, begins)
        if layout.blocks is None:
            layout.blocks = torch.where(begins[:, None] < 0, 0, (columns - begins[:, None] + 1).clamp(min=0))
            if not layout.positions_given:
                filled = (layout.blocks > 0) & (stands >= 0)[:, None]
                layout.positions = torch.where(filled, stands[:, None], columns)
        else:
            last, filling = layout.blocks[:, -1], layout.blocks[:, -1] > 0
            begins = torch.where(filling, columns[:, -1] - last + 1, none)
            stands = torch.where(filling, layout.positions[:, -1], none)
        if isinstance(cell, Filling):
            cell.write(begins, stands)
        _show(layout, columns, torch.where(reading, start, none).clamp(min=0))

    def _start(self, layout: Layout, ids: Tensor | None, columns: Tensor) -> Tensor:
        """Return the column [batch] at which each row's first filling begins in this call, -1 where none does."""
        if layout.blocks is not None:
            return _first(layout.blocks > 0, columns)
        if ids is None or self.begin is None:
            return columns.new_full((layout.batch,), -1)
        return _first(ids == self.begin, columns)


def _show(layout: Layout, columns: Tensor, context: Tensor) -> None:
    """Let every token of the call, in `columns` [batch, time], see the first `context` [batch] columns."""
    if layout.time > 1 and layout.seen is None and bool((context > 0).any()):
        if layout.documents is not None:
            raise DataError("a text with a blank among packed documents: pass attention_mask [batch, time, time]")
        layout.context = columns < context[:, None]


def _first(hits: Tensor, columns: Tensor) -> Tensor:
    """Return the first column [batch] at which `hits` [batch, time] is true, -1 where it never is."""
    return torch.where(hits.any(1), columns.gather(1, hits.int().argmax(1, keepdim=True)).squeeze(1), -1)
