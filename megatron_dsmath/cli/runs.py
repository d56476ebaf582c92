"""Verbs about a run: the machine, the quickstart, training, its layouts, its report."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_dsmath.cli.arguments import Verbs, add_verb, take_overrides
from megatron_dsmath.errors import EXIT_DONE


def add_verbs(verbs: Verbs) -> None:
    """Add them to the command."""
    verb = add_verb(verbs, "doctor", doctor, "dsmath doctor", table=True)
    verb.add_argument("--fault-points", action="store_true", help="list where DSMATH_FAULT makes a run fail, and how")

    verb = add_verb(verbs, "quickstart", quickstart, "dsmath quickstart --out runs/quickstart")
    verb.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="where everything is written")

    verb = add_verb(verbs, "train", train, "dsmath train configs/pretrain/deepseekmath_base_7b.yaml --nproc 8")
    verb.add_argument("run", metavar="RUN.yaml", help="a run file; configs/ has complete ones")
    take_overrides(verb)
    verb.add_argument("--nproc", type=int, help="start this many ranks here (not under torchrun)")
    verb.add_argument("--check", action="store_true", help="check everything, start nothing, print the directory")
    verb.add_argument(
        "--resume",
        choices=["newest", "last-good"],
        default="newest",
        help="from which checkpoint: newest refuses a damaged one, last-good sets it aside and goes back",
    )
    verb.add_argument("--evaluate", metavar="FILE.jsonl", help="problems that the model answers as it is trained")
    verb.add_argument("--evaluate-every", type=int, metavar="N", help="after so many steps, and the last (1000)")
    protocol = "a protocol as of dsmath evaluate (instruct-tool)"
    verb.add_argument("--evaluate-protocol", metavar="NAME", help=protocol)

    example = "dsmath verify-layouts configs/pretrain/deepseekmath_base_7b.yaml --layouts tp2sp,pp2vpp2,dp2,tp2pp2"
    verb = add_verb(verbs, "verify-layouts", verify_layouts, example, table=True)
    verb.add_argument("run", metavar="RUN.yaml", help="a run file; its sizes are made small")
    take_overrides(verb)
    verb.add_argument("--layouts", metavar="NAME,...", help="these alone; else all that --ranks processes can form")
    verb.add_argument("--ranks", type=int, default=4, metavar="N", help="the most processes a layout may take (4)")

    verb = add_verb(verbs, "report", report, "dsmath report runs/quickstart/run")
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="a run's directory")


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine offers and what is missing, each line with its remedy."""
    from megatron_dsmath import doctor

    if options.fault_points:
        return doctor.show_fault_points(options.json)
    return doctor.show(doctor.examine(), options.json)


def quickstart(options: argparse.Namespace) -> int:
    """Make small corpora and a tokenizer, train, kill, resume, export and report, all on two CPU processes."""
    from megatron_dsmath.quickstart.run_quickstart import run_quickstart
    from megatron_dsmath.report.page import Section, write_report

    page = run_quickstart(options.out, lambda run_dir, rows: write_report([run_dir], [Section("Quickstart", rows)]))
    print(f"report: {page}")
    return EXIT_DONE


def train(options: argparse.Namespace) -> int:
    """Train from a run file, or continue what its directory holds."""
    from megatron_dsmath.evaluation.live_evaluation import load_live_evaluation
    from megatron_dsmath.supervision import start

    evaluation = load_live_evaluation(options.evaluate, options.evaluate_every, options.evaluate_protocol)
    if options.check:
        print(start.check_run(options.run, options.set, options.nproc).output)
        return EXIT_DONE
    return start.start_run(options.run, options.set, options.nproc, options.resume, evaluation)


def verify_layouts(options: argparse.Namespace) -> int:
    """Compare layouts with one process, on a run made small: loss, every gradient, parameters after steps."""
    from megatron_dsmath.config import load
    from megatron_dsmath.verify_layouts import verify

    run = load(options.run, options.set)
    layouts = verify.select_layouts(run, options.layouts, options.ranks)
    comparisons = verify.compare_layouts(run, layouts, options.ranks)
    return verify.print_comparisons(comparisons, len(layouts), options.json)


def report(options: argparse.Namespace) -> int:
    """Write report.html and its pictures into the first run's directory."""
    from megatron_dsmath.report.page import write_report

    print(write_report(options.runs))
    return EXIT_DONE
