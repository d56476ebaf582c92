"""One function over many items in several processes; the results come in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

from megatron_dsmath.errors import InternalError

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any]  # in a worker: what it does with an item


def map_in_order(
    start: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """What `start()` makes of each item, in order; `start` runs once in each process and may be slow.

    The workers are fresh processes, so the calling script needs the usual `if __name__ == "__main__":`. At most three
    items a worker are under way: memory is bounded. An error of the function is raised here; a worker that dies
    raises InternalError. Workers end with this process, even when it is killed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(start,))
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(_run, item))
            if len(under_way) >= 3 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise InternalError(
            "a worker process died",
            found="it was killed, or the machine ran out of memory",
            expected=f"{workers} workers that live",
            fix="run it again, with fewer workers if memory is short",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(start: Callable[[], Callable[[Any], Any]]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = start()


def _end_with_parent() -> None:
    """A killed parent says nothing, and the pool's queue would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run(item: Any) -> Any:
    return _function(item)
