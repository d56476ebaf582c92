"""Prints the text of a step of a run as it is on disk now: `dsmath data show`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_dsmath.config import load
from megatron_dsmath.data.audit.ledger import Ledger
from megatron_dsmath.data.audit.run_batches import open_recorded_batches
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import UsageError


@dataclass(frozen=True)
class PassageText:
    """The text of tokens [first_token, end_token) of one document in a sample.

    For conversations, a document is an example and `corpus` its source. A passage may begin or end within a character;
    the remaining bytes are shown as U+FFFD.
    """

    sample: int
    corpus: str
    shard: str
    document: int
    first_token: int
    end_token: int
    text: str


def read_step(run: Path, step: int) -> Iterator[PassageText]:
    """Yield the text that the run in the directory `run` read in `step`, sample by sample.

    Raises ConfigError if `run` is not the directory of a run, DataError for its ledger or files, and UsageError for a
    step that is not in the ledger.
    """
    config = load(run / "run.yaml")
    ledger = Ledger(run / "ledger")
    rows = {row.step: row for row in ledger.read_rows()}
    if step not in rows:
        raise UsageError(
            "the run has no such step",
            where="--step",
            found=step,
            expected=f"1 to {max(rows)}" if rows else "a run with at least one step",
        )
    tokenizer = load_tokenizer(config.data.tokenizer)
    batches = open_recorded_batches(ledger.read_plan(), tokenizer.fingerprint, config.model.vocabulary_size)
    for sample in range(rows[step].first_sample, rows[step].end_sample):
        for corpus, (prefix, document, first, end, tokens) in batches.read_passages(sample):
            text = tokenizer.decode(tokens.tolist())
            yield PassageText(sample, corpus, str(prefix), document, first, end, text)


def print_passages(passages: Iterable[PassageText], as_json: bool) -> None:
    """Print each passage with a header that gives its location, or all passages as a JSON list."""
    if as_json:
        print(json.dumps([asdict(passage) for passage in passages], indent=1, ensure_ascii=False))
        return
    for passage in passages:
        location = f"document {passage.document:,}, tokens {passage.first_token:,} to {passage.end_token - 1:,}"
        print(f"--- sample {passage.sample:,}: {passage.corpus}, {passage.shard}, {location}")
        print(passage.text)
