"""The process that writes a rank's part of a checkpoint while the rank trains: `python -m` this module. No torch.

It has a lower priority than the rank (`nice`) and ends with it. Each line of JSON on its input is a request, and each
line on its output an answer: the result of `write` or `publish`, or the error that they raised.
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
from megatron_dsmath.files import directories
from megatron_dsmath.files.atomic_files import sync as sync_file
from megatron_dsmath.files.processes import STOP_SIGNALS, end_with_parent

NICENESS = 10  # about a tenth of a core that the rank uses too, all of an idle core
_BLOCK_BYTES = 1 << 22
_DIRECT = getattr(os, "O_DIRECT", 0)  # saves a copy, and the kernel's write-back, which is not niced

Entry = dict[str, int | str]  # size and sha256, as in a manifest


def write(memory: memoryview, folder: str, staged: Mapping[str, int], present: Sequence[str]) -> dict[str, Entry]:
    """Write this rank's files of `folder` to disk; returns size and sha256 of each.

    `staged`: names and sizes of the files in `memory`, one after the other. `present`: names of files that exist
    already and are only synced and hashed. Raises OutputError.
    """
    entries, start = {}, 0
    for name, size_bytes in staged.items():
        entries[name] = _write(Path(folder, name), memory[start : start + size_bytes])
        start += size_bytes
    if present:
        from megatron_dsmath.checkpoint.store import hash_file

        entries |= {name: hash_file(Path(folder, name)).model_dump() for name in present}
    return entries


def publish(_: memoryview, folder: str, manifest: str, keep: int, sync: Sequence[str]) -> Mapping[str, Any]:
    """Sync the files in `sync`, publish the checkpoint in `folder`, and delete all but the newest `keep` checkpoints.

    Raises OutputError, and CheckpointError if the files differ from the manifest.
    """
    from megatron_dsmath.checkpoint import store
    from megatron_dsmath.checkpoint.manifest import Manifest

    for path in map(Path, sync):
        with directories.report_write_errors(path):
            sync_file(path)
    store.write_manifest(Path(folder), Manifest.model_validate_json(manifest))
    fault_point("checkpoint.before_rename")
    published = directories.publish(Path(folder))
    store.write_latest(published)
    fault_point("checkpoint.before_prune")
    store.prune(published.parent, keep)
    return {}


def _write(path: Path, content: memoryview) -> Entry:
    digest = hashlib.sha256()
    fault_point("writer.before_file")
    with directories.report_write_errors(path, len(content)), path.open("wb", buffering=0) as file:
        _set_direct(file.fileno(), True)
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
            if error.errno != errno.EINVAL or not _set_direct(descriptor, False):
                raise  # else O_DIRECT was refused: at the end of a file, or by the file system


def _set_direct(descriptor: int, wanted: bool) -> bool:
    """Turn O_DIRECT on or off, where the file system supports it; returns whether the flags were different before."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    new_flags = flags | _DIRECT if wanted else flags & ~_DIRECT
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, new_flags)
    return new_flags != flags


def main() -> None:
    """Answer the requests of the parent process. Arguments: its id, the staging buffer's descriptor, and its size."""
    for number in STOP_SIGNALS:  # blocked by the parent since before this process started
        signal.signal(number, signal.SIG_IGN)  # a run that is asked to stop still saves
    parent, descriptor, size_bytes = map(int, sys.argv[1:])
    end_with_parent(parent)  # an unpublished checkpoint then stays unpublished
    os.nice(NICENESS)
    memory = memoryview(mmap.mmap(descriptor, size_bytes))
    verbs: dict[str, Callable[..., Mapping[str, Any]]] = {"write": write, "publish": publish}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"done": verbs[request.pop("verb")](memory, **request)}
        except DsmathError as error:
            answer = {"refused": _facts(error)}
        except Exception as error:  # reported by the rank
            answer = {"refused": _facts(_unexpected(error))}
        print(json.dumps(answer), flush=True)


def _facts(error: DsmathError) -> dict[str, str | None]:
    facts = {"where": error.where, "found": error.found, "expected": error.expected, "fix": error.fix}
    texts = {name: None if fact is None else str(fact) for name, fact in facts.items()}
    return {"kind": error.kind(), "what": error.what, **texts}


def _unexpected(error: Exception) -> InternalError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return InternalError(
        "the process that writes checkpoints has failed",
        where=f"{frame.filename}:{frame.lineno} in {frame.name}",
        found=f"{type(error).__name__}: {error}",
        fix="run again: the run continues from its newest checkpoint",
    )


if __name__ == "__main__":
    main()
