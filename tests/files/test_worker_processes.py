from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from megatron_dsmath.errors import DataError, InternalError
from megatron_dsmath.files.worker_processes import map_in_order


def start_slow_square() -> Callable[[int], int]:
    return slow_square


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # later items overtake earlier ones
    return number * number


def start_refusing() -> Callable[[int], int]:
    return refuse_seven


def refuse_seven(number: int) -> int:
    if number == 7:
        raise DataError("seven is refused", where="numbers.jsonl:7", found=7)
    return number


def start_dying() -> Callable[[int], int]:
    return die_at_seven


def die_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def start_refused() -> Callable[[int], int]:
    raise DataError("there is nothing to start with")


def start_large() -> Callable[[bytes], bytes]:
    return double


def double(content: bytes) -> bytes:
    return content * 2


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(map_in_order(start_slow_square, range(30), 3)) == [number**2 for number in range(30)]


def test_an_error_of_the_function_is_raised_in_the_parent() -> None:
    with pytest.raises(DataError, match="seven is refused") as caught:
        list(map_in_order(start_refusing, range(20), 2))
    assert (caught.value.where, caught.value.found) == ("numbers.jsonl:7", 7)


def test_an_error_of_start_is_raised_in_the_parent() -> None:
    with pytest.raises(DataError, match="nothing to start with"):
        list(map_in_order(start_refused, range(20), 2))


def test_large_items_and_results_do_not_deadlock() -> None:
    items = [bytes([number]) * (1 << 22) for number in range(12)]
    assert list(map_in_order(start_large, items, 2)) == [item * 2 for item in items]


def test_a_dead_worker_is_an_error() -> None:
    with pytest.raises(InternalError, match="a worker process died"):
        list(map_in_order(start_dying, range(20), 2))


def test_items_are_consumed_as_fast_as_results() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = map_in_order(start_slow_square, items(), 2)
    next(results)
    assert taken <= 6  # three a worker
    results.close()


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text("""
import itertools, time
from megatron_dsmath.files.worker_processes import map_in_order

def start():
    return nap

def nap(number):
    time.sleep(0.01)
    return number

if __name__ == "__main__":
    for number in map_in_order(start, itertools.count(), 2):
        print(number, flush=True)
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in [str(Path.cwd()), *sys.path] if path)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"0\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
