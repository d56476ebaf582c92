from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.text.documents import (
    BadLine,
    Document,
    parse_document,
    parse_documents,
    quarantine_row,
    read_documents,
)
from megatron_dsmath.errors import DataError
from megatron_dsmath.files import lines as lines_module
from megatron_dsmath.files.lines import LINE_LIMIT_BYTES, Line, LineReader

GOOD = b'{"text": "good"}'
BAD = {
    "nothing": (b"", "the line is empty"),
    "blanks": (b"  \t", "the line is empty"),
    "cut off": (b'{"text": "x', "not JSON"),
    "two values": (GOOD + GOOD, "not JSON"),
    "trailing comma": (b'{"text": "x",}', "not JSON"),
    "raw NUL": (b'{"text": "a\0b"}', "not JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "not JSON"),
    "NaN": (b'{"text": "x", "score": NaN}', "NaN is not a JSON value"),
    "infinity": (b'{"text": "x", "score": -Infinity}', "-Infinity is not a JSON value"),
    "5,000 digits": (b'{"text": "x", "n": ' + b"1" * 5000 + b"}", "not JSON"),
    "array": (b'["text"]', "found:    a list"),
    "string": (b'"text"', "found:    a string"),
    "null": (b"null", "found:    null"),
    "other field": (b'{"content": "x"}', "found:    'content'"),
    "no field": (b"{}", "found:    no field"),
    "number": (b'{"text": 3}', "'text' is a number"),
    "boolean": (b'{"text": true}', "'text' is true or false"),
    "nothing in it": (b'{"text": null}', "'text' is null"),
    "list of strings": (b'{"text": ["a", "b"]}', "'text' is a list"),
    "object within": (b'{"text": {"text": "x"}}', "'text' is an object"),
    "twice": (b'{"text": "x", "text": "y"}', "given twice"),
    "Latin-1": ('{"text": "é"}'.encode("latin-1"), "byte 0xe9"),
    "overlong": (b'{"text": "\xc0\x80"}', "byte 0xc0"),
    "surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "byte 0xed"),
    "UTF-16": ('{"text": "x"}'.encode("utf-16"), "not UTF-8"),
    "lone surrogate": (b'{"text": "ab\\ud800"}', r"\\ud800 at character 3"),
    "200,000 lists deep": (b'{"text": "x", "y": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "200,000 objects deep": (b'{"x":' * 200_000, "nested too deeply"),
}

compressions: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def documents_and_bad_lines(path: Path) -> tuple[list[Document], list[BadLine]]:
    with LineReader(path) as lines:
        parsed = list(parse_documents(path, lines, ["text"]))
    documents = [document for document in parsed if isinstance(document, Document)]
    return documents, [line for line in parsed if isinstance(line, BadLine)]


@pytest.mark.parametrize("ending", compressions)
def test_a_document_has_the_number_of_its_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"corpus.jsonl{ending}"
    texts = ["one", "zwei\n\u2028drei", "数学 \U0001f999", "", "\0"]
    path.write_bytes(compressions[ending]("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    expected = [Document(path, number, (text,)) for number, text in enumerate(texts, 1)]
    assert list(read_documents(path, ["text"])) == expected


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_last_line_may_end_without_a_newline(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(GOOD + b"\r\n" + GOOD + ending.encode())
    assert [document.line for document in read_documents(path, ["text"])] == [1, 2]


def test_texts_are_in_the_order_of_the_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", b'{"b": "2", "c": 3, "a": "1"}')
    assert next(read_documents(path, ["a", "b"])).texts == ("1", "2")


@pytest.mark.parametrize("name", BAD)
def test_the_error_of_a_bad_line_has_file_line_and_reason(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = write(tmp_path / "corpus.jsonl", GOOD, content, GOOD)
    with pytest.raises(DataError, match=message) as caught:
        list(read_documents(path, ["text"]))
    assert str(caught.value.where).startswith(f"{path}:2")
    assert None not in (caught.value.found, caught.value.expected, caught.value.fix)


def test_the_error_of_invalid_json_has_the_column(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", b'{"text": x}')
    with pytest.raises(DataError) as caught:
        list(read_documents(path, ["text"]))
    assert caught.value.where == f"{path}:1:10"


def test_every_line_is_a_document_or_a_bad_line(tmp_path: Path) -> None:
    contents = [content for content, _ in BAD.values()]
    path = write(tmp_path / "corpus.jsonl", GOOD, *contents, GOOD)
    documents, bad_lines = documents_and_bad_lines(path)
    assert [document.line for document in documents] == [1, len(contents) + 2]
    quarantine = [json.loads(quarantine_row(*bad_line)) for bad_line in bad_lines]
    assert [row["line"] for row in quarantine] == list(range(2, len(contents) + 2))
    assert [row["content"].encode("utf-8", "surrogateescape") for row in quarantine] == contents
    assert all(row["file"] == str(path) and row["reason"] for row in quarantine)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: json.dumps({"text": text}).encode()))
@example(content=b'{"text":"\\ud83e\\udd99"}')
def test_random_bytes_are_a_document_or_a_bad_line(content: bytes) -> None:
    line = Line(1, content, len(content))
    try:
        document = parse_document(Path("corpus.jsonl"), line, ["text"])
    except DataError as error:
        row = json.loads(quarantine_row(Path("corpus.jsonl"), line, error))
        assert row["content"].encode("utf-8", "surrogateescape") == content
    else:
        assert document.texts == (json.loads(content)["text"],)
        document.texts[0].encode()


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_decompression_bomb_is_a_bad_line_and_uses_bounded_memory(tmp_path: Path, ending: str) -> None:
    """512 MiB in one line: the process may grow by four times the line limit (the line, a copy, decoder buffers)."""
    path = tmp_path / f"bomb.jsonl{ending}"
    compressor = gzip.GzipFile(path, "wb", 1) if ending == ".gz" else zstandard.open(path, "wb")
    with compressor as file:
        file.write(GOOD + b"\n")
        for _ in range(512):
            file.write(b" " * (1 << 20))
        file.write(b"\n" + GOOD + b"\n")
    code = f"""
import re
from pathlib import Path
from megatron_dsmath.data.text.documents import BadLine, parse_documents
from megatron_dsmath.files.lines import LineReader
peak_kib = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak_kib()
path = Path({str(path)!r})
parsed = parse_documents(path, LineReader(path), ["text"])
lines = [(item.line.number, item.line.size_bytes) if isinstance(item, BadLine) else item.line for item in parsed]
print(lines, (peak_kib() - before) >> 10)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines, grown_mib = run.stdout.strip().rsplit(" ", 1)
    assert lines == "[1, (2, 536870912), 3]"
    assert 0 < int(grown_mib) < 4 * LINE_LIMIT_BYTES >> 20


def test_the_line_limit_is_64_mib_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    at_limit = b'{"text": "x"}'.ljust(64 << 20)
    write(path, at_limit, at_limit + b" ", GOOD)
    documents, bad_lines = documents_and_bad_lines(path)
    assert [document.line for document in documents] == [1, 3]
    assert [bad_line.error.found for bad_line in bad_lines] == ["67,108,865 bytes"]


def test_a_line_over_the_limit_does_not_affect_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of 0 to 39 bytes are read in blocks of 16 bytes, with a limit of 30 bytes."""
    monkeypatch.setattr(lines_module, "LINE_LIMIT_BYTES", 30)
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 16)
    monkeypatch.setattr(lines_module, "EXCERPT_BYTES", 10)
    contents = [b"%c" % (65 + size % 26) * size for size in range(40)] * 2
    for end in (b"", b"\n"):
        path = tmp_path / "corpus.jsonl"
        path.write_bytes(b"\n".join(contents) + end)
        with LineReader(path) as reader:
            read = list(reader)
        kept = [line if len(line) <= 30 else line[:10] for line in contents]
        assert [line.content for line in read] == kept
        assert [line.size_bytes for line in read] == list(map(len, contents))
        assert [line.number for line in read] == list(range(1, 81))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_truncated_file_is_refused_even_if_bad_lines_are_skipped(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"corpus.jsonl{ending}"
    path.write_bytes(compressions[ending](b"".join(b'{"text": "%d"}\n' % i for i in range(1000)))[:-9])
    with pytest.raises(DataError, match="cannot be read to its end") as caught:
        documents_and_bad_lines(path)
    assert f"{path}:" in str(caught.value.where)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_an_uncompressed_file_with_the_name_of_a_compressed_one_is_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"corpus.jsonl{ending}", GOOD)
    with pytest.raises(DataError, match="cannot be read"):
        list(read_documents(path, ["text"]))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_concatenated_compressed_files_are_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"corpus.jsonl{ending}"
    compress = compressions[ending]
    path.write_bytes(compress(GOOD[:5]) + compress(GOOD[5:] + b"\n") + compress(b"") + compress(GOOD))
    assert [document.line for document in read_documents(path, ["text"])] == [1, 2]


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    refusals = {
        "missing.jsonl": "no such file",
        ".": "a folder",
        "empty.jsonl": "is empty",
        "empty.jsonl.gz": "is empty",
    }
    for name, message in refusals.items():
        with pytest.raises(DataError, match=message):
            list(read_documents(tmp_path / name, ["text"]))


def test_the_final_position_is_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + b"\n"))
    with LineReader(path) as reader:
        list(reader)
        assert reader.position_bytes == reader.size_bytes == path.stat().st_size
