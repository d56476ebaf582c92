from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.indexed.inspection import verify
from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import COLUMNS, Examples, labels_path, targets_path
from megatron_dsmath.data.sft.set_report import SetReport
from megatron_dsmath.data.sft.sources import ConversationSource, sources_from_files
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import DataError, DsmathError, OutputError, TokenizerError, UsageError
from tests.data.sft.sets import rows, write_rows
from tests.support.small_tokenizer import END, write_small_tokenizer

GOOD = {"question": "1+1?", "answer": "2"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_tokenizer(tmp_path_factory.mktemp("small"))


def build_files(paths: list[Path], tokenizer: Path, out: Path, *, workers: int = 1, **options: Any) -> SetReport:
    return build(sources_from_files(paths), tokenizer, out, Options(**options), workers=workers)


def outputs_of(prefix: Path) -> dict[str, bytes]:
    return {path.name.removeprefix(prefix.name): path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}*")}


def test_every_row_becomes_an_example_with_its_labels(tmp_path: Path, tokenizer: Path) -> None:
    content = rows(12)
    path = write_rows(tmp_path / "a.jsonl", content)
    report = build_files([path], tokenizer, tmp_path / "set")
    examples = Examples(tmp_path / "set")
    engine = load_tokenizer(tokenizer)
    assert len(examples) == report.examples == 12
    for number, row in enumerate(content):
        tokens, is_target = examples.read(number)
        text = f"<s>User: {row['question']}\n\nAssistant: {row['answer']}{END}"
        assert engine.decode(tokens.tolist()) == text
        labels = dict(zip(COLUMNS, examples.labels[number].tolist(), strict=True))
        shown = {name: examples.names(name)[labels[name]] for name in ("kind", "language", "source", "topic")}
        expected = {
            "kind": ("cot", "pot", "tool")[number % 3],
            "language": "zh" if number % 3 == 0 else "en",
            "source": "a",
            "topic": row["topic"],
        }
        assert shown == expected
        assert (labels["line"], labels["target_tokens"]) == (number + 1, is_target.sum())


def test_a_part_of_an_example_is_read_with_its_mask(tmp_path: Path, tokenizer: Path) -> None:
    build_files([write_rows(tmp_path / "a.jsonl", rows(9))], tokenizer, tmp_path / "set")
    examples = Examples(tmp_path / "set")
    for number in range(9):
        tokens, is_target = examples.read(number)
        for first, count in ((0, 1), (3, 5), (7, len(tokens) - 7)):
            part, part_is_target = examples.read(number, first, count)
            assert part.tolist() == tokens[first : first + count].tolist()
            assert part_is_target.tolist() == is_target[first : first + count].tolist()


def test_the_set_is_the_same_for_any_number_of_workers(tmp_path: Path, tokenizer: Path) -> None:
    paths = [write_rows(tmp_path / f"{name}.jsonl", rows(3000)) for name in "ab"]
    alone, together = tmp_path / "alone" / "set", tmp_path / "together" / "set"
    build_files(paths, tokenizer, alone)
    build_files(paths, tokenizer, together, workers=2)
    assert outputs_of(alone) == outputs_of(together)
    assert len(outputs_of(alone)) == 5


def test_the_sidecar_has_the_hash_of_every_file_and_the_dataset_verifies(tmp_path: Path, tokenizer: Path) -> None:
    build_files([write_rows(tmp_path / "a.jsonl", rows(9))], tokenizer, tmp_path / "set")
    sidecar = json.loads((tmp_path / "set.json").read_bytes())
    for name, path in (("targets", targets_path(tmp_path / "set")), ("labels", labels_path(tmp_path / "set"))):
        assert sidecar["conversations"]["sha256"][name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert verify(tmp_path / "set").holds


def test_bad_rows_are_set_aside_and_counted(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [
        b"{",
        b'{"question": "\xff", "answer": "1"}',
        b'{"question": "1?"}',
        b'{"question": "1?", "answer": ""}',
        b'{"question": "1?", "answer": "```python\\nx"}',
        b'{"instruction": "another format", "output": "1"}',
        b'{"messages": [{"role": "user", "content": "no assistant"}]}',
        b'{"messages": [{"role": "alien", "content": "1?"}]}',
    ]
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([bad[0], good, *bad[1:], good]) + b"\n")
    report = build_files([path], tokenizer, tmp_path / "set", bad_lines="skip")
    assert (report.examples, report.bad_lines) == (2, 8)
    assert [source.bad_lines for source in report.sources] == [8]
    quarantine = [json.loads(row) for row in (tmp_path / "set.bad_lines.jsonl").read_bytes().splitlines()]
    assert [row["line"] for row in quarantine] == [1, *range(3, 10)]
    assert [row["content"].encode("utf-8", "surrogateescape") for row in quarantine] == bad


def test_a_bad_row_stops_the_build_and_leaves_nothing(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [GOOD, GOOD, {"question": "1?", "answer": ""}])
    with pytest.raises(DataError, match="content is empty") as caught:
        build_files([path], tokenizer, tmp_path / "out" / "set")
    assert caught.value.where == f"{path}:3"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("policy", ["drop", "truncate", "fail"])
def test_a_long_example_is_dropped_truncated_or_refused(tmp_path: Path, tokenizer: Path, policy: str) -> None:
    """Three rows: one that fits, one whose answer reaches over 64 tokens, one whose question does."""
    content = [GOOD, {"question": "1", "answer": "z" * 100}, {"question": "z" * 100, "answer": "1"}]
    path, options = write_rows(tmp_path / "a.jsonl", content), {"sequence_length": 64, "too_long": policy}
    if policy == "fail":
        with pytest.raises(DataError, match="longer than a sequence") as caught:
            build_files([path], tokenizer, tmp_path / "set", **options)
        assert caught.value.where == f"{path}:2"
        return
    report = build_files([path], tokenizer, tmp_path / "set", **options)
    (source,) = report.sources
    outcomes = (source.examples, source.truncated, source.too_long, source.without_target)
    assert outcomes == ((1, 0, 2, 0) if policy == "drop" else (2, 1, 0, 1))
    assert (report.examples, report.truncated, report.dropped) == (outcomes[0], outcomes[1], outcomes[2] + outcomes[3])
    if policy == "truncate":
        tokens, is_target = Examples(tmp_path / "set").read(1)
        assert len(tokens) == 64
        assert is_target[-1] and tokens[-1] != load_tokenizer(tokenizer).end_of_document


def test_a_tokenizer_without_an_end_of_document_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    bare = tmp_path / "tokenizer.json"
    bare.write_bytes((tokenizer / "tokenizer.json").read_bytes())
    path = write_rows(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(TokenizerError, match="which token ends a document"):
        build_files([path], bare, tmp_path / "set")
    assert build_files([path], bare, tmp_path / "set", eod_token=END).examples == 1


def test_a_row_that_the_template_refuses_is_a_bad_row(tmp_path: Path, tokenizer: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    bad = {"messages": [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]}
    path = write_rows(tmp_path / "a.jsonl", [{"messages": bad["messages"][1:]}, bad])
    with pytest.raises(DataError, match="no system") as caught:
        build_files([path], tokenizer, tmp_path / "set", template=str(template))
    assert caught.value.where == f"{path}:2"
    report = build_files([path], tokenizer, tmp_path / "set", template=str(template), bad_lines="skip")
    assert (report.examples, report.bad_lines) == (1, 1)


def test_a_set_without_examples_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"question": "z" * 100, "answer": "1"}])
    with pytest.raises(DataError, match="has no examples"):
        build_files([path], tokenizer, tmp_path / "set", sequence_length=16)
    assert not list(tmp_path.glob("set*"))


def test_an_instruction_follows_the_question_in_the_language_of_the_row(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", rows(2))
    build([ConversationSource("a", (path,), instruction="cot")], tokenizer, tmp_path / "set", Options())
    texts = [load_tokenizer(tokenizer).decode(Examples(tmp_path / "set").read(number)[0].tolist()) for number in (0, 1)]
    assert "\n请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。\n\nAssistant:" in texts[0]
    assert "\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:" in texts[1]


def test_formats_are_detected_for_each_file(tmp_path: Path, tokenizer: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [GOOD])
    second = write_rows(tmp_path / "b.jsonl", [{"instruction": "1?", "output": "1"}])
    report = build_files([first, second], tokenizer, tmp_path / "set")
    assert [source.formats for source in report.sources] == [("question_answer",), ("mathinstruct",)]


def test_rows_of_two_formats_in_one_file_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [GOOD, {"instruction": "1?", "output": "1"}])
    with pytest.raises(DataError, match="two formats") as caught:
        build_files([path], tokenizer, tmp_path / "set")
    assert caught.value.where == f"{path}:2"


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "train.jsonl", tmp_path / "b" / "train.jsonl.gz"]
    with pytest.raises(UsageError, match="same name"):
        sources_from_files(paths)


def test_a_file_that_is_given_twice_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(UsageError, match="given twice"):
        build(
            [ConversationSource("one", (path,)), ConversationSource("two", (path,))],
            tokenizer,
            tmp_path / "set",
            Options(),
        )


@pytest.mark.parametrize(
    "options", [{"packing": "first-fit"}, {"too_long": "cut"}, {"bad_lines": "ignore"}, {"sequence_length": 1}]
)
def test_an_unknown_option_is_refused(tmp_path: Path, tokenizer: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        build_files([write_rows(tmp_path / "a.jsonl", [GOOD])], tokenizer, tmp_path / "set", **options)


def test_no_output_may_overwrite_an_input(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "set.json", [GOOD])
    with pytest.raises(OutputError, match="overwrite an input"):
        build_files([path], tokenizer, tmp_path / "set")


@pytest.mark.parametrize("ending", [".targets", ".labels", ".json"])
def test_a_set_with_a_missing_or_truncated_file_is_refused(tmp_path: Path, tokenizer: Path, ending: str) -> None:
    build_files([write_rows(tmp_path / "a.jsonl", rows(9))], tokenizer, tmp_path / "set")
    file = tmp_path / f"set{ending}"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DsmathError):
        Examples(tmp_path / "set")
    file.unlink()
    with pytest.raises(DataError, match="not a set of conversations"):
        Examples(tmp_path / "set")


def test_the_report_counts_the_examples_of_the_set(tmp_path: Path, tokenizer: Path) -> None:
    report = build(
        [ConversationSource("a", (write_rows(tmp_path / "a.jsonl", rows(30)),), expected_examples=50)],
        tokenizer,
        tmp_path / "set",
        Options(sequence_length=256),
        expected_examples=776_000,
    )
    examples = Examples(tmp_path / "set")
    for group in ("kind", "language", "source", "topic"):
        counts = [count for count in report.groups if count.group == group]
        assert sum(count.examples for count in counts) == 30
        assert sum(count.tokens for count in counts) == report.tokens == examples.dataset.token_count
        assert sum(count.target_tokens for count in counts) == report.target_tokens
    assert {(one.name, one.examples) for one in report.groups if one.group == "kind"} == {
        ("cot", 10), ("pot", 10), ("tool", 10)
    }  # fmt: skip
    assert report.padding_tokens == report.sequences * 256 - report.tokens
    assert report.fill == report.tokens / (report.sequences * 256)
    assert report.steps_per_epoch == report.sequences / 256
    assert report.passes_in_paper_steps == 500 * 256 / report.sequences
    assert (report.missing_examples, report.sources[0].missing_examples) == (775_970, 20)
