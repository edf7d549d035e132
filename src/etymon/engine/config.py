"""The limits of an engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from etymon.config import Config
from etymon.nn import Model
from etymon.nn.mtp import AnyHeads


class _Speculation(Config):
    """How sequences are speculated upon.

    - `tokens`: at most so many tokens are guessed at once, for one sequence.
    - `most`: at most so many are verified in a step, for all: what a pass reads in about the time of one token. None is
      32 on CPUs and 256 elsewhere.
    """

    tokens: int = Field(default=8, ge=1, le=64)
    most: int | None = Field(default=None, ge=2, le=65536)


class PromptLookup(_Speculation):
    """Guess that what followed the last ids before follows again: for code, extraction, revision.

    - `longest`, `shortest`: how many last ids are looked for, the most first.
    """

    kind: Literal["ngram"] = "ngram"
    longest: int = Field(default=4, ge=1, le=16)
    shortest: int = Field(default=2, ge=1, le=16)

    @model_validator(mode="after")
    def _in_order(self) -> PromptLookup:
        if self.shortest > self.longest:
            raise ValueError(f"shortest ({self.shortest}) is above longest ({self.longest})")
        return self


class DraftModel(_Speculation):
    """Let a smaller model of the same tokenizer guess.

    - `model`: a checkpoint directory or hub id, or the model itself.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Literal["draft"] = "draft"
    tokens: int = Field(default=4, ge=1, le=64)
    model: str | Model


class EarlyExit(_Speculation):
    """Let the model's own first layers guess.

    - `layers`: how many of them; the final norm and the head follow at once.
    """

    kind: Literal["early"] = "early"
    tokens: int = Field(default=4, ge=1, le=64)
    layers: int = Field(ge=1)


class Heads(_Speculation):
    """Let heads guess that look further ahead than the model's own: residual ones all at once, sequential ones one
    after the other, with a state of their own.

    - `model`: the directory in which they lie, or the heads themselves.
    - `tokens`: no more than there are residual heads, all of them by default; the last sequential head goes on from its
      own guesses.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Literal["heads"] = "heads"
    tokens: int = Field(default=64, ge=1, le=64)
    model: str | AnyHeads


def _read(value: Any) -> Any:
    """Understand `ngram`, `draft:PATH`, `early:LAYERS` and `heads:PATH`."""
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    return {"kind": kind} | ({_VALUES.get(kind, "value"): rest} if rest else {})


_VALUES = {"draft": "model", "early": "layers", "heads": "model"}
Speculation = PromptLookup | DraftModel | EarlyExit | Heads


class EngineConfig(Config):
    """Limits of the engine. The memory of its state is that of `tokens`, allocated once.

    - `slots`: how many answers are generated at the same time.
    - `context`: longest prompt plus answer, in tokens; None is the model's own context.
    - `tokens`: how many tokens of attention's keys and values are held, for running answers and for prefixes that may
      be asked for again. When they do not suffice, the answer that came last begins anew later, with the same text.
      None is `slots` x `context`, or what fits into memory.
    - `prefix_cache`: what a prompt has in common with earlier ones is not read again.
    - `deterministic`: an answer does not depend, to the last bit, on what else runs; slower.
    - `source_context`: longest source of a decoder behind an encoder; None is the model's own context.
    - `chunk`: how many prompt tokens are read between two steps of decoding; smaller streams more evenly.
    - `waiting`: how many requests may wait for a slot before further ones are refused.
    - `sources`: how many sources are kept encoded, for further requests about them.
    - `begin`: the ids before every answer of a decoder behind an encoder; none is the start that the model knows.
    - `ends`: ids that end an answer, besides those of the tokenizer.
    - `never`: ids that no answer holds.
    - `adapters`, `adapter_rank`, `adapter_bytes`: how many adapters may be loaded, of which rank (in layers that fuse
      several, such as q, k and v, the sum of theirs) and size.
    - `speculation`: how several tokens are guessed and verified at once; None guesses nothing. Texts stay the same.
    - `languages`: numbers of the languages that are read and written, for models that know languages.
    """

    slots: int = Field(default=16, ge=1, le=4096)
    context: int | None = Field(default=None, ge=2)
    tokens: int | None = Field(default=None, ge=2)
    prefix_cache: bool = True
    deterministic: bool = False
    source_context: int | None = Field(default=None, ge=1)
    chunk: int = Field(default=512, ge=1)
    waiting: int = Field(default=1024, ge=0)
    sources: int = Field(default=64, ge=0)
    begin: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    adapters: int = Field(default=16, ge=0, le=1024)
    adapter_rank: int = Field(default=1024, ge=1)
    adapter_bytes: int = Field(default=2 << 30, ge=1)
    languages: tuple[int, int] | None = None
    speculation: Annotated[Annotated[Speculation, Field(discriminator="kind")] | None, BeforeValidator(_read)] = None
