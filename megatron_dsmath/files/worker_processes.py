"""One function over many items in several processes; the results come in the order of the items."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Generic, NoReturn, TypeVar

from megatron_dsmath.errors import InternalError

Item = TypeVar("Item")
Result = TypeVar("Result")
ITEMS_UNDER_WAY = 3  # of one worker: what it works on, and what it goes on with


def map_in_order(
    start: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """What `start()` makes of each item, in order: see `WorkerProcesses`."""
    with WorkerProcesses(start, workers) as processes:
        yield from processes.map_in_order(items)


class WorkerProcesses(Generic[Item, Result]):
    """Processes that each hold the function that `start()` gave; they live as long as the `with` block.

    `start` runs once, in a fresh process that then divides into the workers, so it may be slow and what it builds is
    there once. (A fork of this very process would copy the locks of its threads.) The calling script needs the usual
    `if __name__ == "__main__":`. Workers end with this process, even when it is killed.
    """

    def __init__(self, start: Callable[[], Callable[[Item], Result]], workers: int) -> None:
        """Begin `start()`, and do not wait for it."""
        context = multiprocessing.get_context("spawn")
        self._connections, theirs = zip(*(context.Pipe() for _ in range(workers)), strict=True)
        self._parent_of_workers = context.Process(target=_divide, args=(start, theirs))
        self._parent_of_workers.start()
        for connection in theirs:
            connection.close()

    def map_in_order(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        """The result of each item, in order, with a bounded number of items under way.

        An error of the function, or of `start`, is raised here; a worker that dies raises InternalError.
        """
        numbered = enumerate(items)
        under_way: dict[Connection, list[int]] = {connection: [] for connection in self._connections}
        results: dict[int, Result | Exception] = {}
        next_number = 0
        exhausted = False
        try:
            while True:
                while not exhausted and sum(map(len, under_way.values())) + len(results) < self._limit:
                    number, item = next(numbered, (-1, None))
                    if exhausted := number < 0:
                        break
                    connection = min(under_way, key=lambda one: len(under_way[one]))
                    connection.send(item)
                    under_way[connection].append(number)
                busy = [connection for connection, numbers in under_way.items() if numbers]
                if not busy and not results:
                    return
                ready = wait(busy)
                for connection in busy:
                    if connection in ready:
                        results[under_way[connection].pop(0)] = connection.recv()
                while next_number in results:
                    result = results.pop(next_number)
                    next_number += 1
                    if isinstance(result, Exception):
                        raise result
                    yield result
        except (EOFError, ConnectionError) as error:
            raise InternalError(
                "a worker process died",
                found="it was killed, or the machine ran out of memory",
                expected=f"{len(self._connections)} workers that live",
                fix="run it again, with fewer workers if memory is short",
            ) from error

    @property
    def _limit(self) -> int:
        return ITEMS_UNDER_WAY * len(self._connections)

    def __enter__(self) -> WorkerProcesses[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A worker ends when its connection does."""
        for connection in self._connections:
            connection.close()
        self._parent_of_workers.join()


def _divide(start: Callable[[], Callable[[Item], Result]], connections: Sequence[Connection]) -> None:
    """Start once, then fork a worker for each connection, and wait for all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        function = start()
    except Exception as error:
        function = _raising(error)
    gc.freeze()  # what is there now stays in the pages that all workers share
    workers = []
    waiting = deque(connections)
    while waiting:
        connection = waiting.popleft()
        if worker := os.fork():
            workers.append(worker)
        else:
            for other in waiting:  # which would stay open when its own worker dies
                other.close()
            _work(function, connection)
        connection.close()
    for worker in workers:
        os.waitpid(worker, 0)


def _raising(error: Exception) -> Callable[[object], NoReturn]:
    def function(item: object) -> NoReturn:
        raise error

    return function


def _work(function: Callable[[Item], Result], connection: Connection) -> NoReturn:
    """Answer each item with its result or error."""
    items: queue.SimpleQueue[Item] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, items), daemon=True).start()
    while True:
        try:
            result: Result | Exception = function(items.get())
        except Exception as error:
            result = error
        with suppress(ConnectionError):
            connection.send(result)


def _receive(connection: Connection, items: queue.SimpleQueue[Item]) -> None:
    """Take items from the connection whatever the worker does: nobody sends into a full one for long."""
    try:
        while True:
            items.put(connection.recv())
    except (EOFError, OSError):  # the parent is done with us, or dead
        os._exit(0)
