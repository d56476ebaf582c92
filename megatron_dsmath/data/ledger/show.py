"""The text of a step, document by document, as the model read it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_dsmath.config import load
from megatron_dsmath.data.ledger.ledger import Ledger
from megatron_dsmath.data.ledger.on_disk import on_disk
from megatron_dsmath.data.tokenizer import load_tokenizer
from megatron_dsmath.errors import UsageError


@dataclass(frozen=True)
class ShownPassage:
    """What a sample holds of one document: its tokens from `first_token` to before `end_token`, as text.

    Of conversations, a document is an example, and `corpus` its source.
    A passage may begin or end within a character; what is left of it stands as U+FFFD.
    """

    sample: int
    corpus: str
    shard: str
    document: int
    first_token: int
    end_token: int
    text: str


def step_passages(run: Path, step: int) -> Iterator[ShownPassage]:
    """What the run in the directory `run` read in `step`, sample by sample.

    Raises ConfigError where it is no run's directory, DataError for its ledger or files, UsageError for a step that
    the ledger does not hold.
    """
    config = load(run / "run.yaml")
    ledger = Ledger(run / "ledger")
    rows = {row.step: row for row in ledger.rows()}
    if step not in rows:
        raise UsageError(
            "the run has no such step",
            where="--step",
            found=step,
            expected=f"1 to {max(rows)}" if rows else "a run that has made a step",
        )
    tokenizer = load_tokenizer(config.data.tokenizer)
    disk = on_disk(ledger.plan(), tokenizer.fingerprint, config.model.vocabulary_size)
    for sample in range(rows[step].first_sample, rows[step].end_sample):
        for passage in disk.passages(sample):
            yield ShownPassage(
                sample,
                passage.name,
                str(passage.prefix),
                passage.document,
                passage.first,
                passage.end,
                tokenizer.decode(passage.tokens.tolist()),
            )


def print_passages(passages: Iterable[ShownPassage], as_json: bool) -> None:
    """Each passage under a line that says where it lies, or a JSON list of all of them."""
    if as_json:
        print(json.dumps([asdict(passage) for passage in passages], indent=1, ensure_ascii=False))
        return
    for passage in passages:
        place = f"document {passage.document:,}, tokens {passage.first_token:,} to {passage.end_token - 1:,}"
        print(f"--- sample {passage.sample:,}: {passage.corpus}, {passage.shard}, {place}")
        print(passage.text)
