"""From token ids to the first residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from etymon import spec
from etymon.errors import DataError
from etymon.nn.layout import Layout


class Embed(nn.Module):
    """Token vectors plus learned positions, where the spec has them."""

    def __init__(self, embed: spec.Embed, vocab: int, dim: int) -> None:
        super().__init__()
        self.scale = embed.scale
        self.tokens = nn.Embedding(vocab, dim)
        self.positions = None if embed.position is None else nn.Embedding(embed.position.length, dim)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, layout: Layout) -> Tensor:
        """Embed `input_ids` [batch, time], or take `inputs_embeds` [batch, time, dim] in their place.

        Raises DataError when a position lies beyond the learned table.
        """
        x = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            # the highest possible position is known without looking at the tensor unless positions were given
            if layout.keys > self.positions.num_embeddings and int(layout.positions.max()) >= len(
                self.positions.weight
            ):
                raise DataError(
                    f"position {int(layout.positions.max())} lies beyond the model's "
                    f"{self.positions.num_embeddings} learned positions; shorten the input"
                )
            positions = layout.positions[:1] if layout.positions.stride(0) == 0 else layout.positions
            x = x + self.positions(positions)
        return x
