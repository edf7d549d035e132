"""Who gets how many tokens in the next step.

The unit of work is "the next n tokens of these rows", so that reading a prompt, reading a part of it, and decoding
are one thing. Two invariants keep it simple:

- running sequences fill rows 0, 1, … without holes, so that decoding is one batched call on a view;
- at most one prompt is half read, and it is in the last row. A prompt leaves the queue only when its turn has come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from etymon.engine.sequence import Sequence


@dataclass(frozen=True)
class Work:
    """One model call: up to `tokens` more tokens for each of `sequences`, which stand in consecutive rows.

    Sequences that have fewer are padded at the end and truncated afterwards.
    """

    sequences: list[Sequence]
    tokens: int

    @property
    def start(self) -> int:
        """The first row."""
        return self.sequences[0].row


class Scheduler:
    """First come, first served: a request that needs several rows waits for them at the head of the queue.

    `slots` is how many sequences can run at once, `chunk` how many prompt tokens are read between two decode steps.
    `pads` says that prompts of different lengths may be read together, because the state can forget the padding.
    """

    def __init__(self, slots: int, chunk: int, pads: bool = True) -> None:
        self.slots = slots
        self.chunk = chunk
        self.pads = pads
        self.waiting: deque[Sequence] = deque()
        self.rows: list[Sequence] = []

    @property
    def reading(self) -> Sequence | None:
        """The sequence whose prompt is half read, if any. One that still has to fork counts as such."""
        last = self.rows[-1] if self.rows else None
        return last if last and (last.pending > 1 or last.forks) else None

    def plan(self) -> list[Work]:
        """Admit what fits and return the work of this step, decoding first."""
        reading = self.reading
        decoding = self.rows[:-1] if reading else self.rows[:]
        work = [Work(decoding, 1)] if decoding else []
        prompts = [reading] if reading else self._admit()
        if prompts:
            longest = max(sequence.pending for sequence in prompts)
            work.append(Work(prompts, min(longest, self.chunk)))
        return work

    def _admit(self) -> list[Sequence]:
        """Give rows to the next prompts, as many as one padded call of `chunk` tokens can read well."""
        prompts: list[Sequence] = []
        real = longest = reserved = 0
        while self.waiting:
            head = self.waiting[0]
            if len(self.rows) + reserved + 1 + head.forks > self.slots:
                break
            size = max(head.pending, len(head.reads))
            longest = max(longest, size)
            real += size
            padded = longest * (len(prompts) + 1)
            if prompts and (padded > self.chunk or padded > (2 if self.pads else 1) * real):
                break
            self.waiting.popleft()
            self._place(head)
            prompts.append(head)
            reserved += head.forks
        return prompts

    def fork(self, origin: Sequence, copy: Sequence) -> None:
        """Give `copy` a row and everything that `origin` holds; the caller copies the state."""
        copy.held = origin.held
        self._place(copy)

    def _place(self, sequence: Sequence) -> None:
        sequence.row = len(self.rows)
        self.rows.append(sequence)

    def remove(self, sequence: Sequence) -> list[tuple[int, int]]:
        """Free a row; return the moves (from, to) that close the hole, to be done on the state in this order."""
        hole, last = sequence.row, len(self.rows) - 1
        path = [hole]
        if self.reading and hole < last - 1:  # decoding rows stay in front of the prompt that is half read
            path.append(last - 1)
        if hole != last:
            path.append(last)
        moves = [(source, target) for target, source in pairwise(path)]
        for source, target in moves:
            self.rows[target] = self.rows[source]
            self.rows[target].row = target
        self.rows.pop()
        sequence.row = -1
        return moves
