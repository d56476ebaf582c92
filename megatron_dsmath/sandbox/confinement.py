"""This process, stripped of all that a model's program must not have: for good, and before its first line runs."""

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
    return sys.platform == "linux" and system_calls.is_supported() and landlock.version() > 0


def leave_namespaces() -> bool:
    """Leave the machine's network and users behind, where the kernel lets anybody; a second wall behind seccomp."""
    return bool(_LIBC.unshare(_NAMESPACES) == 0)


class Confinement:
    """What a program may touch, made ready once; each fork is then left with it. Raises OSError."""

    def __init__(self, scratch: Path) -> None:
        self._files = landlock.Domain(_readable(), scratch)
        self._calls = system_calls.Filter()

    def enter(self, limits: Limits) -> None:
        """Give up resources, capabilities, files and system calls. Raises OSError where any of it does not hold."""
        _limit_resources(limits)
        if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the process cannot be kept from new privileges")
        self._files.enter()
        _drop_capabilities()
        self._calls.enter()


def _readable() -> list[Path]:
    """Where Python finds its modules and the system its shared libraries; no home, no /etc, no /proc, no data."""
    modules = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    libraries = {Path(sys.base_prefix) / "lib", *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64"))}
    return sorted({*modules, *libraries, Path("/dev/null"), Path("/dev/urandom"), Path("/usr/share/zoneinfo")})


def _limit_resources(limits: Limits) -> None:
    held_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    processor_seconds = math.ceil(limits.timeout_seconds) + 1
    for kind, most in (
        (resource.RLIMIT_AS, held_bytes + (limits.memory_mib << 20)),
        (resource.RLIMIT_CPU, processor_seconds),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if _LIBC.syscall(_CAPSET[platform.machine()], header, none):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
