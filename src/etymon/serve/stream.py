"""Answers that flow: server-sent events, several engine streams as one, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class ClientLeft(Exception):
    """The client closed its connection; what was done for it has been cancelled."""


async def unless_client_leaves(receive: Receive, work: Awaitable[T]) -> T:
    """Return what `work` returns; cancel it and raise `ClientLeft` when the client disconnects first.

    The request's body must have been read: from then on the only message left is the disconnection.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yield `(which stream, item)` as items come; the first fault ends all, and closing this closes every stream."""
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()

    async def pump(which: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    queue.put_nowait((which, item))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def to_json(value: Any) -> bytes:
    """Return compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def sse(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


class EventStream(Response):
    """Sends `events` (encoded server-sent events) as they come; when it ends, for whatever reason, closes `source`."""

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, events: AsyncGenerator[bytes, None], source: AsyncGenerator[Any, None]
    ) -> None:
        # Proxies that buffer would turn a stream into one late answer.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        # `source` is closed by itself too: a generator that never began, as `events` may be, closes nothing.
        self._request, self._events, self._source = request, events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer over ASGI. Raises `ClientLeft`."""

        async def pump() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async with aclosing(self._source), aclosing(self._events):
            await unless_client_leaves(self._request.receive, pump())


async def chain(first: T, rest: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Yield `first` and then the rest."""
    yield first
    async for item in rest:
        yield item
