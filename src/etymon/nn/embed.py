"""From token ids to the first residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from etymon import spec
from etymon.errors import DataError
from etymon.nn.layout import Layout
from etymon.nn.linear import Linear
from etymon.nn.norm import build_norm


class Table(nn.Embedding):
    """A table of learned vectors."""

    def reset_parameters(self) -> None:
        """Leave the weights alone: `model.initialise` draws them, or a checkpoint brings them. (On the meta device the
        inherited method would import half of torch's compiler, a second of every start.)"""


class Embed(nn.Module):
    """Token vectors, projected, scaled, with positions added and normalised, as the spec has it."""

    def __init__(self, embed: spec.Embed, vocab: int, dim: int) -> None:
        super().__init__()
        self.scale = embed.scale
        self.position = embed.position
        wide = embed.projection
        self.tokens = Table(vocab, dim if wide is None else wide.width)
        self.projection = None if wide is None else Linear(wide.width, (dim,), bias=wide.bias)
        self.positions = None if embed.position is None else Table(embed.position.rows, dim)
        self.norm = build_norm(embed.norm, dim)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, layout: Layout) -> Tensor:
        """Embed `input_ids` [batch, time], or take `inputs_embeds` [batch, time, dim] in their place.

        Raises DataError when an id or a position lies beyond its table (on a GPU the device's own assertion does).
        """
        if inputs_embeds is None:
            assert input_ids is not None
            x = _look_up(self.tokens, input_ids, "id {} is not in the vocabulary of {}")
        else:
            x = inputs_embeds
        if self.projection is not None:
            x = self.projection(x)
        if self.scale != 1.0:
            x = x * self.scale
        if self.position is not None and self.positions is not None:
            positions = layout.positions_from_padding() if self.position.from_padding else layout.positions
            if positions.stride(0) == 0:
                positions = positions[:1]
            if self.position.offset:
                positions = positions + self.position.offset
            x = x + _look_up(self.positions, positions, "position {} lies beyond the {} learned positions")
        return x if self.norm is None else self.norm(x)


def _look_up(table: Table, index: Tensor, message: str) -> Tensor:
    try:
        return table(index)
    except IndexError:
        rows = table.num_embeddings
        wrong = index[(index < 0) | (index >= rows)][0]
        raise DataError(message.format(int(wrong), rows)) from None
