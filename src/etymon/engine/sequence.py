"""One choice of a request on its way through the engine: its ids, and the text that they become."""

from __future__ import annotations

import random
from collections.abc import Set
from copy import copy
from time import perf_counter
from typing import TYPE_CHECKING

from etymon.engine.request import Finish, Request, TokenLogprob
from etymon.engine.stops import StopText

if TYPE_CHECKING:
    from etymon.engine.constraint import Constraint
    from etymon.engine.penalties import History
    from etymon.engine.search import Search
    from etymon.nn.adapter import Adapter
    from etymon.text import StreamDecoder


class Sequence:
    """`ids` are the prompt and what was generated; the first `held` of them are in the model's state, in row `row`.

    While it is `reading`, there is more to be fed than what was sampled last: its prompt, or all again after it gave
    way to others. `forks` is how many further choices will be copied from it then. Sequences of a lower `order` go
    first. `blocks` and `keys` are the paging's. `draft` is what somebody expects it to write next. `scored` is the
    first id of the prompt whose log-probability is asked for, None where none is, and `scores` are those found so far.
    The first `prefix` ids see one another.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        *,
        index: int,
        forks: int,
        context: int,
        text: StreamDecoder | None,
        stop_ids: Set[int],
        order: tuple[float, ...] = (),
        salt: bytes = b"",
        constraint: Constraint | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        assert not isinstance(request.prompt, str) and not isinstance(request.source, str), "the door encodes texts"
        self.request = number
        self.given = request
        self.reads = tuple(request.source or ())  # by a decoder behind an encoder
        self.index = index
        self.forks = forks
        self.sampling = sampling = request.sampling
        self.prompt_tokens = len(request.prompt)
        self.prefix = request.prefix or 0
        self.ids = list(request.prompt)
        self.held = 0
        self.row = -1
        self.reading = True
        self.order, self.salt, self.adapter = order, salt, adapter
        self.blocks: list[list[int]] = []
        self.keys: list[bytes] = []
        self.published = 0
        self.draft: list[int] = []
        self.reads_only = sampling.max_tokens == 0
        self.scored = None if sampling.prompt_logprobs is None or index else request.scored
        self.scores: list[TokenLogprob] = []
        self.spoilt = False  # what it left in the state may be not a number
        self.limit = min(context, len(self.ids) + (context if sampling.max_tokens is None else sampling.max_tokens))
        own = frozenset(sampling.stop_ids)
        self.stop_ids = own if sampling.ignore_eos else own | stop_ids
        # a stream of its own for every choice, that depends on nothing but the seed and the index
        seed = None if sampling.seed is None else f"{sampling.seed}/{index}"
        self.random = random.Random(seed)
        self.created = self.touched = perf_counter()
        self.text = text
        self.stops = StopText(sampling.stop)
        self.history: History | None = None  # the sampler's
        self.constraint: Constraint | None = constraint
        self.search: Search | None = None  # that it is part of
        self.fault = ""  # why the sampler found no token

    @property
    def pending(self) -> int:
        """How many ids are still to be fed: 1 while decoding, more while the prompt is being read, whose last one is
        needed only if something is to follow it."""
        return len(self.ids) - self.reads_only - self.held

    def feed(self, tokens: int) -> list[int]:
        """Return up to so many of the ids that are to be fed, and of its draft behind them."""
        return (self.ids[self.held : self.held + self.pending] + self.draft)[:tokens]

    @property
    def unread_from(self) -> int:
        """The first id whose place must be computed, and cannot be taken from a cache."""
        if self.search is not None and self.search.reads:
            return 0
        return len(self.ids) if self.scored is None else self.scored - 1

    def reported(self) -> tuple[TokenLogprob | None, ...] | None:
        """Return the prompt's log-probabilities, once, if they were asked for: the first tokens have none."""
        if self.scored is None:
            return None
        self.scored = None
        return (*[None] * (self.prompt_tokens - len(self.scores)), *self.scores)

    @property
    def generated(self) -> int:
        """How many ids the model has made."""
        return len(self.ids) - self.prompt_tokens

    def branch(self) -> Sequence:
        """Return a sequence that has written the same, and goes its own way from here; it holds nothing yet."""
        made = copy(self)
        made.ids, made.keys, made.blocks = list(self.ids), list(self.keys), []
        made.row, made.held, made.published, made.forks, made.reading = -1, 0, 0, 0, True
        made.text = self.text and self.text.copy()
        made.stops = self.stops.copy()
        made.constraint = self.constraint and self.constraint.copy()
        made.history = None
        return made

    def accept(self, token: int) -> tuple[str, Finish | None]:
        """Append a generated id; return the text that is now certain, and whether it ended the sequence."""
        self.ids.append(token)
        whole = self.constraint is not None and self.constraint.accept(token)
        if token in self.stop_ids:
            return self._close(), "stop"
        text = self.text.push(token) if self.text is not None else ""
        if self.generated > self.sampling.min_tokens:
            text = self.stops.push(text)
            if self.stops.stopped:
                return text, "stop"
        if whole:
            return text + self._close(), "stop"
        if len(self.ids) >= self.limit:
            text += self._close()
            return text, "stop" if self.stops.stopped else "length"
        return text, None

    def _close(self) -> str:
        """Return what was held back: bytes of a broken character, the beginning of a stop string that never came."""
        text = self.stops.push(self.text.flush()) if self.text is not None else ""
        return text if self.stops.stopped else text + self.stops.flush()
