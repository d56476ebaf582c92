"""Verbs for conversations: examples with loss masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_dsmath.cli.arguments import Verbs, add_group, add_verb
from megatron_dsmath.errors import EXIT_DONE
from megatron_dsmath.files.progress import show_progress
from megatron_dsmath.tables import print_facts, print_table


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the command."""
    sft = add_group(verbs, "sft", "Build and show datasets of conversations with loss masks.")
    example = "dsmath sft build train.jsonl --tokenizer models/deepseek --out data/sft --workers 8"
    verb = add_verb(sft, "build", sft_build, example, table=True)
    verb.add_argument("files", nargs="*", metavar="FILE", help="conversations in JSONL (plain, .gz or .zst) or Parquet")
    verb.add_argument("--recipe", type=Path, metavar="YAML", help="a file that lists the sources; replaces FILE")
    verb.add_argument("--tokenizer", required=True, help="a folder, a tokenizer.json or a SentencePiece .model")
    outputs = "writes PREFIX.bin, .idx, .targets and other files"
    verb.add_argument("--out", required=True, metavar="PREFIX", help=outputs)
    verb.add_argument("--sequence-length", type=int, default=4096, metavar="N", help="tokens per sequence (4096)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the packing (0)")
    rules = ("next-fit", "best-fit", "split")
    verb.add_argument("--packing", choices=rules, default="next-fit", help="packing rule (next-fit)")
    verb.add_argument("--format", metavar="NAME", help="messages, sharegpt, ... (default: detected from the rows)")
    verb.add_argument("--instruction", choices=("cot", "tool"), help="append the paper's instruction to each question")
    verb.add_argument("--template", default="deepseekmath", help="deepseekmath (default), tokenizer, or a Jinja file")
    verb.add_argument("--too-long", choices=("drop", "truncate", "fail"), default="drop", help="long examples (drop)")
    verb.add_argument("--bad-lines", choices=("fail", "skip"), default="fail", help="stop, or collect and count them")
    verb.add_argument("--eod-token", metavar="T", help="token that ends an answer, if the tokenizer does not define it")
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="number of tokenizing processes (1)")
    verb = add_verb(sft, "show", sft_show, "dsmath sft show data/sft --index 0", table=True)
    verb.add_argument("prefix", metavar="PREFIX", help="prefix of the dataset")
    verb.add_argument("--index", type=int, default=0, metavar="I", help="sequence, counted through all epochs (0)")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page instead")
    verb.add_argument("--tokenizer", type=Path, metavar="PATH", help="default: its path when the dataset was built")


def sft_build(options: argparse.Namespace) -> int:
    """Tokenize conversations into PREFIX.bin, PREFIX.idx and loss masks. All files appear, or none."""
    from megatron_dsmath.data.sft.build_set import build
    from megatron_dsmath.data.sft.example_encoder import Options
    from megatron_dsmath.data.sft.sources import select_sources

    named = select_sources(options.files, options.recipe, options.format, options.instruction)
    settings = Options(
        sequence_length=options.sequence_length,
        template=options.template,
        too_long=options.too_long,
        bad_lines=options.bad_lines,
        packing=options.packing,
        seed=options.seed,
        eod_token=options.eod_token,
    )
    with show_progress() as progress:
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
    """Print a packed sequence; the colour of a token shows its loss mask."""
    from megatron_dsmath.data.sft.show_sequence import load_sequence, print_sequence, write_page

    shown = load_sequence(options.prefix, options.index)
    if options.html:
        print(write_page(shown, options.tokenizer, options.html))
    else:
        print_sequence(shown, options.tokenizer, options.json)
    return EXIT_DONE
