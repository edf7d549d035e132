"""What a person sees while a run goes on: a live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from etymon.train.metrics import Row

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows how far a run is, on stderr. A context manager; `update` is cheap enough for every step."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self._bar: Bar | None = None
        self._printed = 0.0
        if sys.stderr.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
                console=Console(stderr=True),
                refresh_per_second=2,
            )
            self._task = self._bar.add_task(title, total=total, text="")

    def update(self, step: int, text: str) -> None:
        """Show that `step` updates are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES or step == self.total:
            self._printed = time.monotonic()
            self.say(f"{self.title} {step}/{self.total} {text}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(row: Row, seconds_left: float) -> str:
    """Return the line about one step: loss, rate, speed, utilisation, memory, time left."""
    parts = [f"loss {row['loss']:.4f}", f"lr {row['lr']:.2e}", f"{row['tokens_per_second']:,.0f} tok/s"]
    if row.get("mfu") is not None:
        parts.append(f"MFU {row['mfu']:.0%}")
    memory = row["memory_bytes"]
    assert isinstance(memory, int)
    return "  ".join([*parts, f"{memory / 2**30:.2f} GiB", f"{clock(seconds_left)} left"])


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)
