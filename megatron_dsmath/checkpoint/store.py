"""The life of a checkpoint: begun under another name, hashed, published by one rename, verified, pruned. No torch.

A published `step_N` is never written again, so what it holds is always one step, whole. What exists is read from the
directory, never from the pointer `LATEST`, which is there for people. docs/checkpoints.md tells the story.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint.manifest import MANIFEST, FileEntry, Manifest, not_a_checkpoint, read_manifest
from megatron_dsmath.errors import CheckpointError
from megatron_dsmath.fault_injection import fault_point
from megatron_dsmath.files import directories
from megatron_dsmath.files.atomic_files import require_free_space, sync
from megatron_dsmath.files.directories import report_write_errors

LATEST = "LATEST"
KEPT_AT_LEAST = 2  # a newest one that turns out corrupt must not have been the only one

_STEP = re.compile(r"step_(0|[1-9]\d*)")
_BLOCK_BYTES = 1 << 22


def begin(root: Path, step: int) -> Path:
    """Create the directory that will be `root`/step_N, to be filled by all ranks; one rank calls this.

    Removes what dead processes left of earlier saves, and moves a damaged checkpoint of the same step out of the way.
    Raises OutputError when that step is published and complete, or when nothing can be written there.
    """
    directories.remove_leftovers(root, "step_*")
    target = root / f"step_{step}"
    if target.is_dir() and not _is_complete(target):
        set_aside(target)
    return directories.begin(target)


def hashes(folder: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file by its path in `folder`; each is brought to the disk. Raises as `file_entry`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in files}


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file, which is brought to the disk.

    Raises OutputError when the system cannot keep what was written, which some file systems say only now.
    """
    with report_write_errors(path):
        sync(path)
    return FileEntry(bytes=path.stat().st_size, sha256=_sha256(path))


def publish(incomplete: Path, manifest: Manifest) -> Path:
    """Write the manifest, give the checkpoint its name and point LATEST to it; one process calls this.

    The files are on the disk. Returns the published directory. Raises CheckpointError when they are not those of the
    manifest, OutputError when the system refuses.
    """
    _require_sizes(incomplete, manifest)
    path = incomplete / MANIFEST
    with report_write_errors(path):
        fault_point("checkpoint.before_manifest")
        path.write_text(manifest.to_json(), encoding="utf-8")
        sync(path)
    fault_point("checkpoint.before_rename")
    published = directories.publish(incomplete)
    fault_point("checkpoint.before_pointer")
    if _STEP.fullmatch(published.name):
        with suppress(OSError):  # a hint: the checkpoint itself is safe
            scratch = published.with_name(f"{LATEST}.{os.getpid()}")
            scratch.write_text(f"{published.name}\n", encoding="utf-8")
            scratch.replace(published.with_name(LATEST))
    return published


def set_aside(damaged: Path) -> Path:
    """Give a damaged checkpoint a name that no step has, which it returns; nothing in it is changed.

    Raises OutputError.
    """
    aside = damaged.with_name(f"{damaged.name}.damaged-{secrets.token_hex(4)}")
    with report_write_errors(damaged):
        damaged.rename(aside)
        sync(aside.parent)
    return aside


def newest(root: Path) -> Path | None:
    """The newest complete checkpoint in `root`; None where none was ever published.

    Raises CheckpointError when there are some and none is complete: a run must not start anew over them.
    """
    problems = []
    for folder in reversed(step_folders(root)):
        try:
            manifest_of(folder)
        except CheckpointError as error:
            problems.append(error)
        else:
            return folder
    if problems:
        raise problems[0]
    return None


def locate(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the newest of a run's directory or of a directory of checkpoints.

    Raises CheckpointError when it names none.
    """
    if (path / MANIFEST).exists():
        return path
    for root in (path / "checkpoints", path):
        found = newest(root)
        if found is not None:
            return found
    raise not_a_checkpoint(path, "no checkpoint in it" if path.is_dir() else "no such directory")


def listing(path: Path) -> list[dict[str, Any]]:
    """A row for each published checkpoint that `path` holds (a run's directory, its checkpoints, one), oldest first.

    One whose manifest is damaged has the kind `damaged` and says its `problem`. Raises CheckpointError when there is
    no such directory.
    """
    if not path.is_dir():
        raise CheckpointError(
            "there is no such directory",
            where=path,
            expected="a run's directory, or its checkpoints",
            fix="name the directory that `output` of the run file names",
        )
    if (path / MANIFEST).exists():
        return [_row(path)]
    return [_row(folder) for folder in step_folders(path / "checkpoints") or step_folders(path)]


def verify(path: Path, rank: int = 0, size: int = 1) -> Manifest:
    """Compare the checkpoint that `path` names with its manifest: every file's size, this rank's share of the hashes.

    Ranks 0 to `size` - 1 together hash every file once. Raises CheckpointError naming the first file that differs.
    """
    checkpoint = locate(path)
    manifest = manifest_of(checkpoint)
    _require_sizes(checkpoint, manifest)
    by_size = sorted(manifest.files.items(), key=lambda item: (-item[1].bytes, item[0]))
    for name, entry in by_size[rank::size]:
        found = _sha256(checkpoint / name)
        if found != entry.sha256:
            raise _differs(checkpoint / name, f"sha256 {found}", f"sha256 {entry.sha256}")
    return manifest


def prune(root: Path, keep: int) -> list[Path]:
    """Delete all complete checkpoints but the newest `keep` (never fewer than two); returns which went.

    Called after a newer one is published. Damaged ones are left for people to look at.
    """
    complete = [folder for folder in step_folders(root) if _is_complete(folder)]
    doomed = complete[: -max(keep, KEPT_AT_LEAST)]
    for folder in doomed:
        with report_write_errors(folder):
            directories.delete(folder)
    return doomed


def preflight(folder: Path, needed_bytes: int) -> None:
    """Raise OutputError, with the bytes needed and free, unless `folder` can take a checkpoint of that size."""
    require_free_space(directories.require_writable(folder, needed_bytes), needed_bytes)


def step_folders(root: Path) -> list[Path]:
    """What is published in `root`, whole or damaged, oldest first."""
    if not root.is_dir():
        return []
    folders = [entry for entry in root.iterdir() if entry.is_dir() and _STEP.fullmatch(entry.name)]
    return sorted(folders, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def manifest_of(folder: Path) -> Manifest:
    """Read a checkpoint's manifest, which must be of the step that its name says. Raises CheckpointError."""
    manifest = read_manifest(folder)
    if _STEP.fullmatch(folder.name) and manifest.step != _step(folder):
        raise CheckpointError(
            "a checkpoint bears the name of another step",
            where=folder,
            found=f"step {manifest.step} in its {MANIFEST}",
            expected=f"step {_step(folder)}",
            fix=f"rename the directory to step_{manifest.step}",
        )
    return manifest


def _is_complete(folder: Path) -> bool:
    with suppress(CheckpointError):
        manifest_of(folder)
        return True
    return False


def _row(folder: Path) -> dict[str, Any]:
    try:
        manifest = manifest_of(folder)
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
        "a file of the checkpoint is not what was saved",
        where=path,
        found=found,
        expected=f"{expected}, as {MANIFEST} says",
        fix="copy the file again from where it came, or use another checkpoint",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(
            "a file of the checkpoint cannot be read",
            where=path,
            found=error.strerror,
            fix="correct its permissions, or use another checkpoint",
        ) from error
    return digest.hexdigest()
