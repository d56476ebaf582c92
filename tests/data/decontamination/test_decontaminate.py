from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import zstandard

from megatron_dsmath.data.decontamination.decontaminate import decontaminate
from megatron_dsmath.errors import DataError, DsmathError, OutputError, UsageError
from megatron_dsmath.files.progress import Progress
from tests.data.plants import DISGUISES, FILLER, clean_documents, questions_of

QUESTION = "Natalia sold 48 clips in April, and half as many in May: how many clips is that?"
CHINESE = "小明有12个苹果，吃了2个，还剩几个？"
SHORT = "Compute $\\binom{8}{4}$."
BENCHMARK = [{"question": QUESTION, "answer": "72"}, {"question": CHINESE}, {"question": SHORT, "solution": "70 it is"}]
LEAKS = {QUESTION, CHINESE, SHORT}
CLEAN = [FILLER, "48 clips in April and half as many in", "It is 70 it is.", "", " \n", "..."]

hostile = {
    "nothing": b"",
    "cut off": b'{"text": "x',
    "NUL": b'{"text": "a\0b"}',
    "byte order mark": b'\xef\xbb\xbf{"text": "x"}',
    "broken UTF-8": b'{"text": "\xff"}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "NaN": b'{"text": "x", "n": NaN}',
    "5,000 digits": b'{"text": "x", "n": ' + b"1" * 5000 + b"}",
    "200,000 deep": b'{"text": "x", "n": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "field twice": b'{"text": "x", "text": "y"}',
    "field missing": b'{"content": "x"}',
    "no string": b'{"text": ["x"]}',
}


def write(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def texts(*several: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in several]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outputs_of(out: Path) -> dict[str, bytes]:
    return {path.name.removeprefix(out.name): path.read_bytes() for path in out.parent.glob(f"{out.name}*")}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return write(tmp_path / "benchmark.jsonl", *BENCHMARK)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Every leak in every disguise, among clean documents."""
    leaks = [disguise(leak) for leak in (QUESTION, CHINESE, SHORT) for disguise in DISGUISES.values()]
    return write(tmp_path / "corpus.jsonl", *texts(*CLEAN, *leaks, *CLEAN))


def test_every_leak_is_dropped_and_every_clean_document_kept(tmp_path: Path, corpus: Path, benchmark: Path) -> None:
    report = decontaminate([corpus], [benchmark], tmp_path / "out")
    assert [row["text"] for row in rows_of(tmp_path / "out")] == CLEAN * 2
    first = len(CLEAN) + 1
    assert [row["line"] for row in rows_of(report.dropped_documents)] == list(range(first, first + 3 * len(DISGUISES)))
    assert (report.kept, report.dropped) == (2 * len(CLEAN), 3 * len(DISGUISES))


def test_questions_of_real_benchmarks_are_found_in_every_disguise(shared_data: Path, tmp_path: Path) -> None:
    benchmarks = sorted((shared_data / "eval").glob("*.jsonl"))
    questions = questions_of(benchmarks)[::5]  # every one in every disguise: benchmarks/decontamination.py
    leaks = [disguise(question) for question, disguise in zip(questions, cycle(DISGUISES.values()), strict=False)]
    report = decontaminate([write(tmp_path / "leaks.jsonl", *texts(*leaks))], benchmarks, tmp_path / "out")
    assert (report.kept, report.dropped) == (0, len(questions))


def test_generated_documents_share_nothing_with_real_benchmarks(shared_data: Path, tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.jsonl", *texts(*clean_documents(2_000)))  # 10,000: benchmarks/decontamination.py
    report = decontaminate([clean], sorted((shared_data / "eval").glob("*.jsonl")), tmp_path / "out")
    assert (report.kept, report.dropped) == (2_000, 0)


def test_clean_lines_are_written_unchanged(tmp_path: Path, benchmark: Path) -> None:
    lines = [b'{ "id":1,"text" : "\\u4e2d\\/" }\r', '  {"text": "é"}\t'.encode(), b'{"text":"x","more":[1.50,{}]}']
    corpus = write(tmp_path / "corpus.jsonl", lines[0], {"text": QUESTION}, *lines[1:])
    report = decontaminate([corpus], [benchmark], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"".join(line + b"\n" for line in lines)
    assert sum(file.kept_bytes + file.dropped_bytes for file in report.files) == corpus.stat().st_size


def test_the_outputs_are_the_same_for_any_number_of_workers(tmp_path: Path, corpus: Path, benchmark: Path) -> None:
    other = write(
        tmp_path / "other.jsonl", *texts(*[f"{FILLER} {QUESTION if n % 7 == 0 else ''} {n}" for n in range(900)])
    )
    outputs = []
    for workers in (1, 2, 3):
        decontaminate([corpus, other], [benchmark], tmp_path / "out", workers=workers, bad_lines="skip")
        outputs.append(outputs_of(tmp_path / "out"))
    assert outputs[0] == outputs[1] == outputs[2]
    assert set(outputs[0]) == {"", ".dropped.jsonl", ".bad_lines.jsonl", ".report.json"}


compressions: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gz": (gzip.compress, gzip.decompress),
    "zst": (
        zstandard.ZstdCompressor().compress,
        lambda content: zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(content),
    ),
}


@pytest.mark.parametrize("ending", compressions)
def test_compressed_files_are_read_and_written(tmp_path: Path, corpus: Path, benchmark: Path, ending: str) -> None:
    compress, decompress = compressions[ending]
    packed, packed_benchmark = tmp_path / f"corpus.jsonl.{ending}", tmp_path / f"benchmark.jsonl.{ending}"
    packed.write_bytes(compress(corpus.read_bytes()))
    packed_benchmark.write_bytes(compress(benchmark.read_bytes()))
    decontaminate([packed], [packed_benchmark], tmp_path / f"out.{ending}")
    decontaminate([corpus], [benchmark], tmp_path / "out")
    assert decompress((tmp_path / f"out.{ending}").read_bytes()) == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("ending", compressions)
def test_a_compressed_output_without_kept_lines_is_a_valid_file(tmp_path: Path, benchmark: Path, ending: str) -> None:
    corpus = write(tmp_path / "corpus.jsonl", *texts(QUESTION))
    assert decontaminate([corpus], [benchmark], tmp_path / f"out.{ending}").kept == 0
    content = (tmp_path / f"out.{ending}").read_bytes()
    assert len(content) > 0
    assert compressions[ending][1](content) == b""


def test_several_fields_are_one_document(tmp_path: Path, benchmark: Path) -> None:
    half = len(QUESTION) // 2
    row = {"title": QUESTION[:half], "body": QUESTION[half:], "notes": QUESTION}
    corpus = write(tmp_path / "corpus.jsonl", row)
    for fields, dropped in ((["title", "body"], 1), (["body", "title"], 0), ("title", 0), (["notes"], 1)):
        assert decontaminate([corpus], [benchmark], tmp_path / "out", field=fields).dropped == dropped


def test_a_short_question_is_a_leak_and_a_short_answer_is_not(tmp_path: Path) -> None:
    benchmark = write(
        tmp_path / "b.jsonl", {"question": "Evaluate $\\log_2 8$", "answer": "$\\frac{1}{2}$", "id": QUESTION}
    )
    corpus = write(
        tmp_path / "c.jsonl", *texts("It is $\\frac12$, \\frac{1}{2}.", "Evaluate \\(\\log_2 8\\)!", QUESTION)
    )
    report = decontaminate([corpus], [benchmark], tmp_path / "out")
    assert [row["line"] for row in rows_of(report.dropped_documents)] == [2]
    fields = {name: vars(field) for name, field in report.benchmarks[0].fields.items()}
    nothing = {"texts": 1, "matched_by_ngrams": 0, "matched_as_a_whole": 0, "too_short": 0}
    assert fields == {"question": nothing | {"matched_as_a_whole": 1}, "answer": nothing | {"too_short": 1}}


def test_benchmark_fields_can_be_chosen(tmp_path: Path) -> None:
    benchmark = write(tmp_path / "b.jsonl", {"question": QUESTION, "options": [CHINESE]})
    corpus = write(tmp_path / "c.jsonl", *texts(QUESTION, CHINESE))
    report = decontaminate([corpus], [benchmark], tmp_path / "out", benchmark_fields=["options"])
    assert [row["line"] for row in rows_of(report.dropped_documents)] == [2]
    assert report.benchmarks[0].rows_without_text == {"question": 1}


def test_the_report_lists_the_shared_passages_and_their_locations(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", {"question": "unrelated words only here"}, {"solution": QUESTION})
    second = write(tmp_path / "second.jsonl", {"problem": CHINESE})
    corpus = write(tmp_path / "c.jsonl", *texts("clean", f"Read this: {QUESTION} Thank you.", QUESTION, CHINESE))
    report = decontaminate([corpus], [first, second], tmp_path / "out")
    match = {
        "benchmark": str(first),
        "field": "solution",
        "row": 2,
        "rows": 1,
        "ngram": "natalia sold 48 clips in april and half as many",
        "units": 10,
        "passage_units": 17,
        "text": f"Read this: ⟦{QUESTION[:-1]}⟧? Thank you",
        "benchmark_text": f"⟦{QUESTION[:-1]}⟧",
    }
    assert rows_of(report.dropped_documents)[0] == {"file": str(corpus), "line": 2, "matches": [match]}
    written = json.loads((tmp_path / "out.report.json").read_text())
    assert {name: written[name] for name in ("documents", "kept", "dropped", "drop_rate", "bad_lines")} == {
        "documents": 4,
        "kept": 1,
        "dropped": 3,
        "drop_rate": 0.75,
        "bad_lines": 0,
    }
    assert [(part["file"], part["documents"], part["drop_rate"]) for part in written["benchmarks"]] == [
        (str(first), 2, 0.5),
        (str(second), 1, 0.25),
    ]
    [frequent] = written["benchmarks"][0]["frequent_ngrams"]
    assert (frequent["documents"], frequent["line"], frequent["match"]) == (2, 2, match)
    assert written["benchmarks"][0]["ngrams"] == 17 - 9  # a text of 17 units; the other is too short
    assert json.loads(report.to_json()) == written


@pytest.mark.parametrize("name", hostile)
def test_a_bad_line_stops_the_call_and_leaves_no_output(tmp_path: Path, benchmark: Path, name: str) -> None:
    corpus = write(tmp_path / "c.jsonl", {"text": "good"}, hostile[name])
    with pytest.raises(DataError) as raised:
        decontaminate([corpus], [benchmark], tmp_path / "out")
    assert str(raised.value.where).startswith(f"{corpus}:2")
    assert outputs_of(tmp_path / "out") == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_is_kept_dropped_or_set_aside(tmp_path: Path, benchmark: Path, workers: int) -> None:
    lines = [{"text": "good"}, *hostile.values(), {"text": QUESTION}]
    files = [write(tmp_path / f"{name}.jsonl", *lines) for name in "ab"]
    report = decontaminate(files, [benchmark], tmp_path / "out", workers=workers, bad_lines="skip")
    assert [(file.kept, file.dropped, file.bad_lines) for file in report.files] == [(1, 1, len(hostile))] * 2
    assert report.quarantine is not None
    quarantined = rows_of(report.quarantine)
    assert [(row["file"], row["line"]) for row in quarantined] == [
        (str(file), number) for file in files for number in range(2, 2 + len(hostile))
    ]
    contents = [row["content"].encode("utf-8", "surrogateescape") for row in quarantined]
    assert contents == [*hostile.values()] * 2


def test_a_call_without_quarantine_removes_an_earlier_quarantine(tmp_path: Path, benchmark: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", {"text": "good"})
    decontaminate([corpus], [benchmark], tmp_path / "out", bad_lines="skip")
    assert decontaminate([corpus], [benchmark], tmp_path / "out").quarantine is None
    assert ".bad_lines.jsonl" not in outputs_of(tmp_path / "out")


def test_a_failed_call_leaves_earlier_outputs_unchanged(tmp_path: Path, corpus: Path, benchmark: Path) -> None:
    decontaminate([corpus], [benchmark], tmp_path / "out")
    earlier = outputs_of(tmp_path / "out")
    with pytest.raises(DataError):
        decontaminate([corpus, write(tmp_path / "bad.jsonl", b"{")], [benchmark], tmp_path / "out")
    assert outputs_of(tmp_path / "out") == earlier


def test_partial_files_of_a_killed_call_change_nothing(tmp_path: Path, corpus: Path, benchmark: Path) -> None:
    decontaminate([corpus], [benchmark], tmp_path / "out")
    undisturbed = outputs_of(tmp_path / "out")
    for name in undisturbed:
        Path(f"{tmp_path / 'out'}{name}.partial").write_bytes(b"half of a li" * 10_000)
    decontaminate([corpus], [benchmark], tmp_path / "out")
    assert outputs_of(tmp_path / "out") == undisturbed


def test_progress_ends_at_the_size_of_the_input(tmp_path: Path, benchmark: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", *texts("one two three", QUESTION))
    seen: list[Progress] = []
    decontaminate([corpus], [benchmark], tmp_path / "out", report_progress=seen.append)
    size_bytes = corpus.stat().st_size
    assert seen[-1] == Progress(documents=2, tokens=3 + 17, read_bytes=size_bytes, total_bytes=size_bytes)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"files": []}, UsageError, "no input file"),
        ({"benchmarks": []}, UsageError, "no benchmark file"),
        ({"files": ["c.jsonl", "./c.jsonl"]}, UsageError, "the same input file is named twice"),
        ({"benchmarks": ["b.jsonl", "b.jsonl"]}, UsageError, "the same benchmark file is named twice"),
        ({"workers": 0}, UsageError, "--workers"),
        ({"bad_lines": "ignore"}, UsageError, "fail or skip"),
        ({"out": "c.jsonl"}, OutputError, "would overwrite an input"),
        ({"out": "b.jsonl"}, OutputError, "would overwrite an input"),
        ({"files": ["none.jsonl"]}, DataError, "no such file"),
        ({"benchmarks": ["none.jsonl"]}, DataError, "no such file"),
        ({"benchmarks": ["short.jsonl"]}, DataError, "only texts that are too short"),
        ({"field": "content"}, DataError, "the field is missing"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], kind: type[DsmathError], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("c.jsonl"), {"text": "good"})
    write(Path("b.jsonl"), *BENCHMARK)
    write(Path("short.jsonl"), {"question": "two words", "answer": "three of them"})
    before = {path: path.read_bytes() for path in Path().iterdir()}
    arguments = {"files": ["c.jsonl"], "benchmarks": ["b.jsonl"], "out": "out"} | changes
    with pytest.raises(kind, match=message):
        decontaminate(**arguments)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before
