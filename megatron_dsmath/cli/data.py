"""Verbs for data: text, datasets and mixtures."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from megatron_dsmath.cli.arguments import Verbs, add_group, add_overrides, add_verb
from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, UsageError, show
from megatron_dsmath.files.progress import show_progress
from megatron_dsmath.tables import print_facts, print_table


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the command."""
    data = add_group(verbs, "data", "Tokenize, inspect, mix and audit data.")
    example = "dsmath data tokenize corpus.jsonl.gz --tokenizer models/deepseek --out data/corpus --workers 8"
    verb = add_verb(data, "tokenize", data_tokenize, example, table=True)
    verb.add_argument("files", nargs="+", metavar="FILE", help="JSONL (plain, .gz or .zst) or Parquet")
    verb.add_argument("--tokenizer", required=True, help="a folder, a tokenizer.json or a SentencePiece .model")
    verb.add_argument("--out", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    several = "the field that holds the text (text); if given several times, each field is written to PREFIX_FIELD"
    verb.add_argument("--field", action="append", help=several)
    verb.add_argument("--workers", type=int, default=1, help="number of tokenizing processes (1)")
    verb.add_argument("--no-eod", action="store_true", help="do not append the end-of-document token")
    verb.add_argument("--prepend-bos", action="store_true", help="start each document with the BOS token")
    verb.add_argument("--eod-token", metavar="T", help="the end-of-document token, if the tokenizer does not define it")
    verb.add_argument("--parse-special", action="store_true", help="parse special-token literals as special tokens")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or collect and count them")
    verb.add_argument("--shuffle-seed", type=int, metavar="N", help="shuffle the documents with this seed")
    verb = add_verb(data, "inspect", data_inspect, "dsmath data inspect data/corpus", table=True)
    verb.add_argument("prefix", metavar="PREFIX", help="prefix of the dataset")
    verb = add_verb(data, "verify", data_verify, "dsmath data verify data/corpus", table=True)
    verb.add_argument("prefix", metavar="PREFIX", help="prefix of the dataset")
    verb.add_argument("--vocabulary-size", type=int, metavar="N", help="(default: the size in PREFIX.json)")
    verb = add_verb(data, "merge", data_merge, "dsmath data merge data/a data/b --out data/both", table=True)
    verb.add_argument("prefixes", nargs="+", metavar="PREFIX", help="prefixes of the datasets")
    verb.add_argument("--out", required=True, metavar="PREFIX", help="prefix of the output")
    example = "dsmath data blend configs/pretrain/deepseekmath_base_7b.yaml"
    verb = add_verb(data, "blend", data_blend, example, table=True)
    verb.add_argument("run", metavar="RUN.yaml", help="a run file")
    add_overrides(verb)

    example = "dsmath data decontaminate corpus.jsonl --benchmarks gsm8k.jsonl math.jsonl --out clean.jsonl"
    verb = add_verb(data, "decontaminate", data_decontaminate, example, table=True)
    verb.add_argument("files", nargs="+", metavar="FILE", help="JSONL (plain, .gz or .zst)")
    verb.add_argument("--benchmarks", nargs="+", required=True, metavar="FILE", help="JSONL with a benchmark's rows")
    verb.add_argument("--out", required=True, metavar="FILE", help="compressed if it ends with .gz or .zst")
    verb.add_argument("--field", nargs="+", default=["text"], metavar="F", help="fields of the text, joined (text)")
    verb.add_argument("--benchmark-fields", nargs="+", metavar="F", help="default: questions and answers")
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="number of screening processes (1)")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or collect and count them")
    verb = add_verb(data, "audit", data_audit, "dsmath data audit runs/my_run", table=True)
    verb.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's directory")
    verb.add_argument("--first-step", type=int, default=1, metavar="N", help="check the hashes from this step on")
    verb.add_argument("--last-step", type=int, metavar="N", help="check the hashes up to this step")
    verb = add_verb(data, "show", data_show, "dsmath data show runs/my_run --step 100", table=True)
    verb.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's directory")
    verb.add_argument("--step", type=int, required=True, metavar="N", help="step, counted from 1")


def data_tokenize(options: argparse.Namespace) -> int:
    """Tokenize JSONL into PREFIX.bin and PREFIX.idx. All files appear, or none."""
    from megatron_dsmath.data.tokenizing.tokenize import tokenize

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
    """Print the contents of a dataset: documents, tokens, lengths."""
    from megatron_dsmath.data.indexed.inspection import inspect

    print_facts(inspect(options.prefix), options.json)
    return EXIT_DONE


def data_verify(options: argparse.Namespace) -> int:
    """Check that a dataset is complete and that its token ids are within the vocabulary."""
    from megatron_dsmath.data.indexed.inspection import verify

    verification = verify(options.prefix, options.vocabulary_size)
    for fault in verification.faults:
        show(fault)
    print_facts({"prefix": options.prefix, "checks": verification.checks, "holds": verification.holds}, options.json)
    return EXIT_DONE if verification.holds else EXIT_ANSWER_IS_NO


def data_merge(options: argparse.Namespace) -> int:
    """Write the documents of several datasets into one dataset."""
    from megatron_dsmath.data.indexed.merging import merge

    print_facts(merge(options.prefixes, options.out), options.json)
    return EXIT_DONE


def data_blend(options: argparse.Namespace) -> int:
    """Print the planned mixture of a run: samples, tokens and epochs of each corpus, and whether it is shuffled."""
    from megatron_dsmath.checkpoint.store import newest_checkpoint
    from megatron_dsmath.config import load
    from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
    from megatron_dsmath.data.mixture.planned_corpora import phase_corpora, planned_corpora
    from megatron_dsmath.training.inputs import open_inputs, remaining_phases

    run = load(options.run, options.set)
    inputs = open_inputs(run, newest_checkpoint(Path(run.output)))
    batches = inputs.batches
    if not isinstance(batches, MixtureBatches):
        raise UsageError(
            "the run does not read a mixture",
            where=options.run,
            found="data.conversations",
            expected="data.corpora",
            fix="`dsmath sft show` prints the sequences of a run on conversations",
        )
    corpora = planned_corpora(batches.plan, batches.mixture(len(batches.plan.versions) - 1))
    columns = ("name", "share", "samples", "tokens", "epochs", "largest_deviation_samples")
    if run.schedule.phases:
        names = [phase.name for phase in run.schedule.phases][-len(remaining_phases(run, inputs.state.step)) :]
        print_table(list(phase_corpora(batches.plan, names)), ("phase", *columns), options.json)
    else:
        print_table(corpora, (*columns, "neighbours_alike"), options.json)
    for corpus in corpora:
        if corpus.warning:
            print(corpus.warning, file=sys.stderr)
    return EXIT_DONE


def data_decontaminate(options: argparse.Namespace) -> int:
    """Write the lines that share no 10-gram with a benchmark, and a report of the others."""
    from megatron_dsmath.data.decontamination.decontaminate import decontaminate

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
    """Check from a run's ledger which data it read: mixture, repeats, gaps, and the hash of every step."""
    from megatron_dsmath.data.audit.audit import audit

    found = audit(options.run, options.first_step, options.last_step)
    for fault in found.faults:
        show(fault)
    if options.json:
        corpora, groups = [[asdict(row) for row in rows] for rows in (found.totals.corpora, found.groups)]
        faults = [fault.text() for fault in found.faults]
        print_facts({**found.facts(), "corpora": corpora, "groups": groups, "faults": faults}, True)
    else:
        corpus_columns = ("name", "tokens", "share", "planned_share", "largest_deviation_samples", "epochs")
        group_columns = ("group", "name", "examples", "target_tokens", "share", "planned_share", "passes")
        rows, columns = (found.groups, group_columns) if found.groups else (found.totals.corpora, corpus_columns)
        print_table(rows, columns, False)
        print_facts(found.facts(), False)
    return EXIT_DONE if found.holds else EXIT_ANSWER_IS_NO


def data_show(options: argparse.Namespace) -> int:
    """Print the text of a training step, one document after the other."""
    from megatron_dsmath.data.audit.show_step import print_passages, read_step

    print_passages(read_step(options.run, options.step), options.json)
    return EXIT_DONE
