"""The `dsmath` command: one verb, one small function; no logic. Heavy imports happen inside the verbs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_dsmath import __version__
from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, DsmathError, UsageError, show

Verb = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code (0 done, 1 the answer is no, 70 internal, 75 stopped, 78 refused)."""
    try:
        options = _parser().parse_args(arguments)
        verb: Verb = options.verb
        return verb(options)
    except DsmathError as error:
        return show(error)
    except BrokenPipeError:  # who reads the output, as `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return EXIT_DONE


def train(options: argparse.Namespace) -> int:
    """Train from a run file, or continue what its directory holds."""
    from megatron_dsmath.training import start

    if options.check:
        print(start.check(options.run, options.set, options.nproc).output)
        return EXIT_DONE
    return start.start(options.run, options.set, options.nproc)


def quickstart(options: argparse.Namespace) -> int:
    """Tell the whole story in miniature: corpora, tokenizer, training, a kill, a resume, an export, a report."""
    from megatron_dsmath.quickstart.story import tell

    print(f"report: {tell(options.out)}")
    return EXIT_DONE


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine offers and what is missing, each line with its remedy."""
    from megatron_dsmath import doctor

    return doctor.show(doctor.examine(), options.json)


def report(options: argparse.Namespace) -> int:
    """Write report.html and its pictures into the first run's directory."""
    from megatron_dsmath.report.page import write_report

    print(write_report(options.runs))
    return EXIT_DONE


def data_tokenize(options: argparse.Namespace) -> int:
    """Turn JSONL into PREFIX.bin and PREFIX.idx, whole or not at all."""
    from megatron_dsmath.data.progress import shown_progress
    from megatron_dsmath.data.tokenize import tokenize
    from megatron_dsmath.tables import print_facts

    with shown_progress() as progress:
        facts = tokenize(
            options.files,
            options.tokenizer,
            options.out,
            field=options.field,
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
    """Print the planned mixture of a run: for each corpus its share, tokens, samples, epochs and largest deviation."""
    from megatron_dsmath.config import load
    from megatron_dsmath.tables import print_table
    from megatron_dsmath.training.inputs import planned_mixture

    columns = ("name", "share", "samples", "tokens", "epochs", "largest_deviation_samples")
    print_table(planned_mixture(load(options.run, options.set)), columns, options.json)
    return EXIT_DONE


def data_decontaminate(options: argparse.Namespace) -> int:
    """Write the lines that share no 10-gram with a benchmark, and a report."""
    from megatron_dsmath.data.decontamination.decontaminate import decontaminate
    from megatron_dsmath.data.progress import shown_progress
    from megatron_dsmath.tables import print_facts, print_table

    with shown_progress() as progress:
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
    print_table(report.benchmarks, ("file", "rows", "ngrams", "documents", "drop_rate", "looking_false"), False)
    print_facts(report.totals(), False)
    return EXIT_DONE


def data_audit(options: argparse.Namespace) -> int:
    """Prove from a run's ledger what it read: the mixture, repeats and gaps, each hash computed anew from the .bin."""
    from dataclasses import asdict

    from megatron_dsmath.data.ledger.audit import audit
    from megatron_dsmath.tables import print_facts, print_table

    found = audit(options.run, options.first_step, options.last_step)
    for fault in found.faults:
        show(fault)
    if options.json:
        corpora = [asdict(corpus) for corpus in found.accounts.corpora]
        faults = [fault.text() for fault in found.faults]
        print_facts({**found.facts(), "corpora": corpora, "faults": faults}, True)
    else:
        columns = ("name", "tokens", "share", "planned_share", "largest_deviation_samples", "epochs")
        print_table(found.accounts.corpora, columns, False)
        print_facts(found.facts(), False)
    return EXIT_DONE if found.holds else EXIT_ANSWER_IS_NO


def data_show(options: argparse.Namespace) -> int:
    """Print the text of a step, document by document."""
    from megatron_dsmath.data.ledger.show import print_passages, step_passages

    print_passages(step_passages(options.run, options.step), options.json)
    return EXIT_DONE


def import_hf(options: argparse.Namespace) -> int:
    """Make a checkpoint of a Hugging Face folder."""
    from megatron_dsmath.checkpoint.from_huggingface import import_folder

    print(import_folder(options.folder, options.out))
    return EXIT_DONE


def export_hf(options: argparse.Namespace) -> int:
    """Make a Hugging Face folder of a checkpoint."""
    from megatron_dsmath.checkpoint.to_huggingface import export

    print(export(options.checkpoint, options.out))
    return EXIT_DONE


def checkpoint_list(options: argparse.Namespace) -> int:
    """List the checkpoints of a run."""
    from megatron_dsmath.checkpoint import store
    from megatron_dsmath.tables import print_table

    print_table(store.listing(options.path), ("step", "kind", "tokens", "size_bytes", "path"), options.json)
    return EXIT_DONE


def checkpoint_verify(options: argparse.Namespace) -> int:
    """Compare every file of a checkpoint with its manifest."""
    from megatron_dsmath.checkpoint import store
    from megatron_dsmath.errors import CheckpointError
    from megatron_dsmath.tables import print_facts

    try:
        manifest = store.verify(options.path)
    except CheckpointError as error:
        show(error)
        return EXIT_ANSWER_IS_NO
    print_facts({"path": options.path, "step": manifest.step, "files": len(manifest.files)}, options.json)
    return EXIT_DONE


class _Parser(argparse.ArgumentParser):
    """argparse, with usage errors in the shape and with the exit code of all others; flags are written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, where=self.prog, fix=f"{self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dsmath",
        description="Reproduce DeepSeekMath: from raw JSONL to a trained model in a Hugging Face folder.",
        epilog="example: dsmath quickstart --out runs/quickstart",
    )
    parser.add_argument("--version", action="version", version=f"dsmath {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = _verb(verbs, "doctor", doctor, "dsmath doctor", table=True)

    verb = _verb(verbs, "quickstart", quickstart, "dsmath quickstart --out runs/quickstart")
    verb.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="where everything is written")

    verb = _verb(verbs, "train", train, "dsmath train configs/pretrain/deepseekmath_base_7b.yaml --nproc 8")
    verb.add_argument("run", metavar="RUN.yaml", help="a run file; configs/ has complete ones")
    _takes_overrides(verb)
    verb.add_argument("--nproc", type=int, help="start this many ranks here (not under torchrun)")
    verb.add_argument("--check", action="store_true", help="check everything, start nothing, print the directory")

    verb = _verb(verbs, "report", report, "dsmath report runs/quickstart/run")
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="a run's directory")

    data = _group(verbs, "data", "text to batches")
    example = "dsmath data tokenize corpus.jsonl.gz --tokenizer models/deepseek --out data/corpus --workers 8"
    verb = _verb(data, "tokenize", data_tokenize, example, table=True)
    verb.add_argument("files", nargs="+", metavar="FILE", help="JSONL: plain, .gz or .zst")
    verb.add_argument("--tokenizer", required=True, help="a folder, a tokenizer.json or a SentencePiece .model")
    verb.add_argument("--out", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    verb.add_argument("--field", default="text", help="which field of a line is the text (text)")
    verb.add_argument("--workers", type=int, default=1, help="processes that tokenize (1)")
    verb.add_argument("--no-eod", action="store_true", help="append no end-of-document token")
    verb.add_argument("--prepend-bos", action="store_true", help="begin each document with the BOS token")
    verb.add_argument("--eod-token", metavar="T", help="the end-of-document token, where the tokenizer names none")
    verb.add_argument("--parse-special", action="store_true", help="read special-token literals as special tokens")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or set aside and count")
    verb.add_argument("--shuffle-seed", type=int, metavar="N", help="put the documents in a random order")
    verb = _verb(data, "inspect", data_inspect, "dsmath data inspect data/corpus", table=True)
    verb.add_argument("prefix", metavar="PREFIX")
    verb = _verb(data, "verify", data_verify, "dsmath data verify data/corpus", table=True)
    verb.add_argument("prefix", metavar="PREFIX")
    verb.add_argument("--vocabulary-size", type=int, metavar="N", help="else the sidecar's")
    verb = _verb(data, "merge", data_merge, "dsmath data merge data/a data/b --out data/both", table=True)
    verb.add_argument("prefixes", nargs="+", metavar="PREFIX")
    verb.add_argument("--out", required=True, metavar="PREFIX")
    verb = _verb(data, "blend", data_blend, "dsmath data blend configs/pretrain/deepseekmath_base_7b.yaml", table=True)
    verb.add_argument("run", metavar="RUN.yaml")
    _takes_overrides(verb)

    example = "dsmath data decontaminate corpus.jsonl --benchmarks gsm8k.jsonl math.jsonl --out clean.jsonl"
    verb = _verb(data, "decontaminate", data_decontaminate, example, table=True)
    verb.add_argument("files", nargs="+", metavar="FILE", help="JSONL: plain, .gz or .zst")
    verb.add_argument("--benchmarks", nargs="+", required=True, metavar="FILE", help="JSONL with a benchmark's rows")
    verb.add_argument("--out", required=True, metavar="FILE", help=".gz and .zst compress")
    verb.add_argument(
        "--field", nargs="+", default=["text"], metavar="F", help="what holds the text; several are joined"
    )
    verb.add_argument("--benchmark-fields", nargs="+", metavar="F", help="else questions and answers by their names")
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes that screen (1)")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or set aside and count")
    verb = _verb(data, "audit", data_audit, "dsmath data audit runs/my_run", table=True)
    verb.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's directory")
    verb.add_argument("--first-step", type=int, default=1, metavar="N", help="hash no earlier step anew")
    verb.add_argument("--last-step", type=int, metavar="N", help="hash no later step anew")
    verb = _verb(data, "show", data_show, "dsmath data show runs/my_run --step 100", table=True)
    verb.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's directory")
    verb.add_argument("--step", type=int, required=True, metavar="N")

    checkpoint = _group(verbs, "checkpoint", "what a run saved")
    verb = _verb(checkpoint, "list", checkpoint_list, "dsmath checkpoint list runs/my_run", table=True)
    verb.add_argument("path", type=Path, metavar="PATH", help="a run's directory or its checkpoints")
    verb = _verb(
        checkpoint, "verify", checkpoint_verify, "dsmath checkpoint verify runs/my_run/checkpoints/step_100", table=True
    )
    verb.add_argument("path", type=Path, metavar="PATH", help="a checkpoint")

    verb = _verb(
        verbs, "import-hf", import_hf, "dsmath import-hf models/deepseek-coder-7b-base-v1.5 --out models/start"
    )
    verb.add_argument("folder", type=Path, metavar="HF_DIR")
    verb.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT")
    verb = _verb(verbs, "export-hf", export_hf, "dsmath export-hf runs/my_run --out models/mine")
    verb.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run for its newest")
    verb.add_argument("--out", type=Path, required=True, metavar="HF_DIR")
    return parser


def _group(verbs: argparse._SubParsersAction[_Parser], name: str, purpose: str) -> argparse._SubParsersAction[_Parser]:
    return verbs.add_parser(name, help=purpose, description=purpose).add_subparsers(required=True, metavar="VERB")


def _verb(
    verbs: argparse._SubParsersAction[_Parser], name: str, function: Verb, example: str, *, table: bool = False
) -> _Parser:
    purpose = (function.__doc__ or "").strip()
    verb = verbs.add_parser(name, help=purpose, description=purpose, epilog=f"example: {example}")
    verb.set_defaults(verb=function)
    if table:
        verb.add_argument("--json", action="store_true", help="print JSON")
    return verb


def _takes_overrides(verb: _Parser) -> None:
    verb.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key; may be repeated")


if __name__ == "__main__":
    sys.exit(main())
