"""Restrict the files a process may use with Landlock (linux/landlock.h). The restriction applies to root too."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every processor
_VERSION, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1, 2, 4, 8
_REMOVE_DIRECTORY, _REMOVE_FILE, _MAKE_DIRECTORY, _MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _DEVICE_IOCTL = 1 << 13, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIRECTORY
_SCRATCH = _READ | _WRITE_FILE | _REMOVE_DIRECTORY | _REMOVE_FILE | _MAKE_DIRECTORY | _MAKE_FILE | _REFER | _TRUNCATE


def version() -> int:
    """The kernel's Landlock ABI version; 0 without Landlock. Version 1 came with Linux 5.13."""
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))))


class Ruleset:
    """A Landlock ruleset: the trees `readable` may be read and `scratch` written, nothing else. Raises OSError."""

    def __init__(self, readable: Iterable[Path], scratch: Path) -> None:
        abi = version()
        if not abi:
            raise OSError("this kernel has no Landlock")
        files = (1 << 13) - 1
        files |= (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_DEVICE_IOCTL if abi >= 5 else 0)
        network = 3 if abi >= 4 else 0  # bind and connect
        scopes = 3 if abi >= 6 else 0  # abstract sockets and signals of processes outside
        attributes = struct.pack("=QQQ", files, network, scopes)
        size = ctypes.c_size_t(8 if abi < 4 else 16 if abi < 6 else 24)
        self.descriptor = _call(_CREATE_RULESET, attributes, size, ctypes.c_uint(0))
        for path in readable:
            if path.exists():
                self._allow(path, (_READ if path.is_dir() else _READ_FILE) & files)
        self._allow(scratch, _SCRATCH & files)

    def apply(self) -> None:
        """Apply the rules to this process permanently. It must have no_new_privs set. Raises OSError."""
        _call(_RESTRICT_SELF, ctypes.c_int(self.descriptor), ctypes.c_uint(0))

    def _allow(self, path: Path, rights: int) -> None:
        tree = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            beneath = struct.pack("=Qi", rights, tree)
            _call(_ADD_RULE, ctypes.c_int(self.descriptor), ctypes.c_int(_PATH_BENEATH), beneath, ctypes.c_uint(0))
        finally:
            os.close(tree)


def _call(*arguments: object) -> int:
    found = int(_LIBC.syscall(*arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused a rule")
    return found
