"""Confine this process permanently, before the first line of a model's program runs."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import sys
import sysconfig
from pathlib import Path

from megatron_dsmath.sandbox import landlock, system_calls
from megatron_dsmath.sandbox.outcome import Limits

OPEN_FILES = 64
_LIBC = ctypes.CDLL(None, use_errno=True)
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, System V IPC


def is_supported() -> bool:
    """Whether this kernel and processor can confine a program."""
    return sys.platform == "linux" and platform.machine() in system_calls.ARCHITECTURES and landlock.version() > 0


def leave_namespaces() -> bool:
    """Enter new user, network and IPC namespaces; False if the kernel forbids it. Only an addition to seccomp."""
    return bool(_LIBC.unshare(_NAMESPACES) == 0)


class Confinement:
    """The restrictions of a program, prepared once and applied in each fork. Raises OSError."""

    def __init__(self, scratch: Path) -> None:
        self._files = landlock.Ruleset(_readable_paths(), scratch)
        self._calls = system_calls.Filter()

    def apply(self, limits: Limits) -> None:
        """Limit this process's resources, capabilities, files and system calls. Raises OSError if any of it fails."""
        _limit_resources(limits)
        if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the process cannot give up new privileges")
        self._files.apply()
        _drop_capabilities()
        self._calls.apply()


def _readable_paths() -> list[Path]:
    """Python's modules and the system's shared libraries. Not home directories, /etc, /proc or data."""
    modules = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    libraries = {Path(sys.base_prefix) / "lib", *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64"))}
    return sorted({*modules, *libraries, Path("/dev/null"), Path("/dev/urandom"), Path("/usr/share/zoneinfo")})


def _limit_resources(limits: Limits) -> None:
    used_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    processor_seconds = math.ceil(limits.timeout_seconds) + 1
    for kind, limit in (
        (resource.RLIMIT_AS, used_bytes + (limits.memory_mib << 20)),
        (resource.RLIMIT_CPU, processor_seconds),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if _LIBC.syscall(_CAPSET[platform.machine()], header, none):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
