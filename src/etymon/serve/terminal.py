"""The chat in a terminal, straight on the engine: what `etymon chat` runs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

from etymon.engine import Engine, Request, Sampling
from etymon.errors import EtymonError, suggest
from etymon.text import Renderer

_HELP = """[bold]/new[/]              a new conversation
[bold]/system TEXT[/]      a system prompt and a new conversation; without text: forget it
[bold]/temperature 0.7[/]  how freely words are chosen; 0 always takes the likeliest
[bold]/max 256[/]          the longest answer in tokens; without a number: no limit
[bold]/exit[/]             leave, as Ctrl-D does; Ctrl-C stops an answer
A line that ends with \\ goes on in the next."""
# What a model writes must not steer the terminal: escape sequences and other controls are shown, not obeyed.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if c not in (9, 10)}


def chat(
    engine: Engine,
    renderer: Renderer,
    *,
    sampling: Sampling | None = None,
    system: str | None = None,
    console: Console | None = None,
    read: Callable[[str], str] = input,
) -> None:
    """Talk with the model until `/exit` or the end of the input.

    `read` is given a prompt and returns a line, as `input` does. Faults in a message are printed and the conversation
    goes on.
    """
    with suppress(ImportError):  # line editing and history for `input`, where the platform has them
        import readline  # noqa: F401
    _Chat(engine, renderer, sampling or Sampling(temperature=0.7), system, console or Console(highlight=False)).run(
        read
    )


@dataclass
class _Chat:
    engine: Engine
    renderer: Renderer
    sampling: Sampling
    system: str | None
    console: Console
    turns: list[dict[str, str]] = field(default_factory=list)

    def run(self, read: Callable[[str], str]) -> None:
        self._note("Type a message, or /help. Ctrl-C stops an answer, Ctrl-D leaves.")
        while True:
            try:
                line = _read(read, self.console.is_terminal)
            except EOFError:
                return
            except KeyboardInterrupt:
                self._note("\nCtrl-D or /exit leaves.")
                continue
            try:
                if line.startswith("/"):
                    if self._command(*line[1:].partition(" ")[::2]):
                        return
                elif line:
                    self._turn(line)
            except EtymonError as error:
                self._say(f"[red]{escape(str(error))}[/]")

    def _command(self, name: str, value: str) -> bool:
        """Obey a command; return whether it was to leave."""
        value = value.strip()
        match name:
            case "exit" | "quit":
                return True
            case "help" | "":
                self._say(_HELP)
            case "new":
                self.turns.clear()
                self._note("A new conversation.")
            case "system":
                self.system = value or None
                self.turns.clear()
                self._note(f"System prompt {'set' if value else 'forgotten'}; a new conversation.")
            case "temperature":
                self._set("temperature", _number(float, name, value) if value else self.sampling.temperature)
            case "max":
                self._set("max_tokens", _number(int, name, value) if value else None)
            case _:
                known = ("new", "system", "temperature", "max", "help", "exit")
                raise EtymonError(f"There is no command /{name}.{suggest(name, known)} /help lists them.")
        return False

    def _set(self, name: str, value: Any) -> None:
        self.sampling = Sampling(**{**self.sampling.model_dump(), name: value})
        self._note(f"{name} is {'unlimited' if value is None else value}.")

    def _turn(self, line: str) -> None:
        turns = [*self.turns, {"role": "user", "content": line}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        prompt = self.renderer.render([*system, *turns], add_generation_prompt=True)
        answer, whole = self._answer(Request(prompt.ids, self.sampling, prefix=prompt.prefix))
        if answer or whole:
            self.turns = [*turns, {"role": "assistant", "content": answer}]

    def _answer(self, request: Request) -> tuple[str, bool]:
        """Print the answer as it comes; return it, and whether it was not stopped."""
        number = self.engine.submit(request)
        pieces: list[str] = []
        tokens, first, finish = 0, 0.0, None
        with _interruptible() as stopped:
            while finish is None:
                if stopped.is_set():
                    self.engine.cancel(number)
                for event in self.engine.step():
                    if event.request != number:
                        continue
                    first = first or time.perf_counter()
                    tokens += len(event.ids)
                    pieces.append(event.text)
                    self._stream(event.text)
                    finish = event.finish
                    if finish == "error":
                        self._say("")
                        raise EtymonError(f"The answer failed: {event.error}.")
        speed = (tokens - 1) / max(time.perf_counter() - first, 1e-9)
        notes = [f"{tokens} tokens"] + [f"{speed:.1f} tokens/s"] * (tokens > 1)
        notes += {"length": ["cut at the longest answer"], "cancelled": ["stopped"]}.get(finish, [])
        self._say("")
        self._note(" · ".join(notes))
        return "".join(pieces), finish != "cancelled"

    def _stream(self, text: str) -> None:
        self.console.print(text.translate(_CONTROLS), end="", markup=False, highlight=False, soft_wrap=True)

    def _note(self, text: str) -> None:
        """Say something about the chat; where nobody sits at the terminal (a pipe), only answers are printed."""
        if self.console.is_terminal:
            self.console.print(text, style="dim", markup=False, highlight=False)

    def _say(self, markup: str) -> None:
        self.console.print(markup, highlight=False)


def _read(read: Callable[[str], str], terminal: bool) -> str:
    """Return a message: one line, or several where lines end with a backslash."""
    line = read("\n> " if terminal else "")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read(". " if terminal else "")
    # Bytes that are not UTF-8 arrive as lone surrogates, which no tokenizer can carry.
    return line.encode("utf-8", "replace").decode("utf-8").strip()


def _number(kind: type[float] | type[int], name: str, value: str) -> float:
    try:
        return kind(value)
    except ValueError:
        raise EtymonError(f"/{name} wants a number, not {value!r}.") from None


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event, so that it falls between two steps of the engine and never inside one."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield stopped
        return
    before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
