"""How the tokens of a call follow one another, for operators that walk through time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Runs side by side, longest first, as torch's recurrent kernels take them.

    `index` [tokens] says where in the flattened [batch * time] each token stands: all first tokens, then all second
    ones, and so on; `sizes` how many runs have a first, a second, … token; `rows` to which row each run belongs.
    """

    index: Tensor
    sizes: Tensor
    rows: Tensor


class Runs:
    """The unbroken runs of a call: the documents of each row, without padding, which is as if it were not there.

    `order` [batch, time] moves each row's padding behind its tokens (None: there is no padding), `counts` [batch] are
    the tokens of each row, and `starts` [batch, time], in that order, is where documents begin (None: one per row).
    """

    def __init__(self, documents: Tensor | None, real: Tensor | None) -> None:
        self.order = self.counts = self.starts = None
        if real is not None:
            self.order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
            self.counts = real.sum(1)
        if documents is not None:
            if self.order is not None:
                documents = documents.gather(1, self.order)
            self.starts = torch.ones_like(documents, dtype=torch.bool)
            self.starts[:, 1:] = documents[:, 1:] != documents[:, :-1]

    def real(self, time: int) -> Tensor | None:
        """Return which of the ordered tokens are not padding, [batch, time]; None where all are."""
        if self.counts is None:
            return None
        return torch.arange(time, device=self.counts.device) < self.counts[:, None]

    @cached_property
    def ages(self) -> Tensor | None:
        """How many tokens of its document stand before each token, [batch, time]; None where rows are one document."""
        if self.starts is None:
            return None
        time = torch.arange(self.starts.shape[1], device=self.starts.device).expand(self.starts.shape)
        return time - torch.where(self.starts, time, 0).cummax(1).values

    @cached_property
    def packed(self) -> Packed:
        """The runs side by side."""
        like = self.order if self.order is not None else self.starts
        assert like is not None
        B, T = like.shape
        starts = torch.zeros((B, T), dtype=torch.bool, device=like.device) if self.starts is None else self.starts
        starts = torch.cat((torch.ones_like(starts[:, :1]), starts[:, 1:]), 1)
        real = self.real(T)
        flat = torch.arange(B * T, device=like.device)
        flat = flat if real is None else flat[real.view(-1)]
        run = starts.view(-1)[flat].cumsum(0) - 1
        lengths = run.bincount()
        first = lengths.cumsum(0) - lengths
        step = torch.arange(len(flat), device=like.device) - first[run]
        longest = lengths.argsort(descending=True, stable=True)
        rank = torch.empty_like(longest)
        rank[longest] = torch.arange(len(longest), device=like.device)
        index = flat[(step * len(lengths) + rank[run]).argsort()]
        return Packed(index, step.bincount().cpu(), flat[first[longest]] // T)
