"""Verbs for runs: doctor, quickstart, recipe, train, verify-layouts and report."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_dsmath.cli.arguments import Verbs, add_overrides, add_verb
from megatron_dsmath.errors import EXIT_DONE, UsageError
from megatron_dsmath.tables import print_table


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the command."""
    verb = add_verb(verbs, "doctor", doctor, "dsmath doctor", table=True)
    verb.add_argument("--fault-points", action="store_true", help="list the points and kinds of DSMATH_FAULT")

    verb = add_verb(verbs, "quickstart", quickstart, "dsmath quickstart --out runs/quickstart")
    verb.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="output directory (runs/quickstart)")

    verb = add_verb(verbs, "recipe", recipe, "dsmath recipe configs/recipes/deepseekmath_7b.yaml --plan", table=True)
    verb.add_argument("recipe", metavar="RECIPE.yaml", help="a recipe; configs/recipes has examples")
    verb.add_argument("--plan", action="store_true", help="list the stages and their states; run nothing")

    verb = add_verb(verbs, "train", train, "dsmath train configs/pretrain/deepseekmath_base_7b.yaml --nproc 8")
    verb.add_argument("run", metavar="RUN.yaml", help="a run file; configs/ has examples")
    add_overrides(verb)
    verb.add_argument("--nproc", type=int, metavar="N", help="start N ranks on this machine (not under torchrun)")
    verb.add_argument("--check", action="store_true", help="check the run file, data and checkpoint; do not train")
    resume = "from which checkpoint: newest refuses a damaged one, last-good moves it away and uses an older one"
    verb.add_argument("--resume", choices=["newest", "last-good"], default="newest", help=resume)
    verb.add_argument("--evaluate", metavar="FILE.jsonl", help="problems that the model answers during training")
    verb.add_argument("--evaluate-every", type=int, metavar="N", help="after every N steps and the last (1000)")
    protocol = "protocol of the evaluation, as in dsmath evaluate (instruct-tool)"
    verb.add_argument("--evaluate-protocol", metavar="NAME", help=protocol)

    example = "dsmath verify-layouts configs/pretrain/deepseekmath_base_7b.yaml --layouts tp2sp,pp2vpp2,dp2,tp2pp2"
    verb = add_verb(verbs, "verify-layouts", verify_layouts, example, table=True)
    verb.add_argument("run", metavar="RUN.yaml", help="a run file; its model is made small")
    add_overrides(verb)
    verb.add_argument("--layouts", metavar="NAME,...", help="layouts to compare (default: all that fit on --ranks)")
    verb.add_argument("--ranks", type=int, default=4, metavar="N", help="largest number of processes of a layout (4)")

    verb = add_verb(verbs, "report", report, "dsmath report runs/quickstart/run")
    directories = "a run's directory; the report is written to the first"
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help=directories)


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine has and lacks, with a remedy for each missing item."""
    from megatron_dsmath import doctor

    if options.fault_points:
        return doctor.show_fault_points(options.json)
    return doctor.show(doctor.examine(), options.json)


def quickstart(options: argparse.Namespace) -> int:
    """Run the whole pipeline in miniature on two CPU processes: data, training, kill, resume, export, report."""
    from megatron_dsmath.quickstart.run_quickstart import run_quickstart
    from megatron_dsmath.report.page import Section, write_report

    page = run_quickstart(options.out, lambda run_dir, rows: write_report([run_dir], [Section("Quickstart", rows)]))
    print(f"report: {page}")
    return EXIT_DONE


def recipe(options: argparse.Namespace) -> int:
    """Run the stages of a recipe in order, from pretraining to evaluation; continue where it stopped."""
    from megatron_dsmath.recipe.recipe_mistakes import load_stages
    from megatron_dsmath.recipe.run_stages import run_stages
    from megatron_dsmath.recipe.stage_states import plan_rows

    if options.json and not options.plan:
        raise UsageError("only the plan of a recipe is printed as JSON", where="--json", fix="add --plan")
    stages = load_stages(options.recipe)
    if options.plan:
        print_table(plan_rows(stages), ("stage", "kind", "state", "steps", "tokens", "command"), options.json)
        return EXIT_DONE
    return run_stages(stages)


def train(options: argparse.Namespace) -> int:
    """Train a model; continue from the newest checkpoint if there is one."""
    from megatron_dsmath.evaluation.live_evaluation import load_live_evaluation
    from megatron_dsmath.supervision import start

    evaluation = load_live_evaluation(options.evaluate, options.evaluate_every, options.evaluate_protocol)
    if options.check:
        print(start.check_run(options.run, options.set, options.nproc).output)
        return EXIT_DONE
    return start.start_run(options.run, options.set, options.nproc, options.resume, evaluation)


def verify_layouts(options: argparse.Namespace) -> int:
    """Compare loss, gradients and updated parameters of each layout with one process, on a small model."""
    from megatron_dsmath.config import load
    from megatron_dsmath.verify_layouts import verify

    run = load(options.run, options.set)
    layouts = verify.select_layouts(run, options.layouts, options.ranks)
    comparisons = verify.compare_layouts(run, layouts, options.ranks)
    return verify.print_comparisons(comparisons, len(layouts), options.json)


def report(options: argparse.Namespace) -> int:
    """Write report.html with plots of one or several runs."""
    from megatron_dsmath.report.page import write_report

    print(write_report(options.runs))
    return EXIT_DONE
