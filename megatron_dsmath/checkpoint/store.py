"""Find, list, verify, describe, set aside and prune the checkpoints of a run. Imports no torch.

A checkpoint is filled under another name and gets its name `step_N` by one rename (`writer_process.publish`). It is not
written again, so it is always complete. Checkpoints are found by listing the directory; the file `LATEST` is only a
hint for people. See docs/checkpoints.md.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint.manifest import MANIFEST, FileEntry, Manifest, not_a_checkpoint, read_manifest
from megatron_dsmath.errors import CheckpointError, OutputError
from megatron_dsmath.fault_injection import fault_point
from megatron_dsmath.files import directories
from megatron_dsmath.files.atomic_files import file_sha256, replace_text, require_free_space, sync, write_text
from megatron_dsmath.files.directories import report_write_errors

LATEST = "LATEST"
KEPT_AT_LEAST = 2  # the newest may turn out to be damaged
_STEP = re.compile(r"step_(0|[1-9]\d*)")


def locate(path: Path) -> Path:
    """The checkpoint at `path`, or the newest in it (of a run, or of a directory). Raises CheckpointError if none."""
    if (path / MANIFEST).exists():
        return path
    found = newest_checkpoint(path)
    if found is not None:
        return found
    raise not_a_checkpoint(path, "no checkpoint in it" if path.is_dir() else "no such directory")


def newest_checkpoint(path: Path) -> Path | None:
    """The newest complete checkpoint in `path`; None if there is none. Raises CheckpointError if all are damaged."""
    return find_newest(step_folders(path))[0]


def read_step_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest, whose step must be that of the directory's name. Raises CheckpointError."""
    manifest = read_manifest(folder)
    if _STEP.fullmatch(folder.name) and manifest.step != _step(folder):
        raise CheckpointError(
            "a checkpoint has the name of another step",
            where=folder,
            found=f"step {manifest.step} in its {MANIFEST}",
            expected=f"step {_step(folder)}",
            fix=f"rename the directory to step_{manifest.step}",
        )
    return manifest


def find_newest(
    folders: Sequence[Path], check: Callable[[Path], object] = read_step_manifest
) -> tuple[Path | None, dict[Path, CheckpointError]]:
    """The last of `folders` (oldest first) that `check` accepts, and the errors of the newer ones.

    `check` raises CheckpointError for a damaged checkpoint; the default reads the manifest. The result is None for no
    folders. Raises CheckpointError if all are damaged: a run must not start from scratch over its checkpoints.
    """
    damaged: dict[Path, CheckpointError] = {}
    for folder in reversed(folders):
        try:
            check(folder)
        except CheckpointError as error:
            damaged[folder] = error
        else:
            return folder, damaged
    if damaged:
        raise CheckpointError(
            "the run has checkpoints, but none is complete",
            where=folders[0].parent,
            found="; ".join(f"{problem.what} ({problem.where})" for problem in damaged.values()),
            fix="copy the damaged files again from their source, or start a new run: set output to another directory",
        )
    return None, {}


def step_folders(path: Path) -> list[Path]:
    """All checkpoints, complete or damaged, of a run's directory or a directory of checkpoints, oldest first."""
    for root in (path / "checkpoints", path):
        entries = root.iterdir() if root.is_dir() else []
        if folders := [entry for entry in entries if entry.is_dir() and _STEP.fullmatch(entry.name)]:
            return sorted(folders, key=_step)
    return []


def complete_checkpoints(path: Path) -> list[Path]:
    """The checkpoints of `step_folders` whose manifest is valid, oldest first."""
    return [folder for folder in step_folders(path) if _is_complete(folder)]


def listing(path: Path) -> list[dict[str, Any]]:
    """A row per checkpoint in `path` (a run's directory, a directory of checkpoints, or one checkpoint), oldest first.

    A checkpoint with a damaged manifest has the kind `damaged` and a `problem`. Raises CheckpointError if there is no
    such directory.
    """
    if not path.is_dir():
        raise CheckpointError(
            "there is no such directory",
            where=path,
            expected="a run's directory, or a directory of checkpoints",
            fix="give the directory that `output` of the run file names",
        )
    if (path / MANIFEST).exists():
        return [_row(path)]
    return [_row(folder) for folder in step_folders(path)]


def verify(path: Path, rank: int = 0, size: int = 1) -> Manifest:
    """Compare the checkpoint at `path` (see `locate`) with its manifest, which is returned.

    Every rank compares all sizes; ranks 0 to `size` - 1 together compare the hash of every file once. Raises
    CheckpointError with the first file that differs.
    """
    checkpoint = locate(path)
    manifest = read_step_manifest(checkpoint)
    _require_sizes(checkpoint, manifest)
    by_size = sorted(manifest.files.items(), key=lambda item: (-item[1].bytes, item[0]))
    for name, entry in by_size[rank::size]:
        found = _sha256(checkpoint / name)
        if found != entry.sha256:
            raise _differs(checkpoint / name, f"sha256 {found}", f"sha256 {entry.sha256}")
    return manifest


def prune(root: Path, keep: int) -> list[Path]:
    """Delete all complete checkpoints except the newest `keep` (at least two); returns the deleted ones.

    Damaged checkpoints are kept for inspection.
    """
    old = complete_checkpoints(root)[: -max(keep, KEPT_AT_LEAST)]
    for folder in old:
        with report_write_errors(folder):
            directories.delete(folder)
    return old


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise OutputError, with the bytes needed and free, unless `folder` can hold a checkpoint of that size."""
    require_free_space(directories.require_writable(folder, needed_bytes), needed_bytes)


def set_aside(damaged: Path) -> Path:
    """Rename a damaged checkpoint, without changing its files, and return its new path. Raises OutputError."""
    aside = damaged.with_name(f"{damaged.name}.damaged-{secrets.token_hex(4)}")
    with report_write_errors(damaged):
        damaged.rename(aside)
        sync(aside.parent)
    return aside


def set_aside_damaged(folder: Path) -> None:
    """Rename `folder` if it has no valid manifest, so that its step can be saved again. Raises OutputError."""
    if folder.is_dir() and not _is_complete(folder):
        set_aside(folder)


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Sync every file in `folder` to disk; returns size and sha256 by relative path. Raises as `hash_file`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def hash_file(path: Path) -> FileEntry:
    """Sync a file to disk; returns its size and sha256. Raises OutputError if the system cannot store the content."""
    with report_write_errors(path):
        sync(path)  # some file systems report errors of writing only here
    return FileEntry(bytes=path.stat().st_size, sha256=_sha256(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write and sync the manifest of a checkpoint whose files are on disk.

    Raises CheckpointError if the files do not have the sizes in the manifest, OutputError if the system refuses.
    """
    _require_sizes(folder, manifest)
    path = folder / MANIFEST
    with report_write_errors(path):
        fault_point("checkpoint.before_manifest")
        write_text(path, manifest.to_json())


def write_latest(published: Path) -> None:
    """Write the name of a published checkpoint into `LATEST`; errors are ignored, since the file is only a hint."""
    fault_point("checkpoint.before_pointer")
    with suppress(OutputError):
        replace_text(published.with_name(LATEST), f"{published.name}\n")


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _is_complete(folder: Path) -> bool:
    with suppress(CheckpointError):
        read_step_manifest(folder)
        return True
    return False


def _row(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_step_manifest(folder)
    except CheckpointError as error:
        step = _step(folder) if _STEP.fullmatch(folder.name) else None
        facts: dict[str, Any] = {"step": step, "kind": "damaged", "tokens": None, "size_bytes": None}
        return facts | {"problem": error.what, "path": str(folder)}
    return {
        "step": manifest.step,
        "kind": manifest.kind,
        "tokens": manifest.consumed_tokens,
        "size_bytes": manifest.size_bytes,
        "problem": None,
        "path": str(folder),
    }


def _require_sizes(checkpoint: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise _differs(path, "no such file", f"{entry.bytes:,} bytes")
        if path.stat().st_size != entry.bytes:
            raise _differs(path, f"{path.stat().st_size:,} bytes", f"{entry.bytes:,} bytes")


def _differs(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "a file of the checkpoint differs from what was saved",
        where=path,
        found=found,
        expected=f"{expected}, from {MANIFEST}",
        fix="copy the file again from its source, or use another checkpoint",
    )


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            "a file of the checkpoint cannot be read",
            where=path,
            found=error.strerror,
            fix="correct its permissions, or use another checkpoint",
        ) from error
