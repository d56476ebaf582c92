"""Documents from lines of JSON. Each line is a document, or a bad line with its position and the reason."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from megatron_dsmath.errors import DataError
from megatron_dsmath.files.lines import LINE_LIMIT_BYTES, Line, LineReader


class Document(NamedTuple):
    """The texts of one line, in the order of the requested fields. `line` counts from 1."""

    path: Path
    line: int
    texts: tuple[str, ...]


class BadLine(NamedTuple):
    """A line that is not a document, and the reason."""

    path: Path
    line: Line
    error: DataError


def read_documents(path: Path, fields: Sequence[str]) -> Iterator[Document]:
    """The documents of a .jsonl, .jsonl.gz or .jsonl.zst file. Raises DataError at the first bad line."""
    with LineReader(path) as lines:
        for line in lines:
            yield parse_document(path, line, fields)


def parse_documents(path: Path, lines: Iterable[Line], fields: Sequence[str]) -> Iterator[Document | BadLine]:
    """The document of each line, or the bad line."""
    for line in lines:
        try:
            yield parse_document(path, line, fields)
        except DataError as error:
            yield BadLine(path, line, error)


def parse_document(path: Path, line: Line, fields: Sequence[str]) -> Document:
    """The texts of one line. Raises DataError with the file, the line and, if known, the column.

    A line must be one JSON object (RFC 8259: no NaN, no byte order mark) in UTF-8. It must contain each field exactly
    once, as a string that can be encoded in UTF-8.
    """
    where = f"{path}:{line.number}"
    entries = decode_line(path, line, _DECODER)
    if not isinstance(entries, _Object):
        _refuse("the line is not a JSON object", where, _type_name(entries), "an object")
    return Document(path, line.number, tuple(_text(entries, field, where) for field in fields))


def quarantine_row(path: Path, line: Line, error: DataError) -> bytes:
    """A bad line as a row of the quarantine file: file, line, reason, content.

    Bytes that are not UTF-8 become lone surrogates: `content.encode("utf-8", "surrogateescape")` gives the line back.
    """
    reason = error.what if error.found is None else f"{error.what}: {error.found}"
    content = line.content.decode("utf-8", "surrogateescape")
    row = {"file": str(path), "line": line.number, "reason": reason, "content": content}
    return (json.dumps(row) + "\n").encode()


class _Object(list[tuple[str, Any]]):
    """A JSON object as a list of pairs, which keeps repeated fields."""


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python's decoder takes for JSON."""
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_constant=refuse_constant)


def decode_line(path: Path, line: Line, decoder: json.JSONDecoder) -> Any:
    """The JSON value of a line. Raises DataError with the file, the line and, if known, the column."""
    where, content = f"{path}:{line.number}", line.content
    if line.size_bytes > LINE_LIMIT_BYTES:
        _refuse("the line is too long", where, f"{line.size_bytes:,} bytes", f"at most {LINE_LIMIT_BYTES:,} bytes")
    if not content.strip():
        _refuse("the line is empty", where, "nothing", "one JSON object")
    try:
        return decoder.decode(content.decode())
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x}: {error.reason}"
        _refuse("the line is not UTF-8", f"{where}:{error.start + 1}", found, "UTF-8", "convert the file to UTF-8")
    except json.JSONDecodeError as error:
        found = "a byte order mark" if content.startswith(BOM_UTF8) else error.msg
        _refuse("the line is not JSON", f"{where}:{error.colno}", found, "one JSON object")
    except RecursionError:
        _refuse("the line is nested too deeply", where, "about 1,000 nested JSON values", "a flat JSON object")
    except ValueError as error:
        _refuse("the line is not JSON", where, str(error).partition(":")[0], "one JSON object")


def _text(entries: _Object, field: str, where: str) -> str:
    values = [value for name, value in entries if name == field]
    if not values:
        names = ", ".join(repr(name) for name, _ in entries[:10]) or "no field"
        _refuse("the field is missing", where, names, repr(field), "name the field that contains the text")
    if len(values) > 1:
        _refuse("the field is given twice", where, f"{field!r} {len(values)} times", "once")
    text = values[0]
    if not isinstance(text, str):
        _refuse("the field is not a string", where, f"{field!r} is {_type_name(text)}", "a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x} at character {error.start + 1:,} of {field!r}"
        _refuse("the text contains a lone surrogate", where, found, "text that can be encoded in UTF-8")
    return text


def _type_name(value: object) -> str:
    names = {_Object: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse(what: str, where: str, found: object, expected: str, fix: str | None = None) -> NoReturn:
    advice = "correct the line, or set bad lines aside: --bad-lines skip"
    raise DataError(what, where=where, found=found, expected=expected, fix=fix or advice) from None
