"""Orders in which a call's tokens are predicted (Yang et al. 2019, arXiv:1906.08237): who sees whom, and a second
stream of queries, which stand behind the tokens and know where they predict, but not what is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from etymon.errors import DataError


@dataclass(frozen=True)
class Order:
    """`hidden` [batch, time, time] says whom a token does not see; `targets` [batch, queries] where queries predict."""

    hidden: Tensor | None
    targets: Tensor | None

    @classmethod
    def read(cls, perm_mask: Tensor | None, target_mapping: Tensor | None, batch: int, time: int) -> Order:
        """Read the arguments of a call, the second [batch, queries, time] with a 1 in every row, or none where a query
        only fills up. Raises DataError for other shapes and for queries with several places."""
        if perm_mask is not None and perm_mask.shape != (batch, time, time):
            raise DataError(f"perm_mask has shape {tuple(perm_mask.shape)}, expected {(batch, time, time)}")
        hidden = None if perm_mask is None else perm_mask > 0
        if target_mapping is None:
            return cls(hidden, None)
        if target_mapping.dim() != 3 or target_mapping.shape[::2] != (batch, time):
            shape = tuple(target_mapping.shape)
            raise DataError(f"target_mapping has shape {shape}, expected ({batch}, targets, {time})")
        if int((target_mapping != 0).sum(2).max()) > 1:
            raise DataError("target_mapping gives a target several places: its rows hold one 1, or none")
        return cls(hidden, target_mapping.argmax(2))

    def asked(self, x: Tensor) -> Tensor:
        """Return `x` [batch or 1, time, ...] of the tokens, and behind it that of the places where queries predict."""
        if self.targets is None:
            return x
        x = x.expand(self.targets.shape[0], *x.shape[1:])
        return torch.cat((x, x[torch.arange(len(x), device=x.device)[:, None], self.targets]), 1)

    def mask(self, mask: Tensor, columns: Tensor) -> Tensor:
        """Return whom tokens and queries see, [batch or 1, 1, time (+ queries), keys], of those that `mask` [batch or
        1, 1, time, keys] leaves; `columns` [batch or 1, time] are those of the tokens, which always see themselves.
        """
        if self.hidden is not None:
            mask = mask.expand(len(self.hidden), -1, -1, -1)
            places = columns[:, None, None].expand_as(self.hidden[:, None])
            mask = mask & ~torch.zeros_like(mask).scatter(3, places, self.hidden[:, None])
        own = torch.arange(mask.shape[3], device=mask.device) == columns[:, None, :, None]
        queries = self.asked(mask[:, 0])[:, None, columns.shape[1] :]
        return torch.cat(((mask | own).expand(len(queries), -1, -1, -1), queries), 2)

    @staticmethod
    def even(q_BTHD: Tensor, mask: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and scores [B, H, T, S] such that who sees nothing (`visible` [B or 1, 1, T, S]) mixes all
        keys evenly, as the first query of an order without a memory does."""
        blind = ~visible.any(3, keepdim=True)
        return q_BTHD.masked_fill(blind.transpose(1, 2), 0.0), mask.masked_fill(blind, 0.0)
