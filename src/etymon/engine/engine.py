"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from collections.abc import Sequence as Ids
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, repeat
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from etymon.engine.adapters import AdapterRegistry, Source
from etymon.engine.config import EngineConfig
from etymon.engine.door import Door
from etymon.engine.drafters import HeadsDrafter, build_drafter
from etymon.engine.encode import Best, classify, embed, fill, pseudo_score
from etymon.engine.metrics import EngineMetrics
from etymon.engine.paging import Paging
from etymon.engine.program import lower
from etymon.engine.request import Completion, Event, Finish, Request, Sampling, Score, Text, TokenLogprob
from etymon.engine.sampler import Sampler
from etymon.engine.scheduler import Scheduler, Work
from etymon.engine.score import check, prefixes, report
from etymon.engine.search import Search, Step, search_of
from etymon.engine.sequence import Sequence
from etymon.engine.sequential import SequentialDrafter
from etymon.engine.source import Sources, spoken
from etymon.engine.speculation import Speculator
from etymon.engine.weights import LogprobDifference, Running, compare_logprobs, replace_weights
from etymon.errors import ConfigError, RequestError
from etymon.nn import Model, State, gemm
from etymon.nn.adapter import Adapter
from etymon.nn.state import BLOCK

if TYPE_CHECKING:
    from etymon.text import Framed, Tokenizer

log = logging.getLogger(__name__)

NOTHING: AbstractContextManager[None] = nullcontext()


class Engine:
    """Continuous batching over one model. Not thread-safe and without a thread: see `AsyncEngine`.

    `tokenizer` may be None; then prompts are ids and answers have no text. Raises ConfigError if the state cannot fit.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer | None, config: EngineConfig | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config or EngineConfig()
        self._door = Door(model, tokenizer, self.config)
        self.context = self._door.context
        self.vocab = self._door.vocab
        self.stop_ids = self._door.ends
        self.metrics = EngineMetrics()
        self.adapters = AdapterRegistry(model, self.config)
        behind = self._door.generates and self._door.translates
        language = (self.config.languages or (None,))[0]
        self._sources = Sources(model, self.config.sources, language, self.adapters) if behind else None
        # a text that sees itself is read in one call
        whole = getattr(model, "infill", None) is not None or self._door.prefixed
        chunk = self.context if whole else self.config.chunk
        self._paging = Paging(model, self.config, self._door, chunk)
        self._state = self._paging.state
        self._program = lower(model, self._state, exact=self.config.deterministic)
        self._scheduler = Scheduler(
            self._paging, self.config.slots, chunk, pads=self._state.truncates, alone=self.config.deterministic
        )
        self._speculator: Speculator | None = None
        self._heads: HeadsDrafter | None = None
        self._sequential: SequentialDrafter | None = None
        if self.config.speculation is not None:
            if self.config.deterministic and self._program is None:
                raise ConfigError(
                    "engine.speculation: here modules compute, whose products over several tokens differ in the last "
                    "bits from those over one, which engine.deterministic forbids: choose one of the two."
                )
            drafter = build_drafter(model, tokenizer, self.config, self._door, self._paging, self._call)
            self._speculator = Speculator(drafter, self.config.speculation, self.vocab, model.device)
            self._heads = drafter if isinstance(drafter, HeadsDrafter) else None
            self._sequential = drafter if isinstance(drafter, SequentialDrafter) else None
        self._sampler = Sampler(self.vocab, model.device, self._door.vocabulary)
        self._device = model.device
        self._numbers = itertools.count()
        self._events: list[Event] = []
        self._view = (0, 0, self._state.rows(0, 0))
        self.weights_version = 0
        self.owner: int | None = None  # the thread of an AsyncEngine, while that runs

    # -- the door --------------------------------------------------------------------------------------------------

    def prepare(self, request: Request) -> Request:
        """Return the request with its prompt as ids, checked against this model. Thread-safe.

        Raises RequestError; a prompt that leaves no room in the context has the code "context_length_exceeded".
        """
        self.adapters.find(request.adapter)
        request = self._door.prepare(request)
        sampling = request.sampling
        longest = min(self.context, len(request.prompt) + (sampling.max_tokens or self.context))
        if sampling.search is not None and not self._paging.holds(longest, sampling.rows):
            raise RequestError(
                f"This search may need {sampling.rows} sequences of {longest} tokens at a time, more than the engine's "
                "state holds: lower max_tokens, or search with fewer.",
                param=sampling.search.width,
            )
        return request

    def encode(self, texts: Ids[str]) -> list[list[int]]:
        """Return the ids of texts as prompts: as sources, where the model's decoder stands behind an encoder."""
        return self._door.encode(texts)

    def submit(self, request: Request) -> int:
        """Queue a request and return its number. Raises RequestError if it is bad, or the queue is full."""
        try:
            request = self.prepare(request)
            if len(self._scheduler.waiting) >= self.config.waiting + self._free:
                raise RequestError(
                    f"{len(self._scheduler.waiting)} requests are waiting already: try again later.",
                    code="engine_overloaded",
                )
        except RequestError:
            self.metrics.refused += 1
            raise
        return self._enqueue(request)

    @property
    def _free(self) -> int:
        return self.config.slots - len(self._scheduler.rows)

    def _check_owner(self) -> None:
        if self.owner is not None and self.owner != get_ident():
            raise RuntimeError("this engine belongs to a running AsyncEngine: ask that, or use an engine of your own")

    def _enqueue(self, request: Request) -> int:
        self._check_owner()
        number = next(self._numbers)
        sampling = request.sampling
        tokens = request.tokens + sampling.rows * (sampling.max_tokens or self.context)
        order = (-request.priority, self._scheduler.turns.next(request.salt, tokens), number)
        adapter = self.adapters.find(request.adapter)
        sequence = self._sequence(number, request, 0, sampling.rows - 1, order, adapter)
        sequence.search = search_of(sequence)
        self._scheduler.add(sequence)
        self.metrics.requests += 1
        self._count()
        return number

    def _sequence(
        self,
        number: int,
        request: Request,
        index: int,
        forks: int,
        order: tuple[float, ...] = (),
        adapter: Adapter | None = None,
    ) -> Sequence:
        constraint = request.sampling.constraint
        return Sequence(
            number,
            request,
            index=index,
            forks=forks,
            context=self.context,
            text=self.tokenizer.stream(shown=request.sampling.shown) if self.tokenizer is not None else None,
            stop_ids=self.stop_ids,
            order=(*order, index),
            adapter=adapter,
            salt=repr((adapter and adapter.number, request.salt)).encode(),
            constraint=constraint and self._door.grammars.matcher(constraint),
        )

    def cancel(self, number: int) -> None:
        """End a request at once, wherever it stands; its choices end with "cancelled" in the next step's events."""
        scheduler = self._scheduler
        running = [sequence for sequence in scheduler.rows if sequence.request == number]
        waiting = [sequence for sequence in scheduler.waiting if sequence.request == number]
        for sequence in waiting:
            scheduler.waiting.remove(sequence)
        for sequence in running:
            self._release(sequence)
        for sequence in running + waiting:
            self._end(sequence, "cancelled", self._events)
        self._count()

    # -- the loop --------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._scheduler.rows or self._scheduler.waiting or self._events)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Advance every running sequence by a token and the next prompts by a chunk; return what came of it.

        A fault in the work of some sequences ends these with "error" and no others. Raises RuntimeError in another
        thread than that of a running AsyncEngine.
        """
        self._check_owner()
        events, self._events = self._events, []
        ended: list[Sequence] = []
        if not self._scheduler.rows or "forward" in vars(self.model):
            self._renew()
        if self.config.deterministic:  # a program's rows do not depend on each other, those of modules do
            known = [*self._scheduler.rows, *self._scheduler.waiting]
            modules = self._program is None or self._door.prefixed
            self._scheduler.alone = modules or any(s.adapter is not None for s in known)
        if self._speculator is not None and not self._scheduler.alone:
            self._speculator.propose(self._scheduler.decoding)
        for work in self._scheduler.plan():
            try:
                self._advance(work, events, ended)
            except Exception as error:
                log.exception("a step failed")
                numbers = {sequence.request for sequence in work.sequences}
                for sequence in self._scheduler.rows:
                    if sequence.request in numbers and sequence not in ended:
                        sequence.spoilt = True
                        self._end(sequence, "error", events, f"{type(error).__name__}: {error}")
                        ended.append(sequence)
        for sequence in ended:  # only now, because the work of a step names rows
            self._release(sequence)
        self._sweep()
        self.metrics.steps += 1
        self._count()
        return events

    def _renew(self) -> None:
        """Lower the model anew where a parameter or a module has been replaced: looked for when nothing runs, which is
        so after every change of weights that the engine is told of."""
        if self._program is not None and not self._program.fresh:
            self._program = lower(self.model, self._state, exact=self.config.deterministic)

    def _advance(self, work: Work, events: list[Event], ended: list[Sequence]) -> None:
        """Feed the work's tokens to the model and take a token from every sequence that has no more to feed, or several
        from one whose draft turns out to be what it would have written."""
        hidden = self._feed(work)
        if work.sequences[0].pending:  # a prompt that is read in chunks is alone in its work
            return
        ready = work.sequences
        reading = ready[0].reading
        if reading and any(sequence.reads_only for sequence in ready):
            hidden = hidden[[row for row, sequence in enumerate(ready) if not sequence.reads_only]]
            for sequence in ready:
                if sequence.reads_only:
                    events.append(Event(sequence.request, 0, "", (), None, "length", None, sequence.reported()))
                    self.metrics.finished["length"] += 1
                    ended.append(sequence)
            ready = [sequence for sequence in ready if not sequence.reads_only]
            if not ready:
                return
        with self._exact(), self._adapted(ready):
            logits = self.model.head(hidden)
        if any(sequence.search is not None for sequence in ready):
            rows, ready = self._search(logits, hidden, ready, events, ended)
            if not ready:
                return
            logits, hidden = logits[rows], hidden[rows]
        if reading and any(sequence.forks for sequence in ready):
            forked = [self._fork(sequence) for sequence in ready]
            rows = [row for row, choices in enumerate(forked) for _ in choices]
            logits, hidden = logits[rows], hidden[rows]
            ready = [choice for choices in forked for choice in choices]
        if len(logits) == len(ready):
            self._take(logits, ready, events, ended)
        else:
            rows = self._verify(logits, ready, events, ended)
            hidden = hidden if self._heads is None else hidden[rows]
        if self._heads is not None:
            self._heads.note(ready, hidden)

    def _search(
        self, logits: Tensor, hidden: Tensor, ready: list[Sequence], events: list[Event], ended: list[Sequence]
    ) -> tuple[list[int], list[Sequence]]:
        """Tell searches what became of their sequences, and let those go on that know all they need; return the rows
        and the sequences that belong to no search."""
        places = [sequence for sequence in ready for _ in range(1 + len(sequence.draft))]
        searches: dict[Search, None] = {}
        for row, sequence in enumerate(places):
            if sequence.search is not None:
                sequence.search.note(sequence, logits[row], hidden[row])
                searches[sequence.search] = None
        for search in searches:
            if search.ready:
                self._advance_search(search, events, ended)
        others = [row for row, sequence in enumerate(places) if sequence.search is None]
        return others, [sequence for sequence in ready if sequence.search is None]

    def _advance_search(self, search: Search, events: list[Event], ended: list[Sequence]) -> None:
        members = search.members
        first = members[0]
        try:
            step = search.advance(self._sampler)
        except Exception as error:
            log.exception("request %d failed", first.request)
            step = Step(fault=f"{type(error).__name__}: {error}")
        now = perf_counter()
        for event in step.events:
            events.append(event)
            self.metrics.generated_tokens += len(event.ids)
            if event.finish is not None:
                self.metrics.finished[event.finish] += 1
        if step.fault is not None:
            for member in members:
                member.spoilt = True
            self._end(first, "error", events, step.fault)
        if step.events and not search.shown:
            search.shown = True
            self.metrics.prompt_tokens += first.given.tokens
            self.metrics.time_to_first_token.observe(now - first.created)
        ended += members if step.fault or step.ended else self._scheduler.succeed(members, step.children)

    def _take(self, logits: Tensor, sequences: list[Sequence], events: list[Event], ended: list[Sequence]) -> list[int]:
        """Choose a token for each of `sequences` by its row of `logits` [rows, vocab]; return them."""
        if self.config.deterministic:  # a sum over one of several rows has another order than that over a row alone
            alone = [self._sampler.sample(row[None], [s]) for row, s in zip(logits, sequences, strict=True)]
            tokens, logprobs = [found for (found,), _ in alone], [said for _, (said,) in alone]
        else:
            tokens, logprobs = self._sampler.sample(logits, sequences)
        now = perf_counter()
        for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
            sequence.reading = False
            if self._accept(sequence, token, logprob, events):
                ended.append(sequence)
            self._clock(sequence, now)
        return tokens

    def _verify(
        self, logits: Tensor, sequences: list[Sequence], events: list[Event], ended: list[Sequence]
    ) -> list[int]:
        """Go on with `sequences` for as long as each chooses what it has drafted. `logits` [rows, vocab] are those
        behind the last id of each and behind every token of its draft, one sequence after the other.

        Every token is sampled as it would be without a draft, by the same random numbers: the text does not change.
        Returns the row from which the last id of each was chosen.
        """
        ends = list(accumulate(1 + len(sequence.draft) for sequence in sequences))
        going = [(sequence, end - 1 - len(sequence.draft)) for sequence, end in zip(sequences, ends, strict=True)]
        depth = 0
        while going:
            tokens = self._take(logits[[row + depth for _, row in going]], [s for s, _ in going], events, ended)
            going = [
                (sequence, row)
                for (sequence, row), token in zip(going, tokens, strict=True)
                if sequence not in ended and sequence.draft[depth : depth + 1] == [token]
            ]
            depth += 1
        rows = []
        for sequence, end in zip(sequences, ends, strict=True):
            right = max(len(sequence.ids) - 1 - sequence.held, 0)
            rows.append(end - 1 - len(sequence.draft) + right)
            if sequence.draft:
                self.metrics.verified += 1
                self.metrics.drafted += len(sequence.draft)
                self.metrics.accepted += right
                sequence.draft = []
                self._paging.retreat(sequence, len(sequence.ids) - 1)
                self._paging.publish(sequence)
        return rows

    def _feed(self, work: Work) -> Tensor:
        """Append the work's tokens to its rows of the state; return the hidden states [rows, dim] after the last id of
        each sequence, and after every token of its draft."""
        sequences, tokens = work.sequences, work.tokens
        state = self._rows(work.start, work.start + len(sequences))
        if tokens == 1 and not sequences[0].reading:
            inputs = torch.tensor([[sequence.ids[sequence.held]] for sequence in sequences], device=self._device)
            hidden = self._call(inputs, state, sequences)
            self._show(sequences, hidden)
            for sequence in sequences:
                sequence.held += 1
                if sequence.held % BLOCK == 0:
                    self._paging.publish(sequence)
            return hidden[:, 0]
        parts = [sequence.feed(tokens) for sequence in sequences]
        for sequence in sequences:
            if sequence.draft:
                self._paging.mark(sequence)
        inputs = torch.tensor([part + [0] * (tokens - len(part)) for part in parts], device=self._device)
        hidden = self._call(inputs, state, sequences)
        self._show(sequences, hidden)
        places: list[tuple[int, int]] = []
        for row, (sequence, part) in enumerate(zip(sequences, parts, strict=True)):
            places += [(row, place) for place in range(len(part) - 1 - len(sequence.draft), len(part))]
            if sequence.scored is not None:
                sequence.scores += self._scores(sequence, hidden[row, : len(part)])
            sequence.held += len(part) - len(sequence.draft)
            if not sequence.draft and (len(part) == tokens or self._state.truncates):
                if len(part) < tokens:
                    self._state.truncate(sequence.row, sequence.held)
                self._paging.publish(sequence)
        rows, columns = zip(*places, strict=True)
        return hidden[list(rows), list(columns)]

    def _show(self, sequences: list[Sequence], hidden: Tensor) -> None:
        """Let searches see the hidden states [rows, time, dim] of prompts, and a drafter that follows texts all."""
        if self._sequential is not None:
            self._sequential.read(sequences, hidden)
        for row, sequence in enumerate(sequences):
            if sequence.search is not None:
                sequence.search.read(sequence.held, hidden[row, : sequence.pending])

    def _scores(self, sequence: Sequence, hidden: Tensor) -> list[TokenLogprob]:
        """Return what is asked for of the log-probabilities of the prompt's ids, by `hidden` [ids, dim] of the ids
        before them."""
        assert sequence.scored is not None
        first = max(sequence.scored - 1 - sequence.held, 0)
        targets = sequence.ids[sequence.held + first + 1 : min(sequence.held + len(hidden) + 1, sequence.prompt_tokens)]
        best = sequence.sampling.prompt_logprobs or 0
        if not targets:
            return []
        with self._exact(), self.adapters.using(sequence.adapter):
            return report(self.model, hidden[first : first + len(targets)], targets, best)

    def _exact(self) -> AbstractContextManager[None]:
        """Return what makes products of rows independent of each other, where answers must be."""
        return gemm.batch_invariant() if self.config.deterministic else NOTHING

    def _adapted(self, sequences: list[Sequence]) -> AbstractContextManager[None]:
        """Return what gives each sequence its adapter, for its last token and those of its draft."""
        if not self.adapters.loaded:
            return NOTHING
        return self.adapters.using([sequence.adapter for sequence in sequences for _ in range(1 + len(sequence.draft))])

    def _call(self, inputs: Tensor, state: State, sequences: list[Sequence], part: Model | None = None) -> Tensor:
        """Run the model, or a part of it, with the sources of sequences that have read nothing yet; return hidden
        states."""
        model = self.model if part is None else part
        spoken_in = "langs" if self._sources is None else "decoder_langs"
        told = {spoken_in: spoken(self.config.languages[1], inputs)} if self.config.languages else {}
        if any(sequence.held < sequence.prefix for sequence in sequences):
            told["prefix"] = prefixes([sequence.prefix - sequence.held for sequence in sequences], inputs)
        plain = part is None and not told
        plain = plain and (not self.adapters.loaded or all(sequence.adapter is None for sequence in sequences))
        if plain and self._program is not None and (found := self._program(inputs, state)) is not None:
            return found
        with self.adapters.using([sequence.adapter for sequence in sequences]):
            if self._sources is None:
                output = model(inputs, state=state, logits=False, **told)
            elif sequences[0].held:
                output = model(decoder_input_ids=inputs, state=state, logits=False, **told)
            else:
                encoded, mask = self._sources.read([(sequence.reads, sequence.adapter) for sequence in sequences])
                given = {"attention_mask": mask, "encoder_outputs": encoded, "decoder_input_ids": inputs}
                output = model(**given, state=state, logits=False, **told)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _rows(self, start: int, stop: int) -> State:
        """Return a view on the state, kept from step to step: it takes a slice of every tensor of every layer."""
        if self._view[:2] != (start, stop):
            self._view = (start, stop, self._state.rows(start, stop))
        return self._view[2]

    def _fork(self, origin: Sequence) -> list[Sequence]:
        """Return a sequence whose prompt has just been read and its further choices, which take rows of their own."""
        choices = [origin]
        for index in range(1, origin.forks + 1):
            choice = self._sequence(origin.request, origin.given, index, 0, origin.order[:-1], origin.adapter)
            choice.created = origin.created
            if self._scheduler.fork(origin, choice):
                choices.append(choice)
                if self._sequential is not None:
                    self._sequential.fork(origin, choice)
        origin.forks = 0
        return choices

    def _accept(self, sequence: Sequence, token: int, logprob: TokenLogprob | None, events: list[Event]) -> bool:
        """Give a token to its sequence; return whether that was its last."""
        if token < 0:
            sequence.spoilt = True
            self._end(sequence, "error", events, sequence.fault)
            return True
        try:
            text, finish = sequence.accept(token)
        except Exception as error:
            log.exception("request %d failed", sequence.request)
            self._end(sequence, "error", events, f"{type(error).__name__}: {error}")
            return True
        logprobs = (logprob,) if logprob is not None else None
        prompt = sequence.reported()
        events.append(Event(sequence.request, sequence.index, text, (token,), logprobs, finish, None, prompt))
        if finish is None:
            return False
        self.metrics.finished[finish] += 1
        return True

    def _clock(self, sequence: Sequence, now: float) -> None:
        metrics = self.metrics
        metrics.generated_tokens += 1
        if sequence.generated > 1:
            metrics.inter_token.observe(now - sequence.touched)
        elif sequence.index == 0:
            metrics.prompt_tokens += sequence.given.tokens
            metrics.time_to_first_token.observe(now - sequence.created)
        sequence.touched = now

    def _end(self, sequence: Sequence, finish: Finish, events: list[Event], error: str | None = None) -> None:
        """Announce the end of a sequence, and of the choices that were still to be made from it."""
        indices = range(sequence.index, sequence.index + 1 + sequence.forks)
        if (search := sequence.search) is not None:
            indices = range(0 if search.ended else sequence.sampling.n)
            search.ended = True
            waiting = self._scheduler.waiting
            self._scheduler.waiting = [other for other in waiting if other.search is not search]
        for index in indices:
            events.append(Event(sequence.request, index, "", (), None, finish, error))
            self.metrics.finished[finish] += 1

    def _release(self, sequence: Sequence) -> None:
        """Free the sequence's row and close the hole."""
        self._scheduler.remove(sequence, spoilt=sequence.spoilt)
        self.metrics.duration.observe(perf_counter() - sequence.created)

    def _count(self) -> None:
        self.metrics.running = len(self._scheduler.rows)
        self.metrics.waiting = len(self._scheduler.waiting)
        self.metrics.preempted = self._scheduler.preempted
        self.metrics.blocks = self._paging.blocks
        self.metrics.cache_asked, self.metrics.cache_found = self._paging.asked, self._paging.found

    # -- adapters --------------------------------------------------------------------------------------------------

    def load_adapter(self, name: str, source: Source) -> None:
        """Let requests name a low-rank adapter: a PEFT directory, or factors by our names of layers.

        Raises ConfigError or CheckpointError, and then nothing has changed: see `etymon.hub.read_lora`.
        """
        self.adapters.add(name, self.adapters.read(source))

    def drop_adapter(self, name: str) -> None:
        """Take no more requests for an adapter; those that use it go on, and free its memory when they end."""
        self.adapters.drop(name)
        self._sweep()

    def _sweep(self) -> None:
        scheduler = self._scheduler
        self.adapters.sweep(sequence.adapter for sequence in itertools.chain(scheduler.rows, scheduler.waiting))

    # -- weights ---------------------------------------------------------------------------------------------------

    def weights_changed(self) -> None:
        """Note that the model's weights were changed in place, by an optimiser for example: nothing that was read with
        the old ones is used again. Running requests read what there is of them anew, and go on."""
        self.model.eval()
        self.weights_version += 1
        if self._sources is not None:
            self._sources.forget()
        while self._scheduler.rows:
            self._scheduler.preempt(self._scheduler.rows[-1])
        self._paging.forget(str(self.weights_version).encode(), self._scheduler.waiting)
        self._count()

    def update_weights(self, weights: nn.Module | Mapping[str, Tensor], running: Running = "refuse") -> int:
        """Put new numbers into the model's tensors, named as in its state dict, and return the new `weights_version`.

        Raises ConfigError for tensors that do not fit, and then nothing has changed; RequestError with the code
        "engine_busy" where requests run and `running` says that these are not to be disturbed.
        """
        if running == "refuse" and self._scheduler.rows:
            raise RequestError(
                f"{len(self._scheduler.rows)} answers are being generated: let them drain or be recomputed.",
                param="running",
                code="engine_busy",
            )
        if running == "drain":
            self._drain()
        replace_weights(self.model, weights)
        self.weights_changed()
        return self.weights_version

    def _drain(self) -> None:
        """Let what runs end, and what waits wait."""
        scheduler, events = self._scheduler, list[Event]()
        held = [sequence for sequence in scheduler.waiting if not sequence.generated]
        scheduler.waiting = [sequence for sequence in scheduler.waiting if sequence.generated]
        while scheduler.rows or scheduler.waiting:
            events += self.step()
        for sequence in held:
            scheduler.add(sequence)
        self._events = events + self._events
        self._count()

    def compare_logprobs(
        self, requests: Ids[Request], completions: Ids[Completion], trained: Ids[Score] | None = None
    ) -> LogprobDifference:
        """Return how far the log-probabilities of answers, reported as they were sampled, lie from those that the
        training forward gives the same ids now: `trained`, one for every choice in turn, or by default `score`'s."""
        if trained is None:
            answers = zip([self.prepare(request) for request in requests], completions, strict=True)
            trained = [score for request, answer in answers for score in self._score_choices(request, answer)]
        return compare_logprobs(completions, trained)

    def _score_choices(self, request: Request, answer: Completion) -> list[Score]:
        prompt, count = _ids(request.prompt), len(answer.choices)
        sequences = [[*prompt, *choice.ids] for choice in answer.choices]
        sources = None if self._sources is None else [_ids(request.source or ())] * count
        prefix = None if request.prefix is None else [request.prefix] * count
        return self.score(sequences, [len(prompt)] * count, sources, request.adapter, prefix)

    # -- whole jobs ------------------------------------------------------------------------------------------------

    def generate(self, requests: Ids[Request]) -> list[Completion]:
        """Run any number of requests to their ends, as many at a time as there are slots; answers come in order.

        Raises RequestError before anything runs if one of them is bad; its message says which.
        """
        prepared = [self._numbered(number, request) for number, request in enumerate(requests)]
        mine: dict[int, list[Event]] = {self._enqueue(request): [] for request in prepared}
        left = sum(request.sampling.choices for request in prepared)
        others: list[Event] = []
        try:
            while left:
                for event in self.step():
                    if event.request in mine:
                        mine[event.request].append(event)
                        left -= event.finish is not None
                    else:
                        others.append(event)
        finally:
            if left:  # interrupted: leave nothing behind
                for number in mine:
                    self.cancel(number)
            self._events = [event for event in others + self._events if event.request not in mine]
        return [Completion.collect(events, request) for events, request in zip(mine.values(), prepared, strict=True)]

    def _numbered(self, number: int, request: Request) -> Request:
        try:
            return self.prepare(request)
        except RequestError as error:
            raise RequestError(f"request {number}: {error}", param=error.param, code=error.code) from None

    def score(
        self,
        sequences: Ids[Ids[int]],
        starts: Ids[int],
        sources: Ids[Ids[int]] | None = None,
        adapter: str | None = None,
        prefix: Ids[int] | None = None,
    ) -> list[Score]:
        """Return the log-likelihood of `ids[start:]` given `ids[:start]` for every pair of `sequences` and `starts`, in
        their order; of a decoder behind an encoder, given one of `sources` too. What sequences have in common is read
        once. Where the model has prefixes that see themselves, `prefix` says how long each one's is: all that is given
        by default. Raises RequestError for what cannot be scored; its message says which."""
        check(self.model, sequences, starts, sources, prefix)
        sampling = Sampling(max_tokens=0, prompt_logprobs=1)
        given = repeat(None, len(sequences)) if sources is None else sources
        asked = [
            Request(ids, sampling, source, adapter=adapter, scored=start, prefix=seen)
            for ids, start, source, seen in zip(
                sequences, starts, given, starts if prefix is None else prefix, strict=True
            )
        ]
        found: list[Score] = []
        for request, answer in zip(asked, self.generate(asked), strict=True):
            if answer.choices[0].error is not None:
                raise RequestError(f"sequence {len(found)} could not be scored: {answer.choices[0].error}")
            found.append(Score.of((answer.prompt_logprobs or [])[request.scored :]))
        return found

    def score_pairs(self, pairs: Ids[tuple[Ids[int] | str, Ids[int] | str]], adapter: str | None = None) -> list[Score]:
        """Return the log-likelihood of each target given its source, by a decoder behind an encoder; a text ends with
        what the tokenizer puts behind it, ids are taken as they are."""
        read = [self._sequence(0, self.prepare(Request(source=source)), 0, 0) for source, _ in pairs]
        targets = [self.encode([target])[0] if isinstance(target, str) else target for _, target in pairs]
        sequences = [[*begun.ids, *target] for begun, target in zip(read, targets, strict=True)]
        return self.score(sequences, [len(begun.ids) for begun in read], [begun.reads for begun in read], adapter)

    # -- whole texts -----------------------------------------------------------------------------------------------

    def embed(self, texts: Ids[Text | str], adapter: str | None = None) -> list[Tensor]:
        """Return a vector [dim] for each text, or one for each of its tokens [tokens, dim], as it asks."""
        asked = [Text(text) if isinstance(text, str) else text for text in texts]
        with self.adapters.using(self.adapters.find(adapter)):
            return embed(self.model, asked, self.frame(asked))

    def fill(
        self, texts: Ids[Text | str], top: int = 5, mask: int | None = None, adapter: str | None = None
    ) -> list[list[Best]]:
        """Return, for each mask token of each text, the `top` likeliest ids with their log-probabilities. In a text,
        the name of the mask token (`[MASK]`) is that token; `mask` gives its id where there is no tokenizer."""
        with self.adapters.using(self.adapters.find(adapter)):
            return fill(self.model, self.frame(texts, control=True), self._mask(mask), top)

    def classify(self, texts: Ids[Text | str], adapter: str | None = None) -> list[Tensor]:
        """Return what the head says of each text, logits [classes], or of each of its tokens, [tokens, ...]."""
        with self.adapters.using(self.adapters.find(adapter)):
            return classify(self.model, self.frame(texts))

    def pseudo_score(self, texts: Ids[Text | str], mask: int | None = None) -> list[Score]:
        """Return the pseudo-log-likelihood of each text: that of every token, given all the others."""
        special = frozenset(self.tokenizer.special.values()) if self.tokenizer is not None else frozenset()
        return pseudo_score(self.model, self.frame(texts), self._mask(mask), special)

    def frame(self, texts: Ids[Text | str], *, control: bool = False) -> list[Framed]:
        """Return texts as the ids that are read, checked; with `control`, names of control tokens in them are these
        tokens. Thread-safe. What it returns can stand as the text of a `Text`. Raises RequestError."""
        asked = [Text(text) if isinstance(text, str) else text for text in texts]
        return [self._door.frame(text, control=control) for text in asked]

    def _mask(self, given: int | None) -> int:
        mask = given if given is not None or self.tokenizer is None else self.tokenizer.mask_id
        if mask is None:
            raise RequestError("There is no mask token, so that nothing can be hidden: pass its id as `mask`.")
        return mask


def _ids(prepared: Ids[int] | str) -> Ids[int]:
    assert not isinstance(prepared, str)
    return prepared
