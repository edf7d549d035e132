"""From a request's body to engine requests, and from engine events to OpenAI's answers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from etymon.engine import AsyncEngine, Completion, Engine, Event, Grammar, Request, Sampling, Thought, TokenLogprob
from etymon.errors import RenderError, RequestError, TokenizerError
from etymon.serve.adapters import adapter_of
from etymon.serve.config import ServeConfig
from etymon.serve.openai import (
    ApiError,
    ChatReply,
    ChatRequest,
    CompletionReply,
    CompletionRequest,
    Reply,
    TokenEntry,
    arguments_as_text,
    messages,
    parse,
    usage,
)
from etymon.serve.sampling import field_of
from etymon.serve.stream import merge, sse, to_json
from etymon.text import AnswerParser, Rendered, Renderer, Tokenizer

_log = logging.getLogger("etymon.serve")


@dataclass(frozen=True)
class Job:
    """What one HTTP request asks of the engine: one engine request per prompt, all sampled alike."""

    request: ChatRequest | CompletionRequest
    prompts: list[list[int]]
    sampling: Sampling
    adapter: str | None = None
    tenant: str = ""
    echo: list[str] = field(default_factory=list)
    """The prompts' texts, where the answer shall begin with them."""
    parser: Callable[[], AnswerParser] = lambda: AnswerParser(None, None)
    """Makes what takes an answer's text apart."""
    prefix: int | None = None
    """How many ids of a conversation come before its first reply."""

    @property
    def requests(self) -> list[Request]:
        """What the engine is asked. Tenants, and salts of a tenant's own, share nothing."""
        asked, salt = self.request, ""
        if self.tenant or asked.cache_salt:
            salt = hashlib.sha256(f"{self.tenant}\0{asked.cache_salt}".encode()).hexdigest()
        return [
            Request(ids, self.sampling, priority=asked.priority, salt=salt, adapter=self.adapter, prefix=self.prefix)
            for ids in self.prompts
        ]

    @property
    def choices(self) -> int:
        """How many choices the answer has."""
        return len(self.prompts) * self.request.n

    @property
    def prompt_field(self) -> str:
        """The request's field that the prompts come from."""
        return "messages" if isinstance(self.request, ChatRequest) else "prompt"

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; a prompt counts once however many choices it has."""
        return sum(map(len, self.prompts))

    def reply(self, fingerprint: str) -> Reply:
        """Return the envelope of this job's answer."""
        if isinstance(self.request, ChatRequest):
            return ChatReply(self.request.model, fingerprint, parser=self.parser)
        return CompletionReply(self.request.model, fingerprint)


# Text normalisers shorten what people write, but hardly by more than this (full-width letters: three bytes to one).
_SHRINKS_BY = 4


class Reader:
    """Turns bodies into jobs. It takes as long as their text is: call it off the event loop, from any thread."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, renderer: Renderer | None, config: ServeConfig) -> None:
        self._engine, self._tokenizer, self._renderer, self._config = engine, tokenizer, renderer, config
        longest = max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))
        self.most_bytes = engine.context * longest * _SHRINKS_BY

    def read(self, kind: type[ChatRequest] | type[CompletionRequest], body: bytes, tenant: str = "") -> Job:
        """Parse, render, tokenise and check the body of a tenant's request. Raises `ApiError`."""
        request = parse(kind, body)
        adapter = adapter_of(request.model, self._config, self._engine)
        at_most("n", request.n, self._config.max_n)
        at_most("best_of", request.best_of or 1, self._config.max_n)
        at_most("num_beams", request.num_beams or 1, self._config.max_n)
        sampling = _sampling(request, self._config)
        try:
            field, form = request.form()
        except RequestError as error:
            raise refused(error) from None
        if isinstance(request, ChatRequest):
            job = self._chat(request, sampling, form)
            field = "tools" if request.described else field
        else:
            job = self._completion(request, sampling.model_copy(update={"constraint": form}))
        job = replace(job, adapter=adapter, tenant=tenant)
        fields = {"prompt": job.prompt_field, "constraint": field, "prompt_logprobs": "prompt"}
        try:
            for asked in job.requests:
                self._engine.prepare(asked)
        except RequestError as error:
            raise refused(error, fields.get(error.param or "")) from None
        if request.stream and sampling.choices > request.n:
            raise ApiError("'best_of' above 'n' cannot be streamed: the best is known at the end.", param="best_of")
        return job

    def _chat(self, request: ChatRequest, sampling: Sampling, form: Grammar | None) -> Job:
        """Return the job of a conversation: what its answer may be, and how it is taken apart."""
        rendered = self._conversation(request)
        assert self._renderer is not None
        try:
            calls = request.calls(self._renderer.calls, form)
        except RequestError as error:
            raise refused(error) from None
        markers, opened = self._renderer.reasoning, False
        if markers is not None:
            before = rendered.text.rstrip()
            opened = before.endswith(markers.begin)
            markers = None if before.endswith(markers.end) else markers  # the template has closed the block already
        constraint = calls or form
        if constraint is not None and markers is not None:
            constraint = Thought(markers, constraint, opened)
        pieces = [*(astuple(markers) if markers else ()), *(astuple(calls.format) if calls else ())]
        special = self._renderer.tokenizer.special.items()
        shown = tuple(id for name, id in special if any(name in piece for piece in pieces))
        sampling = sampling.model_copy(update={"constraint": constraint, "shown": shown})
        format = calls.format if calls else None
        return Job(
            request,
            [rendered.ids],
            sampling,
            parser=lambda: AnswerParser(markers, format, opened=opened),
            prefix=rendered.prefix,
        )

    def _conversation(self, request: ChatRequest) -> Rendered:
        if self._renderer is None:
            raise ApiError(
                "This model has no chat template; use /v1/completions.", param="messages", code="chat_not_supported"
            )
        at_most("messages", len(request.messages), self._config.max_messages, "messages")
        conversation = messages(request)
        tools = request.described
        texts = [message["content"].encode() + to_json(message.get("tool_calls", "")) for message in conversation]
        self._fits("messages", sum(map(len, texts)))
        self._fits("tools", len(to_json(tools)) if tools else 0)
        try:
            try:
                return self._renderer.render(conversation, add_generation_prompt=True, tools=tools)
            except RenderError:
                if not any("tool_calls" in message for message in conversation):
                    raise
                written = arguments_as_text(conversation)  # some templates expect them so
                return self._renderer.render(written, add_generation_prompt=True, tools=tools)
        except (RenderError, TokenizerError) as error:
            raise ApiError(str(error), param="messages") from None

    def _completion(self, request: CompletionRequest, sampling: Sampling) -> Job:
        if request.echo and request.logprobs is not None and request.stream:
            raise ApiError("'echo' with 'logprobs' cannot be streamed.", param="echo", code="unsupported")
        prompts = request.prompts
        at_most("prompt", len(prompts), self._config.max_prompts, "prompts")
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        for text in texts:
            self._fits("prompt", len(text.encode()))
        try:
            ids = self._engine.encode(texts) + [prompt for prompt in prompts if not isinstance(prompt, str)]
            echo = (texts or [self._tokenizer.decode(prompt, skip_special=False) for prompt in ids]) * request.echo
        except TokenizerError as error:
            raise ApiError(str(error), param="prompt") from None
        return Job(request, ids, sampling, echo=echo)

    def _fits(self, param: str, size: int) -> None:
        """Refuse what cannot fit the context, however it is tokenised, before time is spent on tokenising it."""
        if size > self.most_bytes:
            raise ApiError(
                f"The prompt has {size} bytes of text; the context holds {self._engine.context} tokens for prompt and "
                "answer together: shorten the prompt.",
                param=param,
                code="context_length_exceeded",
            )


def _sampling(request: ChatRequest | CompletionRequest, config: ServeConfig) -> Sampling:
    if isinstance(request, ChatRequest):
        limit, max_tokens = request.limit
        max_tokens = config.default_max_tokens if max_tokens is None else max_tokens
        logprobs_field, logprobs = "top_logprobs", (request.top_logprobs or 0) if request.logprobs else None
    else:
        limit, max_tokens, logprobs_field, logprobs = "max_tokens", request.max_tokens, "logprobs", request.logprobs
    of_prompt = logprobs if isinstance(request, CompletionRequest) and request.echo else None
    try:
        return request.sampling(max_tokens, logprobs, of_prompt)
    except RequestError as error:
        renamed = {"max_tokens": limit, "logprobs": logprobs_field}
        raise refused(error, renamed.get(error.param or "")) from None


_BUSY = ("engine_overloaded", "engine_stopped")


def refused(error: RequestError, param: str | None = None) -> ApiError:
    """Return the engine's refusal as an answer."""
    if isinstance(error, ApiError):
        return error
    if error.code in _BUSY:
        retry = {"Retry-After": "1"}
        return ApiError(str(error), status=503, type="server_error", code=error.code, headers=retry)
    field = param or (None if error.param is None else field_of(error.param))
    message = str(error)
    if error.param and field and message.startswith(error.param):
        message = field + message.removeprefix(error.param)
    return ApiError(message, param=field, code=error.code or "invalid_value")


def at_most(param: str, value: int, limit: int, what: str = "") -> None:
    """Raise `ApiError` where a request asks for more than the service gives."""
    if value > limit:
        what = f" {what}" if what else ""
        raise ApiError(f"{param}: at most {limit}{what} are allowed (got {value}).", param=param, code="invalid_value")


async def events(job: Job, engine: AsyncEngine) -> AsyncGenerator[tuple[int, Event], None]:
    """Run `job`; yield `(choice, event)` as they come. Closing this cancels what still runs.

    Raises `ApiError` where the engine refuses or fails.
    """
    try:
        streams = [engine.stream(asked) for asked in job.requests]
        async with aclosing(merge(streams)) as merged:
            async for which, event in merged:
                if event.finish == "error":
                    raise ApiError(event.error or "The engine failed.", status=500, type="server_error")
                if event.finish == "cancelled":
                    raise ApiError(
                        "The service is shutting down.", status=503, type="server_error", code="shutting_down"
                    )
                yield which * job.sampling.choices + event.index, event
    except RequestError as error:
        raise refused(error) from None
    except Exception:
        _log.exception("the engine failed")
        raise ApiError("The engine failed; its log has the details.", status=500, type="server_error") from None


async def whole(job: Job, flow: AsyncIterator[tuple[int, Event]], reply: Reply, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the answer in one piece."""
    parts: list[list[Event]] = [[] for _ in job.prompts]
    async for choice, event in flow:
        parts[choice // job.sampling.choices].append(event)
    done = [Completion.collect(events, asked) for events, asked in zip(parts, job.requests, strict=True)]
    made = [(completion, choice) for completion in done for choice in completion.choices]
    choices = []
    for i, (opening, (completion, answer)) in enumerate(zip(_openings(job, reply), made, strict=True)):
        entries = _entries(answer.logprobs, tokenizer)
        if completion.prompt_logprobs is not None:
            entries = _prompt_entries(job.prompts[i // job.request.n], completion, tokenizer) + (entries or [])
        choices.append(reply.choice(i, opening + answer.text, entries, answer.finish))
    return reply.body(choices, usage(job.prompt_tokens, sum(part.usage.completion_tokens for part in done)))


async def chunks(
    job: Job, flow: AsyncIterator[tuple[int, Event]], reply: Reply, tokenizer: Tokenizer
) -> AsyncGenerator[bytes, None]:
    """Yield the answer as server-sent events; a failure on the way becomes an event with OpenAI's error object."""
    # With include_usage every chunk has the field, and the last one its value.
    extra = {"usage": None} if job.request.include_usage else {}
    tokens = 0
    for i, text in enumerate(_openings(job, reply)):
        for choice in reply.opening(i, text):
            yield sse(reply.chunk([choice]) | extra)
    try:
        async for i, event in flow:
            tokens += len(event.ids)
            for choice in reply.delta(i, event.text, _entries(event.logprobs, tokenizer), event.finish):
                yield sse(reply.chunk([choice]) | extra)
    except ApiError as error:
        yield sse(error.body())
        return
    if job.request.include_usage:
        yield sse(reply.chunk([]) | {"usage": usage(job.prompt_tokens, tokens)})
    yield b"data: [DONE]\n\n"


def _openings(job: Job, reply: Reply) -> list[str]:
    """Return what each choice's text starts with: nothing, or its echoed prompt."""
    if not job.echo:
        return [""] * job.choices
    return [job.echo[i // job.request.n] for i in range(job.choices)]


def _prompt_entries(ids: list[int], completion: Completion, tokenizer: Tokenizer) -> list[TokenEntry]:
    """Return the entries of an echoed prompt."""
    told = completion.prompt_logprobs or []
    scored = _entries([entry for entry in told if entry is not None], tokenizer) or []
    return [TokenEntry(tokenizer.token_bytes(id), None) for id in ids[: len(ids) - len(scored)]] + scored


def _entries(logprobs: Sequence[TokenLogprob] | None, tokenizer: Tokenizer) -> list[TokenEntry] | None:
    if logprobs is None:
        return None
    return [
        TokenEntry(
            tokenizer.token_bytes(token.id),
            token.logprob,
            [(tokenizer.token_bytes(id), logprob) for id, logprob in token.top],
        )
        for token in logprobs
    ]
