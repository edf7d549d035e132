"""The next batch is prepared while this one is in use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etymon.data import Examples, Loader


@contextlib.contextmanager
def batches_ahead(loader: Loader, start: int, stop: int) -> Iterator[Iterator[tuple[int, Examples]]]:
    """Yield (step, batch) for start <= step < stop; the next batch is prepared while one is in use.

    A batch is a pure function of its step, so that the thread cannot change what is trained.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:

        def ahead() -> Iterator[tuple[int, Examples]]:
            future = pool.submit(loader.batch, start) if start < stop else None
            for step in range(start, stop):
                assert future is not None
                batch = future.result()
                future = pool.submit(loader.batch, step + 1) if step + 1 < stop else None
                yield step, batch

        yield ahead()
