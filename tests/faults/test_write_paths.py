"""Every function that writes files of a run or a checkpoint has a fault point."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import megatron_dsmath
from megatron_dsmath.fault_injection import POINTS

PACKAGE = Path(megatron_dsmath.__file__).parent
WRITES = {"write_text", "write_bytes", "rename", "fsync", "pwrite", "copyfile", "copytree", "copy2", "move"}

POINT_OF_THE_CALLER = {
    "checkpoint.writer_process._write_all": "writer.inside_file",
    "files.directories.publish": "checkpoint.before_rename",
    "files.atomic_files.sync": "writer.before_sync",
    "files.atomic_files.write_text": "checkpoint.before_manifest",
}
NONE_NEEDED = {
    "checkpoint.store.set_aside": "one rename of a checkpoint that is damaged already",
    "checkpoint.logit_gate.run_own_logits": "a request between two processes, in a directory of its own",
    "checkpoint.safetensors_files._write_file": "a conversion, written into a directory without a final name",
    "checkpoint.safetensors_files.write_safetensors": "the same",
    "checkpoint.to_huggingface.write_huggingface": "the same",
    "checkpoint.tokenizer_files.write_beside_weights": "the same",
    "files.atomic_files.publish": "data and results, which a killed process writes again",
    "supervision.lock._write": "a lease, which is judged by its age and not by its content",
    "supervision.watchdog._write_stacks": "stacks for people; a failure is ignored",
    "supervision.watchdog._write_entered_section": "a message to the other ranks; a failure is ignored",
}


def writing_functions() -> Iterator[tuple[str, bool]]:
    """Each function that writes, and whether it calls a fault point."""
    for room in ("files", "checkpoint", "training", "supervision"):
        for file in sorted((PACKAGE / room).glob("*.py")):
            for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef):
                    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                    if any(map(writes, calls)):
                        yield f"{room}.{file.stem}.{function.name}", any(map(is_point, calls))


def writes(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        return call.func.id == "write_text"  # of files/atomic_files.py
    if not isinstance(call.func, ast.Attribute):
        return False
    name, texts = call.func.attr, [node.value for node in call.args if isinstance(node, ast.Constant)]
    if name == "open":
        return any(isinstance(text, str) and set(text) & set("wax+") and len(text) < 4 for text in texts)
    if name == "write":
        return isinstance(call.func.value, ast.Name) and call.func.value.id == "os"
    if name == "replace":  # of a Path: a text's takes two
        return len(call.args) == 1
    return name in WRITES


def is_point(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "fault_point"


def test_every_write_path_has_a_fault_point() -> None:
    found = dict(writing_functions())
    bare = {name for name, has_point in found.items() if not has_point}
    assert bare == POINT_OF_THE_CALLER.keys() | NONE_NEEDED.keys()
    assert set(POINT_OF_THE_CALLER.values()) <= POINTS.keys()
    assert {
        "checkpoint.writer_process._write",
        "checkpoint.store.write_manifest",
        "files.atomic_files.append_row",
    } <= found.keys()
