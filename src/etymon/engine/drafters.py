"""Drafters that are models: a smaller one, the first layers of the model itself, or heads that look further ahead.

All choose by the random numbers with which the engine will (each sequence's next ones, looked at in advance), so that
they guess right about as often as two models can agree, at any temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from etymon.api import load
from etymon.engine.chooser import Chooser, read_weights, sharing
from etymon.engine.config import EarlyExit, EngineConfig, Heads, PromptLookup
from etymon.engine.door import Door
from etymon.engine.paging import Paging
from etymon.engine.program import lower
from etymon.engine.scheduler import Scheduler
from etymon.engine.sequence import Sequence
from etymon.engine.sequential import SequentialDrafter
from etymon.engine.speculation import Drafter, PromptLookupDrafter
from etymon.errors import ConfigError
from etymon.hub import read_future_heads
from etymon.nn import Model, State
from etymon.nn.future import FutureHeads

if TYPE_CHECKING:
    from etymon.text import Tokenizer

Call = Callable[[Tensor, State, list[Sequence], Model], Tensor]


class EarlyExitDrafter:
    """The model's first layers, its final norm and its head (Elhoushi et al. 2024, arXiv:2404.16710). They write into
    the engine's own state, where the pass that verifies overwrites what they wrote."""

    def __init__(self, model: Model, layers: int, paging: Paging, vocab: int, call: Call) -> None:
        self._model = _first_layers(model, layers)
        if not paging.state.truncates:
            raise ConfigError(
                f"engine.speculation: early exit writes into the state and goes back, which that of {model.spec.name} "
                "cannot: use ngram."
            )
        self._paging, self._call = paging, call
        self._cells = sum(1 for _ in self._model.trunk.mixers())
        self._pass = _Pass(self._model, self._first(paging.state))
        self._chooser = Chooser(vocab, model.device)
        self.cost = read_weights(self._model) / read_weights(model)

    def propose(self, sequences: Ids[Sequence], wanted: Ids[int]) -> list[list[int]]:
        """Return what the first layers would write."""
        state, rows = self._paging.state, list(sequences)
        room = self._paging.context - max(sequence.held for sequence in rows)
        wanted = [
            tokens if self._paging.reserve(sequence, 1 + tokens, spare=len(rows)) else 0
            for sequence, tokens in zip(rows, (min(tokens, room - 1) for tokens in wanted), strict=True)
        ]
        view = self._first(state.rows(0, len(rows)))
        asked = [row for row, tokens in enumerate(wanted) if tokens]
        drafted = [rows[row] for row in asked]
        self._chooser.look_ahead(drafted)
        tokens = [sequence.ids[-1] for sequence in rows]
        drafts: list[list[int]] = [[] for _ in rows]
        before = view.lengths.clone()
        try:
            for _ in range(max(wanted)):
                inputs = torch.tensor(tokens, device=self._model.device)[:, None]
                hidden = self._read(inputs, view, rows)[:, 0]
                for row, token in zip(
                    asked, self._chooser.choose(self._model.head(hidden[asked]), drafted), strict=True
                ):
                    drafts[row].append(token)
                    tokens[row] = max(token, 0)
        finally:
            view.lengths.copy_(before)
        return [draft[:length] for draft, length in zip(drafts, wanted, strict=True)]

    def _first(self, state: State) -> State:
        """Return a view on what the first layers hold."""
        held = state.rows(0, len(state.lengths))
        held.cells = held.cells[: self._cells]
        return held

    def _read(self, ids: Tensor, state: State, rows: list[Sequence]) -> Tensor:
        hidden = self._pass(ids, state) if all(sequence.adapter is None for sequence in rows) else None
        return self._call(ids, state, rows, self._model) if hidden is None else hidden


class _Pass:
    """A model on a state: by its program, where there is one."""

    def __init__(self, model: Model, state: State) -> None:
        self._model, self._state = model, state
        self._program = lower(model, state)

    def __call__(self, ids: Tensor, state: State) -> Tensor | None:
        """Return the hidden states of `ids` [rows, time], appended to a view; None where that takes the modules."""
        if self._program is not None and not self._program.fresh:
            self._program = lower(self._model, self._state)
        return None if self._program is None else self._program(ids, state)


def _first_layers(model: Model, layers: int) -> Model:
    """Return a model of the same modules that ends after so many layers. Raises ConfigError where it cannot end."""
    spec, stack = model.spec.trunk, model.trunk
    if not layers < len(stack.blocks):
        raise ConfigError(
            f"engine.speculation: {model.spec.name} has {len(stack.blocks)} layers: leaving it after {layers} is not "
            "early."
        )
    widths = list(spec.widths(model.spec.dim))
    if model.infill is not None or stack.repeats > 1 or widths[layers] != widths[-1]:
        raise ConfigError(f"engine.speculation: {model.spec.name} cannot be left early: use ngram or draft.")
    early, short = sharing(model), sharing(stack)
    short.blocks = stack.blocks[:layers]
    setattr(early, "encoder" if model.decoder is None else "decoder", short)
    return early.eval()


class DraftModelDrafter:
    """A smaller model with a state of its own, which follows the sequences: they enter it when they are first guessed,
    catch up with what was written, go back from what was not, and leave it with the engine's."""

    def __init__(self, model: Model, target: Model, config: EngineConfig, door: Door) -> None:
        if model.decoder is None or model.encoder is not None or target.encoder is not None:
            raise ConfigError("engine.speculation: draft models are decoders alone, and guess for such.")
        self._model = model.eval()
        self.cost = read_weights(model) / read_weights(target)
        context = min(door.context, model.spec.context)
        limits = EngineConfig(
            slots=config.slots, context=context, tokens=config.tokens and max(config.tokens, context),
            prefix_cache=config.prefix_cache, chunk=config.chunk,
        )  # fmt: skip
        self._paging = Paging(model, limits, Door(model, None, limits), config.chunk)
        if model.prefixed:
            raise ConfigError(
                f"engine.speculation: {model.spec.name} reads a prompt in one piece, which sees itself, and a draft "
                "model reads it in parts: take one that reads from left to right."
            )
        if not self._paging.state.truncates or model.infill is not None:
            raise ConfigError(
                f"engine.speculation: a draft model must forget what was not written, which {model.spec.name} cannot."
            )
        self._pass = _Pass(model, self._paging.state)
        self._rows = Scheduler(self._paging, config.slots, config.chunk)
        self._chunk = config.chunk
        self._chooser = Chooser(door.vocab, model.device)
        self._following: dict[Sequence, Sequence] = {}  # in the order in which they came, not that of rows

    def propose(self, sequences: Ids[Sequence], wanted: Ids[int]) -> list[list[int]]:
        """Return what the smaller model would write."""
        for gone in self._following.keys() - set(sequences):
            self._leave(gone)
        try:
            lengths = {sequence: tokens for sequence, tokens in zip(sequences, wanted, strict=True) if tokens}
            drafts = self._draft({s: tokens for s, tokens in lengths.items() if self._follow(s, tokens)})
        except Exception:
            for sequence in list(self._following):
                self._leave(sequence, spoilt=True)
            raise
        return [drafts.get(sequence, []) for sequence in sequences]

    def _leave(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        shadow = self._following.pop(sequence)
        self._rows.remove(shadow, spoilt=spoilt)
        shadow.draft = []

    def _follow(self, sequence: Sequence, tokens: int) -> bool:
        """Hold all but the last few ids of a sequence, with room for what is to be fed; False where there is none."""
        shadow = self._following.get(sequence)
        room = self._paging.context - len(sequence.ids)
        if room <= 0:
            if shadow is not None:
                self._leave(sequence)
            return False
        if shadow is None:
            if max(sequence.ids) >= self._model.spec.vocab:  # a target's table may be padded further
                return False
            shadow = self._following[sequence] = self._chooser.shadow(sequence)
            self._paging.enter(shadow, len(self._rows.rows))
            self._rows.rows.append(shadow)
        for token, guessed in zip(shadow.ids[shadow.held : -1], shadow.draft, strict=False):  # the last is to be fed
            if token != guessed:
                break
            shadow.held += 1
        shadow.draft = []
        self._paging.state.truncate(shadow.row, shadow.held)
        if not self._paging.reserve(shadow, shadow.pending + min(tokens - 1, room)):
            self._leave(sequence)
            return False
        while shadow.pending > 64:
            part = shadow.ids[shadow.held :][: min(self._chunk, shadow.pending - 1)]
            self._feed([part], shadow.row)
            shadow.held += len(part)
            self._paging.publish(shadow)
        return True

    def _feed(self, parts: list[list[int]], start: int) -> Tensor:
        """Append ids to the rows from `start` on, padded at their ends; return hidden states [rows, time, dim]."""
        time = max(len(part) for part in parts)
        inputs = torch.tensor([part + [0] * (time - len(part)) for part in parts], device=self._model.device)
        state = self._paging.state.rows(start, start + len(parts))
        hidden = self._pass(inputs, state)
        return self._model(inputs, state=state, logits=False).last_hidden_state if hidden is None else hidden

    def _draft(self, lengths: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Guess for sequences that are followed; others that stand among their rows are fed idly."""
        lengths = {sequence: tokens for sequence, tokens in lengths.items() if sequence in self._following}
        if not lengths:
            return {}
        rows, state = self._rows.rows, self._paging.state
        asked = list(lengths)
        shadows = [self._following[sequence] for sequence in asked]
        at = [shadow.row for shadow in shadows]
        parts: list[list[int]] = [[] for _ in rows]
        for shadow in shadows:
            parts[shadow.row] = shadow.ids[shadow.held :]
        depth = self._paging.context - max(row.held for row in rows) - max(map(len, parts)) + 1
        depth = min(depth, max(lengths.values()))
        if depth < 1:
            return {}
        hidden = self._feed(parts, 0)[at, [len(parts[row]) - 1 for row in at]]
        for shadow in shadows:
            shadow.held = len(shadow.ids)
        self._stand(rows)
        for shadow in shadows:
            self._paging.publish(shadow)
        self._chooser.look_ahead(asked)
        drafts: list[list[int]] = [[] for _ in asked]
        fed = [[0] for _ in rows]
        for place in range(depth):
            if place:
                hidden = self._feed(fed, 0)[at, 0]
            tokens = self._chooser.choose(self._model.head(hidden), asked)
            if min(tokens) < 0:
                raise ArithmeticError("the draft model's logits are not finite numbers")
            for row, draft, token in zip(at, drafts, tokens, strict=True):
                draft.append(token)
                fed[row] = [token]
        found = {}
        for sequence, shadow, draft in zip(asked, shadows, drafts, strict=True):
            found[sequence] = draft[: lengths[sequence]]
            shadow.draft = found[sequence][:-1]  # the last was not fed
        self._stand(rows)
        assert state.lengths[: len(rows)].max() <= self._paging.context
        return found

    def _stand(self, rows: list[Sequence]) -> None:
        """Let the state hold of every row what its sequence says."""
        lengths = [row.held + len(row.draft) for row in rows]
        self._paging.state.lengths[: len(rows)] = torch.tensor(lengths)


class HeadsDrafter:
    """Heads that look further ahead (Cai et al. 2024, arXiv:2401.10774), without a state: what they read is the hidden
    state from which a sequence's last id was chosen, so that the first of them guesses what follows that id."""

    def __init__(self, heads: FutureHeads, model: Model, vocab: int) -> None:
        self._heads, self._model = heads.eval(), model
        self._chooser = Chooser(vocab, model.device)
        self._behind: WeakKeyDictionary[Sequence, tuple[int, Tensor]] = WeakKeyDictionary()
        own, head = (sum(p.numel() for p in part.parameters()) / heads.count for part in (heads, model.head))
        self.cost = (own + head) / read_weights(model)  # the model's head is read once for all of them

    def note(self, sequences: Ids[Sequence], hidden: Tensor) -> None:
        """Take the hidden states [rows, dim] from which the last ids of `sequences` were chosen."""
        for sequence, row in zip(sequences, hidden, strict=True):
            self._behind[sequence] = (len(sequence.ids), row)

    def propose(self, sequences: Ids[Sequence], wanted: Ids[int]) -> list[list[int]]:
        """Return what the heads would write."""
        drafts: list[list[int]] = [[] for _ in sequences]
        asked = [row for row, tokens in enumerate(wanted) if tokens and self._knows(sequences[row])]
        if not asked:
            return drafts
        drafted = [sequences[row] for row in asked]
        hidden = torch.stack([self._behind[sequence][1] for sequence in drafted])
        depth = min(max(wanted[row] for row in asked), self._heads.count)
        logits = self._model.head(torch.stack([self._heads(hidden, index) for index in range(depth)]))
        self._chooser.look_ahead(drafted)
        for said in logits:
            for row, token in zip(asked, self._chooser.choose(said, drafted), strict=True):
                drafts[row].append(token)
        return [draft[:length] for draft, length in zip(drafts, wanted, strict=True)]

    def _knows(self, sequence: Sequence) -> bool:
        place, _ = self._behind.get(sequence, (0, None))
        return place == len(sequence.ids)


def _build_heads(asked: Heads, model: Model, config: EngineConfig, door: Door) -> HeadsDrafter | SequentialDrafter:
    heads, spec = asked.model, model.spec
    if isinstance(heads, str):
        heads = read_future_heads(heads, model.device, model.dtype)
    if (heads.dim, heads.vocab) != (spec.width, spec.vocab):
        raise ConfigError(
            f"engine.speculation: these heads look at {heads.dim} channels and guess among {heads.vocab} tokens; "
            f"{spec.name} has {spec.width} and {spec.vocab}: heads go with the model that they were trained on."
        )
    if isinstance(heads, FutureHeads) and "tokens" in asked.model_fields_set and asked.tokens > heads.count:
        raise ConfigError(
            f"engine.speculation: {heads.count} heads cannot guess {asked.tokens} tokens: lower `tokens`."
        )
    weight = next(heads.parameters())
    if (weight.device, weight.dtype) != (model.device, model.dtype):
        raise ConfigError(
            f"engine.speculation: the heads are {weight.dtype} on {weight.device}, the model is {model.dtype} on "
            f"{model.device}: bring them there with `heads.to(…)`."
        )
    if isinstance(heads, FutureHeads):
        return HeadsDrafter(heads, model, door.vocab)
    if model.encoder is not None:
        raise ConfigError(f"engine.speculation: sequential heads guess for decoders alone, not for {spec.name}.")
    return SequentialDrafter(heads, model, config, door)


def _check_vocabularies(model: Model, tokenizer: Tokenizer | None, target: Model, own: Tokenizer | None) -> None:
    """Raise ConfigError where a draft model means other tokens by the same ids."""
    if tokenizer is None or own is None:
        same = model.spec.vocab == target.spec.vocab
    else:
        sizes = tokenizer.vocab_size, own.vocab_size
        same = sizes[0] == sizes[1] and tokenizer.special == own.special
        same = same and all(tokenizer.token_bytes(i) == own.token_bytes(i) for i in range(sizes[0]))
    if not same:
        raise ConfigError(
            f"engine.speculation: {model.spec.name}, the draft model, has not the vocabulary of {target.spec.name}: "
            "both must mean the same tokens by the same ids."
        )


def build_drafter(
    model: Model, tokenizer: Tokenizer | None, config: EngineConfig, door: Door, paging: Paging, call: Call
) -> Drafter:
    """Return who guesses for a model as `config` says. Raises ConfigError where that cannot be."""
    speculation = config.speculation
    assert speculation is not None
    if not door.generates:
        raise ConfigError(f"engine.speculation: {model.spec.name} is an encoder and writes nothing.")
    if paging.state.windows is not None:
        raise ConfigError(f"engine.speculation: {model.spec.name} reads differently by how many tokens a call brings.")
    if isinstance(speculation, PromptLookup):
        return PromptLookupDrafter(speculation)
    if not isinstance(model, Model):
        raise ConfigError("engine.speculation: only ngram guesses for this model.")
    if isinstance(speculation, EarlyExit):
        return EarlyExitDrafter(model, speculation.layers, paging, door.vocab, call)
    if isinstance(speculation, Heads):
        return _build_heads(speculation, model, config, door)
    smaller, own = speculation.model, tokenizer
    if not isinstance(smaller, Model):
        smaller, own = load(smaller, device=str(model.device), dtype=model.dtype)
    _check_vocabularies(smaller, own, model, tokenizer)
    return DraftModelDrafter(smaller, model, config, door)
