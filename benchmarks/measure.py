"""Measuring beside a peer: interleaved samples, their medians and ratios, and how busy the machine was with others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """A stretch of wall time; `foreign` is how many cores other processes kept busy in it."""

    seconds: float
    foreign: float


class Stopwatch:
    """Starts when it is made. Foreign load is all that the machine did less what this process and its children did."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._busy, self._own = _busy_seconds(), self._own_seconds()
        self._start = time.perf_counter()

    def stop(self) -> Span:
        """Return the time since the start; may be called more than once."""
        seconds = time.perf_counter() - self._start
        foreign = (_busy_seconds() - self._busy) - (self._own_seconds() - self._own)
        return Span(seconds, max(0.0, foreign) / seconds)

    def _own_seconds(self) -> float:
        t = self._process.cpu_times()
        return t.user + t.system + getattr(t, "children_user", 0.0) + getattr(t, "children_system", 0.0)


def _busy_seconds() -> float:
    t = psutil.cpu_times()
    return sum(t) - t.idle - getattr(t, "iowait", 0.0) - getattr(t, "guest", 0.0) - getattr(t, "guest_nice", 0.0)


@dataclass(frozen=True)
class Sample:
    """One measurement of one contestant in one round."""

    value: float
    seconds: float
    foreign: float


@dataclass(frozen=True)
class Timed:
    """What a contestant is worth who holds the clock itself: an amount in some seconds of its turn."""

    amount: float
    seconds: float


@dataclass
class Rounds:
    """What each contestant reached in each round, in `unit`. A round holds one sample of everybody, taken in turn."""

    unit: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, name: str, value: float, span: Span) -> None:
        """Record a sample of `name` in the current round."""
        self.samples.setdefault(name, []).append(Sample(value, span.seconds, span.foreign))

    def values(self, name: str) -> list[float]:
        """Return the values of a contestant, by round."""
        return [sample.value for sample in self.samples[name]]

    def ratios(self, ours: str, theirs: str) -> list[float]:
        """Return ours / theirs within each round, so that what the machine did meanwhile cancels out."""
        return [a / b for a, b in zip(self.values(ours), self.values(theirs), strict=True)]

    @property
    def foreign(self) -> float:
        """The mean number of cores that others kept busy, weighted by time."""
        samples = [sample for row in self.samples.values() for sample in row]
        return sum(s.foreign * s.seconds for s in samples) / sum(s.seconds for s in samples)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@contextlib.contextmanager
def realtime_class() -> Iterator[None]:
    """Run all threads of this process before those of others (SCHED_FIFO; Linux, as root), until the end."""
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    before = {thread: (os.sched_getscheduler(thread), os.sched_getparam(thread)) for thread in threads}
    try:
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(10))
        yield
    finally:
        for thread, (policy, parameter) in before.items():
            os.sched_setscheduler(thread, policy, parameter)


def interleave(
    unit: str, contestants: Mapping[str, Callable[[], float | Timed]], rounds: int, *, realtime: bool = False
) -> Rounds:
    """Call everybody in turn, `rounds` times after one round that does not count.

    A contestant does its work and returns what it is worth: amounts (tokens) become amounts per second; 0 means that
    the seconds themselves are the value, and of what is Timed, only these seconds count. With `realtime`, nobody else
    runs during a sample that counts.
    """
    result = Rounds(unit)
    for number in range(rounds + 1):
        for name, work in contestants.items():
            with realtime_class() if realtime and number else contextlib.nullcontext():
                clock = Stopwatch()
                amount = work()
                span = clock.stop()
            if number:
                worth = amount if isinstance(amount, Timed) else Timed(amount, span.seconds)
                result.add(name, worth.amount / worth.seconds if worth.amount else worth.seconds, span)
    return result


def spread(values: list[float], digits: int = 2) -> str:
    """Return "median (lowest – highest)"."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def alone(work: Callable[..., T], *given: Any) -> T:
    """Return `work(*given)`, done in a process of its own, where nothing is resident from before.

    There, what is freed is not resident either: glibc otherwise keeps some of it, now more, now less.
    """
    os.environ.update({f"MALLOC_{name}_THRESHOLD_": "65536" for name in ("MMAP", "TRIM")})  # children inherit it
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def most_resident() -> int:
    """Return the most bytes that were resident; what getrusage says is inherited from the process before."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
