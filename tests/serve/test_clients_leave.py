"""The event loop stays free, clients that leave free what they held, and a shutdown lets answers end."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from etymon import serve
from etymon.engine import AsyncEngine, Event

CHAT = "/v1/chat/completions"
BASE = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What does json.dumps do?"}],
    "max_tokens": 150,
}
LONG = {**BASE, "ignore_eos": True}


def is_idle(service):
    seen = service.metrics()
    return (
        not service.engine.has_work
        and seen["etymon_choices_running"] == seen["etymon_requests_waiting"] == 0
        and seen["etymon_http_requests_in_flight"] == 0
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_leaving_frees_the_slots(start, held, eventually, stream, n):
    with start() as service, held(service.engine) as go:
        # The engine stands still, so the answer cannot have ended by itself when the client leaves.
        with pytest.raises(httpx.ReadTimeout), service.http as http:
            http.post(CHAT, json={**LONG, "stream": stream, "n": n}, timeout=0.3)
        eventually(lambda: service.metrics()["etymon_disconnects_total"] == 1)
        go.set()
        eventually(lambda: is_idle(service))
        seen = service.metrics()
        assert seen['etymon_choices_finished_total{reason="cancelled"}'] == n
        assert seen['etymon_choices_finished_total{reason="length"}'] == 0


def test_leaving_in_the_middle_of_a_stream(start, held, eventually):
    with start() as service:
        step = service.engine.step
        first_steps, go = threading.Semaphore(5), threading.Event()

        def five_steps_and_then_wait():
            if not first_steps.acquire(blocking=False):
                assert go.wait(60)
            return step()

        service.engine.step = five_steps_and_then_wait
        with service.http as http, http.stream("POST", CHAT, json={**LONG, "stream": True}) as answer:
            lines = answer.iter_lines()
            assert "assistant" in next(lines)
            assert next(line for line in lines if line).startswith("data: ")
        eventually(lambda: service.metrics()["etymon_disconnects_total"] == 1)
        go.set()
        eventually(lambda: is_idle(service))
        assert service.metrics()['etymon_choices_finished_total{reason="cancelled"}'] == 1
        assert service.metrics()["etymon_generated_tokens_total"] < 150


def test_leaving_a_request_of_many_prompts(start, held, eventually):
    with start(None, slots=2) as service, held(service.engine) as go:
        body = {"model": "tiny", "prompt": ["a", "b", "c", "d", "e"], "max_tokens": 100, "stream": True}
        with pytest.raises(httpx.ReadTimeout), service.http as http:
            http.post("/v1/completions", json=body, timeout=0.3)
        eventually(lambda: service.metrics()["etymon_disconnects_total"] == 1)
        go.set()
        eventually(lambda: is_idle(service))
        with service.http as http:
            assert http.post(CHAT, json=LONG).json()["usage"]["completion_tokens"] == 150


def test_many_come_and_many_leave(start, eventually):
    async def visit(client, number):
        try:
            body = {**LONG, "stream": number % 2 == 0, "seed": number, "n": 1 + number % 3}
            async with client.stream("POST", CHAT, json=body) as answer:
                async for _ in answer.aiter_lines():
                    if number % 3:
                        return
        except httpx.TimeoutException:
            pass

    async def crowd(url):
        timeout = httpx.Timeout(60, read=0.5)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=timeout) as client:
            await asyncio.gather(*(visit(client, number) for number in range(24)))

    with start() as service:
        asyncio.run(crowd(service.url))
        eventually(lambda: is_idle(service))
        with service.http as http:
            assert http.post(CHAT, json=LONG).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["event", "exception"])
def test_an_engine_that_fails_is_said_and_lives_on(start, stream, fault):
    with start() as service, service.http as http:
        step, steps = service.engine.step, []

        def fails_at_the_third():
            steps.append(1)
            events = step()
            if len(steps) != 3:
                return events
            if fault == "exception":
                raise RuntimeError("secret detail")
            service.engine.cancel(events[0].request)
            return [Event(events[0].request, 0, "", (), None, "error", "it broke")]

        service.engine.step = fails_at_the_third
        answer = http.post(CHAT, json={**LONG, "stream": stream})
        assert answer.status_code == (200 if stream else 500)
        data = [line for line in answer.text.splitlines() if line][-1].removeprefix("data: ")
        error = json.loads(data)["error"]
        assert error["type"] == "server_error"
        assert ("it broke" in error["message"]) == (fault == "event")
        assert "secret" not in answer.text
        if stream:
            steps.clear()
            with pytest.raises(openai.APIError):
                list(service.client.chat.completions.create(**{**BASE, "stream": True}))
        assert http.post(CHAT, json=LONG).status_code == 200


def test_health_answers_while_a_prompt_is_read(service, monkeypatch):
    reading, go = threading.Event(), threading.Event()
    render = service.parts.renderer.render

    def slow(*args, **kwargs):
        reading.set()
        assert go.wait(60)
        return render(*args, **kwargs)

    monkeypatch.setattr(service.parts.renderer, "render", slow)
    with service.http as http, service.http as other, ThreadPoolExecutor() as pool:
        answer = pool.submit(http.post, CHAT, json=LONG)
        assert reading.wait(30)
        assert other.get("/health").json() == {"status": "ok", "model": "tiny"}
        assert not answer.done()
        go.set()
        assert answer.result().status_code == 200


def read_stream(url):
    """Return the lines of a long answer, as far as they came."""
    lines = []
    try:
        with httpx.stream("POST", url + CHAT, json={**LONG, "stream": True}, timeout=60, trust_env=False) as answer:
            lines.extend(line for line in answer.iter_lines() if line)
    except httpx.RemoteProtocolError:  # cut
        pass
    return lines


@pytest.mark.parametrize(("drain_seconds", "whole"), [(60, True), (0, False)])
def test_shutdown_lets_answers_end_but_not_for_ever(parts, held, eventually, drain_seconds, whole):
    engine = parts.engine()
    app = serve.create_app(AsyncEngine(engine), parts.tokenizer, parts.renderer, serve.ServeConfig(model_name="tiny"))
    with ThreadPoolExecutor() as pool, held(engine) as go:
        with serve.running(app, drain_seconds=drain_seconds) as url:
            lines = pool.submit(read_stream, url)
            eventually(lambda: engine.has_work)
            # The block ends, and with it the service is told to stop, while the answer has yet to begin.
            threading.Timer(1.0, go.set).start()
        assert ("data: [DONE]" in lines.result()) == whole
        assert not engine.has_work
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", trust_env=False)
