"""The proof that a run ends in a service: the real server on a free port, asked as its users would ask it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx

import etymon
from etymon.engine import AsyncEngine, Engine, EngineConfig
from etymon.errors import EtymonError
from etymon.serve import ServeConfig, create_app, running, wait_until_ready
from etymon.text import Renderer

TIMEOUT = 120.0


def check_service(
    checkpoint: Path, engine: EngineConfig, serve: ServeConfig, question: str, max_tokens: int = 32
) -> dict[str, Any]:
    """Serve `checkpoint` on a free port, put `question` to it by HTTP and by OpenAI's client; return what happened.

    `ok` is False, with the `error`, where it did not answer. A model without a chat template continues the text.
    """
    started = time.perf_counter()
    messages = [{"role": "user", "content": question}]
    result: dict[str, Any] = {"ok": False, "model": serve.model_name, "messages": messages}
    key = serve.api_keys[0].get_secret_value() if serve.api_keys else None
    try:
        model, tokenizer = etymon.load(checkpoint)
        if tokenizer is None:
            raise EtymonError(f"{checkpoint} carries no tokenizer, so it cannot be served.")
        renderer = Renderer(tokenizer) if tokenizer.chat_template is not None else None
        app = create_app(AsyncEngine(Engine(model, tokenizer, engine)), tokenizer, renderer, serve)
        with running(app) as url:
            wait_until_ready(url)
            result["seconds_to_ready"] = time.perf_counter() - started
            result |= _ask(url, key, serve.model_name, messages, max_tokens, chat=renderer is not None)
            if renderer is not None:
                result["openai_client"] = _ask_with_client(url, key, serve.model_name, messages, max_tokens)
        result["ok"] = True
    except (EtymonError, httpx.HTTPError, OSError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    return result


def _ask(
    url: str, key: str | None, model: str, messages: list[dict[str, str]], max_tokens: int, *, chat: bool
) -> dict[str, Any]:
    """Ask once, streaming, and time it."""
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    body |= {"messages": messages} if chat else {"prompt": messages[-1]["content"]}
    route = "/v1/chat/completions" if chat else "/v1/completions"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    pieces: list[str] = []
    tokens, first = 0, None
    start = time.perf_counter()
    with (
        httpx.Client(trust_env=False, timeout=TIMEOUT, headers=headers) as client,
        client.stream("POST", url + route, json=body) as answer,
    ):
        if answer.status_code != 200:
            answer.read()
            raise EtymonError(f"the service answered {answer.status_code}: {answer.text[:300]}")
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise EtymonError(f"the service failed while it answered: {event['error']}")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                piece = choice["delta"].get("content") if chat else choice["text"]
                if piece:
                    first = first or time.perf_counter()
                    pieces.append(piece)
    end = time.perf_counter()
    result: dict[str, Any] = {"answer": "".join(pieces), "seconds": end - start}
    if first is not None:
        result["seconds_to_first_token"] = first - start
        if tokens > 1 and end > first:
            result["tokens_per_second"] = (tokens - 1) / (end - first)
    return result


def _ask_with_client(
    url: str, key: str | None, model: str, messages: list[dict[str, str]], max_tokens: int
) -> str | None:
    """Return the answer that OpenAI's own client got, None where it is not installed."""
    try:
        import openai
    except ImportError:
        return None
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key or "none", timeout=TIMEOUT, max_retries=0) as client:
            chat: Any = client.chat.completions
            answer = chat.create(model=model, messages=messages, max_tokens=max_tokens, temperature=0)
    except openai.OpenAIError as error:
        raise EtymonError(f"OpenAI's client was refused: {error}") from None
    return str(answer.choices[0].message.content)
