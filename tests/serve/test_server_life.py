"""Binding, waiting, stopping: the service as a process."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest

import etymon
from etymon import serve
from etymon.engine import AsyncEngine
from etymon.errors import ConfigError, EtymonError

SCRIPT = """
import sys, torch, etymon
from etymon import serve
from etymon.engine import AsyncEngine, Engine
from etymon.text import Renderer

torch.set_num_threads(1)
model, tokenizer = etymon.load(sys.argv[1])
serve.run(AsyncEngine(Engine(model, tokenizer)), tokenizer, Renderer(tokenizer),
          serve.ServeConfig(port=0, model_name="tiny"), announce=lambda url: print(url, flush=True))
print("stopped", flush=True)
"""


@pytest.mark.parametrize("sign", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_saved_model_is_served_and_a_signal_drains(parts, learnt, tmp_path, sign):
    etymon.save(parts.model, parts.tokenizer, tmp_path / "model", format="hf")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        serve.wait_until_ready(url)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "你好"}]
        answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
        assert answer.choices[0].message.content == learnt["你好"]
        # A stream is under way when the signal comes: it ends whole.
        lines: queue.Queue[str] = queue.Queue()

        def read():
            body = {"model": "tiny", "messages": messages, "max_tokens": 150, "stream": True, "ignore_eos": True}
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as stream:
                for line in stream.iter_lines():
                    if line:
                        lines.put(line)

        reader = threading.Thread(target=read)
        reader.start()
        lines.get(timeout=30)
        process.send_signal(sign)
        reader.join(30)
        assert list(lines.queue)[-1] == "data: [DONE]"
        out, err = process.communicate(timeout=30)
        assert (out, err, process.returncode) == ("stopped\n", "", 0)
    finally:
        process.kill()
        process.wait()


def test_address_that_cannot_be_had(parts):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*another port"):
            serve.run(AsyncEngine(parts.engine()), parts.tokenizer, parts.renderer, serve.ServeConfig(port=port))
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        serve.run(AsyncEngine(parts.engine()), parts.tokenizer, parts.renderer, serve.ServeConfig(host="192.0.2.1"))
    with pytest.raises(ConfigError, match=r"nowhere\.invalid"):
        serve.run(
            AsyncEngine(parts.engine()), parts.tokenizer, parts.renderer, serve.ServeConfig(host="nowhere.invalid")
        )


def test_waiting_ends():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
    with pytest.raises(EtymonError, match=rf"127.0.0.1:{port} was not ready within 0.2 s"):
        serve.wait_until_ready(f"http://127.0.0.1:{port}", timeout=0.2)


def test_loopback_is_the_default():
    assert serve.ServeConfig().host == "127.0.0.1"
    assert serve.ServeConfig().hosts == {"localhost", "127.0.0.1", "::1"}


def test_an_application_that_cannot_start():
    async def broken(scope, receive, send):
        raise RuntimeError("no")

    with pytest.raises(EtymonError, match="could not start"), serve.running(broken):
        pass
