"""Tables of learned vectors."""

from __future__ import annotations

from torch import nn


class Table(nn.Embedding):
    """A table of learned vectors."""

    def reset_parameters(self) -> None:
        """Leave the weights alone: `model.initialise` draws them, or a checkpoint brings them. (On the meta device the
        inherited method would import half of torch's compiler, a second of every start.)"""
