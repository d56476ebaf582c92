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

    if options.fault_points:
        return doctor.show_fault_points(options.json)
    return doctor.show(doctor.examine(), options.json)


def verify_layouts(options: argparse.Namespace) -> int:
    """Compare layouts with one process, on a run made small: loss, every gradient, parameters after steps."""
    from megatron_dsmath.config import load
    from megatron_dsmath.verify_layouts import report, selection, verify

    run = load(options.run, options.set)
    layouts = selection.selected(run, options.layouts, options.ranks, options.plant)
    return report.report(verify.verify(run, layouts, options.ranks, options.plant), len(layouts), options.json)


def sandbox(options: argparse.Namespace) -> int:
    """Run a program as a model's program is run: confined, limited; print how it ended as JSON."""
    from megatron_dsmath.evaluation.sandbox.pool import run_file

    print(run_file(options.file, options.timeout, options.memory))
    return EXIT_DONE


def evaluate(options: argparse.Namespace) -> int:
    """Let a model answer benchmarks; write its outputs, results.json and report.html."""
    from megatron_dsmath.evaluation.results.comparison import compared
    from megatron_dsmath.evaluation.run import Evaluation, evaluate, protocol_named
    from megatron_dsmath.tables import print_facts, print_table

    asked = Evaluation(
        model=options.model,
        data=options.data,
        tasks=tuple(options.tasks.split(",")),
        protocol=protocol_named(options.protocol, options.mode),
        out=options.out,
        limit=options.limit,
        samples=options.samples,
        backend=options.backend,
        batch_problems=options.batch,
    )
    results = evaluate(asked)
    if options.json:
        print_facts(results, True)
        return EXIT_DONE
    rows = compared(results)
    print_table(rows, list(rows[0]), False)
    print(asked.out / "report.html")
    return EXIT_DONE


def grade(options: argparse.Namespace) -> int:
    """Say of each output whether its final answer is right: our verdict, and the paper's protocol's."""
    from megatron_dsmath.evaluation.grading.grade_file import grade_file
    from megatron_dsmath.tables import print_facts, print_table

    report = grade_file(options.file, options.out)
    if options.json:
        print_facts({**report.summary, "verdicts": report.rows}, True)
        return EXIT_DONE
    if options.out is None:
        print_table(report.rows, ("line", "correct", "extracted", "correct_as_the_paper", "note"), False)
    print_facts(report.summary, False)
    return EXIT_DONE


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

    fields = options.field or ["text"]
    with shown_progress() as progress:
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
    """Print the planned mixture of a run: what it draws of each corpus, and whether that was shuffled."""
    from megatron_dsmath.config import load
    from megatron_dsmath.data.batches import Batches
    from megatron_dsmath.data.mixture.planned_corpora import planned_corpora
    from megatron_dsmath.tables import print_table
    from megatron_dsmath.training.inputs import newest_checkpoint, open_inputs

    run = load(options.run, options.set)
    batches = open_inputs(run, newest_checkpoint(run)).batches
    if not isinstance(batches, Batches):
        raise UsageError(
            "the run reads no mixture",
            where=options.run,
            found="data.conversations",
            expected="data.corpora",
            fix="`dsmath sft show` prints what such a run reads",
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


def sft_build(options: argparse.Namespace) -> int:
    """Turn conversations into PREFIX.bin, PREFIX.idx and their loss masks, whole or not at all."""
    from megatron_dsmath.data.conversations.batch_encoding import Options
    from megatron_dsmath.data.conversations.build import build
    from megatron_dsmath.data.conversations.sources import named_sources
    from megatron_dsmath.data.progress import shown_progress
    from megatron_dsmath.tables import print_facts, print_table

    named = named_sources(options.files, options.recipe, options.format, options.instruction)
    settings = Options(
        sequence_length=options.sequence_length,
        template=options.template,
        too_long=options.too_long,
        bad_lines=options.bad_lines,
        packing=options.packing,
        seed=options.seed,
        eod_token=options.eod_token,
    )
    with shown_progress() as progress:
        found = build(
            named.sources,
            options.tokenizer,
            options.out,
            settings,
            workers=options.workers,
            expected_examples=named.expected_examples,
            report_progress=progress,
        )
    if options.json:
        print_facts(found, True)
        return EXIT_DONE
    columns = ("name", "formats", "examples", "truncated", "too_long", "without_target", "bad_lines")
    print_table(found.sources, columns, False)
    groups = [group for group in found.groups if group.group != "topic"]
    print_table(groups, ("group", "name", "examples", "tokens", "target_tokens"), False)
    print_facts(found.totals(), False)
    return EXIT_DONE


def sft_show(options: argparse.Namespace) -> int:
    """Print a packed sequence, its tokens coloured by the loss mask."""
    from megatron_dsmath.data.conversations.display import print_sequence, write_page
    from megatron_dsmath.data.conversations.show import shown_sequence

    shown = shown_sequence(options.prefix, options.index)
    if options.html:
        print(write_page(shown, options.tokenizer, options.html))
    else:
        print_sequence(shown, options.tokenizer, options.json)
    return EXIT_DONE


def import_hf(options: argparse.Namespace) -> int:
    """Make a checkpoint of a Hugging Face folder."""
    from megatron_dsmath.checkpoint.from_huggingface import import_folder

    print(import_folder(options.folder, options.out, gate=not options.no_gate))
    return EXIT_DONE


def export_hf(options: argparse.Namespace) -> int:
    """Make a Hugging Face folder of a checkpoint."""
    from megatron_dsmath.checkpoint.to_huggingface import export

    print(export(options.checkpoint, options.out, gate=not options.no_gate, scores=options.scores))
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
    verb.add_argument("--fault-points", action="store_true", help="list where DSMATH_FAULT makes a run fail, and how")

    verb = _verb(verbs, "quickstart", quickstart, "dsmath quickstart --out runs/quickstart")
    verb.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="where everything is written")

    verb = _verb(verbs, "train", train, "dsmath train configs/pretrain/deepseekmath_base_7b.yaml --nproc 8")
    verb.add_argument("run", metavar="RUN.yaml", help="a run file; configs/ has complete ones")
    _takes_overrides(verb)
    verb.add_argument("--nproc", type=int, help="start this many ranks here (not under torchrun)")
    verb.add_argument("--check", action="store_true", help="check everything, start nothing, print the directory")

    example = "dsmath verify-layouts configs/pretrain/deepseekmath_base_7b.yaml --layouts tp2sp,pp2vpp2,dp2,tp2pp2"
    verb = _verb(verbs, "verify-layouts", verify_layouts, example, table=True)
    verb.add_argument("run", metavar="RUN.yaml", help="a run file; its sizes are made small")
    _takes_overrides(verb)
    verb.add_argument("--layouts", metavar="NAME,...", help="these alone; else all that --ranks processes can form")
    verb.add_argument("--ranks", type=int, default=4, metavar="N", help="the most processes a layout may take (4)")
    verb.add_argument("--plant", metavar="FAULT", help=argparse.SUPPRESS)  # docs/layouts.md: the check can fail

    verb = _verb(verbs, "sandbox", sandbox, "dsmath sandbox program.py --timeout 5")
    verb.add_argument("file", type=Path, metavar="FILE.py", help="a program, run as a model's program is run")
    verb.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds (10)")
    verb.add_argument("--memory", type=int, default=1024, metavar="MIB", help="beyond the interpreter's own (1024)")

    example = "dsmath evaluate --model models/mine --data data/eval --tasks gsm8k,math --mode tool --out runs/scores"
    verb = _verb(verbs, "evaluate", evaluate, example, table=True)
    verb.add_argument("--model", type=Path, required=True, metavar="DIR", help="Hugging Face folder, checkpoint or run")
    verb.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the benchmarks' files are")
    verb.add_argument("--tasks", required=True, metavar="T,...", help="gsm8k, math, mgsm-zh, cmath, or FILE.jsonl")
    protocols = "instruct-cot, instruct-tool, base-few-shot, base-program, or a file"
    verb.add_argument("--protocol", metavar="NAME", help=protocols)
    verb.add_argument("--mode", choices=("cot", "tool"), help="short for --protocol instruct-cot or instruct-tool")
    verb.add_argument("--limit", type=int, metavar="N", help="the first N problems of each task")
    verb.add_argument("--samples", type=int, default=1, metavar="K", help="answers a problem: pass@k and majority (1)")
    verb.add_argument("--backend", choices=("own", "transformers", "vllm"), default="own", help="(own)")
    verb.add_argument("--batch", type=int, default=16, metavar="N", help="answers written at once (16)")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="a directory; the same again goes on")

    verb = _verb(verbs, "grade", grade, "dsmath grade outputs.jsonl --out verdicts.jsonl", table=True)
    verb.add_argument("file", type=Path, metavar="FILE.jsonl", help="rows with prediction, answer and perhaps task")
    verb.add_argument("--out", type=Path, metavar="FILE", help="write a verdict a row, as JSONL")

    verb = _verb(verbs, "report", report, "dsmath report runs/quickstart/run")
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="a run's directory")

    data = _group(verbs, "data", "text to batches")
    example = "dsmath data tokenize corpus.jsonl.gz --tokenizer models/deepseek --out data/corpus --workers 8"
    verb = _verb(data, "tokenize", data_tokenize, example, table=True)
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

    sft = _group(verbs, "sft", "conversations to examples with loss masks")
    example = "dsmath sft build train.jsonl --tokenizer models/deepseek --out data/sft --workers 8"
    verb = _verb(sft, "build", sft_build, example, table=True)
    verb.add_argument("files", nargs="*", metavar="FILE", help="conversations in JSONL: plain, .gz or .zst; or Parquet")
    verb.add_argument("--recipe", type=Path, metavar="YAML", help="sources, kinds and instructions, in place of FILEs")
    verb.add_argument("--tokenizer", required=True, help="a folder, a tokenizer.json or a SentencePiece .model")
    verb.add_argument("--out", required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx, .targets and more")
    verb.add_argument("--sequence-length", type=int, default=4096, metavar="N", help="tokens of a sequence (4096)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="decides who is packed with whom (0)")
    verb.add_argument("--packing", choices=("next-fit", "best-fit", "split"), default="next-fit", help="(next-fit)")
    verb.add_argument("--format", metavar="NAME", help="messages, sharegpt, ...; else told by the rows")
    verb.add_argument("--instruction", choices=("cot", "tool"), help="append the paper's instruction to the questions")
    verb.add_argument("--template", default="deepseekmath", help="deepseekmath, tokenizer, or a Jinja file")
    verb.add_argument("--too-long", choices=("drop", "truncate", "fail"), default="drop", help="and counted (drop)")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or set aside and count")
    verb.add_argument("--eod-token", metavar="T", help="what ends an answer, where the tokenizer names none")
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes that tokenize (1)")
    verb = _verb(sft, "show", sft_show, "dsmath sft show data/sft --index 0", table=True)
    verb.add_argument("prefix", metavar="PREFIX")
    verb.add_argument("--index", type=int, default=0, metavar="I", help="numbers go on through the epochs (0)")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    verb.add_argument("--tokenizer", type=Path, metavar="PATH", help="else where it lay when the set was built")

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
    verb.add_argument("--no-gate", action="store_true", help="compare no logits with transformers, and record that")
    verb = _verb(verbs, "export-hf", export_hf, "dsmath export-hf runs/my_run --out models/mine")
    verb.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run for its newest")
    verb.add_argument("--out", type=Path, required=True, metavar="HF_DIR")
    verb.add_argument("--scores", type=Path, metavar="FILE", help="JSON, a number a benchmark: for the model card")
    verb.add_argument("--no-gate", action="store_true", help="compare no logits with transformers, and record that")
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
