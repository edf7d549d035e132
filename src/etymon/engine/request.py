"""What goes into the engine and what comes out: requests, sampling settings, events, completions, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, PlainValidator, ValidationError, field_validator, model_validator

from etymon.config import Config
from etymon.engine.grammar import Grammar
from etymon.errors import RequestError, suggest

if TYPE_CHECKING:
    from etymon.text import Framed

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_IDS = 1024  # that end an answer, or have a bias
MAX_SET = 65536  # of tokens that are allowed or banned
MAX_SHOWN = 64
MAX_LOGPROBS = 20

Finish = Literal["stop", "length", "cancelled", "error"]
Real = Annotated[float, Field(allow_inf_nan=False)]


def _a_grammar(value: object) -> object:
    if value is None or isinstance(value, Grammar):
        return value
    raise ValueError(f"must be one of {', '.join(kind.__name__ for kind in get_args(Grammar))}")


Id = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Settings(Config):
    """Settings whose faults raise `RequestError`; its `param` names the field, and before a dot its group."""

    group: ClassVar[str] = ""

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _refusal(error, type(self)) from None


class Xtc(_Settings):
    """Exclude top choices (https://github.com/oobabooga/text-generation-webui/pull/6335): with this `probability`, of
    the tokens at least as probable as `threshold` only the least probable stays."""

    __init__ = _Settings.__init__
    group: ClassVar[str] = "xtc"
    probability: Share = 0.5
    threshold: Real = Field(0.1, ge=0, le=0.5)


class Dry(_Settings):
    """Don't repeat yourself (https://github.com/oobabooga/text-generation-webui/pull/5677): from the logit of a token
    that would prolong a repetition of n >= `allowed_length` tokens, `multiplier` * `base` ** (n - `allowed_length`) is
    subtracted. Prompt and answer count, their last `range` tokens only if that is given.

    `breakers`, texts and ids, end a repetition: none reaches back over one, or goes on with a token that has one. A
    text breaks wherever it stands, in a token or across several. None is ``\\n``, ``:``, ``"`` and ``*``.
    """

    __init__ = _Settings.__init__
    group: ClassVar[str] = "dry"
    multiplier: Real = Field(0.8, ge=0, le=100)
    base: Real = Field(1.75, ge=1, le=10)
    allowed_length: int = Field(2, ge=1, le=128)
    breakers: tuple[Annotated[str, Field(min_length=1, max_length=64)] | Id, ...] | None = Field(None, max_length=64)
    range: int | None = Field(None, ge=1)

    @property
    def texts(self) -> tuple[str, ...]:
        """The breakers that are texts."""
        given = ("\n", ":", '"', "*") if self.breakers is None else self.breakers
        return tuple(breaker for breaker in given if isinstance(breaker, str))

    @property
    def ids(self) -> frozenset[int]:
        """The breakers that are ids."""
        return frozenset(breaker for breaker in self.breakers or () if not isinstance(breaker, str))


class Mirostat(_Settings):
    """Mirostat 2 (Basu et al. 2020, and the authors' code): tokens of more surprise than a bound are removed; the bound
    begins at 2 `tau` and follows, at the rate `eta`, what it takes to keep the surprise at `tau` (bits)."""

    __init__ = _Settings.__init__
    group: ClassVar[str] = "mirostat"
    tau: Real = Field(5.0, gt=0, le=100)
    eta: Real = Field(0.1, ge=0, le=1)


class Beams(_Settings):
    """Beam search: of all continuations of `beams` sequences the most probable are kept, until `beams` answers have
    ended that nothing running can surpass. An answer's score is the sum of its tokens' log-probabilities, as
    penalties, biases and bans leave them, divided by its length ** `length_penalty`.

    With `groups`, each has its share of the beams, and from the log-probability of a token `diversity` is subtracted
    for every earlier group's beam that has just taken it (Vijayakumar et al. 2016). `early_stopping` ends the search
    when there are `beams` answers; without it, it ends when the best running sequence would not be among them if it
    ended now ("never": at `max_tokens`, where length is rewarded). All this is as in Hugging Face's transformers.
    """

    __init__ = _Settings.__init__
    group: ClassVar[str] = "search"
    width: ClassVar[str] = "search.beams"
    beams: int = Field(ge=1, le=64)
    groups: int = Field(1, ge=1, le=64)
    diversity: Real = Field(0.0, ge=0, le=100)
    length_penalty: Real = Field(1.0, ge=-10, le=10)
    early_stopping: Literal[True, False, "never"] = False

    @model_validator(mode="after")
    def _in_groups(self) -> Beams:
        if self.beams % self.groups:
            raise RequestError(
                f"search.groups: {self.beams} beams cannot be shared evenly by {self.groups}.", param="search.groups"
            )
        if self.diversity and self.groups == 1:
            raise RequestError("search.diversity needs several groups: set search.groups.", param="search.diversity")
        return self

    @property
    def rows(self) -> int:
        """How many sequences run at the same time."""
        return self.beams


class Contrastive(_Settings):
    """Contrastive search (Su et al. 2022): of the `k` most probable tokens the one with the highest
    (1 - `alpha`) * probability - `alpha` * likeness, which is the greatest cosine between the last hidden state that
    the token makes and those of all tokens before it."""

    __init__ = _Settings.__init__
    group: ClassVar[str] = "search"
    width: ClassVar[str] = "search.k"
    k: int = Field(4, ge=1, le=64)
    alpha: Share = 0.6

    @property
    def rows(self) -> int:
        """How many sequences run at the same time."""
        return self.k


def _a_search(value: object) -> object:
    if value is None or isinstance(value, Beams | Contrastive):
        return value
    raise ValueError("must be Beams or Contrastive")


_DRAWING = (  # settings of what is drawn and of how it is reported
    *("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_n_sigma", "xtc", "mirostat"),
    *("best_of", "logprobs_mode", "prompt_logprobs"),
)


class Sampling(_Settings):
    """How the tokens of one request are chosen. A value outside its limits raises `RequestError`.

    The order is: repetition, presence and frequency penalties, `dry`; `logit_bias`; what is banned; `temperature`; then
    `top_n_sigma`, `top_k`, `top_p`, `min_p`, `typical_p`, `epsilon_cutoff`, `eta_cutoff`, `xtc` and `mirostat`, each
    over what the one before it left. That is llama.cpp's order of penalties and vLLM's place of the temperature; from
    `top_k` on it is that of transformers.

    - `temperature`: 0 takes the most probable token. Below 1e-5 counts as 0.
    - `top_k`: keep the k most probable tokens (and those as probable as the last of them); 0 keeps all.
    - `top_p`: keep the fewest most probable tokens whose probability reaches p (Holtzman et al. 2019); 1 keeps all.
    - `min_p`: keep tokens at least this times as probable as the best one (Nguyen et al. 2024); 0 keeps all.
    - `typical_p`: keep the tokens whose surprise is nearest to the entropy, until p is reached (Meister et al. 2022).
    - `epsilon_cutoff`: keep tokens of at least this probability, `eta_cutoff`: of at least eta or, if that is less,
      sqrt(eta) * exp(-entropy) (Hewitt et al. 2022). 0 keeps all; the best token always stays.
    - `top_n_sigma`: keep logits at most so many standard deviations below the best (Tang et al. 2024); 0 keeps all.
    - `repetition_penalty`: logits of tokens in prompt or output are divided (if positive) or multiplied by it (CTRL).
    - `presence_penalty`, `frequency_penalty`: subtracted once, or once per occurrence, from tokens of the output.
    - `no_repeat_ngram`: no n tokens occur twice in prompt and answer; 0 allows it.
    - `seed`: same seed, same prompt, same text, whatever else runs. Choice i of `n` has a stream of its own.
    - `max_tokens`: at most so many tokens are generated; None means up to the context. 0, with `prompt_logprobs`, only
      reads the prompt.
    - `min_tokens`: no token that ends the answer, and no stop string, before so many tokens.
    - `stop`: text that ends the answer; it is not part of the answer. `stop_ids`: tokens that do.
    - `ignore_eos`: the model's end tokens do not end the answer; `stop_ids` still do.
    - `logprobs`: report the chosen token's log-probability and that of the so many best ones. They are "raw", the
      log-softmax of the model's own logits, or, as `logprobs_mode` says, "processed": of what was drawn from.
    - `prompt_logprobs`: report the model's own for the prompt's tokens too.
    - `n`: so many answers to the same prompt, which is read once. `best_of`: so many are made, and those n returned,
      best first, whose tokens' reported log-probabilities have the highest mean.
    - `logit_bias`: token id to a number that is added to its logit.
    - `allowed_ids`: nothing but these. `banned_ids`: none of these.
    - `bad_words`: texts that the answer never holds, whatever its tokens; sequences of ids that it never holds.
    - `constraint`: what the answer may be (`JsonSchema`, `Regex`, `Choice`, …); it ends when nothing can follow.
    - `shown`: ids of special tokens whose names belong to the text, such as the markers around calls of tools.
    - `search`: nothing is drawn, an answer is searched for: `Beams` or `Contrastive`.
    """

    __init__ = _Settings.__init__

    temperature: Real = Field(1.0, ge=0, le=100)
    top_k: int = Field(0, ge=0)
    top_p: Share = 1.0
    min_p: Share = 0.0
    typical_p: Real = Field(1.0, gt=0, le=1)
    epsilon_cutoff: Real = Field(0.0, ge=0, lt=1)
    eta_cutoff: Real = Field(0.0, ge=0, lt=1)
    top_n_sigma: Real = Field(0.0, ge=0, le=1000)
    xtc: Xtc | None = None
    mirostat: Mirostat | None = None
    repetition_penalty: Real = Field(1.0, gt=0, le=10)
    presence_penalty: Real = Field(0.0, ge=-2, le=2)
    frequency_penalty: Real = Field(0.0, ge=-2, le=2)
    dry: Dry | None = None
    no_repeat_ngram: int = Field(0, ge=0, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int = Field(0, ge=0)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)], ...] = Field(
        (), max_length=MAX_STOP_STRINGS
    )
    stop_ids: tuple[Id, ...] = Field((), max_length=MAX_IDS)
    ignore_eos: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    logprobs_mode: Literal["raw", "processed"] = "raw"
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    n: int = Field(1, ge=1, le=128)
    best_of: int | None = Field(None, ge=1, le=128)
    logit_bias: dict[Id, Annotated[Real, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=MAX_IDS)
    allowed_ids: tuple[Id, ...] | None = Field(None, min_length=1, max_length=MAX_SET)
    banned_ids: tuple[Id, ...] = Field((), max_length=MAX_SET)
    bad_words: tuple[
        Annotated[str, Field(min_length=1, max_length=64)]
        | Annotated[tuple[Id, ...], Field(min_length=1, max_length=64)],
        ...,
    ] = Field((), max_length=128)
    constraint: Annotated[Any, PlainValidator(_a_grammar)] = None
    shown: tuple[Id, ...] = Field((), max_length=MAX_SHOWN)
    search: Annotated[Beams | Contrastive | None, PlainValidator(_a_search)] = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string(cls, value: Any) -> Any:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Sampling:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens}).", param="min_tokens"
            )
        if self.max_tokens == 0 and (self.prompt_logprobs is None or self.choices > 1):
            raise RequestError(
                "max_tokens is 0, so that nothing is generated: that takes prompt_logprobs, and n=1.",
                param="max_tokens",
            )
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(f"best_of ({self.best_of}) is below n ({self.n}).", param="best_of")
        if self.allowed_ids is not None and not set(self.allowed_ids) - set(self.banned_ids):
            raise RequestError("allowed_ids: all of them are banned by banned_ids.", param="allowed_ids")
        return self

    @model_validator(mode="after")
    def _searched_or_drawn(self) -> Sampling:
        if self.search is None:
            return self
        if self.n > (most := self.search.beams if isinstance(self.search, Beams) else 1):
            raise RequestError(f"n is {self.n}, but this search finds {most} answers at most.", param="n")
        fields = type(self).model_fields
        drawn = [name for name in _DRAWING if getattr(self, name) != fields[name].default]
        if self.temperature not in (0, 1):
            drawn.append("temperature")
        if drawn:
            raise RequestError(f"{drawn[0]} does not go with a search, which draws nothing.", param=drawn[0])
        return self

    @property
    def rows(self) -> int:
        """How many sequences run at the same time."""
        return self.choices if self.search is None else self.search.rows

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < 1e-5

    @property
    def plain(self) -> bool:
        """Whether nothing but temperature, top-k, top-p and min-p truncates."""
        others = (self.top_n_sigma, self.typical_p < 1, self.epsilon_cutoff, self.eta_cutoff, self.xtc, self.mirostat)
        return not any(others)

    @property
    def choices(self) -> int:
        """How many answers are generated."""
        return self.best_of or self.n

    @property
    def reported(self) -> bool:
        """Whether log-probabilities are needed, to be shown or to choose by."""
        return self.logprobs is not None or self.choices > self.n


def _refusal(error: ValidationError, kind: type[_Settings]) -> RequestError:
    """Turn pydantic's first complaint into the engine's own error, which names the field."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):  # of a group inside, or of the fields together
        return cause
    place = [str(part) for i, part in enumerate(first["loc"]) if not i or isinstance(part, int)]
    param = ".".join(filter(None, [kind.group, *place[:1]]))
    if first["type"] == "extra_forbidden":
        hint = suggest(place[0], kind.model_fields)
        return RequestError(f"Unknown sampling setting {param!r}.{hint}", param=param)
    where = ".".join(filter(None, [kind.group, *place]))
    message = first["msg"].removeprefix("Value error, ")
    return RequestError(f"{where}: {message} (got {str(first['input'])[:80]!r}).", param=param)


@dataclass(frozen=True)
class Request:
    """A prompt, as text or as token ids, and how it is to be continued.

    Text is encoded by the engine's tokenizer and never yields a special token; use a renderer's ids for a conversation.
    A decoder behind an encoder reads a `source`, which text enters framed as the tokenizer says (`… </s>`) and ids as
    they are. `prompt` is then how the answer begins: ids are all that the decoder reads first, text comes behind the
    ids with which it begins, and nothing is these alone. A prompt without a source is the source.

    Requests of a higher `priority` go first, and may displace running ones of a lower. `salt` separates those who must
    not share: what one leaves in the prefix cache is found only under the same salt, and among equal priorities every
    salt gets its turn. `adapter` names one of the engine's adapters. `scored` is the first id of the prompt whose
    log-probability is reported, where `prompt_logprobs` asks for that; what lies before it may come from the cache.
    `prefix` is how many of the prompt's first ids see one another, where the model has prefixes that do: all by
    default, and where the prompt is only scored, those before `scored`.
    """

    prompt: Sequence[int] | str = ()
    sampling: Sampling = field(default_factory=Sampling)
    source: Sequence[int] | str | None = None
    priority: int = 0
    salt: str = ""
    adapter: str | None = None
    scored: int = 1
    prefix: int | None = None

    @property
    def tokens(self) -> int:
        """How many ids are read before the answer, once they are ids."""
        return len(self.prompt) + len(self.source or ())


@dataclass(frozen=True)
class Text:
    """A text that is read whole: as text, which enters framed as the tokenizer says (`[CLS] … [SEP]`), or as ids, or
    as `Engine.frame` returned it.

    `second` is another text beside it, where the tokenizer has a form for two. An embedding is the "mean" of the last
    hidden states, or one weighted by place, or that of the "first" or the "last" token, or all of them ("tokens");
    `normalised` to length 1. None is what the model was trained with, where it was trained to embed, else the mean as
    it is.
    """

    text: Sequence[int] | str | Framed
    second: str | None = None
    pooling: Literal["mean", "weighted_mean", "first", "last", "tokens"] | None = None
    normalised: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of a generated token, and the best tokens at its place, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one choice of a request: the ids it generated and the text that became certain.

    `text` may be empty (half a character, or what may yet become a stop string) and the ids of text come no later than
    the text itself. `finish` is None until the last event of the choice; `error` says what went wrong with it. The
    first event of choice 0 has the prompt's log-probabilities, if they were asked for; its first token has none.
    """

    request: int
    index: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: Finish | None = None
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of a request; the prompt counts once however many choices were made from it."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Choice:
    """One finished answer. `ids` holds every generated token, also an end token or a stop string cut from `text`."""

    index: int
    text: str
    ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish: Finish
    error: str | None = None


@dataclass(frozen=True)
class Completion:
    """The finished answers to a request. `text`, `ids`, `logprobs` and `finish` are those of the first."""

    choices: list[Choice]
    usage: Usage
    prompt_logprobs: list[TokenLogprob | None] | None = None

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def ids(self) -> list[int]:
        """The first choice's generated ids."""
        return self.choices[0].ids

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """The first choice's log-probabilities, if they were asked for."""
        return self.choices[0].logprobs

    @property
    def finish(self) -> Finish:
        """Why the first choice ended."""
        return self.choices[0].finish

    @classmethod
    def collect(cls, events: Sequence[Event], request: Request) -> Completion:
        """Put together all the events of one request: the best of its choices, where it asked for these. The usage
        counts every token that was generated."""
        by_choice: dict[int, list[Event]] = {}
        for event in events:
            by_choice.setdefault(event.index, []).append(event)
        choices = [_choice(index, by_choice[index]) for index in sorted(by_choice)]
        usage = Usage(request.tokens, sum(len(choice.ids) for choice in choices))
        prompt = next((event.prompt_logprobs for event in events if event.prompt_logprobs is not None), None)
        return cls(best(choices, request.sampling), usage, None if prompt is None else list(prompt))


def best(choices: Sequence[Choice], sampling: Sampling) -> list[Choice]:
    """Return the `n` of `best_of` choices with the highest mean log-probability of their tokens, best first and
    numbered anew; all of them, in their order, where no more were made than asked for. Those that failed come last."""
    if sampling.choices == sampling.n:
        return list(choices)

    def mean(choice: Choice) -> float:
        values = [entry.logprob for entry in choice.logprobs or ()]
        return sum(values) / len(values) if values and choice.finish != "error" else -math.inf

    ranked = sorted(choices, key=mean, reverse=True)[: sampling.n]
    shown = sampling.logprobs is not None
    return [replace(c, index=i, logprobs=c.logprobs if shown else None) for i, c in enumerate(ranked)]


def _choice(index: int, events: Sequence[Event]) -> Choice:
    last = events[-1]
    assert last.finish is not None, "a choice is collected when it has finished"
    logprobs = [entry for event in events for entry in event.logprobs or ()]
    return Choice(
        index=index,
        text="".join(event.text for event in events),
        ids=[token for event in events for token in event.ids],
        logprobs=logprobs if any(event.logprobs is not None for event in events) else None,
        finish=last.finish,
        error=last.error,
    )


@dataclass(frozen=True)
class Score:
    """How probable a model finds `ids[start:]` after `ids[:start]`.

    `logprob` is the sum of `logprobs` (natural log, one per scored token); `greedy` says whether each scored token is
    the model's most probable one.
    """

    logprob: float
    logprobs: list[float]
    greedy: bool

    @classmethod
    def of(cls, entries: Sequence[TokenLogprob | None]) -> Score:
        """Sum up what was reported of tokens, with the best one at each place."""
        told = [entry for entry in entries if entry is not None]
        values = [entry.logprob for entry in told]
        return cls(float(sum(values)), values, all(entry.top[0][0] == entry.id for entry in told))

    @property
    def tokens(self) -> int:
        """How many tokens were scored."""
        return len(self.logprobs)
