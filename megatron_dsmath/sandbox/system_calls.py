"""A seccomp filter with the system calls a program may make. Every other call fails with EPERM.

It is an allow-list, so calls that later kernels add are refused. The numbers are those of
linux/arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Iterable, Sequence

# name: (x86_64, aarch64). Without fork, clone, exec, socket, kill, ptrace, mount, chmod, chown, changes of file times
# or attributes, and memory that RLIMIT_AS does not count. Landlock decides which files may be opened or removed.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "open": (2, None),
    "openat": (257, 56),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "umask": (95, 166),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "pause": (34, None),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

# name: numbers, index of the checked argument, its allowed values. Other commands of fcntl (F_SETOWN) and ioctl
# (FIOSETOWN) can make the kernel signal another process. prlimit64 may read limits: its third argument must be null.
_BY_ARGUMENT: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 5, 1030)),  # duplicate, descriptor and file flags, query a lock
    # terminal attributes and size, non-blocking, close-on-exec
    "ioctl": ((16, 29), 1, (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)),
    "prlimit64": ((302, 261), 2, (0,)),
}

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


class Filter:
    """The filter for this processor, which any process can apply to itself."""

    def __init__(self) -> None:
        code = _filter_code(platform.machine())
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _FilterProgram(len(code) // 8, ctypes.cast(self._code, ctypes.c_void_p))

    def apply(self) -> None:
        """Apply the filter to this process permanently. It must have no_new_privs set. Raises OSError."""
        if _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(self._program), 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp is not available")


class _FilterProgram(ctypes.Structure):  # struct sock_fprog
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _filter_code(machine: str) -> bytes:
    column, architecture = ARCHITECTURES[machine]
    code = [*_only_if(_ARCH, [architecture], otherwise=_KILL), _instruction(_LOAD, _NUMBER)]
    for numbers in ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    for pair, argument, values in _BY_ARGUMENT.values():
        low = _ARGUMENTS + 8 * argument
        check = [*_only_if(low + 4, [0], otherwise=_EPERM), *_only_if(low, values, otherwise=_EPERM)]
        check.append(_instruction(_RETURN, _ALLOW))
        code += [_instruction(_EQUAL, pair[column], 0, len(check)), *check]
    return b"".join([*code, _instruction(_RETURN, _EPERM)])


def _only_if(offset: int, values: Sequence[int], otherwise: int) -> Iterable[bytes]:
    """Instructions that continue after their end if the word at `offset` is one of `values`; otherwise return."""
    yield _instruction(_LOAD, offset)
    for index, value in enumerate(values):
        yield _instruction(_EQUAL, value, len(values) - index, 0)
    yield _instruction(_RETURN, otherwise)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
