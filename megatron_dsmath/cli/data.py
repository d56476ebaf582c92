"""Verbs from text to batches."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_dsmath.cli.arguments import Verbs, add_group, add_verb, take_overrides
from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, UsageError, show


def add_verbs(verbs: Verbs) -> None:
    """Add them to the command."""
    data = add_group(verbs, "data", "text to batches")
    example = "dsmath data tokenize corpus.jsonl.gz --tokenizer models/deepseek --out data/corpus --workers 8"
    verb = add_verb(data, "tokenize", data_tokenize, example, table=True)
    verb.add_argument("files", nargs="+", metavar="FILE", help="JSONL: plain, .gz or .zst; or .parquet")
    verb.add_argument("--tokenizer", required=True, help="a folder, a tokenizer.json or a SentencePiece .model")
    verb.add_argument("--out", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    several = "which field of a line is the text (text); given several times, each goes to PREFIX_FIELD, in one pass"
    verb.add_argument("--field", action="append", help=several)
    verb.add_argument("--workers", type=int, default=1, help="processes that tokenize (1)")
    verb.add_argument("--no-eod", action="store_true", help="append no end-of-document token")
    verb.add_argument("--prepend-bos", action="store_true", help="begin each document with the BOS token")
    verb.add_argument("--eod-token", metavar="T", help="the end-of-document token, where the tokenizer names none")
    verb.add_argument("--parse-special", action="store_true", help="read special-token literals as special tokens")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or set aside and count")
    verb.add_argument("--shuffle-seed", type=int, metavar="N", help="put the documents in a random order")
    verb = add_verb(data, "inspect", data_inspect, "dsmath data inspect data/corpus", table=True)
    verb.add_argument("prefix", metavar="PREFIX")
    verb = add_verb(data, "verify", data_verify, "dsmath data verify data/corpus", table=True)
    verb.add_argument("prefix", metavar="PREFIX")
    verb.add_argument("--vocabulary-size", type=int, metavar="N", help="else the sidecar's")
    verb = add_verb(data, "merge", data_merge, "dsmath data merge data/a data/b --out data/both", table=True)
    verb.add_argument("prefixes", nargs="+", metavar="PREFIX")
    verb.add_argument("--out", required=True, metavar="PREFIX")
    verb = add_verb(
        data, "blend", data_blend, "dsmath data blend configs/pretrain/deepseekmath_base_7b.yaml", table=True
    )
    verb.add_argument("run", metavar="RUN.yaml")
    take_overrides(verb)

    example = "dsmath data decontaminate corpus.jsonl --benchmarks gsm8k.jsonl math.jsonl --out clean.jsonl"
    verb = add_verb(data, "decontaminate", data_decontaminate, example, table=True)
    verb.add_argument("files", nargs="+", metavar="FILE", help="JSONL: plain, .gz or .zst")
    verb.add_argument("--benchmarks", nargs="+", required=True, metavar="FILE", help="JSONL with a benchmark's rows")
    verb.add_argument("--out", required=True, metavar="FILE", help=".gz and .zst compress")
    verb.add_argument(
        "--field", nargs="+", default=["text"], metavar="F", help="what holds the text; several are joined"
    )
    verb.add_argument("--benchmark-fields", nargs="+", metavar="F", help="else questions and answers by their names")
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes that screen (1)")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or set aside and count")
    verb = add_verb(data, "audit", data_audit, "dsmath data audit runs/my_run", table=True)
    verb.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's directory")
    verb.add_argument("--first-step", type=int, default=1, metavar="N", help="check the hashes from this step on")
    verb.add_argument("--last-step", type=int, metavar="N", help="check the hashes up to this step")
    verb = add_verb(data, "show", data_show, "dsmath data show runs/my_run --step 100", table=True)
    verb.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's directory")
    verb.add_argument("--step", type=int, required=True, metavar="N")


def data_tokenize(options: argparse.Namespace) -> int:
    """Turn JSONL into PREFIX.bin and PREFIX.idx, whole or not at all."""
    from megatron_dsmath.data.tokenizing.tokenize import tokenize
    from megatron_dsmath.files.progress import show_progress
    from megatron_dsmath.tables import print_facts

    fields = options.field or ["text"]
    with show_progress() as progress:
        facts = tokenize(
            options.files,
            options.tokenizer,
            options.out,
            field=fields[0] if len(fields) == 1 else {field: f"_{field}" for field in fields},
            workers=options.workers,
            append_eod=not options.no_eod,
            prepend_bos=options.prepend_bos,
            eod_token=options.eod_token,
            parse_special=options.parse_special,
            bad_lines=options.bad_lines,
            shuffle_seed=options.shuffle_seed,
            report_progress=progress,
        )
    print_facts(facts, options.json)
    return EXIT_DONE


def data_inspect(options: argparse.Namespace) -> int:
    """Say what a dataset holds."""
    from megatron_dsmath.data.indexed.inspection import inspect
    from megatron_dsmath.tables import print_facts

    print_facts(inspect(options.prefix), options.json)
    return EXIT_DONE


def data_verify(options: argparse.Namespace) -> int:
    """Check that a dataset is whole and within its vocabulary."""
    from megatron_dsmath.data.indexed.inspection import verify
    from megatron_dsmath.tables import print_facts

    verification = verify(options.prefix, options.vocabulary_size)
    for fault in verification.faults:
        show(fault)
    print_facts({"prefix": options.prefix, "checks": verification.checks, "holds": verification.holds}, options.json)
    return EXIT_DONE if verification.holds else EXIT_ANSWER_IS_NO


def data_merge(options: argparse.Namespace) -> int:
    """Write the documents of several datasets as one."""
    from megatron_dsmath.data.indexed.merging import merge
    from megatron_dsmath.tables import print_facts

    print_facts(merge(options.prefixes, options.out), options.json)
    return EXIT_DONE


def data_blend(options: argparse.Namespace) -> int:
    """Print the planned mixture of a run: what it draws from each corpus, and whether the corpus is shuffled."""
    from megatron_dsmath.checkpoint.store import newest_checkpoint
    from megatron_dsmath.config import load
    from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
    from megatron_dsmath.data.mixture.planned_corpora import planned_corpora
    from megatron_dsmath.tables import print_table
    from megatron_dsmath.training.inputs import open_inputs

    run = load(options.run, options.set)
    batches = open_inputs(run, newest_checkpoint(Path(run.output))).batches
    if not isinstance(batches, MixtureBatches):
        raise UsageError(
            "the run reads no mixture",
            where=options.run,
            found="data.conversations",
            expected="data.corpora",
            fix="`dsmath sft show` prints what such a run reads, `dsmath sft build` makes one set of several sources",
        )
    corpora = planned_corpora(batches.plan, batches.mixture(len(batches.plan.versions) - 1))
    columns = ("name", "share", "samples", "tokens", "epochs", "largest_deviation_samples", "neighbours_alike")
    print_table(corpora, columns, options.json)
    for corpus in corpora:
        if corpus.warning:
            print(corpus.warning, file=sys.stderr)
    return EXIT_DONE


def data_decontaminate(options: argparse.Namespace) -> int:
    """Write the lines that share no 10-gram with a benchmark, and a report."""
    from megatron_dsmath.data.decontamination.decontaminate import decontaminate
    from megatron_dsmath.files.progress import show_progress
    from megatron_dsmath.tables import print_facts, print_table

    with show_progress() as progress:
        report = decontaminate(
            options.files,
            options.benchmarks,
            options.out,
            field=options.field,
            workers=options.workers,
            bad_lines=options.bad_lines,
            benchmark_fields=options.benchmark_fields,
            report_progress=progress,
        )
    if options.json:
        print(report.to_json(), end="")
        return EXIT_DONE
    print_table(report.benchmarks, ("file", "rows", "ngrams", "documents", "drop_rate"), False)
    print_facts(report.totals(), False)
    return EXIT_DONE


def data_audit(options: argparse.Namespace) -> int:
    """Check from a run's ledger what it read: the mixture, repeats and gaps, and every hash from the .bin files."""
    from dataclasses import asdict

    from megatron_dsmath.data.audit.audit import audit
    from megatron_dsmath.tables import print_facts, print_table

    found = audit(options.run, options.first_step, options.last_step)
    for fault in found.faults:
        show(fault)
    if options.json:
        tables = {
            "corpora": [asdict(corpus) for corpus in found.totals.corpora],
            "groups": [asdict(group) for group in found.groups],
        }
        print_facts({**found.facts(), **tables, "faults": [fault.text() for fault in found.faults]}, True)
    else:
        if found.groups:
            shown = ("group", "name", "examples", "target_tokens", "share", "planned_share", "passes")
            print_table(found.groups, shown, False)
        else:
            columns = ("name", "tokens", "share", "planned_share", "largest_deviation_samples", "epochs")
            print_table(found.totals.corpora, columns, False)
        print_facts(found.facts(), False)
    return EXIT_DONE if found.holds else EXIT_ANSWER_IS_NO


def data_show(options: argparse.Namespace) -> int:
    """Print the text of a step, document by document."""
    from megatron_dsmath.data.audit.stored_samples import print_passages, read_step

    print_passages(read_step(options.run, options.step), options.json)
    return EXIT_DONE
