"""SIGINT and SIGTERM end a run between two steps, not within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from etymon.train.progress import say


class Signals:
    """Remembers the first SIGINT or SIGTERM, so that a step ends whole; a second one ends the process at once."""

    def __init__(self) -> None:
        self.caught = ""
        self._before: dict[int, object] = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = signal.Signals(number).name
        say(f"{self.caught}: finishing this step and writing a checkpoint (again: stop at once)")

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self._before = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
