"""Merge all .bin/.idx pairs of a folder, sorted by name, with Megatron-LM's flags.

    python tools/merge_datasets.py --input folder --output-prefix merged

Source: tools/merge_datasets.py of Megatron-LM. `dsmath data merge` takes a list of prefixes, in any order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.data.indexed.merging import merge
from megatron_dsmath.errors import EXIT_DONE, DsmathError, UsageError, show


def find_prefixes(folder: Path) -> list[Path]:
    """The prefixes of all .bin and .idx files in `folder`, sorted. Raises UsageError if there are none."""
    files = folder.iterdir() if folder.is_dir() else []
    names = sorted({file.stem for file in files if file.suffix in (".bin", ".idx")})
    if not names:
        raise UsageError(
            "there is no dataset to merge", where=folder, found="no .bin or .idx file", expected="a folder of datasets"
        )
    return [folder / name for name in names]


def main(arguments: Sequence[str]) -> int:
    """Merge the datasets; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input", required=True, type=Path, help="folder of .bin/.idx pairs")
    parser.add_argument("--output-prefix", required=True, help="outputs are PREFIX.bin, PREFIX.idx and PREFIX.json")
    flags = parser.parse_args(arguments)
    try:
        merged = merge(find_prefixes(flags.input), flags.output_prefix)
    except DsmathError as error:
        return show(error)
    print(f"{merged.prefix}: {merged.documents:,} documents, {merged.tokens:,} tokens")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
