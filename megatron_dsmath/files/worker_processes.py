"""Applies a function to many items in several processes; the results are in the order of the items."""

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
ITEMS_PER_WORKER = 3  # the current item, and the next ones, so that the worker does not wait


def map_in_order(
    start: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Apply the function that `start()` returns to each item, in order; see `WorkerProcesses`."""
    with WorkerProcesses(start, workers) as processes:
        yield from processes.map_in_order(items)


class WorkerProcesses(Generic[Item, Result]):
    """Worker processes that share the function which `start()` returns; they end with the `with` block.

    `start` runs once, in a new process that is then forked for each worker, so it may be slow and its memory is shared.
    (A fork of the calling process would copy locks that its threads hold.) The calling script needs the usual
    `if __name__ == "__main__":`. Workers end with the calling process, even when it is killed.
    """

    def __init__(self, start: Callable[[], Callable[[Item], Result]], workers: int) -> None:
        """Run `start()` in a new process, without waiting for it."""
        context = multiprocessing.get_context("spawn")
        self._connections, worker_ends = zip(*(context.Pipe() for _ in range(workers)), strict=True)
        self._parent_of_workers = context.Process(target=_fork_workers, args=(start, worker_ends))
        self._parent_of_workers.start()
        for connection in worker_ends:
            connection.close()

    def map_in_order(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        """Yield the result of each item, in order, with a bounded number of items in progress.

        Raises the errors of the function and of `start`, and InternalError when a worker dies.
        """
        numbered = enumerate(items)
        in_progress: dict[Connection, list[int]] = {connection: [] for connection in self._connections}
        results: dict[int, Result | Exception] = {}
        next_number = 0
        exhausted = False
        try:
            while True:
                while not exhausted and sum(map(len, in_progress.values())) + len(results) < self._limit:
                    number, item = next(numbered, (-1, None))
                    if exhausted := number < 0:
                        break
                    connection = min(in_progress, key=lambda one: len(in_progress[one]))
                    connection.send(item)
                    in_progress[connection].append(number)
                busy = [connection for connection, numbers in in_progress.items() if numbers]
                if not busy and not results:
                    return
                ready = wait(busy)
                for connection in busy:
                    if connection in ready:
                        results[in_progress[connection].pop(0)] = connection.recv()
                while next_number in results:
                    result = results.pop(next_number)
                    next_number += 1
                    if isinstance(result, Exception):
                        raise result
                    yield result
        except (EOFError, ConnectionError) as error:
            raise InternalError(
                "a worker process died",
                found="it was killed, perhaps because memory was full",
                expected=f"{len(self._connections)} live workers",
                fix="run the command again, with fewer workers if memory is short",
            ) from error

    @property
    def _limit(self) -> int:
        return ITEMS_PER_WORKER * len(self._connections)

    def __enter__(self) -> WorkerProcesses[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections, which ends the workers."""
        for connection in self._connections:
            connection.close()
        self._parent_of_workers.join()


def _fork_workers(start: Callable[[], Callable[[Item], Result]], connections: Sequence[Connection]) -> None:
    """Call `start`, then fork a worker for each connection, and wait for all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends the workers
    try:
        function = start()
    except Exception as error:
        function = _raising(error)
    gc.freeze()  # keeps the memory pages of `function` shared between the workers
    workers = []
    waiting = deque(connections)
    while waiting:
        connection = waiting.popleft()
        if worker := os.fork():
            workers.append(worker)
        else:
            for other in waiting:  # else it stays open when its worker dies
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
    """Send the result or error of each item."""
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
    """Receive items at all times, so that the parent never waits to send one."""
    try:
        while True:
            items.put(connection.recv())
    except (EOFError, OSError):  # the parent closed the connection or died
        os._exit(0)
