"""The process that writes a rank's part of a checkpoint while the rank trains on: `python -m` this module. No torch.

It gives way to the rank (`nice`), and ends with it. A line of JSON on its input is a request, a line on its output the
answer: what `write` and `publish` return, or the error that they raised.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_dsmath.errors import DsmathError, InternalError
from megatron_dsmath.fault_injection import fault_point
from megatron_dsmath.files import atomic_files, directories
from megatron_dsmath.files.processes import STOP_SIGNALS, end_with_parent

NICENESS = 10  # a tenth of a processor that the rank wants too, all of one that nobody wants
_BLOCK_BYTES = 1 << 22
_PAST_THE_CACHE = getattr(os, "O_DIRECT", 0)  # a copy less, and no work for the system's own writers, who are not nice

Entry = dict[str, int | str]  # size and sha256, as a manifest has them


def write(memory: memoryview, folder: str, staged: Mapping[str, int], present: Sequence[str]) -> dict[str, Entry]:
    """Bring this rank's files of `folder` to the disk; returns size and sha256 of each.

    `staged`: those that lie in `memory`, one after the other, and their sizes; `present`: those that are written
    already. Raises OutputError.
    """
    entries, start = {}, 0
    for name, size_bytes in staged.items():
        entries[name] = _write(Path(folder, name), memory[start : start + size_bytes])
        start += size_bytes
    if present:
        from megatron_dsmath.checkpoint.store import file_entry

        entries |= {name: file_entry(Path(folder, name)).model_dump() for name in present}
    return entries


def publish(_: memoryview, folder: str, manifest: str, keep: int, sync: Sequence[str]) -> Mapping[str, Any]:
    """Give the checkpoint its name, once the files in `sync` are on the disk, and delete what is older than `keep`.

    Raises OutputError, and CheckpointError when the files are not those of the manifest.
    """
    from megatron_dsmath.checkpoint import store
    from megatron_dsmath.checkpoint.manifest import Manifest

    for path in map(Path, sync):
        with directories.report_write_errors(path):
            atomic_files.sync(path)
    published = store.publish(Path(folder), Manifest.model_validate_json(manifest))
    fault_point("checkpoint.before_prune")
    store.prune(published.parent, keep)
    return {}


def _write(path: Path, content: memoryview) -> Entry:
    digest = hashlib.sha256()
    fault_point("writer.before_file")
    with directories.report_write_errors(path, len(content)), path.open("wb", buffering=0) as file:
        _pass_the_cache(file.fileno(), True)
        for start in range(0, len(content), _BLOCK_BYTES):
            block = content[start : start + _BLOCK_BYTES]
            if start <= len(content) // 2 < start + len(block):
                fault_point("writer.inside_file")
            _write_all(file.fileno(), block)
            digest.update(block)
        fault_point("writer.before_sync")
        os.fsync(file.fileno())
    fault_point("writer.after_file")
    return {"bytes": len(content), "sha256": digest.hexdigest()}


def _write_all(descriptor: int, block: memoryview) -> None:
    while block:
        try:
            block = block[os.write(descriptor, block) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _pass_the_cache(descriptor, False):
                raise  # else it was not whole pages, as at the end of a file, or the file system wants its cache


def _pass_the_cache(descriptor: int, wanted: bool) -> bool:
    """Write to the disk itself, or to the system's cache of it; whether that changed anything."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    asked = flags | _PAST_THE_CACHE if wanted else flags & ~_PAST_THE_CACHE
    with suppress(OSError):  # a file system may know its cache only
        fcntl.fcntl(descriptor, fcntl.F_SETFL, asked)
    return asked != flags


def main() -> None:
    """Serve the process that started this one, given its id, the descriptor of the staging buffer, and its size."""
    for number in STOP_SIGNALS:  # blocked since before this process began
        signal.signal(number, signal.SIG_IGN)  # a run that is asked to stop still writes its last checkpoint
    parent, descriptor, size_bytes = map(int, sys.argv[1:])
    end_with_parent(parent)  # a checkpoint that is not published by then never is
    os.nice(NICENESS)
    memory = memoryview(mmap.mmap(descriptor, size_bytes))
    verbs: dict[str, Callable[..., Mapping[str, Any]]] = {"write": write, "publish": publish}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"done": verbs[request.pop("verb")](memory, **request)}
        except DsmathError as error:
            answer = {"refused": _facts(error)}
        except Exception as error:  # the rank says it, in one error for all of the run
            answer = {"refused": _facts(_unforeseen(error))}
        print(json.dumps(answer), flush=True)


def _facts(error: DsmathError) -> dict[str, str | None]:
    facts = {"where": error.where, "found": error.found, "expected": error.expected, "fix": error.fix}
    texts = {name: None if fact is None else str(fact) for name, fact in facts.items()}
    return {"kind": error.kind(), "what": error.what, **texts}


def _unforeseen(error: Exception) -> InternalError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return InternalError(
        "the process that writes checkpoints has failed",
        where=f"{place.filename}:{place.lineno} in {place.name}",
        found=f"{type(error).__name__}: {error}",
        fix="run again: the run continues from the checkpoint before",
    )


if __name__ == "__main__":
    main()
