"""The door of the engine: requests become ids, checked against the model, before anything is queued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from etymon.engine.config import EngineConfig
from etymon.engine.grammar import Grammars
from etymon.engine.request import Request, Sampling, Text
from etymon.engine.words import Vocabulary
from etymon.errors import ConfigError, RequestError
from etymon.nn import Model
from etymon.spec import CrossAttention, ModelSpec

if TYPE_CHECKING:
    from etymon.text import Framed, Tokenizer


MAX_PRIORITY = 1000
MAX_SALT = 256


class Door:
    """What a model of this kind, with these limits, can be asked. Thread-safe."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None, config: EngineConfig) -> None:
        spec = self.spec = model.spec
        self.tokenizer, self.config = tokenizer, config
        self.context = _within("context", config.context, spec.context)
        self.source_context = _within("source_context", config.source_context, spec.context)
        self.vocab = min(spec.vocab, tokenizer.vocab_size) if tokenizer is not None else spec.vocab
        for key in ("begin", "ends", "never"):
            if any(not 0 <= id < spec.vocab for id in getattr(config, key)):
                raise ConfigError(f"engine.{key} has an id outside 0..{spec.vocab - 1}.")
        self.vocabulary = Vocabulary(tokenizer, self.vocab) if tokenizer is not None else None
        _check_languages(spec, config)
        self.generates, self.translates = model.decoder is not None, model.encoder is not None
        self.prefixed = getattr(model, "prefixed", False)
        own = frozenset(tokenizer.stop_ids) if tokenizer is not None else frozenset()
        self.ends: frozenset[int] = own | frozenset(config.ends)
        self.grammars = Grammars(tokenizer, frozenset(id for id in self.ends if id < self.vocab), self.vocab)
        self.begin = config.begin
        if self.generates and self.translates and not self.begin and spec.start is not None:
            self.begin = (spec.start,)

    def prepare(self, request: Request) -> Request:
        """Return the request with its texts as ids. Raises RequestError; one that leaves no room for an answer has the
        code "context_length_exceeded"."""
        if not self.generates:
            raise RequestError(
                f"{self.spec.name} is an encoder: it reads whole texts and writes none. Ask the engine to embed, fill "
                "or classify.",
                param="prompt",
                code="cannot_generate",
            )
        if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
            raise RequestError(f"priority must lie between -{MAX_PRIORITY} and {MAX_PRIORITY}.", param="priority")
        if len(request.salt) > MAX_SALT:
            raise RequestError(f"The salt has {len(request.salt)} characters; {MAX_SALT} are allowed.", param="salt")
        request = self._sided(request)
        prompt = self._checked(request.prompt, "prompt")
        reads_only = request.sampling.max_tokens == 0
        if request.sampling.prompt_logprobs is not None and not 1 <= request.scored < max(len(prompt), 2 - reads_only):
            raise RequestError(
                f"The prompt has {len(prompt)} tokens: those to be scored must begin behind the first and before its "
                f"end, not at {request.scored}.",
                param="prompt_logprobs",
            )
        if len(prompt) >= self.context + reads_only:
            raise RequestError(
                f"The prompt has {len(prompt)} tokens, but the context holds {self.context} for prompt and answer "
                f"together: shorten the prompt to at most {self.context - 1} tokens.",
                param="prompt",
                code="context_length_exceeded",
            )
        prefix = self._prefix(request, prompt) if self.prefixed else None
        source = None if request.source is None else self._checked(request.source, "source")
        if source is not None and len(source) > self.source_context:
            raise RequestError(
                f"The source has {len(source)} tokens, but at most {self.source_context} can be read: shorten it.",
                param="source",
                code="context_length_exceeded",
            )
        return replace(request, prompt=prompt, sampling=self._allowed(request.sampling), source=source, prefix=prefix)

    def _prefix(self, request: Request, prompt: Sequence[int]) -> int:
        """Return how many of the prompt's first ids see one another. Raises RequestError where ids that do are scored:
        each would be told by what it sees."""
        scores, answers = request.sampling.prompt_logprobs is not None, request.sampling.max_tokens != 0
        prefix = request.prefix
        if prefix is None:
            prefix = request.scored if scores and not answers else len(prompt)
        if not 0 <= prefix <= len(prompt):
            raise RequestError(f"The prompt has {len(prompt)} tokens: prefix={prefix} is none of it.", param="prefix")
        if scores and prefix > request.scored:
            raise RequestError(
                f"The first {prefix} tokens of the prompt see one another, so that those from {request.scored} on have "
                "no probability of their own: ask for it with max_tokens=0, or begin to score behind the prefix.",
                param="prompt_logprobs",
            )
        return prefix

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts as prompts: as sources, where the decoder stands behind an encoder."""
        if self.tokenizer is None:
            raise RequestError("This model has no tokenizer: pass the prompt as token ids.", param="prompt")
        found = self.tokenizer.encode_batch(texts)
        return [self.tokenizer.frame(ids).ids for ids in found] if self.translates else found

    def frame(self, asked: Text, *, control: bool = False) -> Framed:
        """Return the ids of a text to be read whole, framed where the model has an encoder; with `control`, names of
        control tokens in it are these tokens. Raises RequestError."""
        from etymon.text import Framed

        if isinstance(asked.text, Framed):
            framed = asked.text
        elif not isinstance(asked.text, str):
            framed = Framed(list(asked.text), [0] * len(asked.text))
        elif self.tokenizer is None:
            raise RequestError("This model has no tokenizer: pass the text as token ids.", param="text")
        else:
            read = self.tokenizer.encode_control if control else self.tokenizer.encode
            second = None if asked.second is None else read(asked.second)
            framed = Framed(ids := read(asked.text), [0] * len(ids))
            if self.translates or second is not None:
                framed = self.tokenizer.frame(framed.ids, second)
        if len(self._checked(framed.ids, "text")) > self.spec.context:
            raise RequestError(
                f"The text has {len(framed.ids)} tokens, but at most {self.spec.context} can be read: shorten it.",
                param="text",
                code="context_length_exceeded",
            )
        return framed

    def _sided(self, request: Request) -> Request:
        """Sort out what is the source and what the decoder reads, both still checked by nobody, but ids."""
        prompt, source = request.prompt, request.source
        if not self.translates:
            if source is not None:
                raise RequestError(f"{self.spec.name} has no encoder: it reads a prompt only.", param="source")
            return replace(request, prompt=self.encode([prompt])[0]) if isinstance(prompt, str) else request
        if source is None:
            prompt, source = (), prompt
        if isinstance(source, str):
            (source,) = self.encode([source])
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("This model has no tokenizer: pass the prompt as token ids.", param="prompt")
            prompt = [*self._beginning(), *self.tokenizer.encode(prompt)]
        return replace(request, prompt=prompt or self._beginning(), source=source)

    def _beginning(self) -> tuple[int, ...]:
        if not self.begin:
            raise RequestError(
                "This model's decoder begins with an id of your choice, such as a language: pass it as the prompt, or "
                "set engine.begin.",
                param="prompt",
            )
        return self.begin

    def _checked(self, ids: Sequence[int] | str, param: str) -> list[int]:
        if not ids:
            raise RequestError(f"The {param} is empty: it needs at least one token.", param=param)
        if not all(type(token) is int for token in ids):
            raise RequestError(f"A {param} of ids must hold integers only.", param=param)
        tokens = [token for token in ids if isinstance(token, int)]
        if min(tokens) < 0 or max(tokens) >= self.spec.vocab:
            raise RequestError(f"The {param} has an id outside 0..{self.spec.vocab - 1}.", param=param)
        return tokens

    def _allowed(self, sampling: Sampling) -> Sampling:
        if sampling.choices > self.config.slots:
            param = "n" if sampling.best_of is None else "best_of"
            raise RequestError(
                f"{param} is {sampling.choices}, but this engine has {self.config.slots} slots.", param=param
            )
        if sampling.search is not None and sampling.rows > self.config.slots:
            width = sampling.search.width
            raise RequestError(
                f"{width}: this search needs {sampling.rows} slots, but this engine has {self.config.slots}.",
                param=width,
            )
        if sampling.stop and self.tokenizer is None:
            raise RequestError("This model has no tokenizer, so that there is no text to stop at.", param="stop")
        if sampling.constraint is not None:
            self.grammars.matcher(sampling.constraint)  # compiled here, where it may take its time
        self._check_ids(sampling)
        self._find_words(sampling)
        if not self.config.never:
            return sampling
        banned = (*sampling.banned_ids, *self.config.never)
        return sampling.model_copy(update={"banned_ids": banned})

    def _check_ids(self, sampling: Sampling) -> None:
        """Raise RequestError for an id that is none."""
        bad = [id for word in sampling.bad_words if not isinstance(word, str) for id in word]
        for param, ids in (
            ("logit_bias", sampling.logit_bias),
            ("stop_ids", sampling.stop_ids),
            ("allowed_ids", sampling.allowed_ids or ()),
            ("banned_ids", sampling.banned_ids),
            ("bad_words", bad),
            ("dry.breakers", sampling.dry.ids if sampling.dry else ()),
        ):
            if ids and max(ids) >= self.vocab:
                raise RequestError(f"{param} names an id outside 0..{self.vocab - 1}.", param=param)

    def _find_words(self, sampling: Sampling) -> None:
        """Look up texts in the vocabulary, here and not while others wait. Raises RequestError where there is none."""
        bad = tuple(word for word in sampling.bad_words if isinstance(word, str))
        breakers = () if sampling.dry is None else sampling.dry.texts
        if self.vocabulary is not None:
            for texts in filter(None, (bad, breakers)):
                self.vocabulary.words(texts)
        elif bad or (breakers and sampling.dry and sampling.dry.breakers):
            param = "bad_words" if bad else "dry.breakers"
            raise RequestError(
                f"This model has no tokenizer, so that there is no text: give {param} as ids.", param=param
            )


def _within(name: str, wanted: int | None, context: int) -> int:
    if wanted is not None and wanted > context:
        raise ConfigError(f"engine.{name}={wanted} is beyond the model's context of {context}.")
    return wanted or context


def _check_languages(spec: ModelSpec, config: EngineConfig) -> None:
    """Raise ConfigError for languages that the model does not know, or needs and is not told."""
    known = getattr(getattr(spec, "embed", None), "languages", 0)
    if config.languages is not None and any(not 0 <= language < known for language in config.languages):
        raise ConfigError(f"engine.languages={config.languages}: {spec.name} knows {known} languages, counted from 0.")
    needs = known and any(isinstance(sub.op, CrossAttention) and sub.op.languages > 1 for sub in spec.trunk.subs())
    if needs and config.languages is None:
        raise ConfigError(
            f"engine.languages: {spec.name} must be told the numbers of the languages it reads and writes."
        )
