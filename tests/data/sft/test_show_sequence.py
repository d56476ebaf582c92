from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.packing import PackedExamples
from megatron_dsmath.data.sft.show_sequence import load_sequence, print_sequence, write_page
from megatron_dsmath.errors import TokenizerError, UsageError
from tests.data.sft.sets import small_set
from tests.support.small_tokenizer import TEXT, write_small_tokenizer

LENGTH = 256


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return small_set(tmp_path_factory.mktemp("set"))


@pytest.mark.parametrize("index", [0, 7, 40])
def test_tokens_mask_and_starts_are_those_of_the_examples(examples: Examples, index: int) -> None:
    shown = load_sequence(examples.prefix, index)
    assert len(shown.tokens) == len(shown.loss_mask) == LENGTH
    assert shown.document_starts[0] == 0
    ends = [*shown.document_starts[1:], shown.token_count]
    for document, first, end in zip(shown.documents, shown.document_starts, ends, strict=True):
        tokens, is_target = examples.read(document.example)
        assert shown.tokens[first:end] == tokens.tolist()
        assert shown.loss_mask[first:end] == is_target.astype(int).tolist()
        assert (document.first_token, document.end_token) == (first, end)
    assert not any(shown.loss_mask[shown.token_count :])


def test_the_sequence_is_that_of_training(examples: Examples) -> None:
    packed = PackedExamples(examples, LENGTH, seed=0, policy="next-fit")
    index = packed.plan(0).sequence_count + 2
    shown, read = load_sequence(examples.prefix, index), packed.read(index)
    assert (shown.epoch, shown.sequence) == (1, 2)
    assert shown.tokens == read.tokens[:-1].tolist()
    assert shown.loss_mask[1:] == read.loss_mask[:-1].astype(int).tolist()


def test_json_has_tokens_mask_and_document_starts(examples: Examples, capsys: pytest.CaptureFixture[str]) -> None:
    print_sequence(load_sequence(examples.prefix, 1), None, True)
    printed = json.loads(capsys.readouterr().out)
    assert {"tokens", "loss_mask", "document_starts"} <= printed.keys()
    assert len(printed["tokens"]) == len(printed["loss_mask"]) == LENGTH
    assert set(printed["loss_mask"]) == {0, 1}


def test_a_pipe_shows_targets_between_marks(examples: Examples, capsys: pytest.CaptureFixture[str]) -> None:
    shown = load_sequence(examples.prefix, 0)
    print_sequence(shown, None, False)
    printed = capsys.readouterr().out
    answers = re.findall(r"Assistant:⟦ (.*?)⟧", printed, re.DOTALL)
    assert len(answers) == len(shown.documents)
    assert all(answer.endswith(("</s>", "```output")) for answer in answers)
    for document in shown.documents:
        assert f"{document.file}:{document.line}, {document.source}, {document.kind}, {document.language}" in printed


class Spans(HTMLParser):
    """The text of each element of a page, with its class."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "span" and "title" in given:
            self.spans.append((given["class"] or "", given["title"] or "", ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "span" and self.spans:
            names, ids, text = self.spans[-1]
            self.spans[-1] = (names, ids, text or data)


def test_a_page_has_every_token_once_with_its_colour(examples: Examples, tmp_path: Path) -> None:
    shown = load_sequence(examples.prefix, 2)
    spans = Spans()
    spans.feed(write_page(shown, None, tmp_path / "page.html").read_text(encoding="utf-8"))
    tokens = [(int(identifier), "target" in names) for names, ids, _ in spans.spans for identifier in ids.split()]
    mask = [bool(is_target) for is_target in shown.loss_mask]
    assert tokens == list(zip(shown.tokens, mask, strict=True))[: shown.token_count]


def test_markup_in_texts_is_escaped(tmp_path: Path) -> None:
    """Texts contain angle brackets."""
    examples = small_set(tmp_path)
    page = write_page(load_sequence(examples.prefix, 0), None, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "</s>" not in page and "&lt;/s&gt;" in page


def test_a_negative_index_is_refused(examples: Examples) -> None:
    with pytest.raises(UsageError, match="no such sequence"):
        load_sequence(examples.prefix, -1)


def test_another_tokenizer_is_refused(examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.small_tokenizer.TEXT", TEXT[::-1])
    other = write_small_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="another tokenizer"):
        print_sequence(load_sequence(examples.prefix, 0), other, False)
