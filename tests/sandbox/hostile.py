"""Programs that try to leave the sandbox or to exceed its limits: name -> (program, correct verdicts)."""

from __future__ import annotations

CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
CALL += "def call(*a):\n    if libc.syscall(*a) < 0: raise PermissionError(ctypes.get_errno(), 'refused')\n"

PROGRAMS: dict[str, tuple[str, set[str]]] = {
    # more processes
    "fork": ("import os\nos.fork()", {"denied"}),
    "fork bomb": ("import os\nwhile True: os.fork()", {"denied"}),
    "fork by clone": (CALL + "call(56, 17, 0, 0, 0, 0)", {"denied"}),
    "fork by clone3": (CALL + "call(435, 0, 88)", {"denied"}),
    "vfork": (CALL + "call(58)", {"denied"}),
    "thread bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        {"denied"},
    ),
    "multiprocessing": ("import multiprocessing as m\nm.Pool(4).map(abs, [1])", {"denied", "error"}),
    "subprocess": ("import subprocess\nsubprocess.run(['/bin/ls'])", {"denied"}),
    "system": ("import os\nif os.system('ls') != 0: raise PermissionError", {"denied"}),
    "exec": ("import os\nos.execv('/bin/sh', ['sh'])", {"denied"}),
    # more memory, disk, time, output, files
    "memory bomb": ("x = []\nwhile True: x.append('x' * (1 << 20))", {"memory"}),
    "memory in one block": ("bytearray(1 << 40)", {"memory"}),
    "memory by numpy": ("import numpy\nnumpy.ones(1 << 36)", {"memory"}),
    "anonymous file": ("import os\nos.memfd_create('x')", {"denied"}),
    "shared memory": (CALL + "call(29, 0, 1 << 30, 0o1600)", {"denied"}),
    "disk bomb": ("f = open('x', 'wb')\nwhile True: f.write(b'x' * 100000)", {"disk"}),
    "disk bomb in many files": (
        "for i in range(10**6):\n with open(str(i), 'wb') as f: f.write(b'x' * 10**6)",
        {"disk"},
    ),
    "empty files": ("for i in range(10**6): open(str(i), 'w').close()", {"disk"}),
    "a sparse file of a terabyte": ("open('x', 'wb').truncate(1 << 40)", {"disk"}),
    "open files": ("x = [open('/dev/null') for _ in range(10**6)]", {"error"}),
    "endless loop": ("while True: pass", {"timeout"}),
    "endless sleep": ("import time\ntime.sleep(1e6)", {"timeout"}),
    "endless regex": ("import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", {"timeout"}),
    "endless power": ("10 ** 10 ** 9", {"timeout", "memory"}),
    "swallowed exceptions": (
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
        {"timeout"},
    ),
    "ignored signals": (
        "import signal\nfor n in (1, 2, 3, 14, 15, 24, 25): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        {"timeout"},
    ),
    "output flood": ("while True: print('x' * 1000)", {"output"}),
    "error flood": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {"output"}),
    "flood of the report": ("import os\nwhile True: os.write(3, b'x' * 1000)", {"output"}),
    "raised limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1 << 40, 1 << 40))",
        {"denied", "error"},
    ),
    # files
    "password file": ("open('/etc/passwd').read()", {"denied"}),
    "password file through a link": ("import os\nos.symlink('/etc/passwd', 'p')\nopen('p').read()", {"denied"}),
    "password file by openat": (
        "import os\nd = os.open('/', os.O_PATH)\nos.open('etc/passwd', os.O_RDONLY, dir_fd=d)",
        {"denied"},
    ),
    "hard link": ("import os\nos.link('/etc/hostname', 'h')", {"denied"}),
    "secrets of the environment": ("open('/proc/self/environ').read()", {"denied"}),
    "secrets of the parent": ("import os\nopen(f'/proc/{os.getppid()}/environ').read()", {"denied"}),
    "memory of the parent": ("import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)", {"denied"}),
    "file outside": ("open('/tmp/dsmath-was-here', 'w')", {"denied"}),
    "file above": ("open('../was-here', 'w')", {"denied"}),
    "deleted file": ("import os\nos.remove('{victim}')", {"denied"}),
    "overwritten file": ("open('{victim}', 'w')", {"denied"}),
    "truncated file": ("import os\nos.truncate('{victim}', 0)", {"denied"}),
    "renamed file": ("import os\nos.rename('{victim}', 'mine')", {"denied"}),
    "read file": ("open('{victim}').read()", {"denied"}),
    "changed mode": ("import os\nos.chmod('{victim}', 0o777)", {"denied"}),
    "changed times": ("import os\nos.utime('{victim}', (0, 0))", {"denied"}),
    "deleted tree": ("import shutil\nshutil.rmtree('{victim_folder}')", {"denied"}),
    "device": ("import os\nos.mknod('d', 0o60600, 0x801)", {"denied"}),
    "mount": (CALL + "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)", {"denied"}),
    "change of root": ("import os\nos.chroot('.')", {"denied"}),
    # network and other processes
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 80))", {"denied"}),
    "name lookup": ("import urllib.request\nurllib.request.urlopen('http://example.org')", {"denied", "error"}),
    "local socket": ("import socket\nsocket.socketpair()", {"denied"}),
    "signal to the parent": ("import os\nos.kill(os.getppid(), 9)", {"denied"}),
    "signal to every process": ("import os\nos.kill(-1, 9)", {"denied"}),
    "signal by the kernel": ("import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", {"denied"}),
    "ptrace": (CALL + "import os\ncall(101, 16, os.getppid(), 0, 0)", {"denied"}),
    "memory of another process": (CALL + "import os\ncall(310, os.getppid(), 0, 0, 0, 0, 0)", {"denied"}),
    "limits of another process": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))",
        {"denied", "error"},
    ),
    "priority of the parent": ("import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", {"denied"}),
    "another user": ("import os\nos.setuid(0 if os.getuid() else 1)", {"denied"}),
    "namespaces": (CALL + "call(272, 0x10000000)", {"denied"}),
    "kernel programs": (CALL + "call(321, 0, 0, 0)", {"denied"}),
    "io_uring": (CALL + "call(425, 8, 0)", {"denied"}),
    # ways to exit
    "exit without a report": ("import os\nos._exit(0)", {"error"}),
    "crash": ("import ctypes\nctypes.string_at(0)", {"error"}),
    "abort": ("import os\nos.abort()", {"error"}),
    "waiting for input": ("input()", {"error"}),
    "not Python": ("this is no program", {"error"}),
    "a null character": ("print('\0')", {"error"}),
    "a lone surrogate": ("print('\ud800')", {"error"}),
    "deep nesting": ("(" * 10**5 + ")" * 10**5, {"error", "memory"}),
    "deep recursion": ("def f(): f()\nf()", {"error"}),
    "an exception that fails": (
        "class E(Exception):\n def __str__(self): raise SystemExit(0)\nraise E",
        {"error", "ok"},
    ),
    "a broken exit": ("import os, sys\nos._exit = sys.exit = print\nraise SystemExit(4)", {"error"}),
    "a pickle for the parent": (
        "import pickle, sys\nclass P:\n def __reduce__(self): return (exit, ())\n"
        "sys.stdout.buffer.write(pickle.dumps(P()))",
        {"ok"},
    ),
    "a forged answer": ('print(\'{"verdict": "ok", "stdout": "42"}\')\nraise ValueError', {"error"}),
}
