"""What drafters that are models have in common: they choose as the engine's sampler will, share modules with the model,
and cost what they read of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Ids
from copy import copy
from random import Random
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from etymon.engine.request import Request, Sampling
from etymon.engine.sampler import Sampler
from etymon.engine.sequence import Sequence
from etymon.nn import Model

# what a drafter does as the sampler will: all but what depends on a history, which it would have to forget again
FOLLOWED = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_n_sigma", "xtc",
    "logit_bias", "allowed_ids", "banned_ids",
)  # fmt: skip

M = TypeVar("M", bound=nn.Module)


class Chooser:
    """Chooses tokens for sequences as the engine's sampler is going to, but for penalties and constraints."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._sampler = Sampler(vocab, device)
        self._shadows: WeakKeyDictionary[Sequence, Sequence] = WeakKeyDictionary()

    def shadow(self, sequence: Sequence) -> Sequence:
        """Return another sequence of the same ids, which a drafter may keep elsewhere."""
        found = self._shadows.get(sequence)
        if found is None:
            asked = sequence.sampling
            chosen = Sampling(**{name: getattr(asked, name) for name in FOLLOWED})
            found = Sequence(
                sequence.request,
                Request([0], chosen, salt=sequence.given.salt),
                index=sequence.index,
                forks=0,
                context=sequence.limit,
                text=None,
                stop_ids=frozenset(),
                salt=sequence.salt,
            )
            found.ids, found.random, found.reading = sequence.ids, Random(), False
            self._shadows[sequence] = found
        return found

    def look_ahead(self, sequences: Iterable[Sequence]) -> None:
        """Let the next tokens be chosen by the next random numbers of these sequences, which they keep."""
        for sequence in sequences:
            if not sequence.sampling.greedy:
                self.shadow(sequence).random.setstate(sequence.random.getstate())

    def choose(self, logits: Tensor, sequences: Ids[Sequence]) -> list[int]:
        """Choose a token for each row of `logits` [rows, vocab]; -1 where they are not finite."""
        return self._sampler.sample(logits, [self.shadow(sequence) for sequence in sequences])[0]


def sharing(module: M) -> M:
    """Return a module of the same parts, whose list of parts is its own."""
    other = copy(module)
    other._modules = dict(module._modules)
    return other


def read_weights(model: Model) -> int:
    """Return how many weights a token's pass reads."""
    parts = (model.trunk.blocks, model.head)
    return sum(parameter.numel() for part in parts for parameter in (*part.parameters(), *part.buffers()))
