"""The drafter whose heads go on from one another (DeepSeek-AI 2024, arXiv:2412.19437, section 2.2), with a state of its
own: keys and values of each of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from etymon.engine.chooser import Chooser, read_weights, sharing
from etymon.engine.config import EngineConfig
from etymon.engine.door import Door
from etymon.engine.paging import Paging
from etymon.engine.scheduler import Scheduler
from etymon.engine.sequence import Sequence
from etymon.errors import ConfigError
from etymon.nn import Model, State
from etymon.nn.layout import Layout
from etymon.nn.mtp import SequentialHead, SequentialHeads

log = logging.getLogger(__name__)

LAG = 16  # places that may wait to be read together with what is drafted; more are read by themselves
KEPT = 256  # hidden states that may wait at all


@dataclass(eq=False)
class _Followed:
    """What is known of a sequence from its place `begin` on, which has column 0.

    Head k holds the first `done[k]` places, which no later token changes; `waiting[k]` [places, width] is what it is to
    read at those that follow: of the first head the model's hidden states, of others what the head before made.
    `shadow` holds the row and the blocks, if it has a row.
    """

    begin: int
    done: list[int]
    waiting: list[Tensor]
    shadow: Sequence | None = None

    @property
    def end(self) -> int:
        """The first place of which no hidden state is known."""
        return self.begin + self.done[0] + len(self.waiting[0])


class SequentialDrafter:
    """Head k guesses from the place of the last hidden state, by the k ids that were guessed before; behind the last
    head, that one goes on from its own.

    The engine shows it every hidden state. What the engine takes from its prefix cache has none, so there the heads see
    a sequence from the first place on that was read. Raises ConfigError for blocks that cannot forget.
    """

    def __init__(self, heads: SequentialHeads, model: Model, config: EngineConfig, door: Door) -> None:
        self._heads, self._model = heads.eval(), model
        holder, stack = sharing(model), sharing(model.trunk)
        stack.blocks = nn.ModuleList(block for head in self._each() for block in head.stack.blocks)
        stack.repeats, holder.decoder = 1, stack
        limits = EngineConfig(
            slots=config.slots, context=door.context, tokens=config.tokens, prefix_cache=False, chunk=config.chunk
        )
        self._paging = Paging(holder, limits, Door(holder, None, limits), config.chunk)
        if not self._paging.state.truncates:
            raise ConfigError(
                f"engine.speculation: sequential heads must forget what was not written, which those of "
                f"{model.spec.name} cannot: use ngram."
            )
        self._cells = len(self._paging.state.cells) // heads.depth
        self._rows = Scheduler(self._paging, config.slots, config.chunk)
        self._chunk, self._slots = config.chunk, config.slots
        self._chooser = Chooser(door.vocab, model.device)
        self._known: WeakKeyDictionary[Sequence, _Followed] = WeakKeyDictionary()
        own = sum(p.numel() for p in heads.parameters()) / heads.depth
        self.cost = (own + sum(p.numel() for p in model.head.parameters())) / read_weights(model)

    def _each(self) -> list[SequentialHead]:
        return [head for head in self._heads.heads if isinstance(head, SequentialHead)]

    # -- what is known of sequences --------------------------------------------------------------------------------

    def read(self, sequences: Ids[Sequence], hidden: Tensor) -> None:
        """Take the model's hidden states [rows, time, width] of what `sequences` are being fed behind what they hold,
        drafts included."""
        for sequence, states in zip(sequences, hidden, strict=True):
            if sequence.search is None:
                try:
                    self._read(sequence, states[: sequence.pending + len(sequence.draft)])
                except Exception:
                    log.exception("following a sequence failed; it is drafted for no more")
                    self._forget(sequence)

    def _read(self, sequence: Sequence, states: Tensor) -> None:
        known, start = self._known.get(sequence), sequence.held
        if known is None or not known.begin <= start <= known.end:
            self._forget(sequence)
            nothing = [states[:0]] * self._heads.depth
            known = self._known[sequence] = _Followed(start, [0] * self._heads.depth, nothing)
        place = known.begin + known.done[0]  # what was noted from `start` on was drafted, or is read again
        known.waiting[0] = torch.cat((known.waiting[0][: max(start - place, 0)], states[max(place - start, 0) :]))
        if len(known.waiting[0]) > KEPT and not sequence.forks:
            self._catch_up(sequence, known)

    def fork(self, origin: Sequence, copy: Sequence) -> None:
        """Let `copy` be known as `origin` is, where all of that still waits to be read."""
        known = self._known.get(origin)
        if known is not None and known.shadow is None:
            self._known[copy] = _Followed(known.begin, list(known.done), list(known.waiting))

    def _forget(self, sequence: Sequence) -> None:
        known = self._known.pop(sequence, None)
        if known is not None and known.shadow is not None:
            self._rows.remove(known.shadow)

    def _sweep(self) -> None:
        """Give back what sequences hold that have left their rows."""
        for sequence in [sequence for sequence in self._known if not sequence.held]:
            self._forget(sequence)
        living = {known.shadow for known in self._known.values()}
        for shadow in [shadow for shadow in self._rows.rows if shadow not in living]:
            self._rows.remove(shadow)

    def _room(self, sequence: Sequence, known: _Followed, columns: int) -> bool:
        """Hold a row and so many columns; False where there are none."""
        if columns > self._paging.context:
            return False
        if known.shadow is None:
            if len(self._rows.rows) == self._slots:
                return False
            known.shadow = self._chooser.shadow(sequence)
            self._paging.enter(known.shadow, len(self._rows.rows))
            self._rows.rows.append(known.shadow)
        known.shadow.held = min(known.done)
        return self._paging.reserve(known.shadow, columns - known.shadow.held)

    # -- reading and guessing --------------------------------------------------------------------------------------

    def _catch_up(self, sequence: Sequence, known: _Followed) -> None:
        """Let every head read the places that no later token changes, but for the last one, from which it guesses."""
        depth, ids = self._heads.depth, sequence.ids
        end = min(known.end, len(ids) - depth) - 1
        while (place := known.begin + min(known.done)) < end:
            stop = min(place + self._chunk, end)
            if not self._room(sequence, known, stop - known.begin):
                return
            assert known.shadow is not None
            for head in range(depth):
                first = known.begin + known.done[head]
                if first < stop:
                    tokens = ids[first + head + 1 : stop + head + 1]
                    made = self._feed(head, [(known, known.waiting[head][: stop - first], tokens)], known.shadow.row)[0]
                    self._settle(known, head, made, stop - first)

    def _settle(self, known: _Followed, head: int, made: Tensor, places: int) -> None:
        """Note that a head holds so many places more, of which it `made` what the next one reads."""
        known.done[head] += places
        known.waiting[head] = known.waiting[head][places:]
        if head + 1 < self._heads.depth:
            known.waiting[head + 1] = torch.cat((known.waiting[head + 1], made[:places]))

    def _feed(
        self, head: int, parts: Ids[tuple[_Followed | None, Tensor, list[int]]], start: int = 0, on: int = 0
    ) -> Tensor:
        """Append hidden states [places, width] with the ids that follow them to what a head holds in the rows from
        `start` on, `on` places further than it holds; return what it makes of them [rows, time, width]."""
        device, rows, time = self._model.device, len(parts), max(len(ids) for _, _, ids in parts)
        hidden = torch.zeros((rows, time, self._model.spec.width), dtype=self._model.dtype, device=device)
        tokens = torch.zeros((rows, time), dtype=torch.int64)
        lengths, begins = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        for row, (known, states, ids) in enumerate(parts):
            hidden[row, : len(states)] = states
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            if known is not None:
                lengths[row], begins[row] = known.done[head] + (on if ids else 0), known.begin
        view = self._paging.state.rows(start, start + rows)
        cells = view.cells[head * self._cells : (head + 1) * self._cells]
        state = State(cells, lengths, view.capacity, slots=view.slots)
        last = self._model.spec.context - 1  # beyond stands padding
        places = ((begins + lengths)[:, None] + torch.arange(time)).clamp(max=last).to(device)
        following = (places + head + 1).clamp(max=last)
        vectors = self._model.embed(tokens.to(device), None, Layout((rows, time), device, position_ids=following), {})
        layout = Layout((rows, time), device, position_ids=places, state=state)
        made: Tensor = self._heads(hidden, vectors, layout, head, state)
        return made

    def propose(self, sequences: Ids[Sequence], wanted: Ids[int]) -> list[list[int]]:
        """Return what the heads would write."""
        self._sweep()
        try:
            asked = {}
            for sequence, tokens in zip(sequences, wanted, strict=True):
                if tokens and (known := self._ready(sequence, tokens)) is not None:
                    asked[sequence] = (known, tokens)
            drafts = self._draft(asked) if asked else {}
        except Exception:
            for sequence in list(self._known):
                self._forget(sequence)
            raise
        return [drafts.get(sequence, []) for sequence in sequences]

    def _ready(self, sequence: Sequence, tokens: int) -> _Followed | None:
        """Return what is known of a sequence up to its last id, with room for what is to be drafted."""
        known = self._known.get(sequence)
        last = len(sequence.ids) - 1
        if known is None or not known.begin + known.done[0] < last <= known.end:
            return None
        known.waiting[0] = known.waiting[0][: last - known.begin - known.done[0]]  # what was drafted and not written
        if last - known.begin - min(known.done) > LAG:
            self._catch_up(sequence, known)
        return known if self._room(sequence, known, last - known.begin + tokens) else None

    def _draft(self, asked: dict[Sequence, tuple[_Followed, int]]) -> dict[Sequence, list[int]]:
        """Guess for sequences; others that stand among the rows are fed idly."""
        rows = self._rows.rows
        by_row = {known.shadow.row: (s, known) for s, known in self._known.items() if known.shadow is not None}
        held = max(max(known.done) for _, known in by_row.values())
        lag = max(len(s.ids) - 1 - known.begin - min(known.done) for s, (known, _) in asked.items())
        depth = min(max(tokens for _, tokens in asked.values()), self._paging.context - held - lag)
        if depth < 1:
            return {}
        self._chooser.look_ahead(asked)
        chosen = list(asked)
        at = [known.shadow.row for known, _ in asked.values() if known.shadow is not None]
        drafts: dict[Sequence, list[int]] = {sequence: [] for sequence in asked}
        loose = {s: known.waiting[0][:0] for s, (known, _) in asked.items()}  # made by way of ids that were guessed
        last = torch.empty(0)
        for place in range(depth):
            head, further = min(place, self._heads.depth - 1), place >= self._heads.depth
            parts: list[tuple[_Followed | None, Tensor, list[int]]] = []
            for row in range(len(rows)):
                sequence, known = by_row.get(row, (None, None))
                if sequence is None or known is None or sequence not in asked:
                    parts.append((known, loose[chosen[0]][:0], []))
                elif further:
                    parts.append((known, last[row][None], drafts[sequence][-1:]))
                else:
                    first = known.begin + known.done[head]
                    ids = (sequence.ids + drafts[sequence])[first + head + 1 :]
                    parts.append((known, torch.cat((known.waiting[head], loose[sequence])), ids))
            made = self._feed(head, parts, on=place - 1 if further else 0)
            ends = [max(len(ids) - 1, 0) for _, _, ids in parts]
            last = made[torch.arange(len(rows)), ends]
            for sequence, token in zip(chosen, self._chooser.choose(self._model.head(last[at]), chosen), strict=True):
                if token < 0:
                    raise ArithmeticError("the logits of the sequential heads are not finite numbers")
                drafts[sequence].append(token)
            if not further:
                for sequence, row in zip(chosen, at, strict=True):
                    known = asked[sequence][0]
                    final = max(len(sequence.ids) - 1 - head - known.begin - known.done[head], 0)
                    loose[sequence] = made[row, final : len(parts[row][2])]
                    self._settle(known, head, made[row], final)
        return {sequence: drafts[sequence][:tokens] for sequence, (_, tokens) in asked.items()}
