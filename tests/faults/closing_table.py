"""The table that `make test-faults` prints at its end, as a pytest plugin."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict

import pytest

from megatron_dsmath.tables import print_table
from tests.faults.runs import Tally

_COLUMNS = ("tests", "failed", *asdict(Tally()), "seconds")
_rows: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_COLUMNS, 0))
_row_of_test: dict[str, str] = {}
_failed: set[str] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Record the table's row of each test."""
    _row_of_test.update({item.nodeid: mark.args[0] for item in items for mark in item.iter_markers("fault")})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the faults of a test; a test without a tally injects one."""
    if report.nodeid not in _row_of_test:
        return
    row = _rows[_row_of_test[report.nodeid]]
    row["seconds"] += report.duration
    if report.failed:
        _failed.add(report.nodeid)
    if report.when != "teardown":
        return
    failed = report.nodeid in _failed
    counts = dict(report.user_properties).get("tally") or asdict(Tally(injected=1, survived=int(not failed)))
    assert isinstance(counts, dict)
    for name, count in {"tests": 1, "failed": int(failed), **counts}.items():
        row[name] += count


def pytest_terminal_summary() -> None:
    """Print the table with its sum."""
    rows = {name: _rows[name] for name in sorted(_rows, key=lambda name: (name[0], int(name[1:])))}
    total = {column: sum(row[column] for row in rows.values()) for column in _COLUMNS}
    lines = [{"row": name, **row, "seconds": round(row["seconds"])} for name, row in {**rows, "all": total}.items()]
    print_table(lines, ("row", *_COLUMNS), as_json=False)
