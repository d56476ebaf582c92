"""Every error raised on purpose: what went wrong, where, found, expected, and how to fix it.

A class is a kind of mistake; its docstring is its entry in the generated catalogue (`docs/reference/errors.md`).
The exit code tells a scheduler whether a restart can help.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

EXIT_DONE = 0
EXIT_ANSWER_IS_NO = 1  # a check ran, and what it checked does not hold
EXIT_INTERNAL = 70  # a restart may help
EXIT_STOPPED = 75  # stopped on request, state saved: run me again
EXIT_REFUSED = 78  # usage, configuration, data or checkpoint: a restart cannot help


class DsmathError(Exception):
    """The base of every error in this file; catch it to catch them all."""

    exit_code = EXIT_REFUSED

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        """Say `what` went wrong, `where` (file:line or key), and the three things a user needs next."""
        self.what, self.where, self.found, self.expected, self.fix = what, where, found, expected, fix
        super().__init__(self.text())

    @classmethod
    def kind(cls) -> str:
        """The name by which the catalogue lists this kind: `IndexedDatasetError` is `indexed-dataset`."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()

    def text(self) -> str:
        """The message as a user reads it: one headline, then one line for each fact that is known."""
        facts = (("where", self.where), ("found", self.found), ("expected", self.expected), ("fix", self.fix))
        lines = [f"error[{self.kind()}]: {self.what}"]
        lines += [f"  {name + ':':<10}{fact}" for name, fact in facts if fact is not None]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary whole: an error of a worker is shown by its parent."""
        return (_rebuild, (type(self), self.what, self.where, self.found, self.expected, self.fix))


def _rebuild(cls: type[DsmathError], what: str, *facts: object) -> DsmathError:
    where, found, expected, fix = facts
    return cls(what, where=where, found=found, expected=expected, fix=fix)  # type: ignore[arg-type]


class UsageError(DsmathError):
    """The command line does not say what to do: a verb, flag or argument is missing or unknown."""


class ConfigError(DsmathError):
    """A run file is not a valid run: an unknown key, a wrong value, or values that contradict each other."""


class LayoutError(ConfigError):
    """The parallel layout does not divide the model, the batch or the number of processes."""


class DataError(DsmathError):
    """Raw text is missing, empty or malformed; the message names the file and the line."""


class TokenizerError(DsmathError):
    """A tokenizer does not load, lacks an end-of-document token, or is not the one the data was made with."""


class IndexedDatasetError(DsmathError):
    """A .bin/.idx pair is truncated, inconsistent, or holds token ids beyond the vocabulary."""


class CheckpointError(DsmathError):
    """A checkpoint is incomplete, corrupt, or of another model than the run's."""


class ConversionError(DsmathError):
    """A Hugging Face folder and the model do not match: a tensor is missing, extra, or of another shape."""


class OutputError(DsmathError):
    """An output cannot be written: the directory is full, read-only, or holds something else."""


class RunError(DsmathError):
    """A run does not start: another job has its directory, or it failed again and again without getting on."""


class DependencyError(DsmathError):
    """An optional package that this command needs is not installed."""


class SandboxError(DsmathError):
    """A model's programs cannot be confined on this machine; nothing runs unconfined."""


class Refusals(DsmathError):
    """Several mistakes found in one pass, shown together."""

    def __init__(self, errors: Sequence[DsmathError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} mistakes")

    def text(self) -> str:
        """All of them, in the order in which they were found."""
        return "\n".join(error.text() for error in self.errors)

    def __reduce__(self) -> tuple[object, ...]:
        return (Refusals, (self.errors,))


def raise_all(errors: Sequence[DsmathError]) -> None:
    """Raise the error if there is one, or `Refusals` if there are several."""
    if errors:
        raise errors[0] if len(errors) == 1 else Refusals(errors)


class InternalError(DsmathError):
    """Something failed that is not the user's doing: a rank died, a peer vanished. A restart may help."""

    exit_code = EXIT_INTERNAL


class StoppedOnRequest(DsmathError):
    """A signal asked the run to stop; its state is saved (if a step had run) and a rerun continues."""

    exit_code = EXIT_STOPPED


def catalogue() -> list[type[DsmathError]]:
    """Every kind of error, in the order of this file; the generated documentation lists these."""
    kinds = [value for value in globals().values() if isinstance(value, type) and issubclass(value, DsmathError)]
    return [kind for kind in kinds if kind not in (DsmathError, Refusals)]


def show(error: DsmathError) -> int:
    """Print an error as a user reads it and return the exit code it stands for."""
    print(error.text(), file=sys.stderr)
    return error.exit_code
