"""A program and its tests, in the sandbox: what is said when all tests passed. Imported by the waiting interpreter.

The program is hostile, and nothing keeps two texts in one interpreter apart for good. What is done makes a false pass
take intent: docs/evaluation.md says what remains.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from typing import Any


def main() -> None:
    """Run the program, then the tests, of the request on standard input; then write its token to standard output."""
    request = json.loads(sys.stdin.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # the request, and the token in it, cannot be read again
    os.close(nothing)
    # What the program could replace is taken while it is as it was. Each text is compiled for itself: no quote or
    # bracket that the program leaves open reaches the tests.
    tests, tested = compile(request["tests"], "tests.py", "exec"), names_under_test(request["tests"])
    original, run, write, untrace, unprofile = dict(vars(builtins)), exec, os.write, sys.settrace, sys.setprofile
    namespace: dict[str, Any] = {"__name__": "program"}  # what a main block would do is no part of the answer
    exec(compile(request["program"], "program.py", "exec"), namespace)  # noqa: S102  # confined
    untrace(None)
    unprofile(None)
    vars(builtins).update(original)
    seen = {name: value for name, value in namespace.items() if name in tested or name not in original}
    run(tests, {**seen, "__builtins__": original})
    write(1, b"\n" + request["token"].encode() + b"\n")


def names_under_test(tests: str) -> set[str]:
    """The names that tests call: without builtins, whose names a program may not take, unless it calls no other."""
    calls = (node.func for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Call))
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    return called - set(dir(builtins)) or called
