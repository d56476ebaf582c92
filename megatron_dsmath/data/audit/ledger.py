"""The ledger in a run's directory: the plan of the run and one row per step with a hash of its tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from megatron_dsmath.config.sections import Section
from megatron_dsmath.data.audit.run_batches import PLAN_ADAPTER
from megatron_dsmath.data.mixture.permutation import IntArray, Words, mix
from megatron_dsmath.data.mixture.run_plan import Count, RunPlan
from megatron_dsmath.errors import DataError
from megatron_dsmath.files.atomic_files import replace_text, write_error

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its multiples are spread evenly
Read = TypeVar("Read", bound=Section)


class LedgerRow(Section):
    """One step: `samples` samples from `first_sample` on, and the hash of their tokens in hexadecimal."""

    step: PositiveInt
    plan_version: NonNegativeInt
    first_sample: Count
    samples: PositiveInt = Field(le=2**24)  # above any real step; a damaged number must not fill the memory
    total: str = Field(pattern=r"^[0-9a-f]{16}$")
    moment: str = Field(pattern=r"^[0-9a-f]{16}$")

    @property
    def end_sample(self) -> int:
        """The first sample after the step."""
        return self.first_sample + self.samples

    @property
    def hash(self) -> StepHash:
        """The hash as numbers."""
        return StepHash(int(self.total, 16), int(self.moment, 16))


class Ledger:
    """The two files of a ledger, written by one process. Writing raises OutputError."""

    def __init__(self, folder: Path) -> None:
        self.plan_file = folder / "plan.json"
        self.steps_file = folder / "steps.jsonl"

    def write_plan(self, plan: RunPlan) -> None:
        """Replace the plan atomically."""
        replace_text(self.plan_file, plan.model_dump_json() + "\n", durable=True)

    def append(self, step: int, plan_version: int, first_sample: int, samples: int, tokens: StepHash) -> None:
        """Add the row of a step."""
        row = LedgerRow(
            step=step,
            plan_version=plan_version,
            first_sample=first_sample,
            samples=samples,
            total=f"{tokens.total:016x}",
            moment=f"{tokens.moment:016x}",
        )
        try:
            with self.steps_file.open("a", encoding="utf-8") as file:
                file.write(row.model_dump_json() + "\n")
        except OSError as error:
            raise write_error(self.steps_file, error) from error

    def sync(self) -> None:
        """Flush all rows to disk; called before a checkpoint, so that no step before it can be missing."""
        try:
            with self.steps_file.open("a") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.steps_file, error) from error

    def read_plan(self) -> RunPlan:
        """Read the plan. Raises DataError if it is missing or damaged."""
        return _parsed(PLAN_ADAPTER.validate_json, _read_file(self.plan_file), self.plan_file)

    def read_rows(self) -> list[LedgerRow]:
        """Read all complete rows; the partial last line of a killed run is ignored. Raises DataError."""
        *lines, _ = _read_file(self.steps_file).split(b"\n")
        numbered = ((line, f"{self.steps_file}:{number}") for number, line in enumerate(lines, 1))
        return [_parsed(LedgerRow.model_validate_json, line, where) for line, where in numbered]


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            "the run has no ledger",
            where=path,
            found=error.strerror,
            expected="ledger/, which `dsmath train` writes in the directory of a run",
            fix="give the directory of a run",
        ) from None


def _parsed(parse: Callable[[bytes], Read], text: bytes, where: object) -> Read:
    try:
        return parse(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            "the ledger is damaged",
            where=where,
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "),
            expected="a file written by `dsmath train`",
            fix="restore the file; without it the run cannot be audited",
        ) from None


class StepHash(NamedTuple):
    """Two sums modulo 2^64: of the samples' hashes, and of each hash times the number of its sample."""

    total: int
    moment: int


def position_keys(length: int) -> Words:
    """Return the odd factor of the token at each position: uint64 [length]."""
    keys: Words = mix(np.arange(1, length + 1, dtype=np.uint64) * np.uint64(GOLDEN)) | np.uint64(1)
    return keys


def sample_hashes(tokens: IntArray, samples: IntArray) -> Words:
    """Return the hash of each row of `tokens`, int64 [n, length], with the numbers `samples`, int64 [n]: uint64 [n]."""
    return mix(tokens.view(np.uint64) @ position_keys(tokens.shape[1]) + samples.view(np.uint64) * np.uint64(GOLDEN))


def step_hash(hashes: Words, samples: IntArray) -> StepHash:
    """Return the hash of a step from the hashes of its samples, uint64 [n], and their numbers, int64 [n]."""
    return StepHash(int(hashes.sum()), int((hashes * samples.view(np.uint64)).sum()))


def differing_sample(found: StepHash, hashes: Words, samples: IntArray) -> int | None:
    """Return the index of the only sample whose change explains `found`, or None.

    If the hash of sample s differs by d, the totals differ by d and the moments by s * d.
    """
    expected = step_hash(hashes, samples)
    total, moment = np.array([found.total, found.moment], np.uint64) - np.array(expected, np.uint64)
    indices = np.flatnonzero(samples.view(np.uint64) * total == moment)
    return int(indices[0]) if len(indices) == 1 else None
