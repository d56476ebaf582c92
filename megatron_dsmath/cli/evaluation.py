"""Verbs for evaluation: benchmarks, grading, and the sandbox."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_dsmath.cli.arguments import Verbs, add_verb
from megatron_dsmath.errors import EXIT_DONE
from megatron_dsmath.tables import print_facts, print_table

if TYPE_CHECKING:
    from megatron_dsmath.evaluation.evaluate import EvaluationSettings


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the command."""
    example = "dsmath evaluate --model models/mine --data data/eval --tasks gsm8k,math --mode tool --out runs/scores"
    verb = add_verb(verbs, "evaluate", evaluate, example, table=True)
    verb.add_argument("--model", type=Path, required=True, metavar="DIR", help="Hugging Face folder, checkpoint or run")
    verb.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory of the benchmarks")
    verb.add_argument("--tasks", required=True, metavar="T,...", help="gsm8k, math, humaneval, ..., or FILE.jsonl")
    protocols = "instruct-cot, instruct-tool, base-few-shot, base-program, base-code, base-proof; base-few-shot-paper, "
    protocols += "... with the paper's own shots; or a YAML file"
    verb.add_argument("--protocol", metavar="NAME", help=protocols)
    verb.add_argument("--mode", choices=("cot", "tool"), help="same as --protocol instruct-cot or instruct-tool")
    verb.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N problems of each task")
    answers = "answers per problem: pass@k and majority (1)"
    verb.add_argument("--samples", type=int, default=1, metavar="K", help=answers)
    backends = ("own", "transformers", "vllm")
    verb.add_argument("--backend", choices=backends, default="own", help="inference engine (own)")
    verb.add_argument("--batch", type=int, default=16, metavar="N", help="answers generated at the same time (16)")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the same command resumes")
    verb.add_argument("--wandb", metavar="PROJECT", help="also log the scores and a table of the problems to W&B")

    verb = add_verb(verbs, "grade", grade, "dsmath grade outputs.jsonl --out verdicts.jsonl", table=True)
    verb.add_argument("file", type=Path, metavar="FILE.jsonl", help="rows with prediction, answer and optionally task")
    verb.add_argument("--out", type=Path, metavar="FILE", help="write one verdict per row, as JSONL")

    verb = add_verb(verbs, "sandbox", sandbox, "dsmath sandbox program.py --timeout 5")
    verb.add_argument("file", type=Path, metavar="FILE.py", help="a Python program")
    verb.add_argument("--timeout", type=float, default=10.0, metavar="S", help="time limit in seconds (10)")
    verb.add_argument("--memory", type=int, default=1024, metavar="MIB", help="beyond the interpreter (1024)")


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a model on benchmarks; write its outputs, results.json and report.html."""
    from megatron_dsmath.evaluation.evaluate import EvaluationSettings, evaluate, protocol_name
    from megatron_dsmath.evaluation.results.scores import comparison_table
    from megatron_dsmath.supervision.lock import hold_evaluation

    settings = EvaluationSettings(
        model=options.model,
        data=options.data,
        tasks=tuple(options.tasks.split(",")),
        protocol=protocol_name(options.protocol, options.mode),
        out=options.out,
        limit=options.limit,
        samples=options.samples,
        backend=options.backend,
        batch_problems=options.batch,
    )
    results = evaluate(settings, hold_evaluation)
    if options.wandb:
        _send(options.wandb, settings, results)
    if options.json:
        print_facts(results, True)
        return EXIT_DONE
    rows = comparison_table(results)
    print_table(rows, list(rows[0]), False)
    print(settings.out / "report.html")
    return EXIT_DONE


def _send(project: str, settings: EvaluationSettings, results: Mapping[str, Any]) -> None:
    from megatron_dsmath.evaluation.rows import read_rows, rows_path
    from megatron_dsmath.training.run_directory import RunDirectory
    from megatron_dsmath.training.weights_and_biases import WeightsAndBiases

    config = {name: value for name, value in results.items() if name != "tasks"}
    record = WeightsAndBiases.start(project, "auto", RunDirectory(settings.out), config)
    if record is not None:
        rows = {task: sorted(read_rows(rows_path(settings.out, task)).items()) for task in results["tasks"]}
        record.log_results(results, {task: [row for _, row in some] for task, some in rows.items()})
        record.close()


def grade(options: argparse.Namespace) -> int:
    """Grade the final answer of each output, by our rules and by the paper's."""
    from megatron_dsmath.grading.grade_file import grade_file

    rows, summary = grade_file(options.file, options.out)
    if options.json:
        print_facts({**summary, "verdicts": rows}, True)
        return EXIT_DONE
    if options.out is None:
        print_table(rows, ("line", "correct", "extracted", "correct_as_the_paper", "note"), False)
    print_facts(summary, False)
    return EXIT_DONE


def sandbox(options: argparse.Namespace) -> int:
    """Run a program in the sandbox, as a model's programs are run; print its outcome as JSON."""
    from megatron_dsmath.sandbox.pool import run_file

    print(run_file(options.file, options.timeout, options.memory))
    return EXIT_DONE
