"""Tokenize JSONL with Megatron-LM's flags into PREFIX_KEY_document.bin and .idx, byte for byte as Megatron-LM does.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix corpus --append-eod --workers 8 \
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model path/to/folder

Source: tools/preprocess_data.py of Megatron-LM with the tokenizers of megatron-core 0.16.1. The differences: every key
gets its .idx; the error for a bad line (also for a missing key) gives its file and line; outputs appear complete or not
at all; a sidecar PREFIX_KEY_document.json is added. `dsmath data tokenize` does the same with more options.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.data.tokenizing.tokenizer import HuggingFaceTokenizer, load_tokenizer
from megatron_dsmath.errors import EXIT_DONE, DataError, DsmathError, TokenizerError, show
from megatron_dsmath.files.progress import show_progress

SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
TEXT_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of Megatron-LM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input", required=True, help="JSONL (also .gz, .zst) or .parquet file, folder, or glob")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="fields to tokenize, one dataset each")
    parser.add_argument("--output-prefix", required=True, help="outputs are PREFIX_KEY_document.bin and .idx")
    parser.add_argument("--tokenizer-type", required=True, choices=("HuggingFaceTokenizer", *SENTENCEPIECE_TYPES))
    parser.add_argument("--tokenizer-model", required=True, help="tokenizer.json, its folder, or SentencePiece .model")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document token")
    parser.add_argument("--workers", type=int, default=1, help="number of processes; does not change the output")
    parser.add_argument("--log-interval", type=int, help="accepted and ignored")
    bos = parser.add_mutually_exclusive_group()
    bos.add_argument(
        "--tokenizer-hf-include-special-tokens",
        action="store_true",
        help="begin each document with BOS, as the post-processors of LLaMA-like tokenizers do",
    )
    bos.add_argument(
        "--tokenizer-hf-no-include-special-tokens", action="store_true", help="no BOS, which is the default"
    )
    return parser.parse_args(arguments)


def find_inputs(pattern: str) -> list[Path]:
    """The files of a path, folder or glob, sorted by name. Raises DataError if there are none."""
    path = Path(pattern)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(TEXT_ENDINGS))
    elif path.exists():
        files = [path]
    else:
        files = sorted(map(Path, glob.glob(pattern)))  # noqa: PTH207 - a pattern may be absolute
    if not files:
        raise DataError(
            "no input file was found",
            where=pattern,
            found="no file",
            expected=f"a file, a glob, or a folder with {', '.join(TEXT_ENDINGS)}",
            fix="check --input",
        )
    return files


def require_type(tokenizer_type: str, model: str) -> None:
    """Raise TokenizerError if the tokenizer does not have the given type."""
    tokenizer = load_tokenizer(model)
    if isinstance(tokenizer, HuggingFaceTokenizer) == (tokenizer_type in SENTENCEPIECE_TYPES):
        raise TokenizerError(
            "the tokenizer does not have the given type",
            where=model,
            found=tokenizer.path.name,
            expected="a SentencePiece .model" if tokenizer_type in SENTENCEPIECE_TYPES else "a tokenizer.json",
            fix="correct --tokenizer-type or --tokenizer-model",
        )


def main(arguments: Sequence[str]) -> int:
    """Tokenize every key in one pass; return the exit code."""
    try:
        flags = parse(arguments)
        files = find_inputs(flags.input)
        require_type(flags.tokenizer_type, flags.tokenizer_model)
        with show_progress() as report_progress:
            report = tokenize(
                files,
                flags.tokenizer_model,
                flags.output_prefix,
                field={key: f"_{key}_document" for key in flags.json_keys},
                workers=flags.workers,
                append_eod=flags.append_eod,
                prepend_bos=flags.tokenizer_hf_include_special_tokens,
                parse_special=True,
                report_progress=report_progress,
            )
        for prefix, tokens in report.tokens_of_dataset.items():
            print(f"{prefix}: {report.documents:,} documents, {tokens:,} tokens, {report.seconds:.1f} s")
    except DsmathError as error:
        return show(error)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
