"""The errors of the package: what is wrong, where, what was found and expected, and how to fix it.

Each class is one kind of error, and its docstring is its entry in `docs/reference/errors.md`. The exit code shows a
scheduler whether a restart can help.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

EXIT_DONE = 0
EXIT_ANSWER_IS_NO = 1  # a check ran, and its answer is no
EXIT_INTERNAL = 70  # a restart may help
EXIT_STOPPED = 75  # stopped on request, state saved: run the command again
EXIT_REFUSED = 78  # wrong usage, configuration, data or checkpoint: a restart cannot help


class DsmathError(Exception):
    """The base class of every error in this file."""

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
        """`what`: one sentence; `where`: a file and line, or a key; the facts that are not known are None."""
        self.what, self.where, self.found, self.expected, self.fix = what, where, found, expected, fix
        super().__init__(self.text())

    @classmethod
    def kind(cls) -> str:
        """The name of this kind in messages and in the catalogue: `indexed-dataset` for `IndexedDatasetError`."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()

    def text(self) -> str:
        """The message that a user reads: one headline, then one line for each known fact."""
        facts = (("where", self.where), ("found", self.found), ("expected", self.expected), ("fix", self.fix))
        lines = [f"error[{self.kind()}]: {self.what}"]
        lines += [f"  {name + ':':<10}{fact}" for name, fact in facts if fact is not None]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Support pickling, so that a parent process can raise the error of a worker."""
        return (_rebuild, (type(self), self.what, self.where, self.found, self.expected, self.fix))


def _rebuild(cls: type[DsmathError], what: str, *facts: object) -> DsmathError:
    where, found, expected, fix = facts
    return cls(what, where=where, found=found, expected=expected, fix=fix)  # type: ignore[arg-type]


class UsageError(DsmathError):
    """The command line is not valid: a verb, flag or argument is missing, unknown or wrong."""


class ConfigError(DsmathError):
    """A YAML file is not valid: it has an unknown key, a wrong value, or values that contradict each other."""


class LayoutError(ConfigError):
    """The parallel layout does not divide the model, the batch or the number of processes evenly."""


class DataError(DsmathError):
    """A data file is missing, empty or malformed; the message names the file and the line."""


class TokenizerError(DsmathError):
    """A tokenizer cannot be loaded, has no end-of-document token, or is not the tokenizer of the data."""


class IndexedDatasetError(DsmathError):
    """A .bin/.idx pair is truncated or inconsistent, or contains token ids outside the vocabulary."""


class CheckpointError(DsmathError):
    """A checkpoint is incomplete or corrupt, or does not fit the run."""


class ConversionError(DsmathError):
    """A Hugging Face folder and the model do not match: a tensor is missing, is not expected, or has another shape."""


class OutputError(DsmathError):
    """An output cannot be written: the disk is full, the directory is read-only, or the output exists already."""


class RunError(DsmathError):
    """A run cannot start: another job uses its directory, or it failed repeatedly without progress."""


class DependencyError(DsmathError):
    """An optional package or program that this command needs is not installed."""


class SandboxError(DsmathError):
    """This machine cannot confine the programs that a model writes; no program runs without confinement."""


class Refusals(DsmathError):
    """Several errors that were found together."""

    def __init__(self, errors: Sequence[DsmathError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} errors")

    def text(self) -> str:
        """The messages of all errors, in the order in which they were found."""
        return "\n".join(error.text() for error in self.errors)

    def __reduce__(self) -> tuple[object, ...]:
        return (Refusals, (self.errors,))


def raise_all(errors: Sequence[DsmathError]) -> None:
    """Raise the error if there is one, or `Refusals` if there are several."""
    if errors:
        raise errors[0] if len(errors) == 1 else Refusals(errors)


class InternalError(DsmathError):
    """A failure that the user did not cause: a rank died or does not answer. A restart may help."""

    exit_code = EXIT_INTERNAL


class StoppedOnRequest(DsmathError):
    """A signal stopped the run; its state is saved (if a step was done), and the same command continues it."""

    exit_code = EXIT_STOPPED


def catalogue() -> list[type[DsmathError]]:
    """Every kind of error, in the order of this file."""
    kinds = [value for value in globals().values() if isinstance(value, type) and issubclass(value, DsmathError)]
    return [kind for kind in kinds if kind not in (DsmathError, Refusals)]


def show(error: DsmathError) -> int:
    """Print an error on standard error and return its exit code."""
    print(error.text(), file=sys.stderr)
    return error.exit_code
