"""The HTTP service: OpenAI's routes over one engine, health, metrics and the chat page."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from etymon import __version__
from etymon.engine import AsyncEngine
from etymon.serve.config import ServeConfig
from etymon.serve.door import Door, read_body, refusal
from etymon.serve.generate import Reader, chunks, events, unknown_model, whole
from etymon.serve.metrics import CONTENT_TYPE, Metrics, exposition
from etymon.serve.openai import ApiError, ChatRequest, CompletionRequest
from etymon.serve.stream import EventStream, chain, to_json, unless_client_leaves
from etymon.text import Renderer, Tokenizer

_PAGE = {"chat.css": "text/css", "chat.js": "text/javascript"}
_ROUTES = ("/", "/page", "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")
# Few, so that long prompts queue here rather than crowd out the engine's thread.
_READING_AT_ONCE = 2


def create_app(
    async_engine: AsyncEngine, tokenizer: Tokenizer, renderer: Renderer | None, config: ServeConfig | None = None
) -> FastAPI:
    """Return the service over `async_engine`, which starts and stops with it.

    `renderer` is None for a model without a chat template: chat requests are then refused in words.
    """
    config = config or ServeConfig()
    service = _Service(async_engine, tokenizer, renderer, config)
    # The interactive docs of FastAPI load scripts from elsewhere; docs/serve.md describes the routes.
    app = FastAPI(
        title="etymon", version=__version__, lifespan=service.life, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.get("/health")(service.health)
    app.head("/health")(service.health)
    app.get("/metrics")(service.metrics_text)
    app.get("/v1/models")(service.models)
    app.get("/v1/models/{name:path}")(service.model)
    app.post("/v1/completions")(service.completions)
    app.post("/v1/chat/completions")(service.chat_completions)
    app.get("/")(service.page)
    app.get("/page/{name}")(service.page_file)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(Door, config=config, metrics=service.metrics, routes=_ROUTES)
    return app


class _Service:
    """What the routes share: the engine, the words of its model, the settings and the counts."""

    def __init__(
        self, engine: AsyncEngine, tokenizer: Tokenizer, renderer: Renderer | None, config: ServeConfig
    ) -> None:
        self.engine, self.tokenizer, self.config = engine, tokenizer, config
        self.reader = Reader(engine.engine, tokenizer, renderer, config)
        self.threads = ThreadPoolExecutor(_READING_AT_ONCE, "etymon-read")
        self.metrics = Metrics()
        self.created = int(time.time())
        identity = f"{__version__}\0{config.model_name}\0{renderer.hash if renderer else tokenizer.fingerprint}"
        self.fingerprint = "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12]
        folder = resources.files("etymon.serve") / "page"
        self.html = (folder / "index.html").read_bytes()
        self.files = {name: (folder / name).read_bytes() for name in _PAGE}

    @asynccontextmanager
    async def life(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the engine with the service and stop it after the last answer."""
        await self.engine.start()
        try:
            yield
        finally:
            await self.engine.stop()
            self.threads.shutdown(wait=False, cancel_futures=True)

    # --- OpenAI's routes

    async def completions(self, request: Request) -> Response:
        return await self._answer(CompletionRequest, request)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(ChatRequest, request)

    async def _answer(self, kind: type[ChatRequest] | type[CompletionRequest], request: Request) -> Response:
        body = await read_body(request, self.config)
        job = await asyncio.get_running_loop().run_in_executor(self.threads, self.reader.read, kind, body)
        reply = job.reply(self.fingerprint)
        flow = events(job, self.engine)
        if not job.request.stream:
            async with aclosing(flow):
                answer = whole(job, flow, reply, self.tokenizer)
                return _json(await unless_client_leaves(request.receive, answer))
        try:
            # The status is sent with the first event: until then a refusal can still be a 4xx.
            first = await unless_client_leaves(request.receive, anext(flow))
        except BaseException:
            await flow.aclose()
            raise
        return EventStream(request, chunks(job, chain(first, flow), reply, self.tokenizer), flow)

    async def models(self) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        if name != self.config.model_name:
            raise unknown_model(name, self.config)
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.config.model_name, "object": "model", "created": self.created, "owned_by": "etymon"}

    # --- ours

    async def health(self) -> Response:
        return _json({"status": "ok", "model": self.config.model_name})

    async def metrics_text(self) -> Response:
        return Response(exposition(self.metrics, self.engine.metrics), media_type=CONTENT_TYPE)

    async def page(self) -> Response:
        return _file(self.html, "text/html")

    async def page_file(self, name: str) -> Response:
        if name not in self.files:
            raise HTTPException(404)
        return _file(self.files[name], _PAGE[name])


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _file(data: bytes, media_type: str) -> Response:
    return Response(data, headers={"Cache-Control": "no-cache"}, media_type=media_type)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message, code = (
            f"{request.method} does not work on {request.url.path[:200]}; use {allowed}.",
            "method_not_allowed",
        )
    else:
        message, code = f"There is nothing at {request.method} {request.url.path[:200]}.", "unknown_url"
    return refusal(ApiError(message, status=error.status_code, code=code, headers=dict(error.headers or {})))
