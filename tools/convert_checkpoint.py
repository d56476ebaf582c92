#!/usr/bin/env python
"""Convert weights: Hugging Face <-> megatron_dsmath, and Megatron-LM (torch_dist) -> either.

python tools/convert_checkpoint.py --from hf --to dsmath --input models/deepseek-7b --output models/start
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.errors import EXIT_DONE, DsmathError, UsageError, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert; returns 0, or 78 after printing one error."""
    options = _parser().parse_args(arguments)
    try:
        print(_convert(options))
    except DsmathError as error:
        return show(error)
    return EXIT_DONE


def _convert(options: argparse.Namespace) -> object:
    way = (options.source, options.target)
    if options.source != "megatron" and (options.model_config or options.vocabulary_size is not None):
        raise UsageError(
            "the input contains its model's shape",
            where="--model-config, --vocabulary-size",
            expected="these flags only with --from megatron",
            fix="omit them",
        )
    if way == ("hf", "dsmath"):
        from megatron_dsmath.checkpoint.from_huggingface import import_folder

        return import_folder(options.input, options.output, gate=not options.no_gate)
    if way == ("dsmath", "hf"):
        from megatron_dsmath.checkpoint.to_huggingface import export

        return export(options.input, options.output, gate=not options.no_gate)
    if options.source == "megatron":
        return _from_megatron(options)
    raise UsageError(
        "there is nothing to convert", where="--from, --to", found=" to ".join(way), fix="give two different formats"
    )


def _from_megatron(options: argparse.Namespace) -> object:
    from megatron_dsmath.checkpoint.from_megatron import convert

    if options.model_config is None:
        raise UsageError(
            "the shape of a Megatron-LM model must be given",
            where="--model-config",
            expected="a Hugging Face config.json, or a folder with one and the tokenizer",
            fix="--model-config models/deepseek-7b/config.json",
        )
    return convert(
        options.input,
        options.output,
        options.target,
        options.model_config,
        options.vocabulary_size,
        gate=not options.no_gate,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--from", dest="source", required=True, choices=("hf", "dsmath", "megatron"))
    parser.add_argument("--to", dest="target", required=True, choices=("hf", "dsmath"))
    parser.add_argument("--input", type=Path, required=True, help="a Hugging Face folder, checkpoint, run or iteration")
    parser.add_argument("--output", type=Path, required=True, help="a directory that does not exist yet")
    parser.add_argument("--model-config", type=Path, help="with --from megatron: config.json, or a folder with one")
    parser.add_argument(
        "--vocabulary-size",
        type=int,
        metavar="N",
        help="with --from megatron: rows of the embedding without padding",
    )
    parser.add_argument("--no-gate", action="store_true", help="skip the comparison of logits and record that")
    return parser


if __name__ == "__main__":
    sys.exit(main())
