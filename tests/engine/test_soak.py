"""Many random requests of every kind, through one small engine: nothing is lost, leaked, or different from the same
request alone. What is drawn follows from the seed; a failure says which requests differ."""

from __future__ import annotations

import copy
import gc
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import pytest
import torch
from engine_models import random_model

from etymon.engine import Engine, EngineConfig, Event, JsonSchema, Lark, OneOf, Regex, Request, Sampling, TokenLogprob
from etymon.engine.config import PromptLookup
from etymon.engine.request import Dry, Mirostat, Xtc
from etymon.engine.sequence import Sequence
from etymon.errors import RequestError
from etymon.kernels.compiled import library
from etymon.nn import Model
from etymon.nn.adapter import Factors, adaptable
from etymon.text import Tokenizer

CONTEXT, CHUNK = 96, 16
POISON = 255  # its embedding is not a number: a prompt that holds it fails, and nobody else

BAD: list[Callable[[], Request]] = [
    lambda: Request([]),
    lambda: Request(""),
    lambda: Request([5, -1]),
    lambda: Request([10**9]),
    lambda: Request([5, True]),
    lambda: Request([5] * CONTEXT),
    lambda: Request([5], source=[5]),
    lambda: Request([5], priority=10**6),
    lambda: Request([5], salt="x" * 300),
    lambda: Request([5], adapter="nobody"),
    lambda: Request([5], Sampling(n=99)),
    lambda: Request([5], Sampling(logit_bias={10**6: 1.0})),
    lambda: Request([5], Sampling(temperature=-1)),
    lambda: Request([5], Sampling(temperature=float("nan"))),
    lambda: Request([5], Sampling(top_p=2)),
    lambda: Request([5], Sampling(max_tokens=0)),
    lambda: Request([5], Sampling(min_tokens=5, max_tokens=4)),
    lambda: Request([5], Sampling(stop=("x",) * 99)),
    lambda: Request([5], Sampling(stop=("",))),
    lambda: Request([5], Sampling(logprobs=10**6)),
    lambda: Request([5], Sampling(seed=2**70)),
    lambda: Request([5], Sampling(top_q=1)),
    lambda: Request([5], Sampling(dry={"range": 0})),
    lambda: Request([5], Sampling(n=2, best_of=1)),
    lambda: Request([5], Sampling(allowed_ids=(10**6,))),
    lambda: Request([5], Sampling(bad_words=("",))),
    lambda: Request([5], Sampling(constraint="json")),
    lambda: Request([5], Sampling(constraint=Regex("("))),
    lambda: Request([5], Sampling(constraint=Lark("start: nothing"))),
    lambda: Request([5], Sampling(constraint=JsonSchema({"type": 5}))),
]


def sampling(draw: random.Random, number: int) -> Sampling:
    """Settings of one of several kinds; whatever is random has a seed."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "logprobs": 3},
        {"temperature": 1.2},
        {"temperature": 0.8, "top_p": 0.9, "logprobs": 0},
        {"temperature": 1, "top_k": 7, "min_p": 0.02},
        {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
        {"temperature": 0, "logit_bias": {draw.randrange(3, 250): 4.0}, "min_tokens": 3},
        {"constraint": Regex("[a-z ]{2,9}")},
        {"constraint": OneOf(["the fox", "狐狸", "😀 naïve"])},
        {"temperature": 0, "constraint": JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}})},
        {"typical_p": 0.7, "dry": Dry(allowed_length=1), "no_repeat_ngram": 3},
        {"mirostat": Mirostat(tau=3.0), "eta_cutoff": 0.01, "logprobs": 1, "logprobs_mode": "processed"},
        {"xtc": Xtc(probability=0.6, threshold=0.05), "top_n_sigma": 2.0, "banned_ids": (40, 41)},
        {"allowed_ids": tuple(range(30, 120)), "bad_words": ("e", "th"), "stop_ids": (50, 60, 70)},
        {"best_of": 3, "temperature": 0.9},
        {"allowed_ids": (40,), "max_tokens": 20},  # easily guessed
        {"stop": tuple(draw.sample("abcdefghijklmno 。", 8))},
    ]
    length = draw.choice((1, 2, 5, 9, 14))
    common = {"max_tokens": max(length, 3), "ignore_eos": draw.random() < 0.5, "n": draw.choice((1, 1, 1, 2, 3))}
    return Sampling(**common | {"seed": number} | kinds[number % len(kinds)])


def pool(draw: random.Random, count: int) -> list[Request]:
    """Requests of which many begin alike."""
    prefixes = [[draw.randrange(3, 250) for _ in range(70)] for _ in range(4)]
    found = []
    for number in range(count):
        tail = [draw.randrange(3, 250) for _ in range(draw.choice((1, 2, 6, 20)))]
        prompt: list[int] | str = [*draw.choice(prefixes)[: draw.choice((0, 16, 33, 48, 70))], *tail]
        if draw.random() < 0.1:
            prompt = "狐狸跳过了 the fox "[draw.randrange(8) :]
        if number % 20 == 7:
            prompt = [*tail, POISON]
        found.append(Request(prompt, sampling(draw, number)))
    return found


Answer = list[tuple[tuple[int, ...], str, tuple[TokenLogprob, ...], str | None]]


def collected(events: list[Event]) -> Answer:
    """Every choice of a request: ids, text, log-probabilities, and how it ended."""
    found: Answer = []
    for index in range(1 + max(event.index for event in events)):
        own = [event for event in events if event.index == index]
        ids = tuple(token for event in own for token in event.ids)
        logprobs = tuple(entry for event in own for entry in event.logprobs or ())
        found.append((ids, "".join(event.text for event in own), logprobs, own[-1].finish))
    return found


def factors(model: Model, seed: int) -> dict[str, Factors]:
    """A random adapter beside every matrix of the stack."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, layer in model.named_modules():
        if name.startswith("decoder.") and adaptable(model, name):
            out, width = layer.weight.shape
            down = torch.randn(2, width, generator=generator) * 0.3
            found[name] = Factors(down, torch.randn(out, 2, generator=generator) * 0.3)
    return found


@dataclass(frozen=True)
class Case:
    """A request of the pool under one version of the weights, and one adapter, by its seed."""

    which: int
    version: int
    adapter: int | None


@dataclass
class Soak:
    """One engine under random load, and what each of its requests must give."""

    tokenizer: Tokenizer
    model: Model
    draw: random.Random
    requests: list[Request]
    engine: Engine = field(init=False)
    bare: Model = field(init=False)  # the same without adapters
    version: int = 0
    lookup: PromptLookup | None = None
    adapters: dict[str, int] = field(default_factory=dict)  # name: seed
    expected: dict[Case, Answer] = field(default_factory=dict)
    live: dict[int, Case] = field(default_factory=dict)  # by the number of the request
    events: dict[int, list[Event]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    others: int = field(init=False)  # sequences of other engines of this process

    def __post_init__(self) -> None:
        self.others = sequences()
        self.bare = copy.deepcopy(self.model)
        config = self.config(slots=6, tokens=256, waiting=24, speculation=self.lookup)
        self.engine = Engine(self.model, self.tokenizer, config)

    def config(self, **limits: Any) -> EngineConfig:
        return EngineConfig(deterministic=True, context=CONTEXT, chunk=CHUNK, never=(POISON,), adapters=16, **limits)

    def alone(self, case: Case) -> Answer:
        """What a request gives in an engine of its own."""
        if case not in self.expected:
            assert case.version == self.version
            engine = Engine(self.bare, self.tokenizer, self.config(slots=3, prefix_cache=False))
            engine._door.grammars = self.engine._door.grammars  # llguidance keeps every table of tokens for ever
            request = self.requests[case.which]
            if case.adapter is not None:
                engine.load_adapter("x", factors(self.bare, case.adapter))
                request = replace(request, adapter="x")
            engine.submit(request)
            if case.adapter is not None:
                engine.drop_adapter("x")  # leaves the model with its last request
            events: list[Event] = []
            while engine.has_work:
                events += engine.step()
            self.expected[case] = collected(events)
        return self.expected[case]

    def submit(self) -> bool:
        """Send one request, a good one or, now and then, a bad one; return whether there was room for it."""
        if self.draw.random() < 0.1:
            self.send_bad(self.draw.choice(BAD))
            return True
        which, adapter = self.draw.randrange(len(self.requests)), self.draw.choice([None, None, *self.adapters])
        request = replace(
            self.requests[which],
            priority=self.draw.choice((0, 0, 0, 0, 1, -3)),
            salt=self.draw.choice(("", "", "a", "b")),
            adapter=adapter,
        )
        try:
            number = self.engine.submit(request)
        except RequestError as refusal:
            self.counts[refusal.code or str(refusal)] += 1
            return False
        else:
            self.live[number] = Case(which, self.version, adapter and self.adapters[adapter])
            self.events[number] = []
            self.counts["sent"] += 1
            return True

    def send_bad(self, make: Callable[[], Request]) -> None:
        """Send a request that must be refused, by the name of what is wrong with it."""
        with pytest.raises(RequestError) as refusal:
            self.engine.submit(make())
        assert refusal.value.param, refusal.value
        self.counts["bad"] += 1

    def step(self) -> None:
        """Step the engine and judge what has ended."""
        for event in self.engine.step():
            events = self.events[event.request]
            events.append(event)
            case = self.live[event.request]
            if sum(e.finish is not None for e in events) == self.requests[case.which].sampling.choices:
                self.judge(case, collected(events))
                del self.live[event.request], self.events[event.request]

    def judge(self, case: Case, found: Answer) -> None:
        """Compare an answer with the one alone; of a cancelled one, what there is."""
        if case.version < 0:  # the weights changed under it
            self.counts["across"] += 1
            return
        alone = self.alone(case)
        if any(finish == "cancelled" for *_, finish in found):
            self.counts["cancelled"] += 1
            for (ids, text, _, finish), (all_ids, all_text, *_) in zip(found, alone, strict=True):
                assert finish != "cancelled" or (all_ids[: len(ids)] == ids and all_text.startswith(text)), case
            return
        self.counts[str(found[0][-1])] += 1
        assert found == alone, case

    def update(self) -> None:
        """Change the weights in place, under whatever runs."""
        with torch.no_grad():
            for parameter in self.bare.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        self.engine.update_weights(self.bare, running="recompute")
        self.version += 1
        self.expected.clear()
        for number, case in self.live.items():
            self.live[number] = replace(case, version=-1 if self.events[number] else self.version)
        self.counts["updates"] += 1

    def swap(self) -> None:
        """Put an adapter in the place of another of its name, which whatever runs goes on with."""
        name = self.draw.choice("xyz")
        if name in self.adapters:
            self.engine.drop_adapter(name)
        self.adapters[name] = self.draw.randrange(4)
        self.engine.load_adapter(name, factors(self.model, self.adapters[name]))
        self.counts["swaps"] += 1

    def run(self, requests: int, updates: float, swaps: float) -> None:
        """Send so many requests in bursts, with cancellations, updates and swaps, and go on until all have ended."""
        sent = 0
        while sent < requests:
            burst = 40 if self.draw.random() < 0.01 else self.draw.choice((0, 0, 1))
            for _ in range(min(burst, requests - sent)):
                sent += self.submit()
            if self.live and self.draw.random() < 0.05:
                self.engine.cancel(self.draw.choice(list(self.live)))
            if self.draw.random() < updates:
                self.update()
            if self.draw.random() < swaps:
                self.swap()
            self.step()
        while self.engine.has_work:
            self.step()

    def check(self) -> None:
        """Nobody holds anything."""
        engine = self.engine
        assert not self.live and not self.events
        metrics = engine.metrics
        assert metrics.running == metrics.waiting == 0
        assert sum(metrics.finished.values()) >= metrics.requests
        for group in engine._paging._groups:
            blocks = group.blocks
            assert blocks.used == 0 and sorted([*blocks._free, *blocks._idle]) == list(range(2, 2 + blocks.count))
            assert set(blocks._idle) == set(blocks._keys) == set(blocks._blocks.values())
        assert not engine.adapters._leaving
        assert sequences() - self.others <= engine.config.slots, "the sampler may still know its last batch"


def sequences() -> int:
    """How many sequences are alive in this process."""
    gc.collect()
    return sum(type(thing) is Sequence for thing in gc.get_objects())


def begin(tokenizer: Tokenizer, family: str, kinds: int, seed: int) -> Soak:
    """Return an engine that guesses where that can be exact, and what it will be asked."""
    torch.manual_seed(seed)
    model = random_model(family, vocab=tokenizer.vocab_size, context=CONTEXT)
    with torch.no_grad():
        model.embed.tokens.weight[POISON] = torch.nan
    draw = random.Random(seed)
    lookup = PromptLookup(shortest=1) if library() is not None and family != "rwkv" else None
    return Soak(tokenizer, model, draw, pool(draw, kinds), lookup=lookup)


def test_every_answer_is_what_it_is_alone(tokenizer: Tokenizer) -> None:
    soak = begin(tokenizer, "llama", kinds=25, seed=1)
    for make in BAD:
        soak.send_bad(make)
    soak.run(200, updates=0.01, swaps=0.02)
    soak.check()
    metrics = soak.engine.metrics
    assert metrics.preempted and metrics.cache_found and (metrics.drafted or soak.lookup is None)
    expected = "bad sent engine_overloaded updates swaps across cancelled stop length error"
    assert soak.counts.keys() == set(expected.split()), "something else happened, or the load is too tame"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "rwkv"])
def test_ten_thousand_requests(tokenizer: Tokenizer, family: str) -> None:
    """No block is lost, no answer differs, and the memory of the second half is that of the first."""
    soak = begin(tokenizer, family, kinds=100, seed=2)
    process = psutil.Process()
    sizes = []
    for _ in range(10):
        soak.run(1000, updates=0.001, swaps=0.002)
        soak.check()
        sizes.append(process.memory_info().rss)
    print(dict(soak.counts), soak.engine.metrics, [size >> 20 for size in sizes])
    assert sizes[-1] - sizes[4] < 8 << 20, f"memory grew: {[size >> 20 for size in sizes]} MiB"
