"""What a person sees of the stages that do not train: a live count in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 5.0
# What a model writes must not steer the terminal: escape sequences and other controls are shown, not obeyed.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if c not in (9, 10)}


def console() -> Console:
    """Return the console on which progress is told: stderr, so that stdout stays what was asked for."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line about the run."""
    console().print(text.translate(_CONTROLS), markup=False)


def heading(text: str) -> None:
    """Print the name of a stage."""
    console().print(f"[bold]── {text}[/bold]")


class Working:
    """Counts what is being done: `with Working("reading", "MB", scale=1e6) as tick: tick(bytes)`."""

    def __init__(self, title: str, unit: str, *, scale: float = 1.0, total: float | None = None) -> None:
        self.title, self.unit, self.scale, self.total = title, unit, scale, total
        self.done = 0.0
        self._printed = self._started = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console(), transient=True, refresh_per_second=5)
            self._task = self._bar.add_task(title, total=total)

    def __call__(self, amount: float) -> None:
        """Add `amount` to what is done."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=self._text())
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            say(self._text())

    def _text(self) -> str:
        of = f" of {self.total / self.scale:,.0f}" if self.total else ""
        return f"{self.title}: {self.done / self.scale:,.0f}{of} {self.unit}"

    def __enter__(self) -> Working:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
