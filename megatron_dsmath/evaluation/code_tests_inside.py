"""Run a program and its tests inside the sandbox. Imported by the sandbox's interpreter, so it must be light.

The program may be hostile, and one interpreter cannot fully isolate two programs. The measures here make a false pass
possible only by intent: docs/evaluation.md lists the remaining ways.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from typing import Any


def main() -> None:
    """Run the program and the tests of the request on standard input, then write its token to standard output."""
    request = json.loads(sys.stdin.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # the program cannot read the request and its token again
    os.close(nothing)
    # Take what the program could replace before it runs. Program and tests are compiled separately, so that an open
    # quote or bracket of the program does not reach the tests.
    tests, tested = compile(request["tests"], "tests.py", "exec"), names_under_test(request["tests"])
    original, run, write, untrace, unprofile = dict(vars(builtins)), exec, os.write, sys.settrace, sys.setprofile
    namespace: dict[str, Any] = {"__name__": "program"}  # a main block is not part of the answer
    exec(compile(request["program"], "program.py", "exec"), namespace)  # noqa: S102  # confined
    untrace(None)
    unprofile(None)
    vars(builtins).update(original)
    visible = {name: value for name, value in namespace.items() if name in tested or name not in original}
    run(tests, {**visible, "__builtins__": original})
    write(1, b"\n" + request["token"].encode() + b"\n")


def names_under_test(tests: str) -> set[str]:
    """The names that the tests call. A builtin's name counts only if they call no other name."""
    calls = (node.func for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Call))
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    return called - set(dir(builtins)) or called
