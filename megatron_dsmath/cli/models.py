"""Verbs for weights: checkpoints, and conversion from and to Hugging Face folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_dsmath.cli.arguments import Verbs, add_group, add_verb
from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, CheckpointError, show
from megatron_dsmath.files.progress import show_progress
from megatron_dsmath.tables import print_facts, print_table


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the command."""
    checkpoint = add_group(verbs, "checkpoint", "List, verify and average checkpoints.")
    verb = add_verb(checkpoint, "list", checkpoint_list, "dsmath checkpoint list runs/my_run", table=True)
    verb.add_argument("path", type=Path, metavar="PATH", help="a run's directory or its checkpoints")
    example = "dsmath checkpoint verify runs/my_run/checkpoints/step_100"
    verb = add_verb(checkpoint, "verify", checkpoint_verify, example, table=True)
    verb.add_argument("path", type=Path, metavar="PATH", help="a checkpoint")
    example = "dsmath checkpoint average runs/my_run --last 3 --out models/average"
    verb = add_verb(checkpoint, "average", checkpoint_average, example)
    purpose = "checkpoints and Hugging Face folders, or with --last one run's directory"
    verb.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=purpose)
    verb.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="the new checkpoint, in fp32")
    verb.add_argument("--last", type=int, metavar="N", help="average the newest N complete checkpoints of the run")
    purpose = "a number per checkpoint (with --last: oldest first); only ratios count (default: all equal)"
    verb.add_argument("--weights", type=float, nargs="+", metavar="W", help=purpose)

    example = "dsmath import-hf models/deepseek-coder-7b-base-v1.5 --out models/start"
    verb = add_verb(verbs, "import-hf", import_hf, example)
    verb.add_argument("folder", type=Path, metavar="HF_DIR", help="a Hugging Face folder")
    verb.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="the new checkpoint")
    verb.add_argument("--no-gate", action="store_true", help="do not compare logits with transformers, and record it")
    verb = add_verb(verbs, "export-hf", export_hf, "dsmath export-hf runs/my_run --out models/mine")
    newest = "a checkpoint, or a run's directory for its newest one"
    verb.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=newest)
    verb.add_argument("--out", type=Path, required=True, metavar="HF_DIR", help="the new folder")
    verb.add_argument("--scores", type=Path, metavar="FILE", help="JSON with a score per benchmark, for the model card")
    verb.add_argument("--no-gate", action="store_true", help="do not compare logits with transformers, and record it")


def checkpoint_list(options: argparse.Namespace) -> int:
    """List the checkpoints of a run."""
    from megatron_dsmath.checkpoint import store

    print_table(store.listing(options.path), ("step", "kind", "tokens", "size_bytes", "path"), options.json)
    return EXIT_DONE


def checkpoint_verify(options: argparse.Namespace) -> int:
    """Compare every file of a checkpoint with its manifest."""
    from megatron_dsmath.checkpoint import store

    try:
        manifest = store.verify(options.path)
    except CheckpointError as error:
        show(error)
        return EXIT_ANSWER_IS_NO
    print_facts({"path": options.path, "step": manifest.step, "files": len(manifest.files)}, options.json)
    return EXIT_DONE


def checkpoint_average(options: argparse.Namespace) -> int:
    """Write the mean of the weights of several checkpoints as a new checkpoint."""
    from megatron_dsmath.checkpoint.averaging import average

    with show_progress() as progress:
        done = average(options.paths, options.out, last=options.last, weights=options.weights, report=progress)
    print(done)
    return EXIT_DONE


def import_hf(options: argparse.Namespace) -> int:
    """Convert a Hugging Face folder into a checkpoint."""
    from megatron_dsmath.checkpoint.from_huggingface import import_folder

    print(import_folder(options.folder, options.out, gate=not options.no_gate))
    return EXIT_DONE


def export_hf(options: argparse.Namespace) -> int:
    """Convert a checkpoint into a Hugging Face folder."""
    from megatron_dsmath.checkpoint.to_huggingface import export

    print(export(options.checkpoint, options.out, gate=not options.no_gate, scores=options.scores))
    return EXIT_DONE
